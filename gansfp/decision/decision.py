"""From a search's scores to decisions about slices, and what these are worth: figures, chance levels, p-values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gansfp.decision.stacking import REFITS, Combined, combine, p_value_refitted
from gansfp.decision.thresholds import DEFAULT_RULE, choose_threshold, threshold_rule
from gansfp.labels import UNKNOWN
from gansfp.statistics.intervals import Estimate, attribution_figures, membership_figures, support
from gansfp.statistics.metrics import attribution_chance, f1_all_used, membership_chance
from gansfp.statistics.permutation import p_values_ari, p_values_auc


@dataclass(frozen=True)
class FinalConfig:
    """How the final decisions are made. combine: best, stack, or None for whichever cross-validates better."""

    combine: str | None = None
    rule: str | float = DEFAULT_RULE
    permutations: int = 1000
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is decided about the real slices of one set.

    combined: its members are rows of all the scores; decision: (n,) 0/1, for labelled slices by a threshold of the
    other folds; cross_validated_auc: of each combination that there was to choose from.
    """

    combined: Combined
    threshold: float
    decision: np.ndarray
    cross_validated_auc: dict[str, float]


def decide_membership(
    scores: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    wanted: str | None = None,
    rule: str | float = DEFAULT_RULE,
    learns: np.ndarray | None = None,
) -> Verdict:
    """Combines the scores (c, n) of all configurations and decides.

    labels: (n,) 1, 0, or -1 for unknown; folds: (n,), -1 for unknown. wanted: "best", "stack", or None for whichever
    cross-validates better. rule: the threshold's, as in choose_threshold; "median" and a rate look at the unknown
    slices' scores alone. learns: (c,) bool, configurations that learn from labels (membership.learns_from_labels),
    which are left out unless there are no others.
    """
    rows = np.flatnonzero(_free(scores, learns))
    combined = combine(wanted, scores[rows], labels, folds)
    combined = replace(combined, members=tuple(int(rows[member]) for member in combined.members))
    labelled = labels != UNKNOWN
    decision = np.zeros(len(labels), np.int64)
    decision[labelled] = decide_by_other_folds(combined.score[labelled], labels[labelled], folds[labelled], rule)
    ruling = labelled if threshold_rule(rule).needs_labels or labelled.all() else ~labelled
    threshold = choose_threshold(combined.score[ruling], labels[ruling], rule)
    decision[~labelled] = combined.score[~labelled] >= threshold
    return Verdict(combined, threshold, decision, combined.areas)


def _free(scores: np.ndarray, learns: np.ndarray | None) -> np.ndarray:
    """(c,) bool: the configurations that are combined."""
    return np.ones(len(scores), bool) if learns is None or learns.all() else ~learns


def decide_by_other_folds(score: np.ndarray, labels: np.ndarray, folds: np.ndarray, rule: str | float) -> np.ndarray:
    """(n,) 0/1 decisions on labelled slices, each by the threshold that the other folds choose."""
    decision = np.zeros(len(score), np.int64)
    for fold in np.unique(folds):
        others = folds != fold
        decision[~others] = score[~others] >= choose_threshold(score[others], labels[others], rule)
    return decision


def membership_report(
    truth: np.ndarray,
    score: np.ndarray,
    decision: np.ndarray,
    groups: np.ndarray,
    tried: np.ndarray,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """The figures of metrics.json for one set. truth, score, decision: (n,); tried: (c, n) of all configurations."""
    figures = membership_figures(truth, score, decision, groups, seed=seed)
    p = p_values_auc(truth, np.concatenate([score[None], tried]), groups, 0, permutations, seed)
    return {
        **_beside_chance(figures, membership_chance(truth, decision)),
        "p_value": p.p_value,
        "p_value_selected": p.p_value_selected,
        "p_value_smallest": p.smallest,
        "f1_all_used": f1_all_used(truth),
        **support(truth, groups),
        "tried": len(tried),
        "warnings": [p.warning] if p.warning else [],
    }


def cross_validated_report(
    verdict: Verdict,
    scores: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    groups: np.ndarray,
    permutations: int,
    seed: int,
    wanted: str | None = None,
    learns: np.ndarray | None = None,
) -> dict[str, Any]:
    """The figures of membership_report for the labelled slices, each judged by the other folds.

    scores, labels, folds, wanted, learns: as in decide_membership; groups: (n,). Here both p-values rest on the
    configurations that do not learn from labels, and permuting labels, at most REFITS times, repeats all that was
    chosen and fitted by them (stacking.p_value_refitted). Without such configurations there is no p-value.
    """
    labelled = labels != UNKNOWN
    given = scores[_free(scores, learns)]
    truth, score, decision = labels[labelled], verdict.combined.score[labelled], verdict.decision[labelled]
    figures = membership_figures(truth, score, decision, groups[labelled], seed=seed)
    report = {
        **_beside_chance(figures, membership_chance(truth, decision)),
        "f1_all_used": f1_all_used(truth),
        **support(truth, groups[labelled]),
        "tried": len(scores),
    }
    if learns is not None and learns.all():
        warning = "every configuration learns from the labels: these figures flatter, and there is no p-value"
        nothing = dict.fromkeys(("p_value", "p_value_selected", "p_value_smallest"))
        return report | nothing | {"warnings": [warning]}
    p_value, smallest = p_value_refitted(wanted, given, labels, folds, groups, seed, min(permutations, REFITS))
    selected = p_values_auc(truth, given[:, labelled], groups[labelled], 0, permutations, seed)
    warning = f"too few groups in each fold: p cannot fall below {smallest:.2g}" if smallest > 0.05 else ""
    return report | {
        "p_value": p_value,
        "p_value_selected": selected.p_value_selected,
        "p_value_smallest": smallest,
        "warnings": [warning] if warning else [],
    }


def attribution_report(
    truth: np.ndarray, labels: np.ndarray, groups: np.ndarray, tried: np.ndarray, permutations: int, seed: int
) -> dict[str, Any]:
    """The figures of metrics.json for attribution. truth: (n,) str; labels: (n,); tried: (c, n) of all clusterings."""
    figures = attribution_figures(truth, labels, groups, seed=seed)
    p = p_values_ari(truth, np.concatenate([labels[None], tried]), groups, 0, permutations, seed)
    return {
        **_beside_chance(figures, attribution_chance(truth, labels)),
        "p_value": p.p_value,
        "p_value_selected": p.p_value_selected,
        "p_value_smallest": p.smallest,
        "n": len(truth),
        "n_groups": p.n_groups,
        "tried": len(tried),
        "warnings": [p.warning] if p.warning else [],
    }


def _beside_chance(figures: dict[str, Estimate], chance: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Each figure as metrics.json holds it: value, interval, and the value that knows nothing."""
    return {
        name: {**figure.as_dict(), "chance": Estimate(chance[name]).as_dict()["value"]}
        for name, figure in figures.items()
    }
