"""A timm model on a device: one forward pass gives several kinds of features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from gansfp.device import ieee_float32
from gansfp.embedding.backbone import Backbone
from gansfp.embedding.feature_maps import sketch, whole_map
from gansfp.embedding.preparation import preparation
from gansfp.errors import UsageError
from gansfp.networks.fused import fused
from gansfp.networks.weights import Weights, create, has_fixed_size, translate
from gansfp.store import one_line

FROM_MAPS = {"map": whole_map, "sketch": sketch}  # the kinds of features that are made of a feature map


class TimmNetwork:
    """A timm model on a device, whose single forward pass gives the features of several backbones.

    Args:
        backbone: one of the backbones that share the model, its weights and its input size.
        weights: the result of `load_weights`.
        device: "cpu", "cuda", ...
        precision: "bfloat16" (autocast) or "float32".
    """

    def __init__(self, backbone: Backbone, weights: Weights, device: str, precision: str) -> None:
        size = backbone.size or weights.size
        model = create(backbone.model, 0, size)
        tensors = dict(weights.tensors)
        model.load_state_dict(translate(tensors, model) if size and has_fixed_size(backbone.model) else tensors)
        self.model: Any = model.eval().to(device).to(memory_format=torch.channels_last)
        self.preparation = preparation(backbone.model, size)
        if device == "cpu":
            noise = torch.rand(1, 3, self.preparation.size, self.preparation.size, generator=torch.Generator())
            self.model = fused(self.model, noise, torch.float32 if precision == "float32" else torch.bfloat16)
        self.device_type = device.partition(":")[0]
        self.precision = precision
        self._scale, self._shift = self.preparation.scale_and_shift(device)

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, backbones: Sequence[Backbone]) -> dict[str, torch.Tensor]:
        """(n, size, size) float32 grey levels 0 to 255, cropped and resized -> {backbone name: (n, d) float32}.

        Raises UsageError for a feature level that the model does not have.
        """
        images = (inputs[:, None] * self._scale + self._shift).contiguous(memory_format=torch.channels_last)
        exact = self.precision == "float32"
        with (
            ieee_float32(self.device_type) if exact else nullcontext(),
            torch.autocast(self.device_type, torch.bfloat16, enabled=not exact),
        ):
            last, maps = self._forward(images, backbones)
            pooled = self.model.forward_head(last) if any(b.features == "pooled" for b in backbones) else None
        vectors = {}
        for backbone in backbones:
            if backbone.features in FROM_MAPS:
                vectors[backbone.name] = FROM_MAPS[backbone.features](maps[backbone.level].float())
            else:
                features: Any = pooled if backbone.features == "pooled" else last
                vectors[backbone.name] = features.float().flatten(1)
        return vectors

    def _forward(self, images: torch.Tensor, backbones: Sequence[Backbone]) -> tuple[Any, dict[int, Any]]:
        """Returns the last feature map (None where the backbones use only earlier ones) and the maps by level."""
        levels = sorted({b.level for b in backbones if b.features in FROM_MAPS})
        if not levels:
            return self.model.forward_features(images), {}
        self._check_levels(levels)
        if all(b.features in FROM_MAPS for b in backbones):
            maps = self.model.forward_intermediates(images, indices=levels, intermediates_only=True, stop_early=True)
            return None, dict(zip(levels, maps, strict=True))
        last, maps = self.model.forward_intermediates(images, indices=levels)
        return last, dict(zip(levels, maps, strict=True))

    def _check_levels(self, levels: Sequence[int]) -> None:
        count = len(getattr(self.model, "feature_info", None) or ())
        if not count or not hasattr(self.model, "forward_intermediates"):
            raise UsageError(f"got a feature map, which timm does not offer for {type(self.model).__name__}")
        if levels[-1] >= count:
            raise UsageError(f"got feature map {levels[-1]}, expected 0 to {count - 1}")


def check_runs(backbone: Backbone, weights: Weights) -> None:
    """Raises UsageError for a feature level or an input size that a timm backbone does not have.

    Tests this with one slice on the CPU, before Ray starts an actor: Ray restarts an actor that fails at its start
    without end.
    """
    size = backbone.size or weights.size
    prepared = preparation(backbone.model, size)
    if backbone.features == "pooled" and not size:
        return
    try:
        network = TimmNetwork(backbone, weights, "cpu", "float32")
        vectors = network(torch.zeros(1, prepared.size, prepared.size), [backbone])[backbone.name]
    except Exception as error:  # models refuse a size in many ways
        raise UsageError(f"backbone {backbone.name!r}: {one_line(error)[:200]}") from error
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise UsageError(f"backbone {backbone.name!r}: gives no vector at {prepared.size} pixels")
