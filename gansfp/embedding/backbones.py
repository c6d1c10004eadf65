"""What turns slices into vectors: names such as `resnet50`, `vgg16:flat` or `highpass-w15-32`, and networks for them.

Names a user may write:

    MODEL                   a timm model, pooled features (`num_classes=0`), at the model's own input size
    MODEL:flat              its last feature map, flattened (vgg16 at 224 pixels: 25,088 numbers)
    MODEL:map, MODEL:mapS   feature map S of the model (0 is the finest; default 2), mean-free by channel, flattened, of
                            unit norm: pooled features forget where things are, these do not
    ...:SIZE                at another input size in pixels: the whole slice resized to it, no centre crop
    ...@random              random weights, in so many words
    ...@FOLDER              the weights of a classifier trained here, at its training's input size unless told another
    highpass, highpass-wW-SIDE   weight-free: slice minus its W-pixel mean (default 31; 0: the slice itself),
                            area-resized to SIDE x SIDE (default 64)
    residual                weight-free: statistics of the high-pass residual, for attribution
    lbp, lbp-mean           weight-free: histogram (or mean) of uniform local binary patterns

timm is imported where it is needed, by way of gansfp.networks.architectures, which adds models to it: it takes two seconds in
every process, and weight-free backbones do without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import interpolate

from gansfp.device import ieee_float32
from gansfp.errors import UsageError
from gansfp.images.slices import SIDE
from gansfp.images.views import View, resample
from gansfp.networks.weights import Weights, create, has_fixed_size, translate
from gansfp.store import one_line

DEFAULT_STAGE = 2

_TIMM = re.compile(
    r"(?P<model>[A-Za-z0-9_.]+)(?::(?P<features>flat|map(?P<stage>\d+)?))?(?::(?P<size>\d+))?(?:@(?P<source>.+))?"
)
_HIGHPASS = re.compile(r"highpass(?:-w(?P<window>\d+))?(?:-(?P<side>\d+))?")


@dataclass(frozen=True)
class Backbone:
    """One way to turn a slice into a vector. kind: timm, highpass, residual or lbp; the other fields belong to it."""

    name: str
    kind: str
    model: str = ""
    features: str = "pooled"  # timm: pooled, flat or map; lbp: histogram or mean
    stage: int = 0
    size: int = 0  # timm: the input size asked for, 0 = the model's own; highpass: the side of its result
    window: int = 0
    random: bool = False
    trained: str = ""  # the folder or URI of the weights that were trained here

    @property
    def network(self) -> str:
        """What is loaded once for all backbones that share it: the timm model and the kind of its weights."""
        source = "random" if self.random else self.trained
        return f"{self.model}@{source}" if source else self.model


@lru_cache(maxsize=1024)
def parse_backbone(name: str) -> Backbone:
    """The backbone of a name. Raises UsageError for a name that is none of the forms above."""
    if name in ("lbp", "lbp-mean"):
        return Backbone(name, "lbp", features="mean" if name == "lbp-mean" else "histogram")
    if name == "residual":
        return Backbone(name, "residual")
    if match := _HIGHPASS.fullmatch(name):
        window, side = int(match["window"] or 31), int(match["side"] or 64)
        if window and (window % 2 == 0 or not 3 <= window < SIDE):
            raise UsageError(f"backbone {name!r}: got window {window}, expected 0 or an odd number, 3 to {SIDE - 1}")
        if not 2 <= side <= SIDE:
            raise UsageError(f"backbone {name!r}: got side {side}, expected 2 to {SIDE}")
        return Backbone(name, "highpass", size=side, window=window)
    match = _TIMM.fullmatch(name)
    if match is None or not _exists(match["model"]):
        raise UsageError(
            f"backbone: got {name!r}, expected a timm model{_near(name)}, MODEL@FOLDER, highpass, "
            "highpass-wW-SIDE, residual or lbp"
        )
    size = int(match["size"] or 0)
    if match["size"] and not 16 <= size <= 1024:
        raise UsageError(f"backbone {name!r}: got input size {size}, expected 16 to 1024 pixels")
    features = (match["features"] or "pooled").rstrip("0123456789")
    stage = int(match["stage"] or DEFAULT_STAGE) if features == "map" else 0
    random = match["source"] == "random"
    trained = "" if random else match["source"] or ""
    return Backbone(name, "timm", match["model"], features, stage, size, random=random, trained=trained)


def _exists(model: str) -> bool:
    """True for a model that timm has, and under that tag where one is named (`resnet50.a1_in1k`)."""
    from gansfp.networks.architectures import timm

    base, _, tag = model.partition(".")
    return timm.is_model(base) and (not tag or model in timm.list_pretrained(f"{base}.*"))


def _near(name: str) -> str:
    """Names that begin alike, for an error message."""
    from gansfp.networks.architectures import timm

    start = re.split("[.:@]", name)[0]
    if not re.fullmatch("[A-Za-z0-9_]{3,}", start):
        return ""
    found = (timm.list_models(f"{start}*") or timm.list_models(f"*{start[:8]}*"))[:3]
    return f" (near: {', '.join(found)})" if found else ""


@dataclass(frozen=True)
class Preparation:
    """How a slice becomes a model's input, after timm's own evaluation transform."""

    size: int  # pixels a side of the input
    resized: int  # pixels a side before the centre crop
    mode: str  # interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def geometry(self) -> tuple[int, int, str]:
        """What decides the pixels of an input: networks that agree in it share one."""
        return self.size, self.resized, self.mode

    def apply(self, slices: torch.Tensor) -> torch.Tensor:
        """(n, side, side) float32 grey levels, a slice's 256 or more -> (n, size, size): timm's resize and centre crop.

        Columns first, then rows, each rounded to 8 bits, as Pillow does it: what timm's own transform would give.
        """
        side = slices.shape[-1]
        if self.resized != side:
            for shape in ((side, self.resized), (self.resized, self.resized)):
                slices = interpolate(slices[:, None], shape, mode=self.mode, antialias=True)[:, 0]
                slices = slices.round_().clamp_(0, 255)
        start = round((self.resized - self.size) / 2)
        return slices[:, start : start + self.size, start : start + self.size]

    def see(self, viewed: torch.Tensor, view: View, box: torch.Tensor) -> torch.Tensor:
        """A view at the network's input size; one that is cropped fills it: timm's centre crop would cut into lungs.

        viewed: (n, 256, 256) float32 grey levels, 0 outside of the view's region; box: (n, 4), see gansfp.images.views.boxes.
        Returns (n, size, size).
        """
        if not view.crop:
            return self.apply(viewed)
        return resample(viewed, box, self.size, mode="bicubic").round_().clamp_(0, 255)

    def scale_and_shift(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Two (1, 3, 1, 1) float32: grey levels times the one plus the other are what the network wants."""
        mean, std = (torch.tensor(values, device=device) for values in (self.mean, self.std))
        return (1 / (255 * std)).view(1, 3, 1, 1), (-mean / std).view(1, 3, 1, 1)


