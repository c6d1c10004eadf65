"""Finds processes that a test started, through any number of processes between, so that it ends those and no others."""

import os
import signal
from contextlib import suppress
from pathlib import Path


def _stat(pid: int) -> tuple[str, int, str]:
    """State, parent and start time; the last tells a process from a later one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone", 0, ""
    return fields[0], int(fields[1]), fields[19]


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`: start times by process id."""
    everybody = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found: dict[int, str] = {}
    below = {pid}
    while below:
        below = {child for child, (_, parent, _) in everybody.items() if parent in below and child not in found}
        found |= {child: everybody[child][2] for child in below}
    return found


def alive(processes: dict[int, str]) -> list[int]:
    """Those that still run."""
    return [
        pid for pid, started in processes.items() if _stat(pid)[2] == started and _stat(pid)[0] not in ("Z", "gone")
    ]


def end(processes: dict[int, str]) -> None:
    for pid in alive(processes):
        with suppress(ProcessLookupError):  # it may end by itself, now that those before it are gone
            os.kill(pid, signal.SIGKILL)
