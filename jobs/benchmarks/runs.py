"""Whole runs of `python -m jobs.embed` as somebody would start them, watched from outside: seconds and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.runtime.record import read_records
from jobs.benchmarks.measure import CLASS

EVERY = 0.1  # seconds between two looks at the memory of all processes
LIMIT = 3600.0  # seconds after which a run is given up
ROOT = Path(__file__).parents[1]


@dataclass
class Memory:
    """Peak resident memory in bytes, without the pages of the object store, which all processes share.

    workers: of all of Ray's worker processes at one time; worker: the largest one; store: of the object store;
    together: of driver, workers and store at one time.
    """

    driver: int = 0
    workers: int = 0
    worker: int = 0
    store: int = 0
    together: int = 0

    def look(self, root: int, cpu: dict[int, float]) -> None:
        """Looks at a command and the processes below it; cpu: seconds by process, brought up to date."""
        driver, workers, store = 0, [0], 0
        for pid in [root, *_below(root)]:
            told = _status(pid)
            if told is None:
                continue
            name, own, seconds = told
            cpu[pid] = max(cpu.get(pid, 0.0), seconds)  # one that is ending has none any more
            if pid == root:
                driver = own
            elif name.startswith("ray::"):
                workers.append(own)
            elif name.partition(" ")[0].endswith("raylet"):
                store = _object_store(pid)
        found = Memory(driver, sum(workers), max(workers), store, driver + sum(workers) + store)
        for one in vars(self):
            setattr(self, one, max(getattr(self, one), getattr(found, one)))


@dataclass(frozen=True)
class Run:
    """A finished run. Seconds: command to end; command to first shard; catalog's end to last shard; of CPU, by all
    processes together."""

    slices: int
    whole: float
    first_shard: float
    embedding: float
    cpu: float = 0.0
    memory: Memory = field(default_factory=Memory)
    record: dict[str, Any] = field(default_factory=dict)


def run_embed(data: str, pairs: Sequence[Pair], precision: str, batch: int) -> Run:
    """Embeds DATA into a fresh WORK. Raises GansfpError with the command's own words where it fails."""
    slices = len(os.listdir(os.path.join(data, CLASS)))
    backbones, views = (",".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    with tempfile.TemporaryDirectory(prefix="gansfp-run-") as scratch:
        work, told = os.path.join(scratch, "work"), os.path.join(scratch, "stderr")
        command = [sys.executable, "-m", "jobs.embed", "--data", data, "--work", work, "--address", "local"]
        command += ["--backbones", backbones, "--views", views, "--precision", precision, "--batch", str(batch)]
        started, memory, cpu = time.time(), Memory(), dict[int, float]()
        with open(told, "wb") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, stdout=stderr, stderr=stderr, stdin=subprocess.DEVNULL)
            try:
                _watch(process, memory, cpu, started)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)  # with which it ends its Ray, too
                    process.wait(30)
        ended = time.time()
        if process.returncode:
            last = (Path(told).read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise GansfpError(f"jobs.embed of {slices} slices ended with status {process.returncode} and said: {last}")
        shards = sorted(path.stat().st_mtime for path in Path(work, "embeddings").rglob("*.parquet"))
        cataloged = os.stat(os.path.join(work, "catalog.parquet")).st_mtime
        record = read_records(work).get("embed", {})
        seconds = (ended - started, shards[0] - started, shards[-1] - cataloged, sum(cpu.values()))
        return Run(slices, *seconds, memory, record)


def _watch(process: subprocess.Popen[bytes], memory: Memory, cpu: dict[int, float], started: float) -> None:
    while process.poll() is None:
        memory.look(process.pid, cpu)
        if time.time() - started > LIMIT:
            raise GansfpError(f"jobs.embed had not ended after {LIMIT:.0f} seconds")
        time.sleep(EVERY)


def _below(root: int) -> list[int]:
    """The processes below one, through any number of processes between."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _fields(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _fields(pid: int) -> list[str]:
    """What /proc/PID/stat says after the command's name; empty once the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _object_store(raylet: int) -> int:
    """The bytes that the object store has taken: of the file that Ray maps and whose name it has removed."""
    taken, folder = 0, f"/proc/{raylet}/fd"
    try:
        for entry in os.listdir(folder):
            if "plasma" in os.readlink(os.path.join(folder, entry)):
                taken = max(taken, 512 * os.stat(os.path.join(folder, entry)).st_blocks)
    except OSError:
        pass  # it has ended meanwhile
    return taken


def _status(pid: int) -> tuple[str, int, float] | None:
    """A process's command, its resident bytes without memory shared with others, its seconds of CPU; None once it has
    ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    ticks = [int(value) for value in _fields(pid)[11:13]]  # in user and in system mode
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name}
    own = 1024 * (sizes.get("RssAnon", 0) + sizes.get("RssFile", 0))
    return command, own, sum(ticks) / os.sysconf("SC_CLK_TCK")
