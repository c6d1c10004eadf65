"""Networks and their weights: where weights come from, models beside those of timm, model files in WORK."""
