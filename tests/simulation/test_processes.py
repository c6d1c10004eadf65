"""The processes of a large simulation: none for a small one; they end with their parent; one that is killed is said."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from gansfp.errors import DataError
from gansfp.simulation import processes as module
from gansfp.simulation.processes import processes

SLEEPERS = """
import os, time
from gansfp.simulation.processes import processes
os.sched_getaffinity = lambda pid: {0, 1}
with processes(10_000) as pool:
    futures = [pool.submit(time.sleep, 60) for _ in range(2)]
    pool.submit(os.getpid)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_small_challenge_needs_none():
    with processes(2 * module._PICTURES_EACH - 1) as pool:
        assert pool is None


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_they_end_with_their_parent(kill):
    with subprocess.Popen([sys.executable, "-c", SLEEPERS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        children = _workers(parent.pid)
        assert len(children) == 2
        if kill is signal.SIGINT:  # a terminal sends it to all of them
            time.sleep(2)  # a process that has just started does not know yet what to do with it
            for child in children:
                child.send_signal(kill)
        parent.send_signal(kill)
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert (len(gone), alive) == (2, [])
        parent.wait(20)
        assert b"Process Spawn" not in parent.stderr.read()


def _workers(parent: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [p for p in psutil.Process(parent).children() if "spawn_main" in " ".join(p.cmdline())]
        if len(found) == 2:
            return found
        time.sleep(0.1)
    return []


def test_one_that_is_killed_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(DataError, match="ended from outside") as raised, processes(10_000) as pool:
        pool.submit(os._exit, 9).result()
    assert "\n" not in str(raised.value)
