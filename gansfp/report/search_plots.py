"""Figures about the search and the clusters it found: SVG for inside a page, or "" where there is nothing to show.

name: begins the ids of a figure; figures of one page have different names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.colors import to_rgba

from gansfp.report.plot_style import (
    BY_CHANCE,
    CHANCE,
    CLUSTERS,
    DASHES,
    END,
    GRID,
    INK,
    MARKERS,
    MIDDLE,
    MUTED,
    SMALL,
    USED,
    WIDTH,
    Key,
    Look,
    Sheet,
    chart,
    room,
    sheet,
)
from gansfp.report.plot_svg import Words, wrapped
from gansfp.report.plot_words import limits, log_ticks, number, percent, plain_ticks, scientific, short, thinned

STRONGEST = 0.45  # the opacity of the highest cell, on which text can still be read
LINE, NAMES, HEAD = 13.0, 132.0, 64.0  # of a heat map: heights of a line and of the head, width of the names of rows
LUCK, OBSERVED = Look(CHANCE, dash="-", area=True), Look(USED, dash="-")
BINS = 30
MEAN, CHOSEN = Look(USED, "o", "-", size=6), Look(USED, "D", size=12)
MOST_POINTS = 3000  # of a map
MOST_KEYS = 20
MOST_FREQUENCIES = 100
MARKED = 8  # points of a line that have a marker


def heat_map(
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    values: np.ndarray,
    name: str,
    unit: str,
    chance: float,
) -> str:
    """A figure by backbone and view, the darker the further above chance. values: (r, c), nan where there is none."""
    values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all():
        return ""
    row, column = (int(place) for place in np.unravel_index(np.nanargmax(values), values.shape))
    highest, lowest = float(values[row, column]), float(np.nanmin(values))
    across = (WIDTH - NAMES - 1) / values.shape[1]
    heads = [wrapped(label, across, SMALL) for label in column_labels]
    names = [wrapped(label, NAMES - 8, SMALL, most=2) for label in row_labels]
    down = 12 + LINE * max(len(lines) for lines in names)
    strength = np.nan_to_num((values - chance) / max(highest - chance, 1e-9)).clip(0, 1) * STRONGEST
    with sheet(HEAD + down * len(values) + 2) as plot:
        plot.text(0, 14, f"{unit}: chance is {number(chance)}, the highest has a frame")
        for i, lines in enumerate(heads):
            _lines(plot, NAMES + (i + 0.5) * across, HEAD - 7 - LINE * (len(lines) - 1), lines, MIDDLE)
        for i, lines in enumerate(names):
            _lines(plot, NAMES - 8, HEAD + (i + 0.5) * down + 4 - LINE * (len(lines) - 1) / 2, lines, END)
        for i, j in np.ndindex(*values.shape):
            x, y = NAMES + j * across, HEAD + i * down
            corners = [x, x + across, x + across, x, x], [y, y, y + down, y + down, y]
            colour = to_rgba(USED, float(strength[i, j])) if strength[i, j] else "none"
            plot.whole.fill(*corners, facecolor=colour, edgecolor=GRID, linewidth=1)
            written = number(float(values[i, j])) if np.isfinite(values[i, j]) else "–"
            plot.text(x + across / 2, y + down / 2 + 4, written, replace(MIDDLE, size=min(SMALL, across / 2.8)))
            if (i, j) == (row, column):
                frame = corners
        Look(INK, dash="-").draw(plot.whole, *frame)
        where = f"{short(row_labels[row])}, {short(column_labels[column])}"
        size = f"{len(values)} backbones and {values.shape[1]} views"
        found = f"highest {number(highest)} ({where}), median {number(float(np.nanmedian(values)))}"
        return plot.svg(name, f"{unit} of {size}: {found}, lowest {number(lowest)}. Chance is {number(chance)}.")


def _lines(plot: Sheet, x: float, y: float, lines: Sequence[str], like: Words) -> None:
    for line, words in enumerate(lines):
        plot.text(x, y + LINE * line, words, like)


def luck(percentiles: np.ndarray, observed: float, name: str, unit: str) -> str:
    """What the best of all scores reaches by luck alone, beside what was observed.

    percentiles: (101,), 0 to 100, of the best where labels are permuted; observed: nan if there is none.
    """
    percentiles = np.asarray(percentiles, dtype=np.float64)
    if not len(percentiles) or not np.isfinite(percentiles).all():
        return ""
    drawn = np.interp(np.linspace(0, 1, 2001), np.linspace(0, 1, len(percentiles)), percentiles)
    median, most = np.percentile(drawn, [50, 95])
    edges = np.linspace(*limits(drawn, 0), BINS + 1)
    shares = np.concatenate([[0], np.repeat(np.histogram(drawn, edges)[0] / len(drawn), 2), [0]])
    seen, as_high = bool(np.isfinite(observed)), float((drawn >= observed).mean())
    by_luck = f"best by luck: median {number(median)}, 95 % below {number(most)}"
    keys = [(LUCK, by_luck), *[(OBSERVED, f"observed: {number(observed)}")] * seen]
    with chart(keys, 120, left=12) as (plot, axes):
        axes.set_xlim(*limits([*edges, *[observed] * seen]))
        axes.set_ylim(0, 1.05 * shares.max())
        axes.spines["left"].set_visible(False)
        LUCK.fill(axes, np.repeat(edges, 2), shares)
        LUCK.draw(axes, np.repeat(edges, 2), shares)
        OBSERVED.draw(axes, [observed, observed], axes.get_ylim())
        plot.x_ticks(axes, plain_ticks(*axes.get_xlim()), unit)
        plot.y_ticks(axes, [], "how often")
        reached = percent(as_high) if as_high >= 0.01 else "less than 1 %"
        beside = f" Observed is {number(observed)}; luck reaches it in {reached} of the permutations." if seen else ""
        return plot.svg(name, f"{unit}, {by_luck}.{beside}")


def silhouettes(ks: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray, chosen: int, name: str) -> str:
    """How well slices fall apart into so many clusters, and the number that was chosen.

    ks: numbers of clusters; values: mean silhouettes, nan where there is none.
    """
    by_k = {int(k): float(value) for k, value in sorted(zip(ks, values, strict=True)) if np.isfinite(value)}
    if not by_k:
        return ""
    keys = [(BY_CHANCE, "0: no clusters"), *[(CHOSEN, f"chosen: {chosen} clusters")] * (chosen in by_k)]
    with chart(keys, 180) as (plot, axes):
        axes.set_xlim(min(by_k) - 0.5, max(by_k) + 0.5)
        axes.set_ylim(*limits([0, *by_k.values()]))
        BY_CHANCE.draw(axes, axes.get_xlim(), [0, 0])
        MEAN.draw(axes, list(by_k), list(by_k.values()))
        if chosen in by_k:
            CHOSEN.draw(axes, [chosen], [by_k[chosen]])
        whole = [(float(k), str(k)) for k in range(min(by_k), max(by_k) + 1, 1 + (max(by_k) - min(by_k)) // 13)]
        plot.x_ticks(axes, whole, "number of clusters")
        plot.y_ticks(axes, plain_ticks(*axes.get_ylim()), "mean silhouette")
        said = ", ".join(f"{number(value)} for {k}" for k, value in by_k.items())
        return plot.svg(name, f"Mean silhouette by number of clusters: {said}; chosen: {chosen}.")


def clusters_map(
    xy: np.ndarray,
    cluster: np.ndarray,
    labels: Mapping[int, str],
    known_xy: np.ndarray,
    known_generator: Sequence[str] | np.ndarray,
    name: str,
) -> str:
    """Slices in the plane by their cluster, and slices of known generators above them.

    xy: (n, 2); cluster: (n,) int; labels: what a cluster is called; known_xy: (m, 2); known_generator: (m,) str. At
    most MOST_POINTS are drawn, evenly of each.
    """
    parts = [*_clusters(np.asarray(xy), np.asarray(cluster), labels), *_known(np.asarray(known_xy), known_generator)]
    total = sum(len(xy) for _, _, xy in parts)
    if not total:
        return ""
    keys: list[Key] = [(look, f"{label}: {len(xy):,}") for look, label, xy in parts]
    if len(keys) > MOST_KEYS:
        keys = [*keys[:MOST_KEYS], (Look(MUTED), f"and {len(keys) - MOST_KEYS} more")]
    top, side = room(keys) + 8, WIDTH - 12
    with sheet(top + side + 8) as plot:
        plot.keys(keys)
        axes = plot.axes(top, side, 6, 6)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(visible=True, color=GRID)
        every = np.concatenate([xy for _, _, xy in parts])
        middle = (every.min(0) + every.max(0)) / 2
        half = 0.52 * max(float(np.ptp(every, axis=0).max()), 1e-9)
        axes.set_xlim(middle[0] - half, middle[0] + half)
        axes.set_ylim(middle[1] - half, middle[1] + half)
        for look, _, xy in parts:
            xy = xy[thinned(np.arange(len(xy)), max(1, MOST_POINTS * len(xy) // max(total, MOST_POINTS)))]
            replace(look, size=7 if total < 300 else 4.5).draw(axes, xy[:, 0], xy[:, 1])
        said = ", ".join(f"{len(xy):,} of {short(label)}" for _, label, xy in parts)
        return plot.svg(name, f"Map of {total:,} slices, near each other where they are alike: {said}.")


_Part = tuple[Look, str, np.ndarray]  # how points are drawn, what they are, and where


def _clusters(xy: np.ndarray, cluster: np.ndarray, labels: Mapping[int, str]) -> list[_Part]:
    parts = []
    for index, code in enumerate(np.unique(cluster).tolist()):
        points = xy[cluster == code]
        look = Look(CLUSTERS[index % len(CLUSTERS)], MARKERS[index % len(MARKERS)])
        parts.append((look, labels.get(code, f"cluster {code}"), points[np.isfinite(points).all(1)]))
    return [part for part in parts if len(part[2])]


def _known(xy: np.ndarray, generator: Sequence[str] | np.ndarray) -> list[_Part]:
    parts, generator = [], np.asarray(generator, dtype=object)
    for index, known in enumerate(sorted(set(generator.tolist()))):
        points = xy[generator == known]
        look = Look(MUTED, MARKERS[index % len(MARKERS)], hollow=True)
        parts.append((look, f"known: {known}", points[np.isfinite(points).all(1)]))
    return [part for part in parts if len(part[2])]


def spectrum_profiles(frequencies: np.ndarray, profiles: np.ndarray, labels: Sequence[str], name: str) -> str:
    """How strong each spatial frequency is in what a generator leaves behind, by cluster.

    frequencies: (f,); profiles: (c, f), above 0; labels: c names of the clusters.
    """
    frequencies, profiles = np.asarray(frequencies, dtype=np.float64), np.asarray(profiles, dtype=np.float64)
    columns = thinned(np.argsort(frequencies, kind="stable")[: int(np.isfinite(frequencies).sum())], MOST_FREQUENCIES)
    positive = np.isfinite(profiles) & (profiles > 0)
    rows = [row for row in range(len(labels)) if positive[row, columns].any()]
    if not rows:
        return ""
    drawn = np.where(positive, profiles, np.nan)[:, columns]
    looks = [
        Look(CLUSTERS[row % len(CLUSTERS)], MARKERS[row % len(MARKERS)], DASHES[row % len(DASHES)], size=6)
        for row in rows
    ]
    low, high = np.exp(limits(np.log(drawn[np.isfinite(drawn)])))
    with chart([(look, labels[row]) for look, row in zip(looks, rows, strict=True)], 230, left=52) as (plot, axes):
        axes.set_yscale("log")
        axes.set_xlim(*limits(frequencies[columns], 0.02))
        axes.set_ylim(low, high)
        for look, row in zip(looks, rows, strict=True):
            some = thinned(np.arange(len(columns)), MARKED)
            replace(look, marker="").draw(axes, frequencies[columns], drawn[row])
            replace(look, dash="").draw(axes, frequencies[columns][some], drawn[row][some])
        plot.x_ticks(axes, plain_ticks(*axes.get_xlim()), "spatial frequency, from coarse to fine")
        plot.y_ticks(axes, log_ticks(low, high, scientific), "strength")
        said = [
            f"{short(labels[row])} from {scientific(drawn[row][known][0])} to {scientific(drawn[row][known][-1])}"
            for row in rows
            for known in [np.isfinite(drawn[row])]
        ]
        return plot.svg(name, f"Strength from the lowest to the highest frequency: {'; '.join(said)}.")
