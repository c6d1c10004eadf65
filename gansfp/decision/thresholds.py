"""Where a score becomes a decision: the threshold at or above which a slice is called used."""

from collections.abc import Callable

import numpy as np

from gansfp.errors import UsageError
from gansfp.statistics.metrics import binary


def choose_threshold(score: np.ndarray, truth: np.ndarray | None, rule: str | float) -> float:
    """The threshold that a rule sets; a slice is called used if its score is at or above it.

    score: (n,) float, truth: (n,) 0/1, not looked at by "median" or a rate. Rules: "f1" and "balanced_accuracy", the
    best over midpoints between neighbouring scores, and of equally good ones the highest, so that fewest are accused;
    "median", half of the slices; a number from 0 to 1, the share to be called used. Tied scores fall on one side
    together. Raises UsageError for another rule, for scores that are not finite, and for labels of one class.
    """
    score = np.asarray(score, dtype=np.float64)
    if not score.size or not np.isfinite(score).all():
        raise UsageError(f"threshold: got {score.size} scores, expected one or more, all finite")
    levels, counts = np.unique(score, return_counts=True)
    levels, called = levels[::-1], np.cumsum(counts[::-1])
    if rule == "median":
        return float(np.median(score))
    if isinstance(rule, (int, float)) and 0 <= rule <= 1:
        wanted = int(np.floor(rule * len(score) + 0.5))
        return (
            _below(levels, int(np.searchsorted(called, wanted))) if wanted else float(np.nextafter(levels[0], np.inf))
        )
    if rule not in CRITERIA:
        raise UsageError(
            f"threshold rule: got {rule!r}, expected one of {[*CRITERIA, 'median']} or a share from 0 to 1"
        )
    if truth is None or len(np.unique(truth)) < 2:
        raise UsageError(f"threshold rule {rule!r} needs slices labelled used and not used")
    used = binary(truth, "truth")
    order = np.argsort(-score, kind="stable")
    found = np.cumsum(used[order])[called - 1]
    return _below(levels, int(np.argmax(CRITERIA[rule](found, called - found, used.sum(), (1 - used).sum()))))


def _f1(found: np.ndarray, wrong: np.ndarray, used: int, unused: int) -> np.ndarray:
    return 2 * found / (found + wrong + used)


def _balanced_accuracy(found: np.ndarray, wrong: np.ndarray, used: int, unused: int) -> np.ndarray:
    # over the common denominator, in whole numbers, so that equally good thresholds are equal
    return found * unused + (unused - wrong) * used


CRITERIA: dict[str, Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]] = {
    "f1": _f1,
    "balanced_accuracy": _balanced_accuracy,
}


def _below(levels: np.ndarray, i: int) -> float:
    """A threshold between the i-th of the falling scores and the next; the lowest score itself after the last."""
    if i == len(levels) - 1:
        return float(levels[-1])
    middle = levels[i + 1] + (levels[i] - levels[i + 1]) / 2
    return float(middle if middle > levels[i + 1] else levels[i])
