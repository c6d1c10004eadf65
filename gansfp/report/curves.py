"""What only figures show: the ROC curve with a band, and how well probabilities are calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from gansfp.statistics.resampling import bootstrap_weights, group_codes, group_labels

POINTS = 100  # of a curve, at most
_CELLS = 1 << 20  # numbers in one block of resamples: bounds the memory


@dataclass(frozen=True, eq=False)
class Curve:
    """A ROC curve at rising false positive rates, (k,) each; low, high: its 95 % band, nan where there is none.

    The true positive rate is that of `tpr_at_fpr`: the largest that a threshold reaches with at most so many false
    positives.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    low: np.ndarray
    high: np.ndarray


def roc_curve(
    score: np.ndarray, truth: np.ndarray, groups: np.ndarray | None = None, resamples: int = 200, seed: int = 0
) -> Curve:
    """Returns the curve with its band by resampling whole groups, as the intervals of metrics.json do; each point has
    an interval of its own.

    score: (n,), higher means more likely used; truth: (n,) 1 or 0, other slices are left out, as are those whose score
    is not finite; groups: (n,) or None. The rates are those that the not-used slices allow, from one of them upwards.
    There is no band with fewer than two groups of a class, and no curve where a class is missing.
    """
    truth, score = np.asarray(truth), np.asarray(score, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(score) & np.isin(truth, (0, 1)))
    truth, score, codes = (
        truth[rows],
        score[rows],
        group_codes(None if groups is None else np.asarray(groups)[rows], len(rows)),
    )
    negatives = int((truth == 0).sum())
    if not 0 < negatives < len(truth):
        return Curve(*np.empty((4, 0)))
    rates = np.unique(np.geomspace(1, negatives, POINTS).round()) / negatives
    value = _rates_found(score, truth, np.ones((1, len(truth))), rates)[0]
    fewest = min(len(np.unique(codes[truth == label])) for label in (0, 1))
    if fewest < 2:
        return Curve(rates, value, *np.full((2, len(rates)), np.nan))
    blocks = bootstrap_weights(group_labels(truth, codes), resamples, seed, max(1, _CELLS // len(truth)))
    samples = np.concatenate([_rates_found(score, truth, weights[:, codes], rates) for weights in blocks])
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    # no failure, or nothing but failures: the next group may differ, and so many groups bound how often
    unseen = 1 - 0.025 ** (1 / fewest)
    low = np.where(value == 1, np.minimum(low, 1 - unseen), np.minimum(low, value))
    high = np.where(value == 0, np.maximum(high, unseen), np.maximum(high, value))
    return Curve(rates, value, low, high)


def _rates_found(score: np.ndarray, truth: np.ndarray, weights: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Returns the true positive rate at each false positive rate, of each row of weights: (b, k).

    score, truth: (n,); weights: (b, n), how often each slice counts.
    """
    order = np.argsort(-score, kind="stable")
    levels = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # the last slice of each distinct score
    weights = weights[:, order]
    found = np.cumsum(weights * truth[order], axis=1)[:, levels]
    wrong = np.cumsum(weights * (1 - truth[order]), axis=1)[:, levels]
    best = np.zeros((len(weights), len(rates)))
    for row, (of_row, wrong_of_row) in enumerate(zip(found, wrong, strict=True)):
        allowed = np.searchsorted(wrong_of_row, rates * wrong_of_row[-1] + 1e-9, side="right")
        best[row] = np.append(0, of_row)[allowed] / of_row[-1]
    return best


@dataclass(frozen=True, eq=False)
class Bins:
    """Slices by their probability, (b,) each: the middle of a bin, its mean probability, the share of its slices that
    was used with the 95 % interval, and how many they are."""

    middle: np.ndarray
    probability: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray


def calibration_bins(probability: np.ndarray, truth: np.ndarray, bins: int = 10) -> Bins:
    """Returns bins of equal width that have slices.

    probability: (n,), 0 to 1; truth: (n,) 1 or 0. Slices of another truth, or without a probability, are left out.
    The intervals are those of Wilson (1927), which take slices as independent: those of few patients vary more.
    """
    truth, probability = np.asarray(truth), np.asarray(probability, dtype=np.float64)
    known = np.isfinite(probability) & np.isin(truth, (0, 1))
    truth, probability = truth[known], probability[known].clip(0, 1)
    of_bin = np.minimum((probability * bins).astype(np.int64), bins - 1)
    count = np.bincount(of_bin, minlength=bins)
    filled = count > 0
    used, summed = (np.bincount(of_bin, weights, bins)[filled] for weights in (truth, probability))
    trials = [binomtest(int(k), int(n)) for k, n in zip(used, count[filled], strict=True)]
    low, high = np.array([trial.proportion_ci(method="wilson") for trial in trials]).reshape(-1, 2).T
    middle = (np.flatnonzero(filled) + 0.5) / bins
    return Bins(middle, summed / count[filled], used / count[filled], low, high, count[filled])
