"""Combines many scores into one: the best single configuration, or a stack of good and different configurations.

Everything that is chosen or fitted for a labelled slice uses the labels of other folds only, including the choice
between best and stack (nested cross-validation). Otherwise the reported AUC would be the maximum over thousands of
configurations. This is sound for scores that need no labels. A score that learns from labels was computed, for the
slices of the other folds, from labels that include this fold's. On simulated sets without a leak, a stack of such
scores reached a cross-validated AUC of 0.70. Therefore decide.py leaves them out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from gansfp.decision.pool import FoldAucs, HeldOut, Pool, area_under_curve, standardised
from gansfp.errors import UsageError
from gansfp.labels import UNKNOWN, USED
from gansfp.statistics.logistic import logistic
from gansfp.statistics.resampling import count_permutations, group_codes, permuted_within_folds

MEMBERS = 40  # configurations in a stack
STRENGTH = 0.3  # inverse regularisation of the stack, as scikit-learn's C, on scores of unit variance
REFITS = 200  # the most permutations for which the whole combination is fitted again, at the usual level
_CELLS = 1 << 22  # numbers that labellings share in memory at once: 32 MB


@dataclass(frozen=True, eq=False)
class Fit:
    """One fitted combination.

    members: rows of the configurations; coefficients: of the members; score: (n,) of all real slices, standardised.
    """

    members: tuple[int, ...]
    coefficients: tuple[float, ...]
    score: np.ndarray


@dataclass(frozen=True, eq=False)
class Combined:
    """The combined score of every real slice of a set.

    name: "best" or "stack"; score: (n,) float64, out of fold for labelled slices; probability: (n,) calibrated
    probability that the slice was used; members, coefficients: of the fit for the unknown slices; aucs: the
    cross-validated AUC of each combination that could be chosen; of_fits: (f, n), row i by the fit without fold i.
    """

    name: str
    score: np.ndarray
    of_fits: np.ndarray
    probability: np.ndarray
    members: tuple[int, ...]
    coefficients: tuple[float, ...]
    aucs: dict[str, float]


def _best(pool: Pool, aucs: np.ndarray, held_out: HeldOut, used: np.ndarray) -> tuple[list[int], np.ndarray, float]:
    return [int(np.argmax(aucs))], np.ones(1), 0.0


def _stack(pool: Pool, aucs: np.ndarray, held_out: HeldOut, used: np.ndarray) -> tuple[list[int], np.ndarray, float]:
    members = choose_members(aucs, pool.alike)
    coefficients, intercept = logistic(pool.standard(members)[:, pool.rows(held_out)].T, used, STRENGTH)
    return members, coefficients, intercept


# Each returns the members, their coefficients and the intercept, from the AUCs (c,) of all configurations and from the
# labels outside of the held-out folds.
COMBINATIONS: dict[str, Callable[[Pool, np.ndarray, HeldOut, np.ndarray], tuple[list[int], np.ndarray, float]]] = {
    "best": _best,
    "stack": _stack,
}


class Nested:
    """Combinations of a pool under nested cross-validation for one labelling.

    labels: (n,) 1, 0 or -1 for unknown. combination: "best", "stack", or None to choose between them. aucs: of that
    labelling, as FoldAucs gives them.
    """

    def __init__(
        self,
        pool: Pool,
        labels: np.ndarray,
        combination: str | None = None,
        aucs: Callable[[HeldOut], np.ndarray] | None = None,
    ) -> None:
        if combination is not None and combination not in COMBINATIONS:
            raise UsageError(f"combine: got {combination!r}, expected one of {list(COMBINATIONS)}")
        self.pool, self.labels = pool, labels
        self.names = (combination,) if combination else tuple(COMBINATIONS)
        self.folds = frozenset(np.unique(pool.folds[pool.folds >= 0]).tolist())
        self._aucs_without = aucs or functools.partial(FoldAucs(pool, labels[None]).without, 0)
        self._fits: dict[tuple[str, HeldOut], Fit] = {}
        self._aucs: dict[HeldOut, np.ndarray] = {}

    def fit(self, name: str, held_out: HeldOut = frozenset()) -> Fit:
        """Fits the combination `name` to the labels outside of the held-out folds; returns it for every real slice."""
        if (name, held_out) not in self._fits:
            used = self.labels[self.pool.rows(held_out)] == USED
            if held_out not in self._aucs:  # all combinations ask for them
                self._aucs[held_out] = self._aucs_without(held_out)
            members, coefficients, intercept = COMBINATIONS[name](self.pool, self._aucs[held_out], held_out, used)
            score = coefficients @ self.pool.standard(members) + intercept
            score = standardised(score[None], np.inf)[0]  # so that the fits of different folds are comparable
            self._fits[name, held_out] = Fit(tuple(members), tuple(coefficients.tolist()), score)
        return self._fits[name, held_out]

    def auc(self, name: str, held_out: HeldOut = frozenset()) -> float:
        """Returns the cross-validated AUC of a combination on the folds that are not held out. The score of each fold
        comes from a fit to the others of these folds."""
        score = np.zeros(len(self.labels))
        for fold in self.folds - held_out:
            rows = self.pool.folds == fold
            score[rows] = self.fit(name, held_out | {fold}).score[rows]
        rows = self.pool.rows(held_out)
        return float(area_under_curve(score[None, rows], self.labels[rows] == USED)[0])

    def choose(self, held_out: HeldOut = frozenset()) -> str:
        """Returns the combination with the larger cross-validated AUC on the folds that are not held out, or the first
        one where a single fold is left."""
        if len(self.names) == 1 or len(self.folds - held_out) < 2:
            return self.names[0]
        return max(self.names, key=lambda name: self.auc(name, held_out))

    def out_of_fold(self) -> np.ndarray:
        """Returns the score (n,) of each labelled slice, chosen and fitted on the other folds; 0 for unknown slices."""
        score = np.zeros(len(self.labels))
        for fold in self.folds:
            rows, held_out = self.pool.folds == fold, frozenset({fold})
            score[rows] = self.fit(self.choose(held_out), held_out).score[rows]
        return score


def nested_for(pool: Pool, labelings: np.ndarray, combination: str | None) -> Iterator[Nested]:
    """Yields the combinations for each of many labellings (b, n), which share their AUCs."""
    folds = len(np.unique(pool.folds[pool.folds >= 0]))
    step = max(1, _CELLS // (len(pool.scores) * folds**2))
    for start in range(0, len(labelings), step):
        part = labelings[start : start + step]
        aucs = FoldAucs(pool, part)
        for number, labels in enumerate(part):
            yield Nested(pool, labels, combination, functools.partial(aucs.without, number))


def combine(combination: str | None, scores: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> Combined:
    """Combines the scores (c, n) of all real slices.

    combination: "best", "stack", or None for the one with the larger cross-validated AUC; labels: (n,) 1, 0 or -1 for
    unknown; folds: (n,), -1 for unknown. Raises UsageError for another combination.
    """
    nested = Nested(Pool(scores, folds), labels, combination)
    with threadpool_limits(1, user_api="blas"):  # the products are small: threads would wait for each other
        name = nested.choose()
        fit = nested.fit(name)
        score = np.where(labels == UNKNOWN, fit.score, nested.out_of_fold())
        held_out = [frozenset({fold}) for fold in sorted(nested.folds)]
        of_fits = np.stack([nested.fit(nested.choose(fold), fold).score for fold in held_out])
        aucs = {candidate: nested.auc(candidate) for candidate in nested.names}
    return Combined(name, score, of_fits, calibrated(score, labels), fit.members, fit.coefficients, aucs)


def count_refits(permutations: int, alpha: float) -> int:
    """Returns for how many of the permutations the combination is fitted again: more for a small level alpha, so that
    p-values can fall below it."""
    return min(permutations, max(REFITS, math.ceil(10 / alpha)))


def p_value_refitted(
    combination: str | None,
    scores: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    groups: np.ndarray,
    seed: int,
    refits: int = REFITS,
) -> tuple[float, float]:
    """Tests whether labels unrelated to the scores could give so large a cross-validated AUC.

    scores: (c, n) of configurations that do not learn from labels; groups: (n,); the other arguments as in `combine`.
    Returns the p-value and the smallest p-value that was possible.

    Labels of whole groups are permuted within folds, and for each permutation all choices and fits are made again. This
    is necessary: each fold is scored by a fit to the other folds, and these by fits to it, so the AUC of out-of-fold
    scores varies more than that of fixed scores (for a linear score its variance is twice as large). With fixed scores,
    up to 20 % of the p-values of simulated sets without a leak were below 0.05.
    """
    pool, labelled = Pool(scores, folds), labels != UNKNOWN
    reachable = 1.0
    for fold in np.unique(folds[labelled]):
        rows = folds == fold
        reachable *= count_permutations(labels[rows], group_codes(groups[rows], int(rows.sum())))
    labelings = np.concatenate([labels[None], permuted_within_folds(labels, groups, folds, refits, seed + 1)])
    # In one thread: the steps are so small that threads wait for each other, and two take longer than one.
    with threadpool_limits(1, user_api="blas"):
        observed, *permuted = (
            float(area_under_curve(nested.out_of_fold()[None, labelled], labels_of[labelled] == USED)[0])
            for nested, labels_of in zip(nested_for(pool, labelings, combination), labelings, strict=True)
        )
    reached = sum(auc >= observed - 1e-12 for auc in permuted)
    return (1 + reached) / (1 + refits), max(1 / (1 + refits), 1 / reachable)


def choose_members(aucs: np.ndarray, alike: np.ndarray, most: int = MEMBERS) -> list[int]:
    """Returns the rows of the best configurations by AUC (c,), each unlike all before it; equal AUCs go by row.

    alike: (c, c) bool. A constant configuration is not even alike to itself, and is chosen only if all are constant.
    """
    eligible = alike.diagonal().copy()
    chosen: list[int] = []
    for row in np.argsort(-aucs, kind="stable"):
        if eligible[row]:
            chosen.append(int(row))
            eligible &= ~alike[row]
            if len(chosen) == most:
                break
    return chosen or [0]


def calibrated(score: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the probability (n,) that a slice was used; it never falls as the score rises.

    Platt's calibration (1999), fitted to the out-of-fold scores of the labelled slices. Where these rank not used
    slices above used ones, the probability is the share of used slices among the labelled. The calibration assumes that
    this share is the same among the unknown slices.
    """
    labelled = labels != UNKNOWN
    used = labels[labelled] == USED
    column = standardised(score[None], np.inf)[0][:, None]
    model = LogisticRegression(C=1.0).fit(column[labelled], used)
    if model.coef_[0, 0] <= 0:
        return np.full(len(score), used.mean())
    return model.predict_proba(column)[:, 1]
