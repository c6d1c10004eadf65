"""The verdict of a set in words: leak, no evidence, or cannot tell, with every reason and its figure.

An audit that accuses without a leak does harm. So a leak is found only where the score tells used from not-used
patients, after the search is accounted for, and also beyond what the slices show by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gansfp.decision.controls import Controls
from gansfp.decision.evidence import Evidence
from gansfp.decision.power import MATTERS, Power
from gansfp.decision.shortcuts import Shortcut

LEAK, NO_EVIDENCE, CANNOT_TELL = "leak", "no evidence", "cannot tell"
SEPARATED = 0.95  # blind AUC from which nothing can be concluded
LEAST_POWER = 0.5  # for a leak that matters: below it, nothing seen says nothing
TOLD_APART, NOT_TOLD_APART = "told apart", "not told apart"


@dataclass(frozen=True)
class Reason:
    """A reason in words, with its figure; None where it has none."""

    what: str
    figure: float | None = None

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        return {"what": self.what, "figure": self.figure}


@dataclass(frozen=True)
class Verdict:
    """What is concluded. finding: LEAK, NO_EVIDENCE or CANNOT_TELL; of attribution TOLD_APART, NOT_TOLD_APART or
    CANNOT_TELL. sentence: what was looked for, what was found, and how sure it is."""

    finding: str
    sentence: str
    reasons: tuple[Reason, ...]

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        return {
            "finding": self.finding,
            "sentence": self.sentence,
            "reasons": [reason.as_dict() for reason in self.reasons],
        }


@dataclass(frozen=True)
class Support:
    """How many patients of each class a verdict rests on, and whether they are test slices with truth."""

    used: int
    not_used: int
    has_truth: bool

    def __str__(self) -> str:
        patients = f"{self.used + self.not_used:,} patients ({self.used:,} used, {self.not_used:,} not used)"
        return patients if self.has_truth else f"{patients} whose label is known, each judged by a fit to others"


def judge_set(
    evidence: Evidence, controls: Controls, support: Support, alpha: float, power: Power | None = None
) -> Verdict:
    """The verdict of one membership set, at the level alpha. power: None where it was not measured."""
    obstacles = _obstacles(evidence, controls, alpha)
    reasons = (*obstacles, *_figures(evidence, controls), *_of_power(power))
    looked = f"Looked for traces of {support} in the generated slices"
    found = _is_found(evidence, alpha)
    conditional = controls.conditional
    if obstacles:
        return Verdict(CANNOT_TELL, f"{looked}. Nothing can be concluded: {obstacles[0].what}.", reasons)
    if found and conditional and conditional.p_value < alpha:
        sentence = (
            f"{looked}, and found them: the scores tell used from not-used slices ({_auc(evidence)}), also beyond what "
            f"the slices show by themselves (p = {conditional.p_value:.2g})."
        )
        return Verdict(LEAK, sentence, reasons)
    if found:
        return Verdict(CANNOT_TELL, f"{looked}. {_not_beyond(evidence, controls)}", reasons)
    none = f"{looked}, and found none: {_auc(evidence)}, p = {evidence.p_value_selected:.2g} after the search."
    if power is None:
        unknown = "How small a leak would have been seen was not measured."
        return Verdict(NO_EVIDENCE, f"{none} {unknown}", reasons)
    if power.of_matters < LEAST_POWER:
        leaks = f"leaks in which one synthetic slice in {1 / MATTERS:.0f} is a copy"
        little = f"this says little: of {leaks}, {power.of_matters:.0%} would have been found"
        return Verdict(CANNOT_TELL, f"{none} But {little}.", reasons)
    return Verdict(NO_EVIDENCE, f"{none} {str(power)[0].upper()}{str(power)[1:]}; a smaller one might not.", reasons)


def judge_clusters(evidence: Evidence, alpha: float, shortcuts: Sequence[Shortcut] = ()) -> Verdict:
    """The verdict of the attribution, at the level alpha. shortcuts: of tune.traces: what traces alone would find, and
    last what remains after all files are made equal."""
    ari = evidence.figures["ari"].estimate
    value = f"adjusted Rand index {ari.value:.3f}, where chance gives 0"
    reasons = (
        Reason(f"the clusters agree with the generators: {value}", ari.value),
        Reason("p-value, corrected for the search", evidence.p_value_selected),
        *(Reason(f"{s.what} ({s.beside} {s.usual:.3g})", s.figure) for s in shortcuts),
    )
    if _lacks_p_value(evidence, alpha):
        few = Reason("there are too few independent slices for any small p-value", evidence.p_value_smallest)
        return Verdict(CANNOT_TELL, f"Nothing can be concluded: {few.what}.", (few, *reasons))
    if _is_found(evidence, alpha):
        sentence = f"The clusters tell generators apart: {value}."
        return Verdict(TOLD_APART, f"{sentence}{_of_traces(shortcuts)}", reasons)
    return Verdict(NOT_TOLD_APART, f"The clusters do not tell generators apart better than chance: {value}.", reasons)


def _of_traces(shortcuts: Sequence[Shortcut]) -> str:
    if not shortcuts:
        return ""
    *traces, remains = shortcuts
    notable = [f"{trace.what}, {trace.figure:.3g}" for trace in traces if trace.notable]
    found = f" Careful: {'; '.join(notable)}." if notable else ""
    return f"{found} What remains when files are made equal: {remains}."


def _is_found(evidence: Evidence, alpha: float) -> bool:
    p_value, selected = evidence.p_value, evidence.p_value_selected
    return p_value is not None and selected is not None and max(p_value, selected) < alpha


def _lacks_p_value(evidence: Evidence, alpha: float) -> bool:
    return evidence.p_value is None or evidence.p_value_smallest is None or evidence.p_value_smallest >= alpha


def _obstacles(evidence: Evidence, controls: Controls, alpha: float) -> Sequence[Reason]:
    """Why nothing can be concluded, whatever the scores are; the first is the most important."""
    if evidence.p_value is None:
        return [Reason("every configuration learns from the labels, so no p-value is valid")]
    if _lacks_p_value(evidence, alpha):
        what = f"there are too few patients: no p-value can fall below {evidence.p_value_smallest:.2g}"
        return [Reason(what, evidence.p_value_smallest)]
    if controls.blind is None:
        return [Reason(reason) for reason in controls.missing]
    if controls.blind.value >= SEPARATED:
        what = (
            "used and not-used slices differ so much by themselves that hardly a patient of one class is like one of "
            f"the other (blind AUC {controls.blind.value:.2f}{_named(controls)})"
        )
        return [Reason(what, controls.blind.value)]
    smallest = controls.conditional.smallest if controls.conditional else 1.0
    if smallest >= alpha:
        what = (
            "there are too few patients to test beyond what the slices show by themselves: this p-value cannot fall "
            f"below {smallest:.2g}"
        )
        return [Reason(what, smallest)]
    return []


def _not_beyond(evidence: Evidence, controls: Controls) -> str:
    blind, conditional = controls.blind, controls.conditional
    if not blind or not conditional:  # cannot be: it would be an obstacle
        raise ValueError("verdict: got no blind control, expected one where there is no obstacle")
    return (
        f"The scores tell used from not-used slices ({_auc(evidence)}), but the slices alone, without any generated "
        f"slice, do so too (blind AUC {blind.value:.2f}{_named(controls)}). Beyond that nothing is certain "
        f"(p = {conditional.p_value:.2g}), so nothing can be concluded."
    )


def _named(controls: Controls) -> str:
    kinds = [difference.kind for difference in controls.differences]
    return f"; they differ in {', '.join(kinds)}" if kinds else ""


def _of_power(power: Power | None) -> tuple[Reason, ...]:
    if power is None:
        return ()
    matters = f"power: share that is found of leaks in which one synthetic slice in {1 / MATTERS:.0f} is a copy"
    return Reason(f"power: {power}"), Reason(matters, power.of_matters)


def _auc(evidence: Evidence) -> str:
    auc = evidence.figures["auc"].estimate
    return f"AUC of {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}], where chance gives 0.5"


def _figures(evidence: Evidence, controls: Controls) -> tuple[Reason, ...]:
    """All figures that the verdict rests on, in words."""
    reasons = [
        Reason("attack: AUC of the scores", evidence.figures["auc"].estimate.value),
        Reason("attack: p-value", evidence.p_value),
        Reason("attack: p-value, corrected for the search", evidence.p_value_selected),
    ]
    if blind := controls.blind:
        reasons.append(Reason("blind control: AUC of the slices by themselves, without generated ones", blind.value))
    for difference in controls.differences:
        what = f"used and not-used patients differ in {difference.kind}: {difference.what} alone has the AUC"
        reasons.append(Reason(what, difference.auc))
    if conditional := controls.conditional:
        reasons.append(Reason("p-value of a leak beyond what the slices show by themselves", conditional.p_value))
    for name, auc in controls.member_only.items():
        what = f"member-only control: AUCs of random halves of the {name.replace('_', '-')} patients"
        reasons.append(Reason(f"{what}, from {auc.low:.2f} to {auc.high:.2f}, mean", auc.value))
    if controls.matched:
        auc, pairs = controls.matched
        reasons.append(Reason(f"attack: AUC among {pairs} pairs of patients who are alike by themselves", auc.value))
    return tuple(reasons)
