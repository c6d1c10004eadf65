"""What is concluded about one membership set: verdict, controls, patients, share. It reads and writes no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gansfp.decision.blind import Facts
from gansfp.decision.controls import ControlConfig, Controls, control, member_only
from gansfp.decision.decide import FinalConfig, rows_to_combine
from gansfp.decision.evidence import Evidence
from gansfp.decision.judged import DecidedSet, Judged
from gansfp.decision.planted import FEWEST_PATIENTS, Planted
from gansfp.decision.power import Power, layout_of, measure_power
from gansfp.decision.verdict import LEAK, Support, Verdict, judge_set
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.intervals import Estimate
from gansfp.statistics.patients import (
    PatientList,
    PatientScores,
    false_accusations_at_most,
    list_patients,
    score_patients,
)
from gansfp.statistics.resampling import group_codes
from gansfp.statistics.share import least_share, share_of_used


@dataclass(frozen=True, eq=False)
class Patients:
    """The unknown patients of a set, and how far names may be wrong.

    listed: None where there are no unknown or no not-used patients. names: (u,) str, the group of each, or the slice's
    id where it has no group. fdr: the level of the list. wrong, of: how many of how many patients who were certainly
    not used score as high as the patient with the lowest score that is listed; where none is listed, None. allowed:
    whether the verdict allows to name them: where it is no leak, scores may be high for another reason.
    """

    listed: PatientList | None
    names: np.ndarray
    fdr: float
    wrong: int | None = None
    of: int = 0
    allowed: bool = True

    @property
    def named(self) -> np.ndarray:
        """(u,) bool: the patients that are named as used."""
        nobody = np.zeros(len(self.names), dtype=bool)
        return self.listed.named if self.listed is not None and self.allowed else nobody

    @property
    def withheld(self) -> int:
        """How many patients would be named if the verdict allowed it."""
        return 0 if self.listed is None or self.allowed else int(self.listed.named.sum())

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        most = None if self.wrong is None else false_accusations_at_most(self.of, self.wrong)
        return {
            "n": len(self.names),
            "fdr": self.fdr,
            "named": int(self.named.sum()),
            "withheld": self.withheld,
            "false_accusations": self.wrong,
            "false_accusations_of": self.of,
            "false_accusations_at_most": most,
        }


@dataclass(frozen=True, eq=False)
class Conclusion:
    """What is concluded about a set. share: of the unknown patients that were used; least: a lower bound of it from the
    not-used patients alone; None where there are none. power: None where it was not measured; missing: why."""

    verdict: Verdict
    controls: Controls
    patients: Patients
    share: Estimate | None
    least: float | None = None
    power: Power | None = None
    missing: str = ""

    @property
    def known_share(self) -> Estimate | None:
        """The share; None where there is none, or where the scores allow any share."""
        return self.share if self.share and (self.share.low, self.share.high) != (0, 1) else None

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        share = self.known_share
        return {
            "verdict": self.verdict.as_dict(),
            "controls": self.controls.as_dict(),
            "patients": self.patients.as_dict(),
            "share": {**share.as_dict(), "at_least_by_not_used": self.least} if share else None,
            "power": self.power.as_dict() if self.power else {"missing": self.missing},
        }


@dataclass(frozen=True, eq=False)
class Left:
    """What the search left of a set beside scores; None where an earlier version left nothing, or there was too little.

    facts: of its real slices; planted: copies of not-used slices.
    """

    facts: Facts | None = None
    planted: Planted | None = None


def conclude(of_set: DecidedSet, judged: Judged, evidence: Evidence, left: Left, config: FinalConfig) -> Conclusion:
    """Concludes about a set. judged: the slices that `evidence` is about. Without facts nothing can be told."""
    controls = _controls(of_set, judged, left.facts, config)
    power, missing = _power(of_set, controls, left.planted, config)
    support = Support(*judged.patients, has_truth=judged.refit is None)
    verdict = judge_set(evidence, controls, support, config.alpha, power)
    codes = group_codes(of_set.groups, len(of_set.groups))
    scores = score_patients(of_set.decided.combined.of_fits, of_set.labels, of_set.folds, codes)
    share, least = _share(scores, config.seed)
    patients = replace(_patients(of_set, scores, codes, config.fdr), allowed=verdict.finding == LEAK)
    return Conclusion(verdict, controls, patients, share, least, power, missing)


def _power(
    of_set: DecidedSet, controls: Controls, planted: Planted | None, config: FinalConfig
) -> tuple[Power | None, str]:
    """What would have been seen, or why this was not measured."""
    if not config.power:
        return None, "it is measured with the final answer"
    if planted is None:
        takes = f"{FEWEST_PATIENTS} not-used patients, features without weights, such as highpass, and a search"
        return None, f"the search left no copies: it takes {takes} by this version"
    if controls.test is None:
        return None, "there is no blind control"
    return measure_power(layout_of(of_set, planted, controls.test), config), ""


def _controls(of_set: DecidedSet, judged: Judged, facts: Facts | None, config: FinalConfig) -> Controls:
    if facts is None:
        missing = "blind control: the search of an earlier version left nothing for it; run tune.search again"
        return Controls(missing=(missing,))
    controls = control(judged, facts, ControlConfig(config.alpha, config.permutations, config.seed, config.match))
    scores = of_set.rows.scores[rows_to_combine(of_set.learns)]
    halves, missing_halves = member_only(scores, of_set.labels, of_set.groups, config.combine, config.seed)
    return replace(controls, member_only=halves, missing=(*controls.missing, *missing_halves))


def _patients(of_set: DecidedSet, scores: PatientScores, codes: np.ndarray, fdr: float) -> Patients:
    none = Patients(None, np.array([], dtype=str), fdr)
    if not (scores.labels == UNKNOWN).any() or not (scores.labels == NOT_USED).any():
        return none
    listed = list_patients(scores, fdr)
    first = np.unique(codes, return_index=True)[1]
    names = np.where(of_set.groups == "", np.array(of_set.ids.real), of_set.groups)[first][listed.patients]
    if not listed.named.any():
        return Patients(listed, names, fdr)
    not_used = scores.held_out(NOT_USED)
    lowest = scores.unknown()[:, listed.named].mean(0).min()
    return Patients(listed, names, fdr, int((not_used >= lowest).sum()), len(not_used))


def _share(scores: PatientScores, seed: int) -> tuple[Estimate | None, float | None]:
    """The share of used among the unknown patients, and its lower bound from the not-used ones alone."""
    present: Mapping[int, bool] = {label: bool((scores.labels == label).any()) for label in (USED, NOT_USED, UNKNOWN)}
    if not all(present.values()):
        return None, None
    least = least_share(scores.held_out(NOT_USED), scores.unknown_by_one_fit(seed), seed)
    return share_of_used(scores, seed=seed), least
