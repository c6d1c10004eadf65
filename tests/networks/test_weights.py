"""Weights: from files, from timm's own source, or random if the name says so; never another source by mistake."""

import os
import pickle
import threading
import time
from functools import lru_cache

import pytest
import safetensors.torch
import timm
import torch

from gansfp.errors import UsageError, WeightsError
from gansfp.networks import weights
from gansfp.networks.weights import load_weights

MODEL = "test_resnet"


@pytest.fixture
def state():
    torch.manual_seed(5)
    return timm.create_model(MODEL, num_classes=7).state_dict()


@pytest.fixture(autouse=True)
def no_connection(monkeypatch, tmp_path):
    """Tests do not download weights, and do not use weights that somebody downloaded before."""
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(weights, "why_unreachable", lru_cache(weights.why_unreachable.__wrapped__))


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_kinds_of_files_give_the_same(tmp_path, state):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    torch.save(state, tmp_path / "a" / f"{MODEL}.pth")
    safetensors.torch.save_file(state, tmp_path / "b" / f"{MODEL}.safetensors")
    first, second = (load_weights(MODEL, str(tmp_path / name)) for name in "ab")
    assert first.digest == second.digest
    assert set(first.tensors) == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.tensors.items())


def test_wrapped_checkpoints_are_read(tmp_path, state):
    torch.save(
        {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}, tmp_path / f"{MODEL}.pth"
    )
    assert torch.equal(load_weights(MODEL, str(tmp_path)).tensors["conv1.0.weight"], state["conv1.0.weight"])


def test_the_second_head_of_inception_is_left_out(tmp_path):
    state = timm.create_model("inception_v3", aux_logits=True).state_dict()
    torch.save(state, tmp_path / "inception_v3.pth")
    found = load_weights("inception_v3", str(tmp_path)).tensors
    assert set(state) - set(found) == {name for name in state if name.startswith(("AuxLogits.", "fc."))}


def test_digest_tells_weights_apart(tmp_path, state):
    torch.save(state, tmp_path / f"{MODEL}.pth")
    first = load_weights(MODEL, str(tmp_path)).digest
    state["conv1.0.weight"][0, 0, 0, 0] += 1
    torch.save(state, tmp_path / f"{MODEL}.pth")
    assert load_weights(MODEL, str(tmp_path)).digest != first


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_broken_files_name_the_file(tmp_path, state, ending, damage):
    path = tmp_path / (MODEL + ending)
    torch.save(state, path) if ending == ".pth" else safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no weights here"}[damage])
    with pytest.raises(WeightsError) as caught:
        load_weights(MODEL, str(tmp_path))
    assert str(path) in one_line(caught)


def test_another_models_file(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / f"{MODEL}.pth")
    with pytest.raises(WeightsError, match="not the weights of timm's test_resnet") as caught:
        load_weights(MODEL, str(tmp_path))
    assert str(tmp_path / f"{MODEL}.pth") in one_line(caught)


def test_a_file_that_lacks_tensors(tmp_path, state):
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / f"{MODEL}.pth")
    with pytest.raises(WeightsError, match=r"1 tensors missing, 0 unknown, e\.g\. 'layer1\.0\.conv1\.weight'"):
        load_weights(MODEL, str(tmp_path))


def test_a_file_without_a_state_dict(tmp_path):
    torch.save({"model": {"a": 1}}, tmp_path / f"{MODEL}.pth")
    with pytest.raises(WeightsError, match="no state dict of tensors"):
        load_weights(MODEL, str(tmp_path))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_never_run(tmp_path, save):
    marker = tmp_path / "executed"
    save({"conv1.0.weight": Malicious(str(marker))}, tmp_path / f"{MODEL}.pth")
    with pytest.raises(WeightsError, match=f"{MODEL}.pth"):
        load_weights(MODEL, str(tmp_path))
    assert not marker.exists()


def test_no_folder():
    with pytest.raises(UsageError, match="got '/nowhere/at/all', expected a folder"):
        load_weights(MODEL, "/nowhere/at/all")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_an_unreachable_hub_is_noticed_in_ten_seconds_and_the_message_says_which_file_to_put_where(
    tmp_path, monkeypatch, endpoint
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("asked an unreachable hub"))
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        load_weights("resnet18", str(tmp_path))
    with pytest.raises(WeightsError):
        load_weights("densenet121", None)
    assert time.monotonic() - start < 10  # for both: all backbones wait only once
    assert f"put resnet18.safetensors (or .pth) into {tmp_path}" in one_line(caught)
    assert "resnet18@random" in str(caught.value)


def test_a_name_look_up_that_does_not_end(monkeypatch):
    monkeypatch.setattr(weights, "HUB_TIMEOUT", 0.2)
    ended = threading.Event()

    def look_up(*_, **__):
        ended.wait(30)
        raise OSError("no such name")

    monkeypatch.setattr("urllib.request.urlopen", look_up)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="no answer"):
        load_weights("resnet18", None)
    assert time.monotonic() - start < 5
    ended.set()


def test_a_model_that_timm_has_no_weights_for():
    with pytest.raises(WeightsError, match=r"timm has no weights for it; put efficientnet_b8\.safetensors"):
        load_weights("efficientnet_b8", None)


def test_timms_own_download(monkeypatch, state):
    asked = []

    def create_model(name, **options):
        asked.append((name, options))
        model = real(name, pretrained=False, num_classes=options["num_classes"])
        model.load_state_dict(state, strict=False)
        return model

    real = timm.create_model
    monkeypatch.setattr(weights, "why_unreachable", lambda _: "")
    monkeypatch.setattr(timm, "create_model", create_model)
    found = load_weights(MODEL, None)
    assert asked == [(MODEL, {"pretrained": True, "num_classes": 0})]
    assert torch.equal(found.tensors["conv1.0.weight"], state["conv1.0.weight"])


def test_the_cache_of_the_hub_is_used_without_a_connection(tmp_path, monkeypatch, state):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(path))
    assert torch.equal(load_weights(MODEL, None).tensors["conv1.0.weight"], state["conv1.0.weight"])


def test_random_weights_are_the_same_every_time_and_not_those_of_the_file(tmp_path, state):
    torch.save(state, tmp_path / f"{MODEL}.pth")
    before = torch.get_rng_state()
    first, second = load_weights(MODEL, str(tmp_path), random=True), load_weights(MODEL, None, random=True)
    assert torch.equal(before, torch.get_rng_state())
    assert first.digest == second.digest != load_weights(MODEL, str(tmp_path)).digest
    assert first.network == f"{MODEL}@random"
    assert first.digest != load_weights("test_convnext", None, random=True).digest
