"""Ray's own autoscaler, with nodes that are processes here: from no worker to two and back, by the work of one job."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from processes import command, descendants
from ray_heads import free_ports, running_head, wait_for

ROOT = Path(__file__).parents[2]
HEAD = "f" * 51 + "00000"  # what Ray's provider of such nodes calls the first one
SLICES, BLOCK = 96, 16
PAIRS = ("highpass-w15-32", "test_resnet@random")

# Appended to a copy of gansfp/runtime/embedding_blocks.py, to which PYTHONPATH leads. Ray would unpack a submitted
# working directory once a node, and since these nodes share a folder, each would delete the copy of those before it.
GATE = """
import os, time

_read_at_once = _read


def _read(uri):
    while uri.endswith("late.png") and not os.path.exists({gate!r}):
        time.sleep(0.1)
    return _read_at_once(uri)
"""


def autoscaling(port, workers):
    """A configuration of Ray's autoscaler with up to `workers` nodes of two cores and a GPU, which is declared only."""
    # As an external provider, because the wheel lacks the defaults that Ray would read for the same one of its own.
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{port}",  # else its nodes look for a head at port 6379
        "head_node_id": HEAD,
        "launch_multiple": True,
        "disable_node_updaters": True,
    }
    # Two cores: one task waits at the gate, the other does the rest; the embedding process must not take one.
    worker = {"CPU": 2, "GPU": 1, "object_store_memory": 200 << 20}
    steps = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", *(f"{step}_commands" for step in steps))
    return {
        "cluster_name": "simulated",
        "provider": provider,
        "auth": {},
        "max_workers": workers,
        "idle_timeout_minutes": 0.1,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": workers},
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


@pytest.fixture
def limit(tmp_path):
    """Writes how many workers there may be; the autoscaler reads it again and again."""
    (port,) = free_ports(1)

    def write(workers):
        (tmp_path / "new").write_text(json.dumps(autoscaling(port, workers)))
        os.replace(tmp_path / "new", tmp_path / "autoscaling.json")

    write.port, write.path = port, tmp_path / "autoscaling.json"
    write(1)
    return write


@pytest.fixture
def head(tmp_path, limit, checkout):
    """A head without cores, and nothing beside it."""
    second = {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD}  # the one of `ray up` and KubeRay
    options = ["--num-cpus", "0", "--num-gpus", "0", f"--autoscaling-config={limit.path}"]
    settings = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "PYTHONPATH": str(checkout), **second}
    settings["CUDA_VISIBLE_DEVICES"] = "99"  # Ray may declare a GPU of this name, and CUDA finds none
    with running_head(tmp_path, *options, port=limit.port, **settings) as running:
        yield running


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code that does not read the slice late.png before there is a file `gate`, and DATA with it."""
    for name in ("gansfp", "jobs", "tune"):
        shutil.copytree(ROOT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "code" / "gansfp" / "runtime" / "embedding_blocks.py", "a") as stages:
        stages.write(GATE.format(gate=str(tmp_path / "gate")))
    folder = tmp_path / "data" / "attribution" / "test"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("late", *range(SLICES - 1)):
        Image.fromarray(random.integers(0, 256, (256, 256), np.uint8)).save(folder / f"{name}.png")
    return tmp_path / "code"


def running_below(head, part):
    """How many processes of that Ray have `part` in their name or command line."""
    return sum(part in command(pid) for pid in descendants(head.pid))


def workers(head):
    return running_below(head, "raylet/raylet") - 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_from_no_worker_to_two_and_back(head, limit, tmp_path):
    work = tmp_path / "work"
    job = [sys.executable, "-m", "jobs.embed", "--data", str(tmp_path / "data"), "--work", str(work), "--gpus", "2"]
    job += ["--backbones", ",".join(PAIRS), "--views", "full", "--batch", str(BLOCK)]
    assert workers(head) == 0
    with open(tmp_path / "said", "w") as log:
        submitted = subprocess.Popen(head.submit("--", *job), env=head.environment, stdout=log, stderr=log)
    said = (tmp_path / "said").read_text

    def goes_on():
        assert submitted.poll() is None, said()
        return True

    try:
        # The job has asked for two GPUs. It must do with the one there is all that it can, and not wait for the other.
        blocks = SLICES // BLOCK - 1
        wait_for("all but one block are embedded", lambda: goes_on() and len(shards(work)) == blocks * len(PAIRS))
        assert workers(head) == 1
        limit(2)
        wait_for("a second worker, and an actor on it", lambda: goes_on() and running_below(head, "EmbedActor") == 2)
        assert workers(head) == 2
        (tmp_path / "gate").touch()
        assert submitted.wait(120) == 0, said()
        wait_for("the workers have gone, being idle", lambda: workers(head) == 0)
    except BaseException:
        print(said())
        raise
    finally:
        submitted.kill()
        submitted.wait()
    for pair in PAIRS:
        files = [file for file in shards(work) if pair.partition("@")[0] in str(file)]
        ids = Counter(image_id for file in files for image_id in pq.read_table(file)["image_id"].to_pylist())
        assert ids == dict.fromkeys(["late", *map(str, range(SLICES - 1))], 1)
    assert f"embed: {SLICES} slices in" in said()
    assert said().count("CUDA finds none") == 1, said()
    assert "precision: bfloat16, for GPUs that are yet to start" in said()


def shards(work):
    return list(work.glob("embeddings/*/*/*.parquet"))
