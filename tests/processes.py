"""Finds processes that a test started, through any number of processes between, so that it ends those and no others."""

import os
import signal
import time
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


def command(pid: int) -> str:
    """What a process calls itself: its command line, or the title it gave itself; "" for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def alive(processes: dict[int, str]) -> list[int]:
    """Those that still run."""
    return [
        pid for pid, started in processes.items() if _stat(pid)[2] == started and _stat(pid)[0] not in ("Z", "gone")
    ]


def end(processes: dict[int, str], by: int = signal.SIGKILL) -> None:
    for pid in alive(processes):
        with suppress(ProcessLookupError):  # it may end by itself, now that those before it are gone
            os.kill(pid, by)


def end_all_from(pid: int, seconds: float = 10) -> None:
    """Ends `pid` and all below it. They are halted first: none can start another, or lose its parent and be missed."""
    found = {pid: _stat(pid)[2]}
    below = found
    while below:
        end(below, signal.SIGSTOP)
        below = {child: started for child, started in descendants(pid).items() if child not in found}
        found |= below
    end(found)
    deadline = time.monotonic() + seconds
    while left := alive(found):
        assert time.monotonic() < deadline, f"still there {seconds:.0f} s after SIGKILL: {left}"
        time.sleep(0.05)
