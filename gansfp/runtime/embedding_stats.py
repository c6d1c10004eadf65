"""What the blocks of an embedding run have reported: counts, bad images, and where the time went."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from gansfp.embedding import shards
from gansfp.runtime.embedding_blocks import COUNTS, ON_CPU, ON_DEVICE, STEPS

NAMED = 100  # bad images named one by one
REASONS = 3  # kinds of failure named on one line
SATURATED = 0.8  # a device that is busy for more than this share of the time is what binds

log = logging.getLogger(__name__)


class Tally:
    """Adds up the rows of gansfp.runtime.embedding_blocks.write_block, and says at once what somebody should know at once."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.seconds = np.zeros(len(STEPS))  # of all workers together
        self.no_cuda = False
        self._reasons: Counter[str] = Counter()
        self._limit = self._named = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts a block; names its bad images, a device short of memory, a GPU that is none."""
        for line in filter(None, row["bad"].split("\n")):
            if self._named < NAMED:
                log.warning("left out: %s", line)
            self._named += 1
            self._reasons[_kind(line.partition(": ")[2])] += 1
        for name in COUNTS:
            self.counts[name] += int(row[name])
        self.seconds += row["seconds"]
        if row["limit"] and row["limit"] != self._limit:
            self._limit = int(row["limit"])
            log.warning("out of memory on a device: it goes on with batches of %d slices", self._limit)
        if row["no_cuda"] and not self.no_cuda:
            self.no_cuda = True
            log.warning("the cluster declares GPUs where there is no CUDA: embedding on the CPU there, which is slow")

    @property
    def reasons(self) -> str:
        """Why slices failed: the most frequent kinds with their counts, "" where none failed."""
        told = [f"{count:,} {kind}" for kind, count in self._reasons.most_common(REASONS)]
        rest = self.counts[shards.FAILED] - sum(count for _, count in self._reasons.most_common(REASONS))
        return ", ".join([*told, f"{rest:,} other"] if rest > 0 and told else told)

    def summarise(self) -> None:
        """What the log should hold at the end of a run."""
        counts = self.counts
        if counts["resized"]:
            log.info("%s slices were not 256x256 and were resized", f"{counts['resized']:,}")
        if counts["no_lungs"]:
            log.info("no lungs in %s slices: their lungs and outer views are the full slice", f"{counts['no_lungs']:,}")
        if counts[shards.FAILED]:
            log.warning(
                "%s slices could not be read and have no embedding: %s", f"{counts[shards.FAILED]:,}", self.reasons
            )

    def facts(self, on_gpus: bool, lanes: int, running: float) -> dict[str, Any]:
        """What the record of the run holds: counts, seconds of work by step, the step that binds.

        lanes: actors that ran side by side; running: seconds for which they did.
        """
        seconds = {step: round(float(value), 3) for step, value in zip(STEPS, self.seconds, strict=True)}
        busy = sum(seconds[step] for step in ON_DEVICE) / max(lanes * running, 1e-9)
        return {
            **self.counts,
            "reasons": dict(self._reasons.most_common()),
            "work_seconds": seconds,
            "bottleneck": _bottleneck(seconds, busy if on_gpus and not self.no_cuda else None),
            **({"gpus_busy": round(min(busy, 1.0), 3)} if on_gpus and not self.no_cuda else {}),
        }


def _kind(error: str) -> str:
    """A reason without what differs from file to file."""
    return re.sub(r"\d+", "N", error)[:50].strip()


def _bottleneck(seconds: Mapping[str, float], busy: float | None) -> str:
    """The step to make faster. busy: the share of the time for which GPUs worked; None where cores do everything."""
    steps = STEPS if busy is None else ON_DEVICE if busy > SATURATED else ON_CPU
    return max(steps, key=lambda step: seconds[step])


def describe(facts: Mapping[str, Any]) -> str:
    """Where the time went, in a line."""
    seconds = facts["work_seconds"]
    total = max(sum(seconds.values()), 1e-9)
    parts = [f"{step} {seconds[step] / total:.0%}" for step in sorted(STEPS, key=lambda s: -seconds[s])]
    shown = [part for part in parts if not part.endswith(" 0%")]
    gpus = f"; GPUs busy {facts['gpus_busy']:.0%}" if "gpus_busy" in facts else ""
    return f"{', '.join(shown)} of the work{gpus}; the bottleneck is {facts['bottleneck']}"
