"""The record of the audit, in the order of the anonymisation report of EMA and Health Canada."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from scipy.stats import beta

from gansfp import store
from gansfp.decision.verdict import LEAK
from gansfp.report.audited import AuditedWork
from gansfp.report.texts import TEXTS

THRESHOLD = 0.09  # of EMA and Health Canada, see TEXTS["risk_sources"]
FALSE_ALARMS = 0.01  # the rate at which inference is judged
RESULTS = ("metrics.json", "attribution.csv")


@dataclass(frozen=True)
class Risk:
    """One of the three risks for one set. attack, control, bound: shares; None where not measured, and `why` says so.

    attack: how often it succeeds; control: how often the same succeeds where nothing can leak; bound: the upper 95 %
    limit of the attack beyond the control.
    """

    set: str
    kind: str
    what: str
    attack: float | None = None
    control: float | None = None
    bound: float | None = None
    why: str = ""

    @property
    def above(self) -> bool | None:
        """Whether the bound is above THRESHOLD; None where there is none."""
        return None if self.bound is None else self.bound > THRESHOLD


@dataclass(frozen=True)
class RecordSection:
    """hashes: (what, SHA-256). stages: of WORK/log, by their start. options: (stage, option, value). tried: a line for
    each search. next_audit: at most a year after the answer, empty where there is none."""

    hashes: Sequence[tuple[str, str]]
    versions: Mapping[str, str]
    stages: Sequence[Mapping[str, Any]]
    options: Sequence[tuple[str, str, str]]
    tried: Sequence[str]
    risks: Sequence[Risk]
    findings: Sequence[tuple[str, str]]
    answered: str
    next_audit: str


def record_section(audited: AuditedWork) -> RecordSection:
    """The section; also of a WORK that is not finished."""
    stages = sorted((dict(record.values) for record in audited.records.values()), key=lambda stage: stage["started"])
    answered = next((stage["started"][:10] for stage in stages if stage["stage"] == "final"), "")
    return RecordSection(
        _hashes(audited),
        audited.run.get("versions", {}),
        stages,
        _options(stages),
        _tried(audited),
        [risk for name, report in audited.sets.items() for risk in _risks(name, report)],
        [(name, report["verdict"]["finding"]) for name, report in audited.sets.items()],
        answered,
        _a_year_after(answered),
    )


def _hashes(audited: AuditedWork) -> list[tuple[str, str]]:
    hashes = []
    if audited.catalog is not None:
        hashes.append((f"all {len(audited.catalog):,} slices, their purposes and groups", audited.catalog.digest()))
    names = [f"membership-{name}{ending}.csv" for name in audited.sets for ending in ("", "-patients")]
    for name in (*names, *RESULTS):
        place = store.join(audited.work, "results", name)
        if store.exists(place):
            hashes.append((f"results/{name}", hashlib.sha256(store.read_bytes(place)).hexdigest()))
    return hashes


def _options(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    return [
        (stage["stage"], name, str(value))
        for stage in stages
        for name, value in stage.get("configuration", {}).items()
        if value not in (None, "", [], {})
    ]


def _tried(audited: AuditedWork) -> list[str]:
    lines = []
    for task, search in audited.searches.items():
        pairs = ", ".join(f"{backbone} on {view}" for backbone, view in search.pairs)
        lines.append(f"{task}: {search.result.tried:,} configurations ({search.result.failed:,} failed) of {pairs}")
    return lines


def _risks(name: str, report: Mapping[str, Any]) -> list[Risk]:
    return [
        _singling_out(name, report["patients"], report["verdict"]["finding"]),
        Risk(name, "linkability", "two records are linked to one patient", why=TEXTS["linkability"]),
        _inference(name, report if "auc" in report else report["cross_validated"]),
    ]


def _singling_out(name: str, patients: Mapping[str, Any], finding: str) -> Risk:
    """Patients who are named; nobody where there is no leak. Bound: the upper limit of Clopper and Pearson (1934) of
    their share."""
    n, named = patients["n"], patients["named"] if finding == LEAK else 0
    what = "an unknown patient is named as used"
    if not n:
        return Risk(name, "singling out", what, why="there are no unknown patients")
    high = 1.0 if named == n else float(beta.ppf(0.975, named + 1, n - named))
    control = patients["false_accusations_at_most"] if named else None
    return Risk(name, "singling out", what, named / n, control or 0.0, high)


def _inference(name: str, evidence: Mapping[str, Any]) -> Risk:
    """The used slices that are found at few false alarms. Bound: beyond them, (attack - control) / (1 - control), as
    Giomi et al. (2023) define the risk."""
    figure, control = evidence[f"tpr_at_fpr_{FALSE_ALARMS:g}"], FALSE_ALARMS
    what = f"a slice is recognised as used, at {100 * FALSE_ALARMS:g} % false alarms"
    if figure["value"] is None:
        return Risk(name, "inference", what, why="it takes used and not-used slices")
    high = figure["high"] if figure["high"] is not None else 1.0
    return Risk(name, "inference", what, figure["value"], control, max(0.0, (high - control) / (1 - control)))


def _a_year_after(day: str) -> str:
    if not day:
        return ""
    answered = date.fromisoformat(day)
    leap_day = (answered.month, answered.day) == (2, 29)
    return answered.replace(year=answered.year + 1, day=28 if leap_day else answered.day).isoformat()
