"""What the report says of one membership set: answers, figures, patients, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from gansfp.decision.verdict import LEAK, NO_EVIDENCE
from gansfp.report import membership_plots as plots
from gansfp.report import search_plots
from gansfp.report.audited import AuditedWork
from gansfp.report.compared import Compared, Shown, choose, with_pictures
from gansfp.report.curves import roc_curve
from gansfp.report.pictures import Pictures
from gansfp.report.texts import TEXTS

LISTED, MOST_LISTED = 30, 1000  # patients in the table; the CSV has all
MORE_THAN_COINCIDENCE = 0.15  # of the body: twice the spread of the agreement of two patients, see README.md
EVIDENT = 0.7  # of the body: three times that spread above what two patients have
FIGURES = ("auc", "f1", "accuracy", "precision", "recall", "specificity", "kappa", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1")


@dataclass(frozen=True, eq=False)
class SetSection:
    """One membership set.

    report: its entry in metrics.json. evidence: the figures that the verdict rests on, of test slices with truth
    (by_truth) or else of the labelled ones. patients: lines of the patients' CSV, all that are
    named and at least LISTED. not_read: unknown slices that could not be read. plots: SVG, by name;
    those that cannot be drawn are empty.
    """

    name: str
    slug: str
    report: Mapping[str, Any]
    evidence: Mapping[str, Any]
    by_truth: bool
    plots: Mapping[str, str]
    patients: Sequence[Mapping[str, str]]
    more_patients: int
    not_read: int
    shown: Shown

    @property
    def finding(self) -> str:
        """leak, no evidence or cannot tell."""
        return self.report["verdict"]["finding"]

    @property
    def unsure(self) -> bool:
        """Whether no evidence says little, because it is not known how small a leak would have been seen."""
        return self.finding == NO_EVIDENCE and "missing" in self.report["power"]

    @property
    def shows_copies(self) -> bool | None:
        """Whether flagged slices, on average, agree with synthetic ones clearly more than coincidence; None where this
        is not known."""
        kinds = self.agreements
        if not {"flagged", "coincidences"} <= kinds.keys():
            return None
        return kinds["flagged"] - kinds["coincidences"] > MORE_THAN_COINCIDENCE

    @property
    def evident_copies(self) -> list[float]:
        """The agreements of the flagged slices that agree as copies do, and more than any coincidence."""
        limit = max([EVIDENT, *_agreements(self.shown.coincidences)])
        return [agreement for agreement in _agreements(self.shown.flagged) if agreement > limit]

    @property
    def named(self) -> int:
        """How many patients are named as used: nobody where there is no leak, whatever an earlier version wrote."""
        return self.report["patients"]["named"] if self.finding == LEAK else 0

    @property
    def withheld(self) -> int:
        """How many would be named if the verdict allowed it."""
        patients = self.report["patients"]
        return 0 if self.finding == LEAK else patients.get("withheld", patients["named"])

    @property
    def figures(self) -> list[tuple[str, Mapping[str, float | None]]]:
        """The figures that there are, in the order of the table."""
        return [(name, self.evidence[name]) for name in FIGURES if name in self.evidence]

    @property
    def agreements(self) -> dict[str, float]:
        """The mean agreement of the pictures, by kind; kinds without pictures are left out."""
        kinds = {"flagged": self.shown.flagged, "others": self.shown.others, "coincidences": self.shown.coincidences}
        values = {kind: _agreements(of_kind) for kind, of_kind in kinds.items()}
        return {kind: float(np.mean(of_kind)) for kind, of_kind in values.items() if of_kind}


def _agreements(shown: Sequence[Compared]) -> list[float]:
    return [one.agreement for one in shown if one.agreement is not None]


def set_sections(audited: AuditedWork, pictures: Pictures, everything: bool = False) -> list[SetSection]:
    """The sections of all sets that were decided. everything: with a picture of each flagged slice."""
    return [
        _section(audited, f"set{number}", name, report, pictures, everything)
        for number, (name, report) in enumerate(audited.sets.items(), start=1)
    ]


def _section(
    audited: AuditedWork, slug: str, name: str, report: Mapping[str, Any], pictures: Pictures, everything: bool
) -> SetSection:
    by_truth = "auc" in report
    evidence = report if by_truth else report["cross_validated"]
    judged, decided = audited.table(f"membership-{name}-judged.parquet"), audited.table(f"membership-{name}.parquet")
    patients = audited.lines(f"membership-{name}-patients.csv")
    drawn = {
        "glance": plots.at_a_glance(_glance(report, evidence), f"{slug}-glance"),
        "luck": search_plots.luck(
            np.array(evidence.get("best_by_chance", [])), _number(evidence.get("best")), f"{slug}-luck", "AUC"
        ),
        **_of_slices(judged, report, slug),
        **_of_patients(patients, report, slug),
    }
    shown = with_pictures(choose(decided, judged, everything), pictures)
    count = max(LISTED, min(MOST_LISTED, report["patients"]["named"]))
    listed, more = _without_folders(patients)[:count], max(0, len(patients) - count)
    not_read = 0 if decided is None else decided["score"].null_count
    return SetSection(name, slug, report, evidence, by_truth, drawn, listed, more, not_read, shown)


def _without_folders(patients: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The same lines, with names without their folders if these stay different."""
    names = [line["patient"].rpartition("/")[2] for line in patients]
    if len(set(names)) < len(names) or not all(names):
        return list(patients)
    return [{**line, "patient": name} for line, name in zip(patients, names, strict=True)]


