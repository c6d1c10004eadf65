"""Faults, struck in the middle of real runs: the same run, or the same command again, ends as if nothing had been."""

import json
import math
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from processes import alive, command
from runs import ROOT, Running, rows_on_disk, status_of, trials_in_this_process

from gansfp import store
from gansfp.collection.catalog import read_catalog
from gansfp.embedding import shards
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from jobs import audit as audit_job
from jobs import embed as embed_job
from tune import search as search_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_here")]

BACKBONES = ("test_resnet@random", "highpass-w15-32")
PAIRS = [(backbone, "full") for backbone in BACKBONES]
OPTIONS = ["--backbones", ",".join(BACKBONES), "--views", "full", "--precision", "float32", "--max-actors", "1"]
TRIALS = 8  # of each search on those two embeddings

# A cluster of two nodes: a head that only leads, and one that works. A line of input brings another, a second one takes
# the first away as a lost machine goes, a third ends it all.
TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
common = {"object_store_memory": 200 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **common})
first = cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)
print(cluster.address, flush=True)
try:
    sys.stdin.readline()
    cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)
    print("added", flush=True)
    sys.stdin.readline()
    cluster.remove_node(first, allow_graceful=False)
    print("removed", flush=True)
    sys.stdin.readline()
finally:
    cluster.shutdown()
"""


def audit_options(data: Path, work: Path) -> list[str]:
    return ["--data", str(data), "--work", str(work), *OPTIONS, "--permutations", "60"]


def search_options(data: Path, work: Path, task: str = "membership") -> list[str]:
    return ["--task", task, "--data", str(data), "--work", str(work), *OPTIONS]


def search(data: Path, work: Path) -> list[str]:
    return [sys.executable, "-m", "tune.search", *search_options(data, work)]


def embed_options(data: Path, work: Path) -> list[str]:
    return ["--data", str(data), "--work", str(work), *OPTIONS, "--batch", "1"]  # many small shards


def embed(data: Path, work: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "jobs.embed", *embed_options(data, work), *more]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def shards_of(work: Path) -> list[Path]:
    return sorted(work.glob("embeddings/*/*/*.parquet"))


def rows_there(work: Path) -> int:
    return sum(len(rows_on_disk(work, pair)) for pair in PAIRS)


def some_shards(work: Path, at_least: int = 2):
    return lambda: len(shards_of(work)) >= at_least


def struck_in_the_middle(work: Path, n: int) -> bool:
    """Whether some rows of n slices are there, and some are not: else a test would prove nothing."""
    return 0 < rows_there(work) < n * len(PAIRS)


@pytest.fixture(scope="module")
def undisturbed(challenge, ray_here, tmp_path_factory) -> Path:
    """WORK after an embedding that nothing disturbed, on the Ray of this process, which saves the start of another."""
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    embed_job.main(["--data", str(challenge), "--work", str(work), *OPTIONS])
    return work


@pytest.fixture(scope="module")
def undisturbed_audit(challenge, undisturbed) -> Path:
    """That WORK after the audit of it, its trials one after the other; after a whole search it gives one answer."""
    with trials_in_this_process():
        for task in ("membership", "attribution"):
            search_job.main(search_options(challenge, undisturbed, task))
        audit_job.main(audit_options(challenge, undisturbed))
    return undisturbed


@pytest.fixture(scope="module")
def hashes(challenge) -> dict[str, str]:
    catalog = read_catalog(str(challenge))
    return catalog.hashes()


@pytest.fixture
def check_embeddings(undisturbed, hashes):
    """Fails unless every slice is in the shards of each pair exactly once, with the vector of the undisturbed run."""
    config = EmbedConfig(tuple(PAIRS), precision="float32")
    weights = load_all_weights(BACKBONES, None)

    def check(work: Path) -> None:
        for pair in PAIRS:
            assert Counter(rows_on_disk(work, pair)) == Counter(list(hashes))
            identity_ = identity(pair, config, weights)
            found, expected = (shards.read_embeddings(str(w), identity_, hashes) for w in (work, undisturbed))
            assert found.ok.all()
            norms = np.linalg.norm(expected.vectors, axis=1, keepdims=True)
            assert norms.min() > 0
            assert (np.abs(found.vectors - expected.vectors) / norms).max() < 1e-5

    return check


def assert_same(found: object, expected: object) -> None:
    """Equal, but for the last digits of floats."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-5) or (found != found and expected != expected)
    else:
        assert found == expected


