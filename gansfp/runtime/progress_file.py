"""WORK/log/progress.json: how far a job is, for whoever looks at WORK while it runs.

While the job runs, or after it was killed, `job_ended` is null. It was killed where `updated` is old, for a job that
lives writes the file every few seconds; and where its lock is free (`lock.is_held`). A job that came to its end itself
says when in `job_ended`, and why it failed or was stopped in `error`, which is empty where it ended well.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, get_args, get_type_hints

from gansfp import store

EVERY = 2.0  # seconds between two states of the file on a local disk
EVERY_REMOTE = 10.0  # and in an object store, where each one is a few requests
MAX_BYTES = 1 << 20  # a larger file is not one of ours

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageState:
    """How far a stage is.

    rate: units a second. seconds_left: None where it is not known. error: why the stage failed, empty if it did not.
    """

    stage: str
    done: int
    total: int
    unit: str
    failed: int
    reasons: str
    rate: float
    seconds: float
    seconds_left: float | None
    started: datetime
    finished: bool
    error: str


@dataclass(frozen=True, kw_only=True)
class ProgressState(StageState):
    """How far a job is: its latest stage, whose name is empty before the first one. After the job's end, `finished` and
    `error` speak of the job."""

    job: str
    updated: datetime
    job_ended: datetime | None

    def to_json(self) -> str:
        """Returns the text of the file."""
        return json.dumps(vars(self), default=datetime.isoformat, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ProgressState:
        """Returns the state that `to_json` has written. Raises ValueError for any other text."""
        try:
            values = json.loads(text)
        except RecursionError as error:
            raise ValueError("deeply nested JSON") from error
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return cls(**{name: _checked(name, values.get(name), kind) for name, kind in get_type_hints(cls).items()})


def _checked(name: str, value: object, kind: Any) -> Any:
    if isinstance(value, str) and datetime in (kind, *get_args(kind)):
        value = datetime.fromisoformat(value)
        if value.tzinfo is None:
            raise ValueError(f"{name} has no time zone")
    if isinstance(value, kind) or (isinstance(value, int) and isinstance(0.0, kind)):
        return value
    raise ValueError(f"{name} is {value!r}"[:100])


class ProgressFile:
    """Keeps WORK/log/progress.json of a job, as a context manager. A file that cannot be written never stops the job.

    It is written when the job and when a stage begins or ends, and every few seconds by a thread, so that a slow store
    does not slow the job down, and so that `updated` moves even where there is no news.
    """

    def __init__(self, work: str, job: str) -> None:
        self._place, self._job = _place(work), job
        self._every = EVERY_REMOTE if store.is_remote(work) else EVERY
        started = now()
        self._source: Callable[[], StageState] = lambda: _before_the_first_stage(started)
        self._lock = threading.Lock()  # one writes at a time; an older state must not replace a newer one
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, daemon=True)
        self._told = False

    def __enter__(self) -> ProgressFile:
        _files.append(self)
        self._write()
        self._thread.start()
        return self

    def follow(self, source: Callable[[], StageState]) -> None:
        """Writes what `source` returns, now and from now on."""
        self._source = source
        self._write()

    def _write_on(self) -> None:
        while not self._over.wait(self._every):
            self._write()

    def _write(self, job_ended: datetime | None = None) -> None:
        try:
            with self._lock:
                state = ProgressState(**vars(self._source()), job=self._job, updated=now(), job_ended=job_ended)
                store.write_bytes_atomically(self._place, state.to_json().encode())
        except Exception as error:  # whatever it is, the job is worth more than its display
            if not self._told:
                self._told = True
                log.warning("how far the job is cannot be looked up: %s", store.one_line(error))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _files.remove(self)
        self._over.set()
        self._thread.join()
        ended = replace(self._source(), finished=error is None, error=describe(error))
        self._source = lambda: ended
        self._write(job_ended=now())


# Those of the jobs that run in this process: a job has one process, and a test may have jobs within jobs.
_files: list[ProgressFile] = []


def follow(source: Callable[[], StageState]) -> None:
    """Writes what `source` returns into the file of the job that runs in this process, now and from now on; does
    nothing where none runs. `source` is called by another thread."""
    if _files:
        _files[-1].follow(source)


def read_progress(work: str) -> ProgressState | None:
    """Returns how far the latest job on WORK is; None where that is not known, with a warning where the file is damaged
    or cannot be read. Raises DataError where the store cannot be opened."""
    place = _place(work)
    try:
        return ProgressState.from_json(store.read_bytes(place, MAX_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read (%s)", place, store.one_line(error))
    except ValueError as error:
        log.warning("%s: is damaged (%s)", place, store.one_line(error))
    return None


def describe(error: BaseException | None) -> str:
    """Returns the name of an error's type and the first line of its message; nothing for no error."""
    if error is None:
        return ""
    name, text = type(error).__name__, store.one_line(error)
    return name if text == name else f"{name}: {text}"


def now() -> datetime:
    """Returns the time in whole seconds."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def _before_the_first_stage(started: datetime) -> StageState:
    seconds = (now() - started).total_seconds()
    return StageState(
        stage="",
        done=0,
        total=0,
        unit="",
        failed=0,
        reasons="",
        rate=0.0,
        seconds=seconds,
        seconds_left=None,
        started=started,
        finished=False,
        error="",
    )


def _place(work: str) -> str:
    return store.join(work, "log", "progress.json")
