"""Measures the seconds that each step of a piece of work takes, on a CPU or on a GPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """Adds up the seconds between marks, by step.

    A GPU still works after a call has returned. Its steps are therefore timed by events in its own stream, which do not
    make the caller wait.

    Args:
        device: "cpu", "cuda", "cuda:1", ...
        clock: for "cpu". The default is the time during which this thread had a core, so that other work on the machine
            does not count. Use time.perf_counter for steps that wait for disks and networks.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.thread_time) -> None:
        self._device, self._clock = device, clock
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, step: str) -> None:
        """Ends a step: the time since the last mark counts as `step`."""
        self._marks.append((step, self._now()))

    def wait(self) -> None:
        """Waits until a GPU has done what came before the last mark."""
        if self._device != "cpu":
            self._marks[-1][1].synchronize()

    def seconds(self) -> dict[str, float]:
        """Returns the seconds by step. A GPU must have done its work, see wait."""
        totals: Counter[str] = Counter()
        for (_, before), (step, after) in zip(self._marks, self._marks[1:], strict=False):
            totals[step] += after - before if self._device == "cpu" else before.elapsed_time(after) / 1000
        return dict(totals)

    def _now(self) -> Any:
        if self._device == "cpu":
            return self._clock()
        import torch  # imported here, because timing a CPU does not need it

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
