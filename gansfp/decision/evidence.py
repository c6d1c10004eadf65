"""What decisions are worth: each figure with its interval and its chance level, and the p-values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from gansfp.decision.decide import Decision, FinalConfig, rows_to_combine
from gansfp.decision.stacking import count_refits, p_value_refitted
from gansfp.labels import UNKNOWN
from gansfp.rows import as_slice
from gansfp.statistics.intervals import Estimate, attribution_figures, membership_figures, support
from gansfp.statistics.metrics import attribution_chance, f1_all_used, membership_chance
from gansfp.statistics.permutation import PValues, p_values_ari, p_values_auc


@dataclass(frozen=True)
class Figure:
    """A figure of metrics.json: its value with its interval, and the value that no knowledge would give."""

    estimate: Estimate
    chance: float

    def as_dict(self) -> dict[str, float | None]:
        """As metrics.json holds it."""
        return {**self.estimate.as_dict(), "chance": Estimate(self.chance).as_dict()["value"]}


@dataclass(frozen=True)
class Evidence:
    """The figures of one set of slices, and how likely chance would give them.

    support: how many slices, groups and negatives the figures rest on. tried: configurations. p_value...: None where
    there is none. f1_all_used: None for attribution. best, by_chance: the best figure of all configurations (AUC,
    adjusted Rand index), and percentiles 0 to 100 of the best under permuted labels; None and empty without a p-value.
    """

    figures: Mapping[str, Figure]
    support: Mapping[str, int]
    tried: int
    p_value: float | None
    p_value_selected: float | None
    p_value_smallest: float | None
    f1_all_used: float | None = None
    warnings: tuple[str, ...] = ()
    best: float | None = None
    by_chance: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        all_used = {} if self.f1_all_used is None else {"f1_all_used": self.f1_all_used}
        return {
            **{name: figure.as_dict() for name, figure in self.figures.items()},
            "p_value": self.p_value,
            "p_value_selected": self.p_value_selected,
            "p_value_smallest": self.p_value_smallest,
            **all_used,
            **self.support,
            "tried": self.tried,
            "best": self.best,
            "best_by_chance": [round(value, 4) for value in self.by_chance],
            "warnings": list(self.warnings),
        }


def membership_evidence(
    truth: np.ndarray,
    score: np.ndarray,
    decision: np.ndarray,
    groups: np.ndarray,
    tried: np.ndarray,
    config: FinalConfig,
) -> Evidence:
    """The figures of the test slices of one set.

    truth, score, decision, groups: (n,); tried: (c, n) scores of all configurations.
    """
    p = p_values_auc(truth, tried, groups, score, config.permutations, config.seed)
    return Evidence(
        _membership_figures(truth, score, decision, groups, config.seed),
        support(truth, groups),
        len(tried),
        p.p_value,
        p.p_value_selected,
        p.smallest,
        f1_all_used(truth),
        (p.warning,) if p.warning else (),
        **_luck(p),
    )


def cross_validated_evidence(
    decided: Decision,
    scores: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    groups: np.ndarray,
    config: FinalConfig,
    learns: np.ndarray | None = None,
) -> Evidence:
    """The figures of the labelled slices, each decided by the other folds.

    decided: by decide_membership; scores, labels, folds, learns: as it takes them; groups: (n,). Both p-values rest on
    the configurations that do not learn from labels. Each permutation of the labels, count_refits of them, repeats all
    choices and fits (stacking.p_value_refitted). Without such configurations there is no p-value.
    """
    labelled = labels != UNKNOWN
    combined = scores[rows_to_combine(learns)]
    truth, score, decision = labels[labelled], decided.combined.score[labelled], decided.decision[labelled]
    figures = _membership_figures(truth, score, decision, groups[labelled], config.seed)
    slices, tried, all_used = support(truth, groups[labelled]), len(scores), f1_all_used(truth)
    if learns is not None and learns.all():
        warning = "every configuration learns from the labels: these figures flatter, and there is no p-value"
        return Evidence(figures, slices, tried, None, None, None, all_used, (warning,))
    refits = count_refits(config.permutations, config.alpha)
    p_value, smallest = p_value_refitted(config.combine, combined, labels, folds, groups, config.seed, refits)
    of_labelled = combined[:, as_slice(np.flatnonzero(labelled))]
    selected = p_values_auc(truth, of_labelled, groups[labelled], 0, config.permutations, config.seed)
    warning = f"too few groups in each fold: p cannot fall below {smallest:.2g}" if smallest > 0.05 else ""
    warnings = (warning,) if warning else ()
    p_values = p_value, selected.p_value_selected, smallest
    return Evidence(figures, slices, tried, *p_values, all_used, warnings, **_luck(selected))


def attribution_evidence(
    truth: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    tried: np.ndarray,
    config: FinalConfig,
    chosen_here: bool = False,
) -> Evidence:
    """The figures of a clustering.

    truth: (n,) str; labels, groups: (n,); tried: (c, n) of all clusterings; chosen_here: whether the clustering was
    chosen by the truth of these slices.
    """
    p = p_values_ari(truth, np.concatenate([labels[None], tried]), groups, 0, config.permutations, config.seed)
    chosen = (
        f"the clustering is the best of {len(tried):,} on these very slices, so its figures are too high; only the "
        "p-value that is corrected for the search accounts for this"
    )
    warnings = [p.warning] * bool(p.warning) + [chosen] * chosen_here
    return Evidence(
        _beside_chance(attribution_figures(truth, labels, groups, seed=config.seed), attribution_chance(truth, labels)),
        {"n": len(truth), "n_groups": p.n_groups},
        len(tried),
        p.p_value,
        p.p_value_selected,
        p.smallest,
        warnings=tuple(warnings),
        **_luck(p),
    )


class _Luck(TypedDict):
    best: float | None
    by_chance: tuple[float, ...]


def _luck(p: PValues) -> _Luck:
    """What Evidence says of the search's luck; nothing where the figure is not defined."""
    return {"best": p.best, "by_chance": p.by_chance} if np.isfinite(p.best) else {"best": None, "by_chance": ()}


def _membership_figures(
    truth: np.ndarray, score: np.ndarray, decision: np.ndarray, groups: np.ndarray, seed: int
) -> dict[str, Figure]:
    estimates = membership_figures(truth, score, decision, groups, seed=seed)
    return _beside_chance(estimates, membership_chance(truth, decision))


def _beside_chance(estimates: Mapping[str, Estimate], chance: Mapping[str, float]) -> dict[str, Figure]:
    return {name: Figure(estimate, chance[name]) for name, estimate in estimates.items()}
