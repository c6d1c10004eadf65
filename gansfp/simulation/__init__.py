"""Simulated challenges with known truth: a chest phantom, generators, patients, the whole challenge."""
