"""From many scores to one: the best single configuration, or a stack of the best and most different.

Both are judged by nested cross-validation over the same folds: what is chosen or fitted for a fold comes from the
scores and labels of the others, so that a figure is not the best of a thousand chances. (The scores themselves are
cross-fitted already; those that learn from labels saw, for the other folds, this fold's. That remainder is small and
is measured by a test on sets without a leak.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from gansfp.errors import UsageError
from gansfp.membership import UNKNOWN, USED

MEMBERS = 20  # configurations in a stack
ALIKE = 0.95  # rank correlation from which two configurations say the same
STRENGTH = 0.1  # inverse regularisation of the stack, as scikit-learn's C, on scores of unit variance
OUTLIER = 4.0  # standard deviations to which a standardised score is clipped
COMBINATIONS = ("best", "stack")


@dataclass(frozen=True, eq=False)
class Combined:
    """What comes of many scores, for every real slice of a set.

    score: (n,) float64, for labelled slices out of fold; members: rows that the unknown slices' score was made of;
    probability: (n,) calibrated probability of having been used; coefficients: (members,) of the stack, else of 1.
    """

    name: str
    score: np.ndarray
    probability: np.ndarray
    members: tuple[int, ...]
    coefficients: tuple[float, ...]


def area_under_curve(scores: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(c,) AUC of each row of scores (c, n) for the labels used (n,) bool, ties half (Mann and Whitney 1947)."""
    ranks = rankdata(scores, axis=1)
    positives, negatives = used.sum(), (~used).sum()
    return (ranks[:, used].sum(1) - positives * (positives + 1) / 2) / (positives * negatives)


def choose_members(scores: np.ndarray, used: np.ndarray, most: int = MEMBERS, alike: float = ALIKE) -> list[int]:
    """The best rows of scores (c, n) by AUC, each less than `alike` in rank correlation with those before it.

    Equal AUCs go by row. A constant row is never chosen, unless there is no other.
    """
    order = np.argsort(-area_under_curve(scores, used), kind="stable")
    ranks = rankdata(scores, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    norms = np.linalg.norm(ranks, axis=1)
    chosen: list[int] = []
    for row in order:
        if norms[row] == 0:
            continue
        if chosen and np.abs(ranks[chosen] @ ranks[row] / (norms[chosen] * norms[row])).max() >= alike:
            continue
        chosen.append(int(row))
        if len(chosen) == most:
            break
    return chosen or [int(order[0])]


def combine(name: str, scores: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> Combined:
    """Combines scores (c, n) of all real slices by the method `name`, "best" or "stack".

    labels: (n,) 1, 0 or -1 for unknown; folds: (n,), -1 for unknown. Unknown slices are scored by what all labelled
    ones choose, labelled ones by what the other folds choose. Raises UsageError for another name.
    """
    if name not in COMBINATIONS:
        raise UsageError(f"combine: got {name!r}, expected one of {list(COMBINATIONS)}")
    fit = _FITS[name]
    standard = standardised(scores)
    labelled = labels != UNKNOWN
    score = np.empty(len(labels))
    for fold in np.unique(folds[labelled]):
        others, rows = labelled & (folds != fold), labelled & (folds == fold)
        members, coefficients, shift = fit(standard[:, others], labels[others] == USED)
        score[rows] = coefficients @ standard[np.ix_(members, rows)] + shift
    members, coefficients, shift = fit(standard[:, labelled], labels[labelled] == USED)
    score[~labelled] = coefficients @ standard[np.ix_(members, ~labelled)] + shift
    probability = _calibrated(score, labels)
    return Combined(name, score, probability, tuple(members), tuple(float(c) for c in coefficients))


def standardised(scores: np.ndarray) -> np.ndarray:
    """Rows (c, n) of mean 0 and variance 1 over all real slices, labelled or not; outliers clipped; constants 0."""
    deviation = scores.std(1, keepdims=True)
    scaled = (scores - scores.mean(1, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    return np.clip(scaled, -OUTLIER, OUTLIER)


Fit = tuple[Sequence[int], np.ndarray, float]


def _fit_best(scores: np.ndarray, used: np.ndarray) -> Fit:
    return [int(np.argmax(area_under_curve(scores, used)))], np.ones(1), 0.0


def _fit_stack(scores: np.ndarray, used: np.ndarray) -> Fit:
    members = choose_members(scores, used)
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000).fit(scores[members].T, used)
    return members, model.coef_[0], float(model.intercept_[0])


_FITS: dict[str, Callable[[np.ndarray, np.ndarray], Fit]] = {"best": _fit_best, "stack": _fit_stack}


def _calibrated(score: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Platt's calibration (1999), fitted to the out-of-fold scores of the labelled slices, for all of them."""
    labelled = labels != UNKNOWN
    used = labels[labelled] == USED
    center, scale = score[labelled].mean(), max(score[labelled].std(), 1e-12)
    column = ((score - center) / scale)[:, None]
    return LogisticRegression(C=1.0).fit(column[labelled], used).predict_proba(column)[:, 1]
