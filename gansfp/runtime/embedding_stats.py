"""Sums up the reports of the blocks of an embedding run: counts, failed images, and the time of each step."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gansfp.embedding import shards
from gansfp.runtime.embedding_blocks import COUNTS, CPU_STEPS, DEVICE_STEPS, HOST_STEPS, STEPS, BlockReport

NAMED = 100  # failed images that the log names one by one
REASONS = 3  # kinds of failure that one line names
SATURATED = 0.8  # a device that is busy for a larger share of the time limits the rate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingFacts:
    """What the record of a run holds.

    done, resized, no_lungs, failed: numbers of slices. reasons: numbers of failed slices by kind of failure, the most
    frequent first. work_seconds: of all workers together, by step. bottleneck: the step to make faster. gpus_busy: the
    share of the time during which the GPUs worked; None if CPUs did everything.
    """

    done: int
    resized: int
    no_lungs: int
    failed: int
    reasons: Mapping[str, int]
    work_seconds: Mapping[str, float]
    bottleneck: str
    gpus_busy: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Returns the JSON of the record."""
        return {name: value for name, value in vars(self).items() if name != "gpus_busy" or value is not None}

    def describe(self) -> str:
        """Returns one line that says how much of the work each step took."""
        total = max(sum(self.work_seconds.values()), 1e-9)
        steps = sorted(STEPS, key=lambda step: -self.work_seconds[step])
        shares = {step: f"{self.work_seconds[step] / total:.0%}" for step in steps}
        shown = ", ".join(f"{step} {share}" for step, share in shares.items() if share != "0%")
        gpus = "" if self.gpus_busy is None else f"; GPUs busy {self.gpus_busy:.0%}"
        return f"{shown} of the work{gpus}; the bottleneck is {self.bottleneck}"


class Tally:
    """Adds up the reports of blocks, and logs at once what a user should know at once."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.seconds = np.zeros(len(STEPS))  # of all workers together
        self.no_cuda = self.slow_bfloat16 = False
        self._reasons: Counter[str] = Counter()
        self._limit = self._named = 0

    def add(self, report: BlockReport) -> None:
        """Counts a block. Logs its failed images, and once each what is wrong with a device."""
        for line in report.bad:
            if self._named < NAMED:
                log.warning("left out: %s", line)
            self._named += 1
            self._reasons[_kind(line.partition(": ")[2])] += 1
        for name in COUNTS:
            self.counts[name] += report.counts[name]
        self.seconds += report.seconds
        if report.limit and report.limit != self._limit:
            self._limit = report.limit
            log.warning("out of memory on a device: it continues with batches of %d slices", self._limit)
        if report.no_cuda and not self.no_cuda:
            self.no_cuda = True
            log.warning("the Ray cluster declares GPUs where CUDA finds none: embedding there uses the CPU, slowly")
        if report.slow_bfloat16 and not self.slow_bfloat16:
            self.slow_bfloat16 = True
            log.warning("a device computes bfloat16 no faster than float32, or slower; see --precision")

    @property
    def reasons(self) -> str:
        """Why slices failed: the most frequent kinds of failure with their counts, "" if none failed."""
        frequent = self._reasons.most_common(REASONS)
        parts = [f"{count:,} {kind}" for kind, count in frequent]
        other = self.counts[shards.FAILED] - sum(count for _, count in frequent)
        return ", ".join([*parts, f"{other:,} other"] if other > 0 and parts else parts)

    def summarise(self) -> None:
        """Logs the counts at the end of a run."""
        counts = self.counts
        if counts["resized"]:
            log.info("%s slices were not 256x256 and were resized", f"{counts['resized']:,}")
        if counts["no_lungs"]:
            log.info("no lungs in %s slices: their lungs and outer views are the full slice", f"{counts['no_lungs']:,}")
        if counts[shards.FAILED]:
            log.warning(
                "%s slices could not be read and have no embedding: %s", f"{counts[shards.FAILED]:,}", self.reasons
            )

    def facts(self, on_gpus: bool, lanes: int, running: float) -> EmbeddingFacts:
        """Returns what the record of the run holds. lanes: actors that ran side by side, for `running` seconds."""
        seconds = {step: round(float(value), 3) for step, value in zip(STEPS, self.seconds, strict=True)}
        busy = None
        if on_gpus and not self.no_cuda:
            busy = sum(seconds[step] for step in DEVICE_STEPS) / max(lanes * running, 1e-9)
        idle = lanes * running - sum(seconds[step] for step in (*DEVICE_STEPS, *HOST_STEPS))
        return EmbeddingFacts(
            **self.counts,
            reasons=dict(self._reasons.most_common()),
            work_seconds=seconds,
            bottleneck=_bottleneck(seconds, busy, idle),
            gpus_busy=None if busy is None else round(min(busy, 1.0), 3),
        )


def _kind(reason: str) -> str:
    """Returns a reason without the numbers that differ from file to file."""
    return re.sub(r"\d+", "N", reason)[:50].strip()


def _bottleneck(seconds: Mapping[str, float], busy: float | None, idle: float) -> str:
    """Returns the step to make faster.

    busy: the share of the time during which GPUs worked; None if CPUs did all. idle: seconds in which actors had no
    slices to work on. A GPU that is not busy waits for its actor ("host"), or with its actor for other processes.
    """
    steps: Sequence[str]
    if busy is None:
        steps = STEPS
    elif busy > SATURATED:
        steps = DEVICE_STEPS
    else:
        steps = HOST_STEPS if seconds["host"] > idle else CPU_STEPS
    return max(steps, key=lambda step: seconds[step])
