"""Networks and their weights: the sources of weights, models that timm does not have, model files in WORK."""
