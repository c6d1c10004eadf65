"""Networks on CPUs: batch norm folded into convolutions, and activations computed by the convolutions themselves.

PyTorch computes a convolution, its batch norm and its activation one after the other, and each reads and writes a whole
map. oneDNN, which PyTorch contains, computes the three at once, and its convolutions are faster on weights in an order
of its own. The operators are those that PyTorch's compiler uses; calling them directly needs no compiler and no minutes
of compilation, and keeps timm's modules, so that feature maps can be taken out as before.

Milliseconds of CPU time a slice, batches of 8, one thread of a Xeon with AMX, beside other work, plain and fused:
mobilenetv2_100 bfloat16 15 and 5, float32 22 and 13; resnet50 37 and 25, 96 and 79; densenet121 36 and 30, 77 and 77.
Limited to AVX2, float32: mobilenetv2_100 19 and 13, resnet50 92 and 91, densenet121 93 and 94. What torch.compile, ONNX
Runtime and OpenVINO give is in jobs/benchmarks/README.md.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import fx, nn

TOLERANCE = 1e-4  # relative, of a float32 feature map; what was measured is below 1e-6
_PACKED_FOR = 8  # slices in a batch. Not those of the first batch, so that a result does not depend on it
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float | None]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}

Calls = Counter[fx.node.Target]  # of each module in one forward pass


class FusedConvolution(nn.Module):
    """A convolution with a batch norm's factors in its weights, and an activation, as one operator of oneDNN.

    Args:
        convolution: gives stride, padding, dilation and groups.
        weight, bias: after folding; float32 or bfloat16, in which the convolution computes.
        activation: a type among _ACTIVATIONS.
    """

    def __init__(
        self, convolution: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None, activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.bias, self.weight, self.dtype = bias, weight.contiguous(memory_format=torch.channels_last), weight.dtype
        self.geometry = (
            list(convolution.padding),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )
        self.activation, self.parameters_of_it = _ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w), cast to the weights' type -> (n, d, h', w') of that type."""
        if not self.weight.is_mkldnn:  # oneDNN chooses the order of weights by the size of maps
            shape = [_PACKED_FOR, *x.shape[1:]]
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, shape)
        return torch.ops.mkldnn._convolution_pointwise(
            x.to(self.dtype), self.weight, self.bias, *self.geometry, self.activation, self.parameters_of_it, ""
        )


def fused(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> nn.Module:
    """Returns a model on the CPU with fused convolutions, or the model itself where that is not possible.

    It is not possible where the model has no plain convolution, where its forward depends on its input, where oneDNN
    cannot compute with the type on this CPU, or where a feature map would differ by more than TOLERANCE.

    images: (n, 3, size, size) float32, to compare both; dtype: float32 or bfloat16, in which convolutions compute.
    """
    try:
        exact = _fuse(model, torch.float32)
        if exact is None:
            return model
        with torch.inference_mode():
            for found, expected in zip(_maps(exact, images), _maps(model, images), strict=True):
                if not (found - expected).norm() <= TOLERANCE * expected.norm():  # also where they are no numbers
                    return model
            if dtype == torch.float32:
                return exact
            of_type = _fuse(model, dtype)
            with torch.autocast("cpu", dtype):
                _maps(of_type, images)
            return of_type or model
    except Exception:  # tracing fails in many ways, and operators of another build or processor may be missing
        return model


def _maps(model: nn.Module | None, images: torch.Tensor) -> list[torch.Tensor]:
    """Returns all feature maps that a model offers, the last one at the end."""
    assert model is not None
    network: Any = model
    if not hasattr(network, "forward_intermediates"):
        return [network.forward_features(images)]
    last, maps = network.forward_intermediates(images)
    return [*maps, last]


def _fuse(model: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """Returns a copy of the model with fused convolutions; None where it has no plain one."""
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    graph = _Tracer().trace(model)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    replaced: dict[str, nn.Module] = {}
    for node in graph.nodes:
        convolution = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(convolution, nn.Conv2d) and _is_plain(convolution) and calls[node.target] == 1:
            replaced |= _replacements(node, convolution, modules, calls, dtype)
    for name, module in replaced.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)
    return model if replaced else None


class _Tracer(fx.Tracer):
    """Follows a forward without looking into batch norms, also timm's own with an activation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _is_plain(convolution: nn.Conv2d) -> bool:
    zeros = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return zeros and type(convolution) is nn.Conv2d


def _replacements(
    node: fx.Node, convolution: nn.Conv2d, modules: dict[str, nn.Module], calls: Calls, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Returns the new modules by name: the fused convolution, and what remains of the modules after it."""
    remaining: dict[str, nn.Module] = {}
    weight, bias = convolution.weight.detach(), convolution.bias
    following = _only_user(node, calls)
    norm = modules.get(str(following.target)) if following else None
    activation: nn.Module | None = None
    if following and isinstance(norm, nn.BatchNorm2d) and _can_fold(norm):
        weight, bias = _fold(convolution, norm)
        remaining[str(following.target)] = nn.Identity()
        activation = getattr(norm, "act", None)
        if activation is not None and type(activation) not in _ACTIVATIONS:
            remaining[str(following.target)] = activation
        following = _only_user(following, calls)
    if activation is None and following and type(modules.get(str(following.target))) in _ACTIVATIONS:
        activation = modules[str(following.target)]
        remaining[str(following.target)] = nn.Identity()
    kind: type[nn.Module] = nn.Identity
    if activation is not None and type(activation) in _ACTIVATIONS:
        kind = type(activation)
    bias = None if bias is None else bias.detach().to(dtype)
    return {str(node.target): FusedConvolution(convolution, weight.to(dtype), bias, kind), **remaining}


def _only_user(node: fx.Node, calls: Calls) -> fx.Node | None:
    """Returns the call of the module that alone uses a node's output and is called only there, if there is one."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.op == "call_module" and calls[user.target] == 1 else None


def _can_fold(norm: nn.BatchNorm2d) -> bool:
    has_all = norm.weight is not None and norm.running_var is not None
    known = type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
    return known and has_all and type(getattr(norm, "drop", None)) in (type(None), nn.Identity)


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32 weight and bias of a convolution that includes its batch norm; computed in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = convolution.bias.detach().double() if convolution.bias is not None else torch.zeros_like(scale)
    weight = convolution.weight.detach().double() * scale[:, None, None, None]
    return weight.float(), ((bias - norm.running_mean.double()) * scale + norm.bias.detach().double()).float()
