"""Whole runs of `python -m jobs.embed`, started as a user starts them and watched from outside: seconds and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import psutil

from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.runtime.record import read_records
from jobs.benchmarks.slices import CLASS

EVERY = 0.1  # seconds between two looks at the memory of all processes
LIMIT = 3600.0  # seconds after which a run is stopped
ROOT = Path(__file__).parents[2]


@dataclass
class Memory:
    """Peak resident memory in bytes, without the pages of the object store, which all processes share.

    workers: of all of Ray's worker processes at one time; worker: of the largest one; store: of the object store;
    together: of driver, workers and store at one time.
    """

    driver: int = 0
    workers: int = 0
    worker: int = 0
    store: int = 0
    together: int = 0

    def look(self, root: int, cpu: dict[int, float]) -> None:
        """Measures a command and the processes below it now, and keeps the peaks.

        cpu: seconds of CPU by process id; this call updates it.
        """
        driver, workers, store = 0, [0], 0
        for process in with_children(root):
            with suppress(psutil.Error):  # it has ended in the meantime
                times = process.cpu_times()
                # A process that is ending reports no time any more.
                cpu[process.pid] = max(cpu.get(process.pid, 0.0), times.user + times.system)
                command = process.cmdline()
                if process.pid == root:
                    driver = _own_memory(process.pid)
                elif command and command[0].startswith("ray::"):
                    workers.append(_own_memory(process.pid))
                elif command and command[0].endswith("raylet"):
                    store = _object_store(process.pid)
        self._keep_peaks(Memory(driver, sum(workers), max(workers), store, driver + sum(workers) + store))

    def _keep_peaks(self, now: Memory) -> None:
        for part in fields(self):
            setattr(self, part.name, max(getattr(self, part.name), getattr(now, part.name)))


@dataclass(frozen=True)
class EmbedRecord:
    """What jobs.embed has recorded of a run. done: slices; work_seconds: of all workers together, by step."""

    done: int
    work_seconds: Mapping[str, float]
    bottleneck: str = "not recorded"


@dataclass(frozen=True)
class Run:
    """A finished run. record: None where jobs.embed left none.

    Seconds: whole, from command to end; first_shard, from command to first shard; embedding, from the catalog's end to
    the last shard; cpu, of CPU time of all processes together.
    """

    slices: int
    whole: float
    first_shard: float
    embedding: float
    cpu: float = 0.0
    memory: Memory = field(default_factory=Memory)
    record: EmbedRecord | None = None


def run_embed(data: str, pairs: Sequence[Pair], precision: str, batch: int) -> Run:
    """Embeds DATA into a fresh WORK. Raises GansfpError with the command's last line where the command fails."""
    slices = len(os.listdir(os.path.join(data, CLASS)))
    backbones, views = (",".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    with tempfile.TemporaryDirectory(prefix="gansfp-run-") as scratch:
        work, output = os.path.join(scratch, "work"), os.path.join(scratch, "stderr")
        command = ["jobs.embed", "--data", data, "--work", work, "--address", "local"]
        command += ["--backbones", backbones, "--views", views, "--precision", precision, "--batch", str(batch)]
        started, memory, cpu = time.time(), Memory(), dict[int, float]()
        run_watched(command, output, lambda pid: memory.look(pid, cpu), EVERY)
        ended = time.time()
        shards = sorted(path.stat().st_mtime for path in Path(work, "embeddings").rglob("*.parquet"))
        cataloged = os.stat(os.path.join(work, "catalog.parquet")).st_mtime
        seconds = (ended - started, shards[0] - started, shards[-1] - cataloged, sum(cpu.values()))
        return Run(slices, *seconds, memory, _record(work))


def _record(work: str) -> EmbedRecord | None:
    """Returns what WORK/log/stages.jsonl says of the embedding; None where the line or its seconds are missing."""
    record = read_records(work).get("embed")
    if record is None or "work_seconds" not in record.values:
        return None
    return EmbedRecord(*(record.values[name] for name in ("done", "work_seconds", "bottleneck")))


def run_watched(
    command: Sequence[str], output: str, look: Callable[[int], None], every: float, limit: float = LIMIT
) -> None:
    """Runs a command, a module with its arguments, to its end; calls `look` with its process id every `every` seconds.

    output: the file for what it says. Raises GansfpError, with its last line, where it fails, and where it takes longer
    than `limit` seconds.
    """
    started = time.monotonic()
    with open(output, "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )
        try:
            while process.poll() is None:
                look(process.pid)
                if time.monotonic() - started > limit:
                    raise GansfpError(f"{command[0]} had not ended after {limit:.0f} seconds")
                time.sleep(every)
        finally:
            if process.poll() is None:
                process.terminate()  # on this signal the command ends its Ray, too; in the background SIGINT is ignored
                process.wait(30)
    if process.returncode:
        last = (Path(output).read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise GansfpError(f"{command[0]} ended with status {process.returncode} and said: {last}")


def with_children(root: int) -> list[psutil.Process]:
    """Returns a process and all processes below it; an empty list once it has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def _own_memory(pid: int) -> int:
    """Returns the resident bytes of a process without memory that it shares with others; 0 once it has ended.

    It reads /proc, because psutil 5.9 does not tell shared memory, where the object store is, from files: its `shared`
    counts both, and its reading of single mappings is too slow to be repeated ten times a second.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    parts = (line.partition(":") for line in lines)
    kilobytes = {name: int(value.split()[0]) for name, _, value in parts if "Rss" in name}
    return 1024 * (kilobytes.get("RssAnon", 0) + kilobytes.get("RssFile", 0))


def _object_store(raylet: int) -> int:
    """Returns the bytes that the object store has taken: the blocks of the file that Ray maps.

    Ray has removed the file's name. So psutil, which lists files with a name only, does not show it.
    """
    blocks, folder = 0, f"/proc/{raylet}/fd"
    with suppress(OSError):  # the raylet has ended in the meantime
        for entry in os.listdir(folder):
            if "plasma" in os.readlink(os.path.join(folder, entry)):
                blocks = max(blocks, os.stat(os.path.join(folder, entry)).st_blocks)
    return 512 * blocks
