"""The audit of a challenge of full size, started as a user starts it and watched from outside.

It gives the seconds of each stage and its rate, the peak memory, and how good the audit's answers are.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from gansfp import store
from gansfp.runtime.readme import Place
from gansfp.runtime.record import versions
from jobs.benchmarks.machine import describe_machine
from jobs.benchmarks.measure import Row, Target
from jobs.benchmarks.report import Report
from jobs.benchmarks.runs import run_watched, with_children

EVERY = 1.0  # seconds between two looks at the memory of all processes
SIZE = "imageclef-2024"  # of jobs.simulate
NAME = "full-size"
PLACE = Place("<!-- full size: written by jobs.benchmark --full-size -->", "<!-- end of full size -->")
SLICES = 50_000  # of a challenge of that size
TIME = Target(45 * 60, at_least=False, of_value=True)  # seconds, on two cores
MEMORY = Target(8000, at_least=False, of_value=True)
AUC = Target(0.99, of_value=True)
HOW = (
    "proportional set size, once a second: a page that several processes share counts for each in part, so that a sum "
    "counts it once; the object store is part of the processes that use it"
)


@dataclass
class PeakMemory:
    """Peak proportional set size in bytes.

    worker: of the largest of Ray's worker processes; workers: of all of them at one time; together: of the command and
    all processes below it at one time, Ray's own processes among them.
    """

    driver: int = 0
    worker: int = 0
    workers: int = 0
    together: int = 0

    def look(self, root: int) -> None:
        """Measures a command and the processes below it now, and keeps the peaks."""
        driver, workers, others = 0, [0], 0
        for process in with_children(root):
            with suppress(psutil.Error):  # it has ended in the meantime
                size, command = process.memory_full_info().pss, process.cmdline()
                if process.pid == root:
                    driver = size
                elif command and command[0].startswith("ray::"):
                    workers.append(size)
                else:
                    others += size
        now = PeakMemory(driver, max(workers), sum(workers), driver + sum(workers) + others)
        for part in fields(self):
            setattr(self, part.name, max(getattr(self, part.name), getattr(now, part.name)))


@dataclass(frozen=True)
class Audit:
    """An audit that has ended.

    options: beside --data and --work; seconds: from command to end; stages: the lines of its record, in order; trials:
    of each task's search; metrics: metrics.json.
    """

    options: str
    seconds: float
    memory: PeakMemory
    stages: Sequence[Mapping[str, Any]]
    trials: Mapping[str, int]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class FullSizeConfig:
    """What is audited, and where the figures go.

    data: a collection, None for a simulated one of 50,000 slices; options: of jobs.audit, as a shell takes them; out:
    the folder of full-size.json and full-size.md; readme: a text file that also gets the table.
    """

    data: str | None
    options: str
    out: str
    readme: str | None = None


def audit_full_size(config: FullSizeConfig) -> Report:
    """Simulates where there is no data, audits, and writes full-size.json, full-size.md and the README.

    Raises UsageError or DataError, before it starts, where one of these files cannot be written; GansfpError where a
    command fails.
    """
    if config.readme:
        PLACE.read(config.readme)
    store.check_writable(config.out)
    machine, measured, started, rows = describe_machine(), time.strftime("%Y-%m-%d %H:%M"), time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="gansfp-full-size-") as folder:
        data = config.data and store.absolute(config.data)
        if data is None:
            data = os.path.join(folder, "data")
            _run(["jobs.simulate", "--size", SIZE, "--out", data], folder, PeakMemory())
            rows.append(Row(NAME, f"jobs.simulate --size {SIZE}", time.monotonic() - started, "s"))
        rows += _rows(run_audit(data, folder, config.options))
    report = Report(machine, versions(), measured, round(time.monotonic() - started, 1), None, rows)
    content = json.dumps(report.as_dict(), indent=1).encode()
    store.write_bytes_atomically(store.join(config.out, f"{NAME}.json"), content)
    store.write_bytes_atomically(store.join(config.out, f"{NAME}.md"), report.markdown().encode())
    if config.readme:
        PLACE.write(config.readme, report.markdown())
    return report


def run_audit(data: str, folder: str, options: str) -> Audit:
    """Audits DATA into a fresh WORK below `folder`. Raises GansfpError with the command's last line where it fails."""
    work, memory = os.path.join(folder, "work"), PeakMemory()
    started = time.monotonic()
    _run(["jobs.audit", "--data", data, "--work", work, "--address", "local", *shlex.split(options)], folder, memory)
    return Audit(
        options=options,
        seconds=time.monotonic() - started,
        memory=memory,
        stages=[json.loads(line) for line in Path(work, "log", "stages.jsonl").read_text().splitlines()],
        trials={path.name: len(list(path.glob("trials/*.parquet"))) for path in Path(work, "search").iterdir()},
        metrics=json.loads(Path(work, "results", "metrics.json").read_text()),
    )


def _run(command: Sequence[str], folder: str, memory: PeakMemory) -> None:
    """Runs a command to its end, however long it takes, and watches its memory."""
    run_watched(command, os.path.join(folder, "output"), memory.look, EVERY, limit=float("inf"))


def _rows(audit: Audit) -> Iterator[Row]:
    """Yields the rows of an audit. Targets are for 50,000 slices; those of time and memory for the default options."""
    stages = _stages(audit.stages)
    whole = stages["catalog"].done == SLICES
    default = whole and not audit.options
    note = f"jobs.audit {audit.options}".strip()
    yield Row(NAME, "start to finish", audit.seconds, "s", target=TIME if default else None, note=note)
    for name, stage in stages.items():
        yield Row(NAME, name, stage.seconds, "s")
        if stage.done:
            yield Row(NAME, f"{name}: {stage.done:,} slices", stage.done / stage.seconds, "slices/s")
    for task, trials in audit.trials.items():
        searches = [stages[name] for name in (f"search-{task}", f"search-{task}-networks") if name in stages]
        rate = 60 * trials / sum(stage.seconds for stage in searches)
        yield Row(NAME, f"search-{task}: {trials} trials", rate, "trials/min")
    for part, name in (("driver", "driver"), ("worker", "largest worker"), ("workers", "all workers")):
        yield Row(NAME, f"peak memory: {name}", getattr(audit.memory, part) / 1e6, "MB", note=HOW)
    memory = audit.memory.together / 1e6
    yield Row(NAME, "peak memory: all together", memory, "MB", target=MEMORY if default else None, note=HOW)
    for name, report in audit.metrics.get("membership", {"sets": {}})["sets"].items():
        yield Row(NAME, f"AUC of set {name}", _figure(report, "auc"), target=AUC if whole else None)
    if "attribution" in audit.metrics:
        yield Row(NAME, "ARI of attribution", _figure(audit.metrics["attribution"], "ari"))


@dataclass
class _Stage:
    """Seconds and slices of all lines of a stage in the record; it has several where it ran in parts."""

    seconds: float = 0.0
    done: int = 0


def _stages(lines: Sequence[Mapping[str, Any]]) -> dict[str, _Stage]:
    stages: dict[str, _Stage] = {}
    for line in lines:
        stage = stages.setdefault(line["stage"], _Stage())
        stage.seconds += line["seconds"]
        stage.done += line.get("done", 0)
    return stages


def _figure(report: Mapping[str, Any], name: str) -> float | None:
    """Returns a figure of the test slices; without a truth file, the cross-validated one."""
    figures = report if name in report else report["cross_validated"]
    value = figures[name]["value"]
    return None if value is None else float(value)
