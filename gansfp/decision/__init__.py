"""From scores to decisions: thresholds, combinations, the final step, result files, the printed summary."""