def assert_same_findings(work: Path, other: Path) -> None:
    """Trials, best configurations, predictions and figures of two runs, apart from how long they took."""
    for task in ("membership", "attribution"):
        place = Path("search") / task / "trials.parquet"
        found, expected = (pq.read_table(w / place).drop_columns(["seconds"]) for w in (work, other))
        assert_same(found.to_pylist(), expected.to_pylist())
        found, expected = (json.loads((w / place.with_name("best.json")).read_text()) for w in (work, other))
        for row in (*found["best"].values(), *expected["best"].values()):
            del row["seconds"]
        assert_same(found, expected)
    files = sorted(path.name for path in (other / "results").glob("*.csv"))
    assert len(files) == 5  # predictions of two sets and of attribution, patients of two sets
    for name in files:
        assert (work / "results" / name).read_bytes() == (other / "results" / name).read_bytes()
    found, expected = (json.loads((w / "results" / "metrics.json").read_text()) for w in (work, other))
    del found["run"]["seconds"], expected["run"]["seconds"]
    assert_same(found, expected)


def test_kill_9_of_the_driver_in_mid_embedding_and_in_mid_search(
    challenge, undisturbed_audit, hashes, check_embeddings, tmp_path, caplog
):
    """The killed commands again, then the audit. Only the attribution's trials, which were not struck, run serially."""
    work = tmp_path / "work"
    with Running(embed(challenge, work), tmp_path / "first.log") as first:
        first.wait_until(some_shards(work))
        first.kill()
        assert struck_in_the_middle(work, len(hashes))
        trials = work / "search" / "membership" / "trials"
        # At once: workers of the first command may still write.
        with Running(search(challenge, work), tmp_path / "second.log") as second:
            second.wait_until(lambda: len(list(trials.glob("*.parquet"))) >= 2)
            second.kill()
            done_before = {path: path.stat().st_mtime_ns for path in trials.glob("*.parquet")}
            assert 2 <= len(done_before) < TRIALS
            deadline = time.monotonic() + 2  # a trial that was under way may end, for all that nobody waits for it
            while alive(second.below()) and time.monotonic() < deadline:
                time.sleep(0.2)
    done_before |= {path: path.stat().st_mtime_ns for path in trials.glob("*.parquet")}
    caplog.set_level("INFO")
    embed_job.main(embed_options(challenge, work))
    search_job.main(search_options(challenge, work))
    # More may have ended since: Ray ends the processes of a lost command after a while only.
    there = re.search(rf"search membership: (\d) of {TRIALS} trials are there already", caplog.text)
    assert there is not None
    assert int(there[1]) >= len(done_before)
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    assert len(list(trials.glob("*.parquet"))) == TRIALS
    check_embeddings(work)
    with trials_in_this_process():
        search_job.main(search_options(challenge, work, "attribution"))
        audit_job.main(audit_options(challenge, work))
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    assert_same_findings(work, undisturbed_audit)


def test_kill_9_of_an_actors_worker_process(challenge, hashes, check_embeddings, tmp_path):
    work = tmp_path / "work"
    with Running(embed(challenge, work), tmp_path / "log") as job:
        job.wait_until(some_shards(work))
        busy: list[int] = []
        job.wait_until(lambda: busy.extend(pid for pid in job.below() if "EmbedActor)).submit" in command(pid)) or busy)
        os.kill(busy[0], signal.SIGKILL)
        assert struck_in_the_middle(work, len(hashes))
        assert job.ended() == 0, job.said
    check_embeddings(work)


