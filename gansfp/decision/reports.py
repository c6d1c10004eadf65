"""The records behind metrics.json; as_dict() gives the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gansfp.decision.conclusion import Conclusion
from gansfp.decision.evidence import Evidence
from gansfp.decision.search_result import Configuration
from gansfp.decision.shortcuts import Shortcut
from gansfp.decision.verdict import Verdict
from gansfp.statistics.intervals import Estimate


@dataclass(frozen=True)
class DecisionReport:
    """How the slices of a set were decided about.

    combine: "best" or "stack". cross_validated_auc: of each combination that could be chosen. rule: of the threshold.
    members: the configurations and their coefficients.
    """

    combine: str
    cross_validated_auc: Mapping[str, float]
    rule: str | float
    threshold: float
    members: Sequence[tuple[Configuration, float]]

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        members = [{**member.choices, "coefficient": round(coefficient, 4)} for member, coefficient in self.members]
        return {
            "combine": self.combine,
            "cross_validated_auc": dict(self.cross_validated_auc),
            "decide": self.rule,
            "threshold": self.threshold,
            "members": members,
        }


@dataclass(frozen=True)
class SetReport:
    """One membership set. test: None where there is no truth; cross_validated: of the labelled slices. shortcuts: what
    could make the set easier or harder than it seems. left_out: how many patients have labelled slices and test slices
    with truth; no figure rests on these test slices."""

    concluded: Conclusion
    cross_validated: Evidence
    decision: DecisionReport
    tried: int
    test: Evidence | None = None
    shortcuts: Sequence[Shortcut] = ()
    left_out: int = 0

    @property
    def verdict(self) -> Verdict:
        """What is concluded."""
        return self.concluded.verdict

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it: the figures of the test beside the rest."""
        return {
            **self.concluded.as_dict(),
            "cross_validated": self.cross_validated.as_dict(),
            "configuration": self.decision.as_dict(),
            "shortcuts": [shortcut.as_dict() for shortcut in self.shortcuts],
            "tried": self.tried,
            "patients_left_out": self.left_out,
            **(self.test.as_dict() if self.test else {}),
        }


@dataclass(frozen=True)
class MembershipReport:
    """All membership sets. mean_f1: over the sets with truth; None where there is none."""

    sets: Mapping[str, SetReport]
    mean_f1: Estimate | None = None

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        mean = {"mean_f1": self.mean_f1.as_dict()} if self.mean_f1 else {}
        return {"sets": {name: report.as_dict() for name, report in self.sets.items()}, **mean}


@dataclass(frozen=True)
class AttributionReport:
    """The clusters of the test slices. names: the known generator, or "new", that each cluster resembles. shortcuts:
    how far files and grey levels alone tell generators apart."""

    verdict: Verdict
    cross_validated: Evidence
    clusters: int
    configuration: Configuration
    tried: int
    names: Mapping[int, str]
    test: Evidence | None = None
    shortcuts: Sequence[Shortcut] = ()

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it: the figures of the test beside the rest."""
        return {
            "verdict": self.verdict.as_dict(),
            "cross_validated": self.cross_validated.as_dict(),
            "clusters": self.clusters,
            "configuration": dict(self.configuration.choices),
            "tried": self.tried,
            "names": {str(cluster): name for cluster, name in self.names.items()},
            "shortcuts": [shortcut.as_dict() for shortcut in self.shortcuts],
            **(self.test.as_dict() if self.test else {}),
        }


@dataclass(frozen=True)
class RunReport:
    """How the figures came about.

    alpha: the level of the verdicts' tests. bad_images: reasons by image id. readings: how many slices were read in
    each way. findings: what in the files could mislead a membership score. versions, seconds, left_out: what the job
    adds: the libraries, the seconds of each stage, what the default search lacks. pending: backbones that are still to
    come; where there are some, all figures are provisional.
    """

    seed: int
    permutations: int
    bad_images: Mapping[str, str]
    readings: Mapping[str, int] = field(default_factory=dict)
    findings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    pending: Sequence[str] = ()
    alpha: float = 0.05

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        bad = [{"image_id": image_id, "reason": reason} for image_id, reason in sorted(self.bad_images.items())]
        return {
            "versions": dict(self.versions),
            "seed": self.seed,
            "permutations": self.permutations,
            "alpha": self.alpha,
            "seconds": dict(self.seconds),
            "left_out": list(self.left_out),
            "pending": list(self.pending),
            "bad_images": bad,
            "readings": dict(self.readings),
            "findings": list(self.findings),
        }


@dataclass(frozen=True)
class Metrics:
    """All of metrics.json. A task that was not decided is None."""

    run: RunReport
    membership: MembershipReport | None = None
    attribution: AttributionReport | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks that were decided."""
        reports = {"membership": self.membership, "attribution": self.attribution}
        return [name for name, report in reports.items() if report]

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        membership = {"membership": self.membership.as_dict()} if self.membership else {}
        attribution = {"attribution": self.attribution.as_dict()} if self.attribution else {}
        return {**membership, **attribution, "run": self.run.as_dict()}
