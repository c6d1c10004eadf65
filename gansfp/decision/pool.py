"""The scores of all configurations of a set, and what all combinations of them share because it needs no labels.

Everything is computed from a block of configurations at a time. So beside the scores, one number a score is in memory
at most, however many folds and labellings are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import rankdata

from gansfp.labels import USED

ALIKE = 0.95  # rank correlation from which two configurations count as alike
OUTLIER = 4.0  # standard deviations to which a standardised score is clipped
_CELLS = 1 << 18  # scores in one block of configurations: some ten arrays as large as that are in memory

HeldOut = frozenset[int]  # the folds whose labels are not used


@dataclass(frozen=True, eq=False)
class Pool:
    """scores: (c, n) float32 or float64 of all configurations and real slices; folds: (n,), -1 for unknown slices."""

    scores: np.ndarray
    folds: np.ndarray

    def standard(self, members: list[int]) -> np.ndarray:
        """Returns the standardised scores of some configurations, (m, n) float64."""
        return standardised(self.scores[members].astype(np.float64, copy=False))

    @cached_property
    def alike(self) -> np.ndarray:
        """(c, c) bool: configurations that rank the real slices alike, or in reverse; a constant one is like none."""
        ranks = np.empty(self.scores.shape, np.float32)
        for part in self.blocks():
            of_part = rankdata(self.scores[part], axis=1)
            of_part -= of_part.mean(1, keepdims=True)
            norms = np.linalg.norm(of_part, axis=1, keepdims=True)
            ranks[part] = of_part / np.where(norms > 0, norms, 1)
        alike = np.empty((len(ranks), len(ranks)), bool)
        for start in range(0, len(ranks), 1024):  # in blocks, so that only bools are in memory for all pairs
            alike[start : start + 1024] = np.abs(ranks[start : start + 1024] @ ranks.T) >= ALIKE
        return alike

    def rows(self, held_out: HeldOut) -> np.ndarray:
        """Returns the labelled slices outside of the held-out folds: (n,) bool."""
        return (self.folds >= 0) & ~np.isin(self.folds, list(held_out))

    def blocks(self) -> Iterator[slice]:
        """Yields the configurations in blocks of at most _CELLS scores."""
        step = max(1, _CELLS // max(1, self.scores.shape[1]))
        return (slice(start, start + step) for start in range(0, len(self.scores), step))


class FoldAucs:
    """The AUC of every configuration under some labellings, on any folds.

    The AUC counts, for each pair of a used and a not used slice, which one has the higher score. These counts are kept
    for each pair of folds, so that a single sort of the scores gives the AUC on whatever folds are held out.

    labelings: (b, n) of the pool's slices, 1 for used. Takes c * b * folds^2 numbers.
    """

    def __init__(self, pool: Pool, labelings: np.ndarray) -> None:
        rows = np.argsort(pool.folds, kind="stable")[(pool.folds < 0).sum() :]  # the labelled slices, fold by fold
        self._folds, of_slice, sizes = np.unique(pool.folds[rows], return_inverse=True, return_counts=True)
        ends = np.cumsum(sizes)
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        used = (labelings[:, rows] == USED).astype(np.float64)
        self._used = np.stack([used[:, part].sum(1) for part in parts])
        self._sizes = sizes
        count = len(parts)
        # [b, i, j]: of the used slices of fold i, how many slices of fold j have a lower score; an equal one is half.
        self._below = np.empty((len(labelings), count, count, len(pool.scores)))
        for block in pool.blocks():
            for j, below in enumerate(_counts_below(pool.scores[block][:, rows], of_slice, count)):
                for i, part in enumerate(parts):
                    self._below[:, i, j, block] = used[:, part] @ below[:, part].T

    def without(self, number: int, held_out: HeldOut) -> np.ndarray:
        """Returns the AUCs (c,) under the labelling of that number on the folds that are not held out."""
        kept = np.flatnonzero(~np.isin(self._folds, list(held_out)))
        used = self._used[kept, number].sum()
        rank_sums = self._below[number][np.ix_(kept, kept)].sum((0, 1)) + used / 2
        return (rank_sums - used * (used + 1) / 2) / (used * (self._sizes[kept].sum() - used))


def _counts_below(scores: np.ndarray, of_slice: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Yields for each fold how many of its slices have a lower score than each slice, (c, n) float64; an equal score,
    also the slice's own, counts half. scores: (c, n); of_slice: (n,) folds 0 to count - 1."""
    order = np.argsort(scores, axis=1)
    ordered = np.take_along_axis(scores, order, 1)
    places = np.arange(scores.shape[1])
    begins = np.ones(scores.shape, bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    ends = np.roll(begins, -1, axis=1)
    ends[:, -1] = True
    last = np.minimum.accumulate(np.where(ends, places + 1, len(places))[:, ::-1], axis=1)[:, ::-1]
    folds = of_slice[order]
    for fold in range(count):
        before = np.zeros((len(scores), len(places) + 1), np.int32)
        np.cumsum(folds == fold, axis=1, out=before[:, 1:])
        below = np.empty(scores.shape)
        twice = np.take_along_axis(before, first, 1) + np.take_along_axis(before, last, 1)
        np.put_along_axis(below, order, twice / 2, 1)
        yield below


def area_under_curve(scores: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Returns the AUC (c,) of each row of scores (c, n); used: (n,) bool; ties count half (Mann and Whitney 1947)."""
    positives, negatives = used.sum(), (~used).sum()
    ranks = rankdata(scores, axis=1)
    return (ranks @ used.astype(np.float64) - positives * (positives + 1) / 2) / (positives * negatives)


def standardised(scores: np.ndarray, outlier: float = OUTLIER) -> np.ndarray:
    """Returns rows (c, n) of mean 0 and variance 1 over all slices, with outliers clipped; a constant row becomes 0."""
    constant = scores.max(1, keepdims=True) == scores.min(1, keepdims=True)
    scaled = (scores - scores.mean(1, keepdims=True)) / np.where(constant, 1, scores.std(1, keepdims=True))
    return np.where(constant, 0, np.clip(scaled, -outlier, outlier))
