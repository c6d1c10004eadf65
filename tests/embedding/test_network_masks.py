"""Masks by networks, compared with the bare U-Net and with the package lungmask; messages about missing weights."""

import builtins
import functools
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from gansfp import store
from gansfp.embedding import network_masks
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.embedding.network_masks import R231_FILE, Segmenter, load_mask
from gansfp.errors import UsageError, WeightsError
from gansfp.images.lungs import NETWORK_MASKS, dice
from gansfp.networks import model_files
from gansfp.networks.lung_unet import ARCHITECTURE, LungUnet
from gansfp.simulation.phantom import draw_patient, draw_slice
from gansfp.training.unet import Averaging


@pytest.fixture(scope="module")
def slices():
    rng = np.random.default_rng(5)
    patients = [draw_patient(rng) for _ in range(2)]
    return np.stack([draw_slice(patient, level, rng) for patient in patients for level in (0.35, 0.55)])


def untrained(seed):
    torch.manual_seed(seed)
    return Averaging(LungUnet())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a U-Net with random weights, as training writes it."""
    place = str(tmp_path_factory.mktemp("models") / "unet")
    model_files.write_model(place, {"identity": {"architecture": ARCHITECTURE}}, untrained(3).state_dict())
    return place


def test_a_unets_mask_is_the_lung_of_its_averaged_weights(folder, slices):
    segmenter = Segmenter(f"unet:{folder}", load_mask(f"unet:{folder}", None), batch_limit=3)
    network = untrained(3).average.eval()
    with torch.inference_mode():
        expected = np.stack([network(torch.from_numpy(slice_[None]))[0].numpy() > 0 for slice_ in slices])
    found = segmenter(slices)
    assert found.dtype == bool
    assert found.any()
    assert not found.all()
    assert (found == expected).mean() > 0.9999  # sums are rounded in another order
    assert segmenter.seconds["segment"] > 0
    assert segmenter(slices[:0]).shape == (0, 256, 256)


def test_out_of_memory_halves_the_batch(folder, slices, monkeypatch):
    segmenter = Segmenter(f"unet:{folder}", load_mask(f"unet:{folder}", None))
    expected, predict, tried = segmenter(slices), segmenter._predict, []

    def short_of_memory(pixels):
        tried.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(pixels)

    segmenter._predict = short_of_memory
    assert (segmenter(slices) == expected).mean() > 0.9999
    assert tried == [4, 2, 2]
    assert segmenter.batch_limit == 2


def test_identity_follows_the_weights_and_not_the_folder(folder, tmp_path):
    pair = ("highpass", "lungs")

    def mask_identities(place):
        config = EmbedConfig((pair, ("highpass", "full")), mask=f"unet:{place}")
        weights = load_all_weights(config.backbones, None, config.network_mask)
        return [identity(each_pair, config, weights)["mask"] for each_pair in config.pairs]

    facts = {"identity": {"architecture": ARCHITECTURE}}
    model_files.write_model(str(tmp_path / "same"), facts, untrained(3).state_dict())
    model_files.write_model(str(tmp_path / "other"), facts, untrained(4).state_dict())
    assert mask_identities(folder)[0].startswith("unet:")
    assert str(tmp_path) not in mask_identities(tmp_path / "same")[0]
    assert mask_identities(folder)[1] == ""
    assert mask_identities(folder) == mask_identities(tmp_path / "same")
    assert mask_identities(folder) != mask_identities(tmp_path / "other")
    assert EmbedConfig((("highpass", "full"),), mask=f"unet:{folder}").network_mask == ""


def test_a_folder_without_a_unet_is_one_line(folder, tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere.*expected a folder"):
        load_mask(f"unet:{tmp_path}/nowhere", None)
    other = {"identity": {"architecture": "unet9"}}
    model_files.write_model(str(tmp_path / "other"), other, {"average.x": torch.zeros(1)})
    with pytest.raises(WeightsError, match="'unet9', expected 'unet-"):
        load_mask(f"unet:{tmp_path}/other", None)
    model_files.write_model(str(tmp_path / "torn"), json.loads(store.read_bytes(f"{folder}/model.json")), {})
    with pytest.raises(WeightsError, match="not the weights of that network"):
        load_mask(f"unet:{tmp_path}/torn", None)
    with pytest.raises(UsageError, match="runs on CPUs"):
        load_mask("threshold", None)


@pytest.fixture
def package(monkeypatch):
    """The package, with a network of R231's shape with a sixteenth of its width."""
    module = pytest.importorskip("lungmask.mask")
    monkeypatch.setattr(module, "UNet", functools.partial(module.UNet, wf=2))
    return module


class TestLungmask:
    def test_equals_the_package(self, package, slices, tmp_path):
        units = -1350 + slices.astype(np.float32) * 1500 / 255
        torch.manual_seed(0)
        network = network_masks._r231_network().eval()
        with torch.inference_mode():
            inputs = torch.from_numpy((units[:1, None].clip(-1024, 600) + 1024) / 1624)
            network.last.bias -= network(inputs).mean((0, 2, 3))  # now each of the three labels occurs
        torch.save(network.state_dict(), tmp_path / R231_FILE)
        found = Segmenter("lungmask", load_mask("lungmask", str(tmp_path)), batch_limit=3)(slices)
        inferer = package.LMInferer(modelpath=str(tmp_path / R231_FILE), force_cpu=True, tqdm_disable=True)
        for ours, slice_ in zip(found, units, strict=True):
            theirs = inferer.apply(slice_[None])[0] > 0
            assert 0.02 < theirs.mean() < 0.98
            assert dice(ours, theirs) >= 0.999

    def test_damaged_and_foreign_files(self, package, tmp_path):
        (tmp_path / R231_FILE).write_bytes(b"nothing")
        with pytest.raises(WeightsError, match=rf"{R231_FILE}: cannot be read"):
            load_mask("lungmask", str(tmp_path))
        torch.save({"x": torch.zeros(1)}, tmp_path / R231_FILE)
        with pytest.raises(WeightsError, match="not the weights of that network"):
            load_mask("lungmask", str(tmp_path))
        torch.save({"x": 1}, tmp_path / R231_FILE)
        with pytest.raises(WeightsError, match="no state dict"):
            load_mask("lungmask", str(tmp_path))

    def test_without_a_connection_the_message_names_the_file_and_its_place(self, package, tmp_path, monkeypatch):
        monkeypatch.setattr("gansfp.networks.weights.why_unreachable", lambda _: "no connection")
        monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
        with pytest.raises(WeightsError, match=rf"no connection\); put {R231_FILE} \(https.* into {tmp_path}"):
            load_mask("lungmask", str(tmp_path))
        with pytest.raises(WeightsError, match="name it with --weights"):
            load_mask("lungmask", None)


def test_a_missing_package_is_one_line(monkeypatch):
    real = builtins.__import__

    def import_without_lungmask(name, *arguments):
        if name.partition(".")[0] == "lungmask":
            raise ImportError("No module named 'lungmask'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", import_without_lungmask)
    with pytest.raises(UsageError, match=r'pip install "gansfp\[lungmask\]"'):
        load_mask("lungmask", None)


def test_each_network_mask_that_a_name_can_have_is_in_the_table():
    assert set(network_masks.KINDS) == set(NETWORK_MASKS)


def test_tensors_survive_the_file(folder):
    tensors = safetensors.torch.load(store.read_bytes(f"{folder}/model.safetensors"))
    loaded = load_mask(f"unet:{folder}", None).tensors
    assert set(loaded) == set(LungUnet().state_dict())
    for name, tensor in loaded.items():
        assert torch.equal(tensor, tensors[f"average.{name}"])
