"""The same job on a cluster that somebody else started: by `ray job submit`, and by --address."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import descendants, end

ROOT = Path(__file__).parents[1]


def free_ports(n: int) -> list[str]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    found = [str(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """(host:port, dashboard) of a Ray of this test's own, which asks for a token as a real one does."""
    home = tmp_path_factory.mktemp("home")
    session = tempfile.mkdtemp(prefix="gf", dir="/tmp")  # Ray's sockets are below it, and their paths must be short
    port, dashboard, client, agent = free_ports(4)
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    options = ["--port", port, "--dashboard-port", dashboard, "--ray-client-server-port", client]
    options += ["--dashboard-agent-listen-port", agent, "--min-worker-port", "0", "--max-worker-port", "0"]
    options += ["--num-cpus", "2", "--temp-dir", session, "--disable-usage-stats"]
    with open(home / "log", "wb") as log:
        started = subprocess.Popen(
            [*ray, "start", "--head", "--block", *options],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    below: dict[int, str] = {}
    try:
        deadline = time.monotonic() + 60
        while b"Ray runtime started" not in (home / "log").read_bytes():
            assert started.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment
        below = descendants(started.pid)
    finally:
        below |= descendants(started.pid)
        started.kill()
        started.wait()
        end(below)
        shutil.rmtree(session, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code that can be told from the installed one by what it says of a missing file."""
    for name in ("gansfp", "jobs", "tune"):
        shutil.copytree(ROOT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = tmp_path / "code" / "jobs" / "stages.py"
    stages.write_text(stages.read_text().replace("return store.one_line(error)", "return 'told by the copy'"))
    folder = tmp_path / "data" / "attribution" / "test"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((256, 256), 40 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "gone.png").symlink_to("/nowhere/at/all.png")
    return tmp_path / "code"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("way", ["ray job submit", "--address"])
def test_on_a_cluster_with_the_code_of_the_checkout(head, checkout, way):
    address, dashboard, environment = head
    data, work = checkout.parent / "data", checkout.parent / "work"
    job = [sys.executable, "-m", "jobs.embed", "--data", str(data), "--work", str(work)]
    job += ["--backbones", "highpass", "--views", "full"]
    if way == "--address":
        job += ["--address", address]
    else:
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", dashboard]
        job = [*submit, "--working-dir", ".", "--", *job]
    done = subprocess.run(job, cwd=checkout, env=environment, capture_output=True, text=True, timeout=150)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "left out: gone: told by the copy" in said
    assert "embed: 4 slices in" in said
    assert len(list((work / "embeddings" / "highpass" / "full").glob("*.parquet"))) == 1
