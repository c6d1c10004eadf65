"""The published systems: recipes, decision rules, baselines, and the table of results."""
