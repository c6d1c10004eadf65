"""From vectors to scores and clusters: distances, dendrograms, membership scores, attribution."""
