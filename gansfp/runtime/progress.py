"""Progress display: one live line on a terminal; in a log, a line every five seconds; and WORK/log/progress.json."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType

from gansfp.runtime import progress_file
from gansfp.runtime.progress_file import StageState

LOG_EVERY = 5.0  # seconds between two lines of a log
LIVE_EVERY = 0.2  # seconds between two states of the live line
STILL_EVERY = 30.0  # seconds without news after which a log gets a line anyway: nodes may take minutes to start


class Progress:
    """Shows how far a stage is: done / total, rate, time left, failures. Use it as a context manager."""

    def __init__(self, stage: str, total: int, unit: str = "slices") -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done = self.failed = 0
        self.reasons = ""
        self.note = ""  # more about the last result
        self._live = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()
        self._first: tuple[float, int] | None = (
            None  # time and count of the first result: start-up is not part of the rate
        )
        self._started = progress_file.now()
        self._over = threading.Event()

    def __enter__(self) -> Progress:
        progress_file.follow(self._state)
        if self._live and self.total:
            self._draw(f"{self.stage}: 0/{self.total:,} {self.unit}, starting")
        elif self.total:
            threading.Thread(target=self._show_waiting, daemon=True).start()
        return self

    def _show_waiting(self) -> None:
        while not self._over.wait(LOG_EVERY):
            if time.monotonic() - self._shown >= STILL_EVERY:
                self._shown = time.monotonic()
                print(f"{self._line()}, {_clock(self.seconds)} since the start", file=sys.stderr, flush=True)

    def add(self, done: int, failed: int = 0) -> None:
        """Counts `done` more units, of which `failed` failed."""
        self.set(self.done + done, self.failed + failed)

    def of(self, done: int, total: int) -> None:
        """Sets the count and the total, where the total becomes known with the first result."""
        self.total = total
        self.set(done)

    def set(self, done: int, failed: int = 0, reasons: str = "") -> None:
        """Sets the counts, and why some failed. Shows them if the last display is old enough."""
        self.done, self.failed, self.reasons = done, failed, reasons
        now = time.monotonic()
        if self._first is None and done:
            self._first = (now, done)
        if now - self._shown >= (LIVE_EVERY if self._live else LOG_EVERY):
            self._shown = now
            if self._live:
                self._draw(self._line())
            else:
                print(self._line(), file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._start

    @property
    def running(self) -> float:
        """Seconds since the first result."""
        return time.monotonic() - self._first[0] if self._first else 0.0

    @property
    def rate(self) -> float:
        """Units a second, without the time before the first result where that is known."""
        if self._first and self.done > self._first[1]:
            return (self.done - self._first[1]) / max(self.running, 1e-9)
        return self.done / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all is done; None before a second result, without which the rate is not known."""
        if not self._first or self.done == self._first[1]:
            return None
        return (self.total - self.done) / self.rate

    def _line(self) -> str:
        count = f"{self.stage}: {self.done:,}/{self.total:,} {self.unit}"
        if self.seconds_left is None:
            return count + self._failures + self._noted
        return f"{count}, {_per_second(self.rate)}, {_clock(self.seconds_left)} left{self._failures}{self._noted}"

    def _state(self, finished: bool = False, error: str = "") -> StageState:
        seconds_left = 0.0 if finished else self.seconds_left
        return StageState(
            stage=self.stage,
            done=self.done,
            total=self.total,
            unit=self.unit,
            failed=self.failed,
            reasons=self.reasons,
            rate=round(self.rate, 2),
            seconds=round(self.seconds, 1),
            seconds_left=None if seconds_left is None else round(seconds_left, 1),
            started=self._started,
            finished=finished,
            error=error,
        )

    @property
    def _failures(self) -> str:
        reasons = f" ({self.reasons})" if self.reasons else ""
        return f", {self.failed:,} failed{reasons}" if self.failed else ""

    @property
    def _noted(self) -> str:
        return f", {self.note}" if self.note else ""

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1  # a longer line would wrap, and the next one would not cover it
        print(f"\r{text[:width]:<{width}}", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        ended = self._state(finished=error is None, error=progress_file.describe(error))
        progress_file.follow(lambda: ended)
        if self._live:
            self._draw("")
            print("\r", end="", file=sys.stderr, flush=True)
        if self.total and kind is None:
            count = f"{self.stage}: {self.done:,} {self.unit} in {self.seconds:.1f} s"
            print(f"{count} ({_per_second(self.rate)} once running){self._failures}", file=sys.stderr, flush=True)


def _per_second(rate: float) -> str:
    return f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _clock(duration: float) -> str:
    minutes, seconds = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
