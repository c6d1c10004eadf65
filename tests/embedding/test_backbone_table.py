"""The table of backbone kinds: a new kind is one entry; the properties of a backbone that other files use."""

import re

import numpy as np
import pytest
import torch

from gansfp.embedding import backbones
from gansfp.embedding.backbone import Backbone, CpuKind, DeviceKind, NetworkKind
from gansfp.embedding.backbones import cpu_features, is_on_cpu, parse_backbone
from gansfp.embedding.embedder import EmbedConfig, Embedder, identity, load_all_weights
from gansfp.embedding.preparation import Preparation
from gansfp.errors import UsageError
from gansfp.networks.weights import Weights, digest_of


@pytest.fixture
def pixels():
    """(6, 256, 256) uint8 of noise."""
    return np.random.default_rng(0).integers(0, 256, (6, 256, 256), np.uint8)


class Halves(torch.nn.Module):
    """A network from elsewhere: the weighted means of the upper and the lower half of a slice."""

    preparation = Preparation(256, 256, "bicubic", (0.0,) * 3, (1.0,) * 3)

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, inputs, backbones):
        return {backbone.name: self.weight * inputs.unflatten(1, (2, 128)).mean((2, 3)) for backbone in backbones}


def test_a_new_kind_is_one_entry_of_the_table(pixels, monkeypatch):
    """A network, a descriptor on the device and one on CPUs: read, loaded, identified and computed like the others."""

    def read(kind, match):
        return Backbone(match[0], kind, model=match[0])

    weights = {"weight": torch.tensor([2.0])}
    halves = NetworkKind(
        "halves",
        ("halves",),
        re.compile("halves"),
        read,
        load_weights=lambda backbone, folder: Weights(backbone.network, weights, digest_of(weights)),
        check=lambda backbone, weights: None,
        create=lambda backbone, weights, device, precision: Halves(weights.tensors["weight"]),
    )
    mean = DeviceKind(
        "mean",
        ("mean",),
        re.compile("mean"),
        read,
        compute=lambda members, pixels, masks: [pixels.float().mean((1, 2))[:, None] for _ in members],
    )
    largest = CpuKind(
        "largest",
        ("largest",),
        re.compile("largest"),
        read,
        compute=lambda members, pixels, mask: [np.array([pixels.max()], np.float32) for _ in members],
    )
    monkeypatch.setattr(backbones, "KINDS", (halves, mean, largest, *backbones.KINDS))
    parse_backbone.cache_clear()
    on_device = [("halves", "full"), ("mean", "full")]
    config, loaded = (
        EmbedConfig((*on_device, ("largest", "full"))),
        load_all_weights(["halves", "mean", "largest"], None),
    )
    vectors = Embedder(on_device, loaded)(pixels, np.zeros(pixels.shape, bool))
    expected = pixels.reshape(6, 2, 128, 256).mean((2, 3))
    np.testing.assert_allclose(vectors["halves", "full"], 2 * expected, rtol=1e-5)
    np.testing.assert_allclose(vectors["mean", "full"], expected.mean(1, keepdims=True), rtol=1e-5)
    on_cpu = cpu_features([*on_device, ("largest", "full"), ("lbp", "full")], pixels[0], np.zeros((256, 256), bool))
    assert list(on_cpu) == [("largest", "full"), ("lbp", "full")]
    assert on_cpu["largest", "full"] == [pixels[0].max()]
    assert identity(on_device[0], config, loaded)["weights"] == digest_of(weights)
    assert identity(on_device[1], config, loaded)["weights"] == ""
    with pytest.raises(UsageError, match="largest, mean or halves"):
        parse_backbone("no such backbone")
    parse_backbone.cache_clear()


def test_names_on_cpus_are_known_without_timm():
    assert [name for name in ("lbp", "lbp-mean", "lbp-no", "residual", "resnet50") if is_on_cpu(name)] == [
        "lbp",
        "lbp-mean",
    ]


@pytest.mark.parametrize(
    ("name", "unit_norm", "needs_weights", "on_cpu"),
    [
        ("resnet50", False, True, False),
        ("resnet50:map1", True, True, False),
        ("resnet50:sketch", True, True, False),
        ("highpass-w0-32", True, False, False),
        ("residual", False, False, False),
        ("lbp", False, False, True),
    ],
)
def test_properties_of_a_backbone(name, unit_norm, needs_weights, on_cpu):
    backbone = parse_backbone(name)
    assert (backbone.unit_norm, backbone.needs_weights, backbone.on_cpu) == (unit_norm, needs_weights, on_cpu)
