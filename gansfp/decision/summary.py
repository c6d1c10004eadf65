"""The text that a person reads at the end: each figure beside its interval, its chance level and its p-value."""

from __future__ import annotations

from gansfp.decision.conclusion import Conclusion
from gansfp.decision.reports import AttributionReport, Metrics, SetReport
from gansfp.decision.verdict import LEAK, Reason
from gansfp.statistics.intervals import Estimate
from gansfp.statistics.patients import false_accusations_at_most

MEMBERSHIP_FIGURES = ("auc", "f1", "accuracy", "kappa", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1")
ATTRIBUTION_FIGURES = ("ari", "nmi", "purity")
NO_LEAK = "Careful: without a leak this only says how many are like the used patients"


def summary(metrics: Metrics) -> str:
    """The text for what metrics.json holds."""
    lines: list[str] = []
    if pending := metrics.run.pending:
        lines += [f"PROVISIONAL: without {', '.join(pending)}, which take longer; the final answer follows", ""]
    if metrics.membership:
        for name, report in metrics.membership.sets.items():
            title = f"membership, set {name}: did these slices train the generator?"
            lines += [*_block(title, report, MEMBERSHIP_FIGURES), ""]
        if mean := metrics.membership.mean_f1:
            lines += [f"mean F1 over the sets: {_number(mean.value)} {_interval(mean)}", ""]
    if attribution := metrics.attribution:
        lines += [*_block("attribution: which generator made each slice?", attribution, ATTRIBUTION_FIGURES), ""]
        names = ", ".join(f"{cluster} resembles {name}" for cluster, name in attribution.names.items())
        lines += [f"  {attribution.clusters} clusters: {names}", ""]
    if bad := metrics.run.bad_images:
        lines.append(f"{len(bad)} images could not be read; metrics.json names them with their reasons")
    lines += [f"careful: {line}" for line in metrics.run.findings]
    lines += [f"left out: {line}" for line in metrics.run.left_out]
    return "\n".join(lines).rstrip()


def _block(title: str, report: SetReport | AttributionReport, names: tuple[str, ...]) -> list[str]:
    evidence, slices = report.test, "test slices with truth"
    if evidence is None:
        few = isinstance(report, SetReport) and report.left_out
        why = "too few test slices can be judged" if few else "the test has no truth"
        evidence, slices = report.cross_validated, f"labelled slices, cross-validated ({why})"
    counts = evidence.support
    lines = [title, f"  {report.verdict.finding.upper()}: {report.verdict.sentence}"]
    lines += [f"  - {_reason(reason)}" for reason in report.verdict.reasons]
    if isinstance(report, SetReport):
        lines += _of_patients(report.concluded)
        lines += [f"  careful: {shortcut}" for shortcut in report.shortcuts if shortcut.notable]
    lines += [f"  {counts['n']:,} {slices}, {counts['n_groups']:,} groups; {report.tried:,} configurations tried"]
    lines.append(f"  {'':<18}{'value':>7}  {'95 % interval':<17}{'by chance':>9}")
    for name in names:
        figure = evidence.figures[name]
        value, interval = _number(figure.estimate.value), _interval(figure.estimate)
        lines.append(f"  {name:<18}{value:>7}  {interval:<17}{_number(figure.chance):>9}")
    p_value, selected = _p(evidence.p_value), _p(evidence.p_value_selected)
    lines.append(f"  p-value {p_value}; corrected for the search {selected}")
    lines += [f"  careful: {warning}" for warning in evidence.warnings]
    return lines


def _of_patients(concluded: Conclusion) -> list[str]:
    """How many of the unknown patients were used, and how many can be named."""
    patients, lines = concluded.patients, []
    if share := concluded.known_share:
        used = f"{share.value:.0%} of the unknown patients were used, {share.low:.0%} to {share.high:.0%} at 95 %"
        least = f"; at least {concluded.least:.0%} if only the not-used labels hold" if concluded.least else ""
        leak = concluded.verdict.finding == LEAK
        lines.append(f"  - share: {used}{least}" if leak else f"  - share: {used}. {NO_LEAK}")
    elif concluded.share:
        lines.append("  - share: not known")
    if patients.listed is not None:
        named = f"{patients.named.sum():,} of {len(patients.names):,} unknown patients"
        withheld = f"; {patients.withheld:,} more have such scores, but the verdict does not allow to name them"
        but = withheld if patients.withheld else ""
        lines.append(f"  - named at a false discovery rate of {patients.fdr:.0%}: {named}{but}")
    if patients.wrong is not None and patients.allowed:
        most = false_accusations_at_most(patients.of, patients.wrong)
        high = f"{patients.wrong:,} of {patients.of:,} patients who were not used score as high as the last one named"
        lines.append(f"  - {high}: at most {most:.1%} false accusations, at 95 %")
    return lines


def _reason(reason: Reason) -> str:
    return reason.what if reason.figure is None else f"{reason.what}: {reason.figure:.3g}"


def _interval(estimate: Estimate) -> str:
    return f"[{_number(estimate.low)}, {_number(estimate.high)}]"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"  # NaN: not defined


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
