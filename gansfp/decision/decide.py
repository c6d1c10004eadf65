"""From a search's scores to decisions about the real slices of one membership set."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from gansfp.decision.stacking import Combined, combine
from gansfp.decision.thresholds import DEFAULT_RULE, choose_threshold, threshold_rule
from gansfp.errors import UsageError
from gansfp.labels import UNKNOWN
from gansfp.rows import as_slice


@dataclass(frozen=True)
class FinalConfig:
    """How the final decisions are made.

    combine: best, stack, or None for whichever cross-validates better. alpha: the level of the verdicts. fdr: the share
    of wrong names that a list of patients may have on average. match: also compare patients of both classes who are
    alike by themselves. power: measure how small a leak would have been seen. Raises UsageError where so few
    permutations allow no p-value below alpha.
    """

    combine: str | None = None
    rule: str | float = DEFAULT_RULE
    permutations: int = 1000
    seed: int = 0
    alpha: float = 0.05
    fdr: float = 0.1
    match: bool = False
    power: bool = True

    def __post_init__(self) -> None:
        if 1 / (1 + self.permutations) >= self.alpha:
            needed = math.floor(1 / self.alpha)
            raise UsageError(
                f"permutations: got {self.permutations}, expected at least {needed}: with fewer no p-value can fall "
                f"below {self.alpha:g} (--alpha)"
            )


@dataclass(frozen=True, eq=False)
class Decision:
    """What is decided about the real slices of one set.

    combined: its members are rows of all the scores. decision: (n,) 0/1; a labelled slice is decided by the threshold
    that the other folds choose. cross_validated_auc: of each combination that could be chosen.
    """

    combined: Combined
    threshold: float
    decision: np.ndarray
    cross_validated_auc: dict[str, float]


def decide_membership(
    scores: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    combination: str | None = None,
    rule: str | float = DEFAULT_RULE,
    learns: np.ndarray | None = None,
) -> Decision:
    """Combines the scores (c, n) of all configurations, and decides about every slice.

    labels: (n,) 1, 0, or -1 for unknown; folds: (n,), -1 for unknown. combination: "best", "stack", or None for
    whichever cross-validates better. rule: the threshold's, as in choose_threshold; "median" and a rate look at the
    unknown slices' scores alone. learns: (c,) bool, configurations that learn from labels
    (membership.learns_from_labels), which are left out unless there are no others.
    """
    rows = rows_to_combine(learns)
    combined = combine(combination, scores[rows], labels, folds)
    places = np.arange(len(scores))[rows]
    combined = replace(combined, members=tuple(int(places[member]) for member in combined.members))
    labelled = labels != UNKNOWN
    decision = np.zeros(len(labels), np.int64)
    decision[labelled] = decide_by_other_folds(combined.score[labelled], labels[labelled], folds[labelled], rule)
    rule_slices = labelled if threshold_rule(rule).needs_labels or labelled.all() else ~labelled
    threshold = choose_threshold(combined.score[rule_slices], labels[rule_slices], rule)
    decision[~labelled] = combined.score[~labelled] >= threshold
    return Decision(combined, threshold, decision, combined.aucs)


def rows_to_combine(learns: np.ndarray | None) -> np.ndarray | slice:
    """Returns the rows of the configurations to combine: those that do not learn from labels, or all if there are none.

    A slice where these come first: NumPy then takes their scores without a copy. learns: (c,) bool.
    """
    return slice(None) if learns is None or learns.all() else as_slice(np.flatnonzero(~learns))


def decide_by_other_folds(score: np.ndarray, labels: np.ndarray, folds: np.ndarray, rule: str | float) -> np.ndarray:
    """Returns (n,) 0/1 decisions on labelled slices, each by the threshold that the other folds choose."""
    decision = np.zeros(len(score), np.int64)
    for fold in np.unique(folds):
        others = folds != fold
        decision[~others] = score[~others] >= choose_threshold(score[others], labels[others], rule)
    return decision
