"""Where the time goes: seconds by step of a piece of work, on the clock of whoever does it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """Seconds since the last mark, added up by step.

    A GPU works on after the call that asked it has returned, so its steps are timed by events in its own stream, which
    cost no waiting. device: "cpu", "cuda", "cuda:1", ... clock: of "cpu", by default the time for which this thread had
    a core, whatever else the machine does; time.perf_counter for what waits for disks and networks.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.thread_time) -> None:
        self._device, self._clock = device, clock
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, step: str) -> None:
        """What was done since the last mark was `step`."""
        self._marks.append((step, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by step. On a GPU only once it is synchronised."""
        total: Counter[str] = Counter()
        for (_, before), (step, after) in zip(self._marks, self._marks[1:], strict=False):
            total[step] += after - before if self._device == "cpu" else before.elapsed_time(after) / 1000
        return dict(total)

    def _now(self) -> Any:
        if self._device == "cpu":
            return self._clock()
        import torch  # not needed by those who time CPUs alone

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
