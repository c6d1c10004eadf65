"""The one table that a person reads at the end: each score beside its interval, its chance level and its p-value."""

from __future__ import annotations

from typing import Any

ALPHA = 0.05
MEMBERSHIP_FIGURES = ("auc", "f1", "accuracy", "kappa", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1")
ATTRIBUTION_FIGURES = ("ari", "nmi", "purity")


def summary(metrics: dict[str, Any]) -> str:
    """The text for what metrics.json holds."""
    lines: list[str] = []
    for name, report in metrics.get("membership", {}).get("sets", {}).items():
        lines += _block(f"membership, set {name}: did these slices train the generator?", report, MEMBERSHIP_FIGURES)
    if mean := metrics.get("membership", {}).get("mean_f1"):
        lines += [f"mean F1 over the sets: {_interval(mean)}", ""]
    if report := metrics.get("attribution"):
        lines += _block("attribution: which generator made each slice?", report, ATTRIBUTION_FIGURES)
        named = ", ".join(f"{number} resembles {name}" for number, name in report["names"].items())
        lines += [f"  {report['clusters']} clusters: {named}", ""]
    run = metrics["run"]
    if run["bad_images"]:
        lines.append(f"{len(run['bad_images'])} images could not be read; metrics.json names them with their reasons")
    lines += [f"left out: {line}" for line in run["left_out"]]
    return "\n".join(lines).rstrip()


def _block(title: str, report: dict[str, Any], figures: tuple[str, ...]) -> list[str]:
    scored = figures[0] in report
    shown = report if scored else report["cross_validated"]
    basis = "test slices with truth" if scored else "labelled slices, cross-validated (the test has no truth)"
    lines = [title, f"  {shown['n']:,} {basis}, {shown['n_groups']:,} groups; {report['tried']:,} configurations tried"]
    lines.append(f"  {'':<18}{'value':>7}  {'95 % interval':<17}{'by chance':>9}")
    for name in figures:
        figure = shown[name]
        low_high = f"[{_number(figure['low'])}, {_number(figure['high'])}]"
        lines.append(f"  {name:<18}{_number(figure['value']):>7}  {low_high:<17}{_number(figure['chance']):>9}")
    p, selected = shown["p_value"], shown["p_value_selected"]
    lines.append(f"  p-value {p:.3g}; corrected for the search {selected:.3g}")
    lines += [f"  careful: {warning}" for warning in shown["warnings"]]
    lines.append(f"  => {_verdict(p, selected)}")
    return [*lines, ""]


def _verdict(p: float, selected: float) -> str:
    if p < ALPHA and selected < ALPHA:
        return "better than chance"
    if p < ALPHA:
        return "better than chance by itself, not after correcting for the search: weak evidence"
    return "not told apart from chance; that nothing was seen does not mean that nothing is there"


def _interval(figure: dict[str, Any]) -> str:
    return f"{_number(figure['value'])} [{_number(figure['low'])}, {_number(figure['high'])}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