def test_loss_of_the_node_that_works_while_another_comes(challenge, hashes, check_embeddings, tmp_path):
    """What was decoded, what was embedded and the actors themselves are gone with the node."""
    work, told = tmp_path / "work", tmp_path / "nodes.log"
    asked = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | asked
    with Running([sys.executable, "-c", TWO_NODES], told, env=environment, stdin=subprocess.PIPE) as nodes:

        def tell(answer: str) -> None:
            nodes.process.stdin.write(b"\n")
            nodes.process.stdin.flush()
            nodes.wait_until(lambda: f"\n{answer}\n" in nodes.said)

        nodes.wait_until(lambda: re.search(r"^[\d.]+:\d+$", nodes.said, re.MULTILINE))
        address = re.findall(r"^[\d.]+:\d+$", nodes.said, re.MULTILINE)[0]
        with Running(embed(challenge, work, "--address", address), tmp_path / "log", env=environment) as job:
            job.wait_until(some_shards(work))
            tell("added")
            tell("removed")
            assert struck_in_the_middle(work, len(hashes))
            assert job.ended() == 0, job.said
            others = {line for line in job.said.splitlines() if not line.startswith(("catalog: ", "embed: "))}
            assert others <= {"a node of the Ray cluster was lost; its work is repeated on other nodes"}
    check_embeddings(work)


@pytest.fixture
def small_disk(tmp_path):
    """(a folder on a file system of its own with little room, a file in it that takes up most of it)."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        filler = place / "filler"
        filler.write_bytes(b"x" * (23 << 20))
        yield place, filler
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_and_a_truncated_shard(challenge, hashes, check_embeddings, small_disk, caplog):
    place, filler = small_disk
    work = place / "work"
    full = run(embed(challenge, work))
    assert full.returncode == 2, full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(rf"error: {work}/.*: cannot be written \(.*No space left on device.*\)", line)
    assert "Traceback" not in full.stderr
    assert struck_in_the_middle(work, len(hashes))
    assert all(pq.read_table(path).num_rows for path in shards_of(work))
    filler.unlink()
    broken = shards_of(work)[1]
    os.truncate(broken, broken.stat().st_size // 2)
    others = {path: path.stat().st_mtime_ns for path in shards_of(work) if path != broken}
    embed_job.main(embed_options(challenge, work))
    assert f"{broken}: not a whole shard" in caplog.text
    check_embeddings(work)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert not list(work.rglob(f"*{store.TEMPORARY}*"))


def test_a_second_run_is_refused_and_sigterm_stops_the_first(challenge, hashes, check_embeddings, tmp_path, capfd):
    """The second run is told who holds WORK. SIGTERM gives one line, and leaves nothing running."""
    work = tmp_path / "work"
    with Running(embed(challenge, work), tmp_path / "log") as first:
        first.wait_until(some_shards(work))
        first.process.send_signal(signal.SIGSTOP)  # however slowly the second starts, the first is still there
        assert status_of(audit_job.main, audit_options(challenge, work)) == 2
        (line,) = capfd.readouterr().err.splitlines()
        holder = rf"jobs.embed \(process {first.process.pid} on {socket.gethostname()}, since .+\)"
        assert re.fullmatch(rf"error: {work}: is in use by {holder}; .+", line)
        below = first.below()
        first.process.terminate()  # waits for the process until it goes on
        assert struck_in_the_middle(work, len(hashes))
        first.process.send_signal(signal.SIGCONT)
        assert first.ended(60) == 128 + signal.SIGTERM
        lines = [line for line in first.said.splitlines() if not line.startswith(("catalog: ", "embed: "))]
        assert lines == ["stopped; finished work is kept, run the same command to continue"]
        deadline = time.monotonic() + 60
        while alive(below) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not alive(below)
    embed_job.main(embed_options(challenge, work))
    check_embeddings(work)
