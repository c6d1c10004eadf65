"""Traces that a file or a program leaves in slices, and slices without them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

LEVELS = 256
WIDTH = 9  # grey levels over which a histogram is smoothed


def histograms(pixels: Iterable[np.ndarray]) -> np.ndarray:
    """The share of each grey level in each slice: (n, 256) float64. pixels: each (256, 256) uint8."""
    return np.stack([np.bincount(slice_.ravel(), minlength=LEVELS) / slice_.size for slice_ in pixels])


def combs(shares: np.ndarray) -> np.ndarray:
    """The teeth of a histogram: (n, 256) float64. A program that stretches grey levels, or decodes with other numbers,
    leaves gaps and peaks at fixed distances (Stamm and Liu 2010).

    shares: (n, 256), of `histograms`. Square roots, so that all levels vary alike, without their running median.
    """
    roots = np.sqrt(shares)
    return roots - ndimage.median_filter(roots, (1, WIDTH), mode="nearest")


def with_one_histogram(pixels: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Gives the slices (n, 256, 256) uint8 of each group (n,) together the same histogram, the mean of all, so that
    grey levels tell no group from another.

    One rising map a group, so that slices of a group differ as before. Black pixels stay black: how much of a slice is
    air is no trace of a file. Each other pixel is a random number that rounds to its level, so that no level stays
    empty.
    """
    rng = np.random.default_rng(seed)
    shares = histograms(pixels)[:, 1:]
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-12)
    common = np.cumsum(shares.mean(0))
    edges = np.arange(LEVELS) + 0.5  # between the levels from 1
    equal = np.zeros_like(pixels)
    for group in np.unique(groups):
        below = np.concatenate([[0], np.cumsum(shares[groups == group].mean(0))])
        for row in np.flatnonzero(groups == group):
            bright = pixels[row] > 0
            levels = pixels[row][bright] + rng.uniform(-0.5, 0.5, bright.sum())
            ranks = np.interp(levels, edges, below) * common[-1]
            equal[row][bright] = 1 + np.searchsorted(common, ranks).clip(max=LEVELS - 2)
    return equal