@lru_cache(maxsize=64)
def preparation(model: str, size: int = 0) -> Preparation:
    """timm's data configuration of a model; with an input size of the user's, the whole slice at that size.

    Raises UsageError for a model whose input is not square.
    """
    from timm.data import resolve_model_data_config

    from gansfp.networks.architectures import timm

    found = timm.get_pretrained_cfg(model)
    config = resolve_model_data_config(None, pretrained_cfg=found.to_dict() if found else {})
    channels, height, width = config["input_size"]
    if channels != 3 or (height != width and not size):
        raise UsageError(f"backbone {model!r}: its input is {channels}x{height}x{width}, expected 3 square channels")
    side = size or height
    resized = side if size else math.floor(side / config["crop_pct"])
    return Preparation(side, resized, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))


class Network:
    """A timm model on a device, from whose one forward pass several kinds of features are taken.

    Args:
        backbone: any of those that share the model, its weights and its input size.
        weights: as `load_weights` gives them.
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
        self.device_type = device.partition(":")[0]
        self.precision = precision
        self._scale, self._shift = self.preparation.scale_and_shift(device)

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, wanted: Sequence[Backbone]) -> dict[str, torch.Tensor]:
        """(n, size, size) float32 grey levels 0 to 255, cropped and sized -> {backbone name: (n, d) float32}.

        Raises UsageError for a feature map that the model does not have.
        """
        images = (inputs[:, None] * self._scale + self._shift).contiguous(memory_format=torch.channels_last)
        exact = self.precision == "float32"
        with (
            ieee_float32(self.device_type) if exact else nullcontext(),
            torch.autocast(self.device_type, torch.bfloat16, enabled=not exact),
        ):
            last, maps = self._forward(images, wanted)
            pooled = self.model.forward_head(last) if any(b.features == "pooled" for b in wanted) else None
        found = {}
        for backbone in wanted:
            features = {"pooled": pooled, "flat": last, "map": maps.get(backbone.stage)}[backbone.features].float()
            if backbone.features == "map":
                features = (features - features.mean((2, 3), keepdim=True)).flatten(1)
                features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
            found[backbone.name] = features.flatten(1)
        return found

    def _forward(self, images: torch.Tensor, wanted: Sequence[Backbone]) -> tuple[Any, dict[int, Any]]:
        """The last feature map (None where only earlier ones are wanted) and the stages wanted."""
        stages = sorted({b.stage for b in wanted if b.features == "map"})
        if not stages:
            return self.model.forward_features(images), {}
        self._check_stages(stages)
        if all(b.features == "map" for b in wanted):
            maps = self.model.forward_intermediates(images, indices=stages, intermediates_only=True, stop_early=True)
            return None, dict(zip(stages, maps, strict=True))
        last, maps = self.model.forward_intermediates(images, indices=stages)
        return last, dict(zip(stages, maps, strict=True))

    def _check_stages(self, stages: Sequence[int]) -> None:
        count = len(getattr(self.model, "feature_info", None) or ())
        if not count or not hasattr(self.model, "forward_intermediates"):
            raise UsageError(f"got ':map', which timm does not offer of a {type(self.model).__name__}")
        if stages[-1] >= count:
            raise UsageError(f"got feature map {stages[-1]}, expected 0 to {count - 1}")


def check_runs(backbone: Backbone, weights: Weights) -> None:
    """Raises UsageError for a feature map or an input size that a timm backbone does not have.

    By one slice on the CPU, because an actor that fails as it starts is started again for ever.
    """
    size = backbone.size or weights.size
    prepared = preparation(backbone.model, size)
    if backbone.features == "pooled" and not size:
        return
    try:
        found = Network(backbone, weights, "cpu", "float32")(torch.zeros(1, prepared.size, prepared.size), [backbone])
    except Exception as error:  # models refuse a size in many ways
        raise UsageError(f"backbone {backbone.name!r}: {one_line(error)[:200]}") from error
    if found[backbone.name].ndim != 2 or not found[backbone.name].shape[1]:
        raise UsageError(f"backbone {backbone.name!r}: gives no vector at {prepared.size} pixels")
