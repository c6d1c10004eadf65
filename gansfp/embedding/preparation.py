"""How a slice becomes a network's input: timm's evaluation transform, for many slices at once on their device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.functional import interpolate

from gansfp.errors import UsageError
from gansfp.images.views import View, resample


@dataclass(frozen=True)
class Preparation:
    """How a slice becomes a network's input, as timm's own evaluation transform does it."""

    size: int  # pixels a side of the input
    resized: int  # pixels a side before the centre crop
    mode: str  # interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def geometry(self) -> tuple[int, int, str]:
        """The values that determine the pixels of an input. Networks with equal values share one input."""
        return self.size, self.resized, self.mode

    def apply(self, slices: torch.Tensor) -> torch.Tensor:
        """(n, side, side) float32 grey levels, side 256 for slices -> (n, size, size): timm's resize and centre crop.

        Resizes columns first, then rows, and rounds each result to 8 bits, as Pillow does in timm's own transform.
        """
        side = slices.shape[-1]
        if self.resized != side:
            for shape in ((side, self.resized), (self.resized, self.resized)):
                slices = interpolate(slices[:, None], shape, mode=self.mode, antialias=True)[:, 0]
                slices = slices.round_().clamp_(0, 255)
        start = round((self.resized - self.size) / 2)
        return slices[:, start : start + self.size, start : start + self.size]

    def apply_to_view(self, viewed: torch.Tensor, view: View, boxes: torch.Tensor) -> torch.Tensor:
        """Brings a view to the network's input size. A cropped view fills it: timm's centre crop would cut into lungs.

        viewed: (n, 256, 256) float32 grey levels, 0 outside of the view's region; boxes: (n, 4), see
        gansfp.images.views.boxes. Returns (n, size, size).
        """
        if not view.crop:
            return self.apply(viewed)
        return resample(viewed, boxes, self.size, mode="bicubic").round_().clamp_(0, 255)

    def scale_and_shift(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (1, 3, 1, 1) float32 scale and shift: a network's input is grey levels times scale, plus shift."""
        mean, std = (torch.tensor(values, device=device) for values in (self.mean, self.std))
        return (1 / (255 * std)).view(1, 3, 1, 1), (-mean / std).view(1, 3, 1, 1)


@lru_cache(maxsize=64)
def preparation(model: str, size: int = 0) -> Preparation:
    """Returns timm's data configuration of a model; with a size of the user's, the whole slice is resized to that size.

    Raises UsageError for a model whose input is not square.
    """
    from timm.data import resolve_model_data_config

    from gansfp.networks.architectures import timm

    pretrained = timm.get_pretrained_cfg(model)
    config = resolve_model_data_config(None, pretrained_cfg=pretrained.to_dict() if pretrained else {})
    channels, height, width = config["input_size"]
    if channels != 3 or (height != width and not size):
        raise UsageError(f"backbone {model!r}: its input is {channels}x{height}x{width}, expected 3 square channels")
    side = size or height
    resized = side if size else math.floor(side / config["crop_pct"])
    return Preparation(side, resized, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))
