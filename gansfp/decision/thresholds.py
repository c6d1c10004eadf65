"""Threshold rules: each turns scores into a threshold; a slice at or above the threshold is called used.

A new named rule is one entry of RULES, which the command line, its help and the decisions read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from gansfp.errors import UsageError
from gansfp.statistics.metrics import binary


@dataclass(frozen=True)
class ThresholdRule:
    """A way to choose a threshold.

    needs_labels: whether the rule needs labelled slices of both classes. choose: takes finite scores (n,) float64,
    n > 0, and truth (n,) int64 0/1, which is empty for a rule that needs no labels; returns the threshold.
    """

    needs_labels: bool
    choose: Callable[[np.ndarray, np.ndarray], float]


def _f1(
    true_positives: np.ndarray, false_positives: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> np.ndarray:
    return 2 * true_positives / (true_positives + false_positives + positives)


def _balanced_accuracy(
    true_positives: np.ndarray, false_positives: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> np.ndarray:
    # Whole numbers over the common denominator: equally good thresholds get exactly equal values.
    return true_positives * negatives + (negatives - false_positives) * positives


def _best(score: np.ndarray, truth: np.ndarray, criterion: Callable[..., np.ndarray]) -> float:
    """Returns the threshold with the largest criterion, the highest of equally good ones: it accuses the fewest."""
    levels, called = _levels(score)
    order = np.argsort(-score, kind="stable")
    true_positives = np.cumsum(truth[order])[called - 1]
    values = criterion(true_positives, called - true_positives, truth.sum(), (1 - truth).sum())
    return _between(levels, int(np.argmax(values)))


def _median(score: np.ndarray, truth: np.ndarray) -> float:
    return float(np.median(score))


def _share(score: np.ndarray, truth: np.ndarray, share: float) -> float:
    """Returns a threshold that calls this share of the slices used, rounded to whole slices, and ties all together."""
    levels, called = _levels(score)
    count = int(np.floor(share * len(score) + 0.5))
    if not count:
        return float(np.nextafter(levels[0], np.inf))
    return _between(levels, int(np.searchsorted(called, count)))


RULES: dict[str, ThresholdRule] = {
    "f1": ThresholdRule(True, partial(_best, criterion=_f1)),
    "balanced_accuracy": ThresholdRule(True, partial(_best, criterion=_balanced_accuracy)),
    "median": ThresholdRule(False, _median),
}
DEFAULT_RULE = "balanced_accuracy"


def threshold_rule(rule: str | float) -> ThresholdRule:
    """Returns the rule of a name in RULES, or of a number from 0 to 1: the share of slices to call used.

    Raises UsageError for anything else.
    """
    if isinstance(rule, (int, float)) and 0 <= rule <= 1:
        return ThresholdRule(False, partial(_share, share=rule))
    if rule not in RULES:
        raise UsageError(f"threshold rule: got {rule!r}, expected one of {list(RULES)} or a share from 0 to 1")
    return RULES[str(rule)]


def parse_rule(text: str) -> str | float:
    """Reads a threshold rule from the command line: a name in RULES, or a share such as 0.5. Raises UsageError."""
    try:
        rule: str | float = float(text)
    except ValueError:
        rule = text
    try:
        threshold_rule(rule)
    except UsageError as error:
        raise UsageError(f"--decide: got {text!r}, expected one of {list(RULES)} or a rate from 0 to 1") from error
    return rule


def choose_threshold(score: np.ndarray, truth: np.ndarray | None, rule: str | float) -> float:
    """Returns the threshold that a rule sets; a slice is called used if its score is at or above it.

    score: (n,) float; truth: (n,) 0/1, ignored by a rule that needs no labels. Rules: "f1" and "balanced_accuracy"
    take the best threshold among midpoints between neighbouring scores, and the highest of equally good ones, so that
    the fewest slices are accused; "median" calls half of the slices used; a number from 0 to 1 is the share to call
    used. Tied scores are called used together or not at all. Raises UsageError for another rule, for no scores or
    scores that are not finite, and where a rule needs labels of both classes and does not get them.
    """
    score = np.asarray(score, dtype=np.float64)
    if not score.size or not np.isfinite(score).all():
        raise UsageError(f"threshold: got {score.size} scores, expected one or more, all finite")
    chosen = threshold_rule(rule)
    if not chosen.needs_labels:
        return chosen.choose(score, np.empty(0, np.int64))
    if truth is None or len(np.unique(truth)) < 2:
        raise UsageError(f"threshold rule {rule!r} needs slices labelled used and not used")
    return chosen.choose(score, binary(truth, "truth"))


def _levels(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct scores, falling (m,), and how many slices score at or above each of them (m,)."""
    levels, counts = np.unique(score, return_counts=True)
    return levels[::-1], np.cumsum(counts[::-1])


def _between(levels: np.ndarray, i: int) -> float:
    """Returns a threshold between falling scores i and i + 1; the lowest score itself if i is the last."""
    if i == len(levels) - 1:
        return float(levels[-1])
    middle = levels[i + 1] + (levels[i] - levels[i + 1]) / 2
    return float(middle if middle > levels[i + 1] else levels[i])
