"""What every measurement of jobs.benchmark has in common: sizes, rows of the table, slices to work on."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gansfp.collection.layout import ENDINGS
from gansfp.embedding.shards import Pair
from gansfp.simulation.phantom import draw_patient, draw_slice

DRAWN = 32  # slices that are drawn; the others are these, moved and with other noise
MOVED = 8  # pixels by which they are moved, at most
LARGEST = 16  # the largest run of jobs.embed has so many times the slices of the smallest
CLASS = os.path.join("attribution", "train", "slices")  # where they lie in a DATA


@dataclass(frozen=True)
class Target:
    """What a row's ratio, or its value, must reach."""

    limit: float
    at_least: bool = True
    of_value: bool = False

    def told(self, unit: str) -> str:
        """As the table has it."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g} {unit if self.of_value else ''}".strip()


@dataclass(frozen=True)
class Row:
    """One figure. value and other have the same unit; ratio says which of them over which; note: how it was measured.

    A figure that could not be had has an error instead.
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
        """Whether the target is reached; None where there is none, or no figure."""
        judged = self.value if self.target and self.target.of_value else self.ratio
        if self.target is None or judged is None:
            return None
        return judged >= self.target.limit if self.target.at_least else judged <= self.target.limit


@dataclass(frozen=True)
class Sizes:
    """What is measured on how much. The defaults end in five minutes on two quiet cores.

    slices: in the smallest of three runs of jobs.embed, the others have 4 and 16 times as many; repeats: of everything
    that is compared, in turn; seconds: that a process repeats its work to find its rate; sweep: numbers of generated
    slices to sweep k over; every_linkage: refit each of them at each of these, not one at the larger; width: numbers a
    vector; trials: of the search; configurations: that are permuted, on as many slices.
    """

    pairs: tuple[Pair, ...] = (("mobilenetv2_100@random", "full"),)
    small_pairs: tuple[Pair, ...] = tuple(
        (backbone, view)
        for backbone in ("mobilenetv3_small_050@random", "lcnet_050@random")
        for view in ("full", "lungs", "outer")
    )
    precision: str = "bfloat16"
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
    """Where a benchmark works. folder: scratch; data: real slices to use instead of drawn ones; runs: what more than
    one measurement looks at, the runs of jobs.embed on more and more slices."""

    sizes: Sizes
    folder: str
    data: str | None = None
    runs: list[list[Any]] = field(default_factory=list)

    def slices(self, count: int) -> str:
        """A DATA of so many slices, at most LARGEST times those of the smallest run."""
        data, pool = os.path.join(self.folder, f"data-{count}"), os.path.join(self.folder, "slices")
        if not os.path.isdir(pool):
            self._fill(pool, LARGEST * self.sizes.slices)
        if not os.path.isdir(data):
            _link(pool, os.path.join(data, CLASS), count)
        return data

    def _fill(self, pool: str, count: int) -> None:
        if self.data is None:
            draw_slices(pool, count)
        else:
            found = sorted(str(p) for p in Path(self.data).rglob("*") if p.suffix.lower() in ENDINGS)
            os.makedirs(pool)
            for number, path in enumerate(found[:count]):
                os.symlink(os.path.abspath(path), os.path.join(pool, f"{number:07}{Path(path).suffix}"))


def _link(pool: str, folder: str, count: int) -> None:
    """`count` names in `folder` for the files of `pool`, taken again where there are fewer."""
    os.makedirs(folder)
    names = sorted(os.listdir(pool))
    for number in range(count):
        name = names[number % len(names)]
        os.symlink(os.path.join(pool, name), os.path.join(folder, f"slice_{number:07}{Path(name).suffix}"))


def draw_slices(folder: str, count: int, seed: int = 0) -> None:
    """Writes `count` different slices of the phantom as PNG files, most of them variants of a few that are drawn."""
    rng = np.random.default_rng(seed)
    drawn = [draw_slice(draw_patient(rng), rng.uniform(0.2, 0.8), rng) for _ in range(min(DRAWN, count))]
    os.makedirs(folder)

    def write(number: int) -> None:
        own = np.random.default_rng([seed, number])
        pixels = np.roll(drawn[number % len(drawn)], own.integers(-MOVED, MOVED + 1, 2), (0, 1)).astype(np.int16)
        pixels += own.integers(-1, 2, pixels.shape, np.int16) * (pixels > 0)
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        picture.save(os.path.join(folder, f"{number:07}.png"), compress_level=1)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(count)))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
