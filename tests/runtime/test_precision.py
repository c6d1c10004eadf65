"""gansfp.runtime.precision: what "auto" becomes, by the embeddings in WORK and by the devices."""

import logging

import numpy as np
import pytest

from gansfp.embedding import shards
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.runtime import precision
from gansfp.runtime.cluster import ClusterConfig

PAIRS = (("test_resnet@random", "full"), ("test_resnet@random", "lungs"), ("highpass", "full"))
IMAGES = {"a": "hash of a", "b": "hash of b"}


@pytest.fixture(scope="module")
def weights():
    return load_all_weights(["test_resnet@random"], None)


@pytest.fixture
def devices(monkeypatch, caplog):
    """Lets a test say in which precision the devices are faster; without that, asking them fails the test."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(precision, "start_ray", lambda *_: pytest.fail("asked the devices"))
    monkeypatch.setattr(precision.ray, "is_initialized", lambda: False)

    def faster_in(name):
        monkeypatch.setattr(precision.ray, "get_runtime_context", Context)
        monkeypatch.setattr(precision, "start_ray", lambda *_: None)
        monkeypatch.setattr(precision, "usable_gpus", lambda _: 0)
        monkeypatch.setattr(precision, "_precision_of_devices", lambda *_: (name, "as the test says"))

    return faster_in


class Context:
    get_job_id = get_node_id = lambda self: "here"


def write(work, weights, name, images=IMAGES, pairs=PAIRS[:2]):
    for pair in pairs:
        of_pair = identity(pair, EmbedConfig(PAIRS, precision=name), weights)
        n = len(images)
        shards.write_shard(str(work), of_pair, images, ["ok"] * n, [""] * n, np.zeros((n, 3)))


def settle(work, weights, asked="auto", pairs=PAIRS):
    config = EmbedConfig(pairs, precision=asked)
    images = dict.fromkeys(pairs, IMAGES)
    settled = precision.settle_precision(config, images, str(work), weights, ClusterConfig())
    assert (settled.pairs, settled.mask) == (config.pairs, config.mask)
    return settled.precision


@pytest.mark.parametrize("asked", ["bfloat16", "float32"])
def test_a_named_precision_is_kept_whatever_is_there(tmp_path, weights, devices, asked):
    write(tmp_path, weights, "float32")
    assert settle(tmp_path, weights, asked) == asked


def test_features_without_weights_need_no_answer(tmp_path, devices, caplog):
    assert settle(tmp_path, {}, pairs=PAIRS[2:]) == "auto"
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_a_fresh_work_gets_the_precision_of_the_devices(tmp_path, weights, devices, caplog, name):
    devices(name)
    assert settle(tmp_path, weights) == name
    assert f"precision: {name}, as the test says" in caplog.text


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_complete_embeddings_are_used_whatever_the_devices(tmp_path, weights, devices, caplog, name):
    write(tmp_path, weights, name)
    assert settle(tmp_path, weights) == name
    assert f"precision: {name}, as the embeddings in WORK" in caplog.text


def test_embeddings_in_both_precisions_leave_it_to_the_devices(tmp_path, weights, devices):
    write(tmp_path, weights, "float32")
    write(tmp_path, weights, "bfloat16")
    devices("bfloat16")
    assert settle(tmp_path, weights) == "bfloat16"


def test_a_part_of_the_embeddings_is_not_used_silently(tmp_path, weights, devices, caplog):
    write(tmp_path, weights, "bfloat16", pairs=PAIRS[:1])
    write(tmp_path, weights, "bfloat16", {"b": IMAGES["b"]}, PAIRS[1:2])
    devices("float32")
    assert settle(tmp_path, weights) == "float32"
    assert "WORK has 3 embeddings of networks in bfloat16" in caplog.text
    assert "--precision bfloat16" in caplog.text


@pytest.mark.parametrize(
    ("nodes", "gpus", "expected"),
    [
        ({"worker": [True], "other": [True]}, 0, "bfloat16"),
        ({"worker": [True], "other": [False]}, 0, "float32"),
        ({"worker": [True], "other": []}, 0, "bfloat16"),  # lost meanwhile
        ({}, 0, "float32"),  # CPUs that an autoscaler starts
        ({}, 2, "bfloat16"),  # GPUs that an autoscaler starts
    ],
)
def test_one_slow_node_decides(monkeypatch, nodes, gpus, expected):
    resource = "GPU" if gpus else "CPU"
    listed = [{"NodeID": name, "Alive": True, "Resources": {resource: 2.0}} for name in nodes]
    listed += [{"NodeID": "dead", "Alive": False, "Resources": {resource: 2.0}}]
    listed += [{"NodeID": "head", "Alive": True, "Resources": {"memory": 1.0}}]
    monkeypatch.setattr(precision.ray, "nodes", lambda: listed)
    monkeypatch.setattr(precision.ray, "get_runtime_context", Context)
    monkeypatch.setattr(precision, "_ask", lambda asked, _: [answer for node in asked for answer in nodes[node]])
    assert precision._precision_of_devices.__wrapped__("job", gpus)[0] == expected


def test_this_machine_alone_is_asked_without_another_process(monkeypatch):
    monkeypatch.setattr(precision.ray, "nodes", lambda: [{"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(precision.ray, "get_runtime_context", Context)
    monkeypatch.setattr(precision, "is_bfloat16_fast", lambda device: device == "cpu")
    assert precision._precision_of_devices.__wrapped__("job", 0) == ("bfloat16", "which is faster on the CPUs")
