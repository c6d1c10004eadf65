"""How the figures of the report look, and the sheet that all of them are drawn on.

Lengths are points, of which the sheet is WIDTH wide; a page shows it as wide as a phone, or a little wider. Colours are
variables of the page's style sheet, STYLE, so that figures follow its light or dark mode. No difference is shown by
colour alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gansfp.report.plot_svg import Words, page_svg, shorten, width
from gansfp.report.plot_words import Ticks

WIDTH = 400.0
SIZE, SMALL = 13.0, 11.5  # of fonts
LEFT, RIGHT = 44.0, 12.0  # beside axes: the left margin has the numbers

# What figures are drawn with; matplotlib knows no variables, so each has a colour that stands for it.
INK, GRID, USED, NOT_USED, CHANCE, MUTED = (f"#0101{number:02x}" for number in range(1, 7))
CLUSTERS = tuple(f"#0202{number:02x}" for number in range(10))
COLOURS = {
    INK: "currentColor",
    GRID: "var(--grid)",
    USED: "var(--used)",
    NOT_USED: "var(--not-used)",
    CHANCE: "var(--chance)",
    MUTED: "var(--muted)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(CLUSTERS)},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", ":", "-.")

LINE = 21.0  # the height of a line of keys
SAMPLE = 22.0  # the width of what a key shows
PLAIN = Words("", 0, 0, SIZE, INK)
MIDDLE = replace(PLAIN, size=SMALL, anchor="middle")
END = replace(PLAIN, size=SMALL, anchor="end")

# Every colour but that of the grid has a contrast of 4.5 or more to #fff, or to #14171a in dark mode.
STYLE = """
:root {
  --grid: #d9dce0; --used: #b3400b; --not-used: #0b62a4; --chance: #8a2c8f; --muted: #5c6268;
  --c0: #0b62a4; --c1: #b3400b; --c2: #1a7a3c; --c3: #8f3d9c; --c4: #856000;
  --c5: #00718a; --c6: #bd2358; --c7: #5748c0; --c8: #4f6b1a; --c9: #7a4a2b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --grid: #363c42; --used: #ff9a5c; --not-used: #6cb6f5; --chance: #e29be6; --muted: #a4abb3;
    --c0: #6cb6f5; --c1: #ff9a5c; --c2: #5fd08a; --c3: #d79be6; --c4: #dcb64a;
    --c5: #4fc3dc; --c6: #ff87ab; --c7: #a99cff; --c8: #a6c95a; --c9: #d3a07c;
  }
}
.plot { display: block; width: 32rem; }
""".strip()

_SETTINGS = {"svg.hashsalt": "gansfp", "axes.spines.top": False, "axes.spines.right": False, "path.simplify": False}
_ONE_AT_A_TIME = threading.Lock()  # matplotlib's settings are those of the whole process


@dataclass(frozen=True)
class Look:
    """How something is drawn: as points if it has a marker, as a line if it has a dash, as an area; or as several."""

    colour: str
    marker: str = ""
    dash: str = ""
    hollow: bool = False
    area: bool = False
    size: float = 7.0

    def draw(self, axes: Axes, x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float]) -> None:
        """Draws points and the line through them; areas are up to the figure."""
        axes.plot(
            x,
            y,
            color=self.colour,
            marker=self.marker or "none",
            linestyle=self.dash or "none",
            linewidth=2,
            markersize=self.size,
            markerfacecolor="none" if self.hollow else self.colour,
            markeredgewidth=1.3 if self.hollow else 0,
            clip_on=False,
        )

    def fill(self, axes: Axes, x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float]) -> None:
        """Draws an area: the polygon with these corners."""
        axes.fill(x, y, facecolor=self.colour, alpha=0.25, linewidth=0, clip_on=False)


BY_CHANCE = Look(CHANCE, dash="--")  # as all figures draw it
Key = tuple[Look, str]  # how something is drawn, and what it is


@dataclass(eq=False)
class Sheet:
    """A figure while it is drawn. `whole` has points from the upper left corner as coordinates."""

    height: float
    figure: Figure
    whole: Axes
    words: list[Words] = field(default_factory=list)

    def axes(self, top: float, height: float, left: float = LEFT, right: float = RIGHT) -> Axes:
        """New axes, so far below the upper edge, between these margins. Numbers are added by `x_ticks`, `y_ticks`."""
        at = (left / WIDTH, 1 - (top + height) / self.height, (WIDTH - left - right) / WIDTH, height / self.height)
        axes = self.figure.add_axes(at)
        axes.patch.set_visible(False)
        axes.set_axisbelow(True)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(MUTED)
        axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
        return axes

    def text(self, x: float, y: float, text: str, like: Words = PLAIN, most: float = WIDTH) -> None:
        """Adds text at a place, at most so wide; y is its baseline."""
        self.words.append(replace(like, text=shorten(text, most, like.size), x=x, y=y))

    def at(self, axes: Axes, x: float, y: float) -> tuple[float, float]:
        """Where a point of axes is on the sheet. The limits of the axes must be set before."""
        across, up = axes.transData.transform((x, y))
        return float(across), float(self.height - up)

    def x_ticks(self, axes: Axes, ticks: Ticks, name: str, grid: bool = True) -> None:
        """The grid and the numbers below, and what the axis is."""
        axes.set_xticks([position for position, _ in ticks] if grid else [], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        left, bottom = self.at(axes, axes.get_xlim()[0], axes.get_ylim()[0])
        right, _ = self.at(axes, axes.get_xlim()[1], axes.get_ylim()[0])
        for position, label in ticks:
            half = width(label, SMALL) / 2
            x = min(max(self.at(axes, position, axes.get_ylim()[0])[0], half), WIDTH - half)
            self.text(x, bottom + 15, label, MIDDLE)
        self.text((left + right) / 2, bottom + 33, name, replace(MIDDLE, size=SIZE))

    def y_ticks(self, axes: Axes, ticks: Ticks, name: str) -> None:
        """The grid and the numbers on the left, and what the axis is, above it."""
        axes.set_yticks([position for position, _ in ticks], minor=False)
        axes.set_yticks([], minor=True)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        left, top = self.at(axes, axes.get_xlim()[0], axes.get_ylim()[1])
        for position, label in ticks:
            self.text(left - 6, self.at(axes, axes.get_xlim()[0], position)[1] + 4, label, END)
        self.text(0, top - 12, name)

    def keys(self, keys: Sequence[Key]) -> None:
        """Says at the top what is drawn how."""
        for (look, label), (x, y) in zip(keys, _places(keys), strict=True):
            self._sample(look, x, y + LINE / 2)
            self.text(x + SAMPLE + 6, y + LINE / 2 + 4.5, label, most=WIDTH - SAMPLE - 6)

    def _sample(self, look: Look, x: float, y: float) -> None:
        if look.area:
            look.fill(self.whole, [x, x + SAMPLE, x + SAMPLE, x], [y - 6, y - 6, y + 6, y + 6])
        if look.dash:
            replace(look, marker="").draw(self.whole, [x, x + SAMPLE], [y, y])
        if look.marker:
            replace(look, dash="", size=max(look.size, 7)).draw(self.whole, [x + SAMPLE / 2], [y])

    def svg(self, name: str, alt: str) -> str:
        """The figure for a page. name: begins its ids; alt: what it shows, in words."""
        return page_svg(self.figure, self.words, COLOURS, name, alt)


@contextmanager
def sheet(height: float) -> Iterator[Sheet]:
    """A sheet of this height to draw on. One at a time, and with settings that depend on no file of the user."""
    with _ONE_AT_A_TIME, style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        whole = figure.add_axes((0, 0, 1, 1))
        whole.set_axis_off()
        whole.set_xlim(0, WIDTH)
        whole.set_ylim(height, 0)
        yield Sheet(height, figure, whole)


@contextmanager
def chart(keys: Sequence[Key], height: float, left: float = LEFT) -> Iterator[tuple[Sheet, Axes]]:
    """A sheet with keys at the top, and axes of this height below, between the names of the y and of the x axis."""
    top = room(keys) + 28
    with sheet(top + height + 40) as plot:
        plot.keys(keys)
        yield plot, plot.axes(top, height, left)


def room(keys: Sequence[Key]) -> float:
    """The height that keys take."""
    return max((y + LINE for _, y in _places(keys)), default=0)


def _places(keys: Sequence[Key]) -> list[tuple[float, float]]:
    """The upper left corners of keys, in as many lines as it takes."""
    places, x, y = [], 0.0, 0.0
    for _, label in keys:
        needed = SAMPLE + 6 + width(label, SIZE)
        if x and x + needed > WIDTH:
            x, y = 0.0, y + LINE
        places.append((x, y))
        x += needed + 14
    return places
