"""What is not trusted stays harmless: nothing listens beyond this machine, nothing that is read is run."""

import ipaddress
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from processes import alive, descendants, end

ROOT = Path(__file__).parents[1]

START = """
import ray
from jobs.cluster import start_ray
start_ray("local")

@ray.remote
class Actor:
    def answer(self):
        return 1

actor = Actor.remote()
ray.get(actor.answer.remote())
print("ready", flush=True)
input()
"""


def listening(pids) -> set[str]:
    """The addresses on which these processes accept TCP connections."""
    sockets = set()
    for pid in pids:
        for handle in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                sockets.add(os.readlink(f"/proc/{pid}/fd/{handle}"))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                words = bytes.fromhex(fields[1].partition(":")[0])
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.add(str(ipaddress.ip_address(address)))
    return found


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_on_one_machine_nothing_listens_beyond_loopback():
    with socket.create_server(("0.0.0.0", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert {"0.0.0.0", "::1"} <= listening([os.getpid()])
    assert [is_loopback(one) for one in ("0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1")] == [False] * 4
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", START]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        started = {}
        try:
            assert process.stdout.readline() == "ready\n"
            started = descendants(process.pid)
            assert len(alive(started)) > 3
            addresses = listening([process.pid, *alive(started)])
            assert addresses
            assert all(map(is_loopback, addresses)), addresses
            process.communicate("\n", timeout=60)
        finally:
            process.kill()
            end(started)
