"""The 60 published systems: their recipes, their decision rules, baselines, the table of results."""
