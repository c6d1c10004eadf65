"""Figures about which real slices were used: SVG for inside a page, or "" where there is nothing to show.

name: begins the ids of a figure; figures of one page have different names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import logit

from gansfp import labels
from gansfp.report.curves import Curve, calibration_bins
from gansfp.report.plot_style import (
    BY_CHANCE,
    END,
    GRID,
    INK,
    MIDDLE,
    MUTED,
    NOT_USED,
    PLAIN,
    USED,
    WIDTH,
    Look,
    chart,
    room,
    sheet,
    width,
)
from gansfp.report.plot_words import (
    exact_percent,
    limits,
    log_ticks,
    number,
    of_interval,
    one_in,
    percent,
    plain_ticks,
    short,
    thinned,
    with_interval,
)

KINDS = {"attack": Look(USED, "o", "-", size=9), "control": Look(NOT_USED, "s", "-", hollow=True, size=9)}  # of rows
KINDS_OF_SLICES = {
    labels.USED: (Look(USED, dash="-", area=True), "used"),
    labels.NOT_USED: (Look(NOT_USED, dash="-"), "not used"),
}
THRESHOLD = Look(INK, dash="-.")
FOUND, BAND = Look(USED, dash="-"), Look(USED, area=True)
SHARE = Look(USED, "o", "-", size=8)
NAMED, OTHER = Look(USED, "^", size=8), Look(MUTED, "o", hollow=True, size=5)
LEAKS, ENOUGH = Look(USED, "o", "-", size=6), Look(INK, dash="--")
WANTED = 0.8  # the share of leaks that an audit should find
SLICES = replace(MIDDLE, colour=MUTED)  # how their number is written
TENTHS = [tenth / 10 for tenth in range(11)]
MOST_PATIENTS = 400  # that are drawn
BINS = 40


@dataclass(frozen=True)
class Row:
    """An AUC with its 95 % interval, nan where unknown. kind: of the attack, or of a control that should fail."""

    label: str
    value: float
    low: float
    high: float
    kind: Literal["attack", "control"] = "attack"


def at_a_glance(rows: Sequence[Row], name: str) -> str:
    """The AUCs of the attack and of its controls with their intervals, beside chance."""
    if not rows:
        return ""
    each = 44.0
    lowest = np.nanmin([0.4, *(value for row in rows for value in (row.value, row.low))])
    keys = [(look, kind) for kind, look in KINDS.items() if any(row.kind == kind for row in rows)]
    keys = [*keys, (BY_CHANCE, "chance 0.50")]
    with sheet(room(keys) + each * len(rows) + 46) as plot:
        plot.keys(keys)
        axes = plot.axes(room(keys) + 4, each * len(rows), left=12)
        axes.set_xlim(np.floor(10 * lowest) / 10, 1)
        axes.set_ylim(len(rows), 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        for line, row in enumerate(rows):
            BY_CHANCE.draw(axes, [0.5, 0.5], [line + 0.52, line + 1])
            replace(KINDS[row.kind], marker="").draw(axes, [row.low, row.high], [line + 0.7, line + 0.7])
            replace(KINDS[row.kind], dash="").draw(axes, [row.value], [line + 0.7])
            figure, (_, y) = of_interval(row.value, row.low, row.high), plot.at(axes, 1, line)
            plot.text(WIDTH - 12, y + 17, figure, replace(END, size=PLAIN.size, bold=row.kind == "attack"))
            plot.text(0, y + 17, row.label, most=WIDTH - 12 - width(figure, PLAIN.size) - 10)
        plot.x_ticks(axes, plain_ticks(*axes.get_xlim(), write=number), "AUC: 0.50 is chance, 1.00 is perfect", False)
        said = [f"{short(row.label)} ({row.kind}) {with_interval(row.value, row.low, row.high)}" for row in rows]
        return plot.svg(name, f"AUC of the attack and of its controls: {'; '.join(said)}. Chance is 0.5.")


def score_distributions(score: np.ndarray, truth: np.ndarray, threshold: float, name: str) -> str:
    """How the scores of used and of not-used slices are distributed, and the threshold, if it is not nan.

    score: (n,); truth: (n,) 1 or 0; other slices are left out, as are those whose score is not finite.
    """
    score, truth = np.asarray(score, dtype=np.float64), np.asarray(truth)
    known, divided = np.isfinite(score) & np.isin(truth, list(KINDS_OF_SLICES)), bool(np.isfinite(threshold))
    if not known.any():
        return ""
    low, high = limits([*np.percentile(score[known], [0.5, 99.5]), *[threshold] * divided])
    edges = np.linspace(low, high, BINS + 1)
    keys, shapes, said = [], [], []
    for kind in np.unique(truth[known])[::-1]:
        look, words = KINDS_OF_SLICES[int(kind)]
        scores = score[known & (truth == kind)]
        shares = np.histogram(scores.clip(low, high), edges)[0] / len(scores)
        keys.append((look, f"{words}: {len(scores):,} slices"))
        shapes.append((look, np.concatenate([[0], np.repeat(shares, 2), [0]])))
        said.append(f"{len(scores):,} slices {words} have a median score of {number(float(np.median(scores)))}")
        if divided:
            said[-1] += f", {percent(float((scores >= threshold).mean()))} of them are above the threshold"
    keys += [(THRESHOLD, f"threshold {number(threshold)}")] * divided
    with chart(keys, 190) as (plot, axes):
        top = 1.05 * max(shape.max() for _, shape in shapes)
        axes.set_xlim(low, high)
        axes.set_ylim(0, top)
        for look, shape in shapes:
            if look.area:
                look.fill(axes, np.repeat(edges, 2), shape)
            look.draw(axes, np.repeat(edges, 2), shape)
        THRESHOLD.draw(axes, [threshold] * 2, [0, top])
        plot.x_ticks(axes, plain_ticks(low, high), "score of a slice")
        plot.y_ticks(axes, plain_ticks(0, top, 4, percent), "share of the slices")
        ending = f" The threshold is {number(threshold)}." if divided else ""
        return plot.svg(name, f"Scores: {'; '.join(said)}.{ending}")


def roc(curve: Curve, name: str, smallest: float) -> str:
    """How many used slices are found at the price of how many false alarms.

    smallest: the false positive rate where the axis begins: one of the not-used slices.
    """
    start = min(max(smallest, 1e-6), 0.5) if np.isfinite(smallest) else 0.5
    shown = np.flatnonzero((curve.fpr >= start * (1 - 1e-9)) & np.isfinite(curve.tpr))
    if not len(shown):
        return ""
    fpr, tpr, low, high = (values[shown] for values in (curve.fpr, curve.tpr, curve.low, curve.high))
    steps = np.append(np.repeat(fpr, 2)[1:], 1)  # what a threshold finds holds until the next one
    has_band = bool(np.isfinite([low, high]).all())
    keys = [(FOUND, "attack"), *[(BAND, "95 % interval")] * has_band, (BY_CHANCE, "chance")]
    said = []
    for at in (0.001, 0.01, 0.1):
        row = np.searchsorted(fpr, at * (1 + 1e-9), side="right") - 1
        if row >= 0:
            said.append(f"{with_interval(tpr[row], low[row], high[row], percent)} at {percent(at)} false alarms")
    said = said or [f"{with_interval(tpr[0], low[0], high[0], percent)} at {percent(fpr[0])} false alarms"]
    with chart(keys, 250) as (plot, axes):
        axes.set_xscale("log")
        axes.set_xlim(start, 1)
        axes.set_ylim(0, 1)
        if has_band:
            corners = np.concatenate([np.repeat(low, 2), np.repeat(high, 2)[::-1]])
            BAND.fill(axes, np.concatenate([steps, steps[::-1]]), corners)
        by_chance = np.geomspace(start, 1, 60)
        BY_CHANCE.draw(axes, by_chance, by_chance)
        FOUND.draw(axes, steps, np.repeat(tpr, 2))
        plot.x_ticks(axes, log_ticks(start, 1, exact_percent), "false alarms: not-used slices called used")
        plot.y_ticks(axes, plain_ticks(0, 1, 5, percent), "used slices that are found")
        return plot.svg(
            name, f"The attack finds of the used slices {'; '.join(said)}. Chance finds as many as the rate."
        )


def calibration(probability: np.ndarray, truth: np.ndarray, name: str) -> str:
    """Whether slices that are given a probability are used as often as it says; below, how many slices these are."""
    bins = calibration_bins(probability, truth)
    if not len(bins.count):
        return ""
    keys = [(SHARE, "share that was used, 95 % interval"), (BY_CHANCE, "probabilities that are right")]
    with chart(keys, 390) as (plot, below):
        top = room(keys) + 28
        axes = plot.axes(top, 300)
        for each in (axes, below):
            each.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        below.set_ylim(0, 390 / 50 * bins.count.max())
        below.spines["left"].set_visible(False)
        below.bar(bins.middle, bins.count, 0.08, color=GRID, clip_on=False)
        for middle, count in zip(bins.middle, bins.count, strict=True):
            x, y = plot.at(below, middle, count)
            plot.text(x, y - 4, f"{count}" if count < 1000 else f"{count / 1000:,.{int(count < 9950)}f}k", SLICES)
        BY_CHANCE.draw(axes, [0, 1], [0, 1])
        for x, low, high in zip(bins.probability, bins.low, bins.high, strict=True):
            replace(SHARE, marker="").draw(axes, [x, x], [low, high])
        replace(SHARE, dash="").draw(axes, bins.probability, bins.share)
        axes.set_xticks(TENTHS, [])
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        plot.x_ticks(below, plain_ticks(0, 1, 5, percent), "probability that a slice was used; number of slices", False)
        plot.y_ticks(axes, plain_ticks(0, 1, 5, percent), "share that was used")
        said = [
            f"of {count:,} slices given {percent(given)}, {with_interval(share, low, high, percent)} were used"
            for given, share, low, high, count in zip(
                bins.probability, bins.share, bins.low, bins.high, bins.count, strict=True
            )
        ]
        return plot.svg(name, f"Calibration: {'; '.join(said)}.")


def patients(score: np.ndarray, named: np.ndarray, p: np.ndarray, name: str) -> str:
    """The unknown patients by falling score, and which of them are named as used.

    score: (u,) in standard deviations above the mean of patients that were not used; named: (u,) bool; p: (u,) their
    p-values. At most MOST_PATIENTS are drawn, spread evenly, the named ones first.
    """
    score, named, p = np.asarray(score, dtype=np.float64), np.asarray(named, dtype=bool), np.asarray(p)
    score, named, p = (values[np.isfinite(score)] for values in (score, named, p))
    if not len(score):
        return ""
    order = np.argsort(-score, kind="stable")
    score, named, p, ranks = score[order], named[order], p[order], np.arange(1, len(score) + 1)
    bound = f", p ≤ {np.ceil(1e4 * np.nanmax(p[named])) / 1e4:g}" if np.isfinite(p[named]).any() else ""
    words = f"named: {named.sum():,} of {len(named):,} patients{bound}"
    keys = [(NAMED, words), (OTHER, f"not named: {(~named).sum():,}"), (BY_CHANCE, "mean of patients not used")]
    with chart(keys, 230) as (plot, axes):
        axes.set_xlim(*limits(ranks, 0.02))
        axes.set_ylim(*limits([*score, 0]))
        BY_CHANCE.draw(axes, axes.get_xlim(), [0, 0])
        of_named = thinned(np.flatnonzero(named), MOST_PATIENTS // 2)
        of_others = thinned(np.flatnonzero(~named), MOST_PATIENTS - len(of_named))
        OTHER.draw(axes, ranks[of_others], score[of_others])
        NAMED.draw(axes, ranks[of_named], score[of_named])
        plot.x_ticks(axes, plain_ticks(1, len(ranks)), "patients by falling score")
        plot.y_ticks(axes, plain_ticks(*axes.get_ylim()), "score of a patient")
        highest = f"The highest score is {number(score[0])}, the median {number(float(np.median(score)))}"
        return plot.svg(name, f"Patients {words}. {highest}; the mean of patients not used is 0.")


def share(value: float, low: float, high: float, name: str) -> str:
    """A share that was used with its interval, on a bar from none to all."""
    if not np.isfinite(value):
        return ""
    with sheet(100) as plot:
        axes = plot.axes(30, 30, left=16, right=16)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.fill([0, value, value, 0], [0, 0, 1, 1], facecolor=USED, alpha=0.45, linewidth=0, clip_on=False)
        axes.plot(
            [low, high], [0.5, 0.5], color=INK, linewidth=2, marker="|", markersize=14, markeredgewidth=2, clip_on=False
        )
        plot.x_ticks(axes, plain_ticks(0, 1, 5, percent), "share that was used")
        plot.text(16, 18, of_interval(value, low, high, percent), replace(PLAIN, bold=True))
        return plot.svg(name, f"Share that was used: {with_interval(value, low, high, percent)}.")


def power_curve(shares: np.ndarray, found: np.ndarray, name: str) -> str:
    """How probably a leak is found, by how many of the synthetic slices are copies.

    shares: (k,) of copies among the synthetic slices, above 0; found: (k,) the probability.
    """
    shares, found = np.asarray(shares, dtype=np.float64), np.asarray(found, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(shares) & np.isfinite(found) & (shares > 0))
    if not len(rows):
        return ""
    rows = rows[np.argsort(shares[rows], kind="stable")]
    shares, found = shares[rows].clip(max=1), found[rows].clip(0, 1)
    smallest = _crossing(shares, found)
    enough = f"{percent(WANTED)} found" + (f": from {one_in(smallest)}" if smallest else ", never reached")
    with chart([(ENOUGH, enough)], 190) as (plot, axes):
        axes.set_xscale("log")
        axes.set_xlim(shares[0] * 0.9, min(1, shares[-1] * 1.1))
        axes.set_ylim(0, 1)
        ENOUGH.draw(axes, axes.get_xlim(), [WANTED, WANTED])
        LEAKS.draw(axes, shares, found)
        plot.x_ticks(axes, log_ticks(*axes.get_xlim(), one_in, most=4), "copies among the synthetic slices")
        plot.y_ticks(axes, plain_ticks(0, 1, 5, percent), "leaks that are found")
        ends = [(float(found[i]), one_in(float(shares[i]))) for i in sorted({0, len(rows) - 1})]
        said = [f"{percent(share)} if {'all are copies' if of == 'all' else of + ' is a copy'}" for share, of in ends]
        return plot.svg(name, f"Leaks that are found: {', '.join(said)}; {enough}.")


def _crossing(shares: np.ndarray, found: np.ndarray) -> float | None:
    """The smallest share from which WANTED of the leaks are found; None if there is none."""
    enough = found >= WANTED
    if not enough.any():
        return None
    at = int(enough.argmax())
    if at == 0:
        return float(shares[0])
    # The curve is logistic over the logarithm of the share, so that it is straight in these coordinates.
    rising = logit(found[at - 1 : at + 1].clip(1e-6, 1 - 1e-6))
    return float(np.exp(np.interp(logit(WANTED), rising, np.log(shares[at - 1 : at + 1]))))