def _glance(report: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[plots.Row]:
    controls = report["controls"]
    rows = [_row(TEXTS["glance_attack"], evidence["auc"], "attack")]
    if controls["blind"]:
        rows.append(_row(TEXTS["glance_blind"], controls["blind"]["auc"], "control"))
    for of_class, auc in controls["member_only"].items():
        rows.append(_row(TEXTS[f"glance_{of_class}"], auc, "control"))
    if controls.get("matched"):
        rows.append(_row(TEXTS["glance_matched"], controls["matched"]["auc"], "attack"))
    return rows


def _row(label: str, figure: Mapping[str, float | None], kind: Literal["attack", "control"]) -> plots.Row:
    value, low, high = (_number(figure[part]) for part in ("value", "low", "high"))
    return plots.Row(label, value, low, high, kind)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _of_slices(judged: pa.Table | None, report: Mapping[str, Any], slug: str) -> dict[str, str]:
    """The plots of the slices that the figures rest on."""
    if judged is None or not judged.num_rows:
        return {"scores": "", "roc": "", "calibration": ""}
    score, truth = (judged[name].to_numpy() for name in ("score", "truth"))
    groups = np.array(judged["group"].to_pylist())
    probability = judged["probability"].to_numpy(zero_copy_only=False).astype(np.float64)
    # The threshold is that of the fit for unknown slices; labelled ones were judged by other folds' thresholds.
    threshold = math.nan if judged["labelled"][0].as_py() else report["configuration"]["threshold"]
    return {
        "scores": plots.score_distributions(score, truth, threshold, f"{slug}-scores"),
        "roc": plots.roc(roc_curve(score, truth, groups), f"{slug}-roc", 1 / max(1, int((truth == 0).sum()))),
        "calibration": plots.calibration(probability, truth, f"{slug}-calibration"),
    }


def _of_patients(patients: Sequence[Mapping[str, str]], report: Mapping[str, Any], slug: str) -> dict[str, str]:
    score, p = (np.array([float(line[name]) for line in patients]) for name in ("score", "p"))
    # Names are only given where there is a leak; elsewhere a score may be high for another reason.
    leak = report["verdict"]["finding"] == LEAK
    named = np.array([leak and line["named"] == "1" for line in patients], dtype=bool)
    share, power = report["share"], report["power"]
    curve = power.get("curve", [])
    return {
        "patients": plots.patients(score, named, p, f"{slug}-patients"),
        "share": plots.share(share["value"], share["low"], share["high"], f"{slug}-share") if share else "",
        "power": plots.power_curve(*_power_curve(curve), f"{slug}-power"),
    }


def _power_curve(curve: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    shares = np.array([point["share_of_generated"] for point in curve], dtype=np.float64)
    return shares, np.array([point["found"] for point in curve], dtype=np.float64)
