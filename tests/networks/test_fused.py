"""Networks with fused convolutions equal the plain ones; where fusing is not possible, the plain one stays."""

import copy

import pytest
import torch
from torch import nn

from gansfp.networks import fused as fused_module
from gansfp.networks.architectures import timm
from gansfp.networks.fused import FusedConvolution, _fold, fused

IMAGES = torch.rand(9, 3, 64, 64, generator=torch.Generator().manual_seed(5)).contiguous(
    memory_format=torch.channels_last
)


def network(name, **options):
    """A model with random weights whose batch norms do something."""
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=0, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.to(memory_format=torch.channels_last)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("name", "norms_left", "options"),
    [
        ("test_resnet", 0, {}),  # batch norm, then ReLU
        ("mobilenetv2_035", 0, {}),  # timm's batch norm with ReLU6
        ("test_efficientnet", 0, {}),  # with SiLU, which stays a module
        ("conv5", 0, {}),
        ("densenet121", 9, {"block_config": (2, 1, 1, 1), "growth_rate": 8}),  # batch norm before convolutions, too
    ],
)
@torch.inference_mode()
def test_float32_equals_the_plain_network(name, norms_left, options):
    model = network(name, **options)
    before = copy.deepcopy(model.state_dict())
    found = fused(model, IMAGES[:1], torch.float32)
    assert any(isinstance(module, FusedConvolution) for module in found.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in found.modules()) == norms_left
    last, maps = found.forward_intermediates(IMAGES)
    plain_last, plain_maps = model.forward_intermediates(IMAGES)
    for of_fused, of_plain in zip([*maps, last], [*plain_maps, plain_last], strict=True):
        assert of_fused.dtype == torch.float32
        assert relative(of_fused, of_plain) < 1e-5
    assert relative(found(IMAGES), model(IMAGES)) < 1e-5
    for tensor_name, tensor in model.state_dict().items():  # the model that was given is as it was
        assert torch.equal(tensor, before[tensor_name])


@pytest.mark.parametrize("bias", [False, True])
def test_folding_equals_the_plain_formula(bias):
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 8, 8)
    weight, folded_bias = _fold(convolution, norm)
    found = nn.functional.conv2d(x, weight, folded_bias, groups=2).detach()
    y = convolution(x).detach()
    for channel in range(6):
        deviation = (norm.running_var[channel] + norm.eps) ** 0.5
        expected = (y[:, channel] - norm.running_mean[channel]) / deviation * norm.weight[channel] + norm.bias[channel]
        torch.testing.assert_close(found[:, channel], expected.detach(), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_bfloat16_is_as_near_as_autocast():
    model = network("mobilenetv2_035")
    found, expected = fused(model, IMAGES[:1], torch.bfloat16), model(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        error, error_of_autocast = relative(found(IMAGES).float(), expected), relative(model(IMAGES).float(), expected)
    assert 1e-4 < error < 1.5 * error_of_autocast


@torch.inference_mode()
def test_a_result_does_not_depend_on_the_first_batch():
    first, second = (fused(network("test_resnet"), IMAGES[:1], torch.float32) for _ in range(2))
    first(IMAGES[:3])
    assert torch.equal(first(IMAGES), second(IMAGES))


class DependsOnItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward_features(self, x):
        return self.convolution(x) if x.sum() > 0 else x

    def forward(self, x):
        return self.forward_features(x)


def test_where_it_is_not_possible_the_plain_network_stays(monkeypatch):
    no_trace, no_convolution = DependsOnItsInput(), nn.Identity()
    assert fused(no_trace, IMAGES[:1], torch.float32) is no_trace
    assert fused(no_convolution, IMAGES[:1], torch.float32) is no_convolution
    model = network("test_resnet")
    assert fused(model, IMAGES[:1], torch.float32) is not model
    with monkeypatch.context() as patch:  # an activation that is another one
        patch.setitem(fused_module._ACTIVATIONS, nn.ReLU, ("hardtanh", [0.0, 0.01]))
        assert fused(model, IMAGES[:1], torch.float32) is model
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", None)  # a build without oneDNN
    assert fused(model, IMAGES[:1], torch.float32) is model
