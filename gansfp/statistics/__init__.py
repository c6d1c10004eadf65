"""Metrics, confidence intervals, resampling by group, permutation tests."""
