"""The networks that are added to timm, compared with plain forward passes; all published networks at small sizes."""

import pytest
import safetensors.torch
import torch
from timm.models import vgg
from timm.models.vgg import ConvMlp
from torch import nn

from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.preparation import preparation
from gansfp.embedding.timm_network import TimmNetwork
from gansfp.errors import WeightsError
from gansfp.networks.architectures import CLASSES, HIDDEN, WIDTHS, timm
from gansfp.networks.weights import create, load_weights

# The smallest inputs of the published networks in pixels: --input-size can reduce them to these sizes.
SMALLEST = {
    "conv5": 32,
    "vgg11_1000": 32,
    "vit_base_patch32_224": 32,
    "swin_tiny_patch4_window7_224": 32,
    "inception_resnet_v2": 75,
    "inception_v3": 75,
    "efficientnet_b3": 32,
    "densenet121": 32,
    "resnet18": 32,
    "resnet50": 32,
    "mobilenetv2_100": 32,
}


@pytest.fixture(autouse=True)
def narrow_vgg(monkeypatch):
    """Reduces VGG's fully connected layers from 4096 to 64 numbers: creating the full layers takes seconds."""
    monkeypatch.setattr(vgg, "ConvMlp", lambda *values, **options: ConvMlp(*values, **options | {"mlp_ratio": 1 / 64}))


@pytest.mark.parametrize("name", SMALLEST)
def test_published_networks_learn_small_inputs(name):
    size = SMALLEST[name]
    network = create(name, 2, size, drop_rate=0.5).train()
    logits = network(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 2)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("name", "width"), [("conv5", HIDDEN), ("vgg11_1000", CLASSES)])
def test_are_models_of_timm(name, width):
    assert timm.is_model(name)
    assert timm.list_models(f"{name}*") == [name]
    network = timm.create_model(name, num_classes=0).eval()
    images = torch.rand(2, 3, 40, 40)
    features = network(images)
    assert features.shape == (2, width) == (2, network.num_features)
    network.reset_classifier(3)
    last = network.forward_features(images)
    torch.testing.assert_close(network.forward_head(last, pre_logits=True), features)
    logits = nn.functional.linear(features, network.get_classifier().weight, network.get_classifier().bias)
    torch.testing.assert_close(network(images), logits)
    maps = timm.create_model(name, features_only=True)(images)
    assert [feature_map.shape[1] for feature_map in maps] == timm.create_model(
        name, features_only=True
    ).feature_info.channels()
    indices = [1, 3]
    last_again, some = network.forward_intermediates(images, indices=indices)
    torch.testing.assert_close(last_again, last)
    alone = network.forward_intermediates(images, indices=indices, intermediates_only=True, stop_early=True)
    assert [tuple(feature_map.shape) for feature_map in some] == [tuple(maps[i].shape) for i in indices]
    torch.testing.assert_close(some, alone)


def test_conv5_equals_a_plain_forward():
    torch.manual_seed(0)
    network = timm.create_model("conv5", num_classes=2).eval()
    state = network.state_dict()
    images = x = torch.rand(2, 3, 50, 50)
    for number, width in enumerate(WIDTHS):
        x = nn.functional.conv2d(x, state[f"blocks.{number}.0.weight"], padding=1)
        mean, var, scale, shift = (
            state[f"blocks.{number}.1.{part}"].view(1, width, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)
        x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
    x = (x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]).clamp(min=0)
    torch.testing.assert_close(network(images), x @ state["head.weight"].T + state["head.bias"])


def test_vgg11_1000_takes_the_file_of_vgg11(tmp_path):
    torch.manual_seed(1)
    original = timm.create_model("vgg11").eval()
    safetensors.torch.save_file(original.state_dict(), tmp_path / "vgg11.safetensors")
    backbone = parse_backbone("vgg11_1000:64")
    network = TimmNetwork(backbone, load_weights("vgg11_1000", str(tmp_path)), "cpu", "float32")
    inputs = torch.rand(2, 64, 64) * 255
    prepared = preparation("vgg11")
    assert prepared == preparation("vgg11_1000")
    images = (inputs[:, None] / 255 - torch.tensor(prepared.mean).view(1, 3, 1, 1)) / torch.tensor(prepared.std).view(
        1, 3, 1, 1
    )
    with torch.inference_mode():
        torch.testing.assert_close(network(inputs, [backbone])[backbone.name], original(images), rtol=1e-4, atol=1e-4)


def test_the_message_names_the_missing_file(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("gansfp.networks.weights.why_unreachable", lambda address: "no connection")
    with pytest.raises(WeightsError, match=r"put vgg11\.safetensors \(or \.pth\) into"):
        load_weights("vgg11_1000", str(tmp_path))
    with pytest.raises(WeightsError, match=r"timm has no weights for it.*conv5@random"):
        load_weights("conv5", str(tmp_path))
