"""A Ray that others connect to, started for a test and ended with it: on loopback, on ports and a token of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import end_all_from

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True)
class Head:
    """address: host:port of the cluster; environment: what a client needs, the token among it."""

    pid: int
    address: str
    dashboard: str
    environment: dict[str, str]

    def submit(self, *options_and_job: str) -> list[str]:
        """The command that runs a job here and tells what it says."""
        return [*RAY, "job", "submit", "--address", self.dashboard, *options_and_job]


def free_ports(n: int) -> list[str]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    found = [str(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return found


def wait_for(what: str, is_so: Callable[[], bool], seconds: float = 120) -> None:
    """Returns as soon as it is so; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"in {seconds:.0f} s not so: {what}"
        time.sleep(0.2)


@contextmanager
def running_head(home: Path, *options: str, port: str = "", **variables: str) -> Iterator[Head]:
    """`ray start --head` with those options and environment variables, which every process below it inherits.

    home: the folder that it runs in and writes its output to. Whatever happens, no process of it is left afterwards.
    """
    session = tempfile.mkdtemp(prefix="gf", dir="/tmp")  # Ray's sockets are below it, and their paths must be short
    other, dashboard, client, agent = free_ports(4)
    port = port or other
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1 instead of this machine's address
        "AUTOSCALER_METRIC_PORT": "0",
        **variables,
    }
    ports = ["--port", port, "--dashboard-port", dashboard, "--ray-client-server-port", client]
    ports += ["--dashboard-agent-listen-port", agent, "--min-worker-port", "0", "--max-worker-port", "0"]
    start = [*RAY, "start", "--head", "--block", *ports, "--temp-dir", session, "--disable-usage-stats", *options]
    output = home / "head.log"
    with open(output, "wb") as log:
        started = subprocess.Popen(start, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        running = b"Ray runtime started"
        wait_for("Ray runs or has ended", lambda: started.poll() is not None or running in output.read_bytes())
        assert started.poll() is None, output.read_text()
        yield Head(started.pid, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    finally:
        end_all_from(started.pid)
        started.wait()
        shutil.rmtree(session, ignore_errors=True)
