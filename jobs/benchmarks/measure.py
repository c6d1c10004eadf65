"""What all measurements of jobs.benchmark share: sizes, rows of the table, and the place where they work."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from gansfp.embedding.shards import Pair
from jobs.benchmarks.runs import Run
from jobs.benchmarks.slices import draw_slices, image_files, link_collection, link_images
from tune.membership import NETWORKS

LARGEST = 16  # the largest run of jobs.embed has this many times the slices of the smallest


@dataclass(frozen=True)
class Target:
    """The limit that a row must reach with its ratio, or with its value (of_value)."""

    limit: float
    at_least: bool = True
    of_value: bool = False

    def describe(self, unit: str) -> str:
        """Returns the target as the table shows it."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g} {unit if self.of_value else ''}".strip()


@dataclass(frozen=True)
class Row:
    """One figure of the table.

    value and other have the same unit; ratio compares them, and `against` says with what; note: how it was measured.
    A figure that could not be measured has an error instead.
    """

    measurement: str
    name: str
    value: float | None = None
    unit: str = ""
    against: str = ""
    other: float | None = None
    ratio: float | None = None
    target: Target | None = None
    note: str = ""
    error: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the figure reaches its target; None where there is no target, or no figure."""
        figure = self.value if self.target and self.target.of_value else self.ratio
        if self.target is None or figure is None:
            return None
        return figure >= self.target.limit if self.target.at_least else figure <= self.target.limit


@dataclass(frozen=True)
class Sizes:
    """How much work each measurement does. The defaults take five minutes on two quiet cores.

    networks: those whose default precision is compared with the other one; precision: of networks, where "auto" stands
    for the faster one of this machine; slices: in the smallest of three runs of jobs.embed, the others have 4 and 16
    times as many; repeats: turns in which everything is compared; seconds: how long a process repeats its work to find
    its rate; sweep: numbers of generated slices to sweep k over; every_linkage: fit scikit-learn's clustering with each
    linkage at every number of slices, not only with one linkage at the largest; width: numbers in a vector; trials: of
    the search; configurations: how many are permuted, on as many slices.
    """

    pairs: tuple[Pair, ...] = (("mobilenetv2_100@random", "full"),)
    small_pairs: tuple[Pair, ...] = tuple(
        (backbone, view)
        for backbone in ("mobilenetv3_small_050@random", "lcnet_050@random")
        for view in ("full", "lungs", "outer")
    )
    networks: tuple[str, ...] = tuple(f"{network}@random" for network in NETWORKS)
    precision: str = "auto"
    slices: int = 128
    repeats: int = 1
    seconds: float = 2.0
    sweep: tuple[int, ...] = (2000, 5000)
    every_linkage: bool = False
    width: int = 2048
    trials: int = 16
    configurations: int = 1000
    permutations: int = 1000


@dataclass
class Bench:
    """The place where a benchmark works.

    folder: scratch; data: a folder of real slices to use instead of drawn ones; runs: of jobs.embed on more and more
    slices, a list a turn, which several measurements use.
    """

    sizes: Sizes
    folder: str
    data: str | None = None
    runs: list[list[Run]] = field(default_factory=list)

    def slices(self, count: int) -> str:
        """Returns a DATA of `count` slices, at most LARGEST times those of the smallest run. Makes it when needed."""
        data, pool = os.path.join(self.folder, f"data-{count}"), os.path.join(self.folder, "slices")
        if not os.path.isdir(pool):
            self._fill(pool, LARGEST * self.sizes.slices)
        if not os.path.isdir(data):
            link_collection(pool, data, count)
        return data

    def _fill(self, pool: str, count: int) -> None:
        if self.data is None:
            draw_slices(pool, count)
        else:
            link_images(pool, image_files(self.data)[:count])
