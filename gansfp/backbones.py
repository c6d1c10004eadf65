"""What turns slices into vectors: names such as `resnet50`, `vgg16:flat` or `highpass-w15-32`, and a network's weights.

Names a user may write:

    MODEL                   a timm model, pooled features (`num_classes=0`), at the model's own input size
    MODEL:flat              its last feature map, flattened (vgg16 at 224 pixels: 25,088 numbers)
    MODEL:map, MODEL:mapS   feature map S of the model (0 is the finest; default 2), mean-free by channel, flattened, of
                            unit norm: pooled features forget where things are, these do not
    ...:SIZE                at another input size in pixels: the whole slice resized to it, no centre crop
    ...@random              random weights, in so many words
    highpass, highpass-wW-SIDE   weight-free: slice minus its W-pixel mean (default 31; 0: the plain slice), SIDE x SIDE (64)
    residual                weight-free: statistics of the high-pass residual, for attribution
    lbp, lbp-mean           weight-free: histogram (or mean) of uniform local binary patterns
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import huggingface_hub
import timm
import torch
from timm.data import resolve_model_data_config
from torch.nn.functional import interpolate

from gansfp.errors import UsageError, WeightsError
from gansfp.slices import SIDE

HUB_TIMEOUT = 8.0  # seconds in which a hub must have answered, name look-up included
WEIGHT_ENDINGS = (".safetensors", ".pth")

_TIMM = re.compile(r"(?P<model>[a-z0-9_.]+)(?::(?P<features>flat|map(?P<stage>\d)?))?(?::(?P<size>\d+))?(?P<random>@random)?")
_HIGHPASS = re.compile(r"highpass(?:-w(?P<window>\d+))?(?:-(?P<side>\d+))?")


@dataclass(frozen=True)
class Backbone:
    """One way to turn a slice into a vector. `kind` is timm, highpass, residual or lbp; the other fields belong to it."""

    name: str
    kind: str
    model: str = ""
    features: str = "pooled"
    stage: int = 0
    size: int = 0  # timm: the input size asked for, 0 = the model's own; highpass: the side of its result
    window: int = 0
    random: bool = False

    @property
    def network(self) -> str:
        """What is loaded once for all backbones that share it: the timm model and the kind of its weights."""
        return f"{self.model}@random" if self.random else self.model


def parse_backbone(name: str) -> Backbone:
    """The backbone of a name. Raises UsageError for a name that is none of the forms above."""
    if name in ("lbp", "lbp-mean"):
        return Backbone(name, "lbp", features="mean" if name == "lbp-mean" else "histogram")
    if name == "residual":
        return Backbone(name, "residual")
    if match := _HIGHPASS.fullmatch(name):
        window, side = int(match["window"] or 31), int(match["side"] or 64)
        if window and (window % 2 == 0 or not 3 <= window < SIDE):
            raise UsageError(f"backbone {name!r}: got window {window}, expected 0 or an odd number from 3 to {SIDE - 1}")
        if not 2 <= side <= SIDE:
            raise UsageError(f"backbone {name!r}: got side {side}, expected 2 to {SIDE}")
        return Backbone(name, "highpass", size=side, window=window)
    match = _TIMM.fullmatch(name)
    if match is None or not timm.is_model(match["model"]):
        near = timm.list_models(f"*{name.partition(':')[0].partition('@')[0][:8]}*")[:3] if name else []
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UsageError(
            f"backbone {name!r}: got no such name, expected a timm model{hint}, highpass[-wW-SIDE], residual or lbp"
        )
    features = (match["features"] or "pooled").rstrip("0123456789")
    size = int(match["size"] or 0)
    if match["size"] and not 16 <= size <= 1024:
        raise UsageError(f"backbone {name!r}: got input size {size}, expected 16 to 1024 pixels")
    return Backbone(
        name, "timm", match["model"], features, int(match["stage"] or 2), size, random=match["random"] is not None
    )


@dataclass(frozen=True)
class Weights:
    """A network's tensors and the digest that stands for them in an embedding's identity."""

    network: str
    tensors: Mapping[str, torch.Tensor]
    digest: str


def load_weights(backbone: Backbone, folder: str | None) -> Weights:
    """The weights of a timm backbone: from `folder`/<timm name>.safetensors or .pth, else by timm's own download.

    `NAME@random` draws them, always the same for one name. Raises WeightsError, which names the file to put where, when
    they cannot be had, and when a file is not of this model: never a silent random start.
    """
    model = _empty(backbone)
    if not backbone.random:
        path = _weights_file(backbone.model, folder)
        state = _read(path, backbone.model) if path else _download(backbone.model, folder)
        _fill(model, state, path or "the download", backbone.model)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return Weights(backbone.network, tensors, digest.hexdigest()[:16])


def _empty(backbone: Backbone) -> torch.nn.Module:
    """The model with its random start, the same for the same name, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(backbone.model.encode()).digest()[:4], "little"))
        return timm.create_model(backbone.model, pretrained=False, num_classes=0).eval()


def _weights_file(model: str, folder: str | None) -> str | None:
    if folder is None:
        return None
    if not os.path.isdir(folder):
        raise WeightsError(f"--weights {folder!r}: no such folder")
    paths = (os.path.join(folder, model + ending) for ending in WEIGHT_ENDINGS)
    return next((path for path in paths if os.path.isfile(path)), None)


def _read(path: str, model: str) -> dict[str, torch.Tensor]:
    try:
        state = timm.models.load_state_dict(path, use_ema=False, weights_only=True)
    except Exception as error:  # a broken file raises whatever its bytes lead the parser to
        reason = (str(error).splitlines() or [""])[0][:160]
        raise WeightsError(f"{path}: cannot be read as weights of {model} ({type(error).__name__}: {reason})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict of tensors, expected the weights of timm's {model}")
    return state


def _download(model: str, folder: str | None) -> dict[str, torch.Tensor]:
    """timm's own weights, after a quick look whether there is a way out at all."""
    config = timm.get_pretrained_cfg(model)
    wanted = f"put {model}.safetensors (or .pth) into {folder or 'a folder'}" + ("" if folder else " and name it with --weights")
    if config is None or not config.has_weights:
        raise WeightsError(f"backbone {model!r}: timm has no weights for it; {wanted}, or ask for {model}@random")
    if config.hf_hub_id:
        for name in ("model.safetensors", "pytorch_model.bin"):
            cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name)
            if isinstance(cached, str):
                return _read(cached, model)
    address = huggingface_hub.constants.ENDPOINT if config.hf_hub_id else config.url
    try:
        _reach(address)
        return dict(timm.create_model(model, pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # the hub's client, urllib and sockets each have errors of their own
        reason = (str(error).splitlines() or [""])[0][:120]
        raise WeightsError(
            f"backbone {model!r}: its weights cannot be downloaded ({reason}); {wanted}, or ask for {model}@random"
        ) from error


def _reach(address: str) -> None:
    """Raises an OSError unless a server answers at `address` in time, whatever its answer.

    In a thread of its own, because looking up a name has no time limit: download clients try for minutes.
    """
    found: list[BaseException | None] = [TimeoutError(f"no answer from {address} in {HUB_TIMEOUT:g} s")]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT).close()
            found[0] = None
        except urllib.error.HTTPError:
            found[0] = None
        except OSError as error:
            found[0] = error

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT)
    if found[0] is not None:
        raise found[0]


def _fill(model: torch.nn.Module, state: dict[str, torch.Tensor], source: str, name: str) -> None:
    """Loads a state dict that must be this model's: all its tensors, none of another's but the classifier's."""
    prepare = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        if prepare is not None:  # timm's own translation of older checkpoints
            state = prepare(state, model)
        heads = model.default_cfg["classifier"]
        heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
        state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:  # sizes that differ: RuntimeError; a translation that meets another model: anything
        raise WeightsError(f"{source}: these are not the weights of timm's {name} (tensors of other sizes)") from error
    if missing or unexpected:
        found = f"{len(missing)} tensors missing, {len(unexpected)} unknown, e.g. {(missing + unexpected)[0]!r}"
        raise WeightsError(f"{source}: these are not the weights of timm's {name} ({found})")


@dataclass(frozen=True)
class Preparation:
    """How a slice becomes a model's input, after timm's own evaluation transform."""

    size: int  # pixels a side of the input
    resized: int  # pixels a side before the centre crop
    mode: str  # interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]


def preparation(backbone: Backbone) -> Preparation:
    """timm's data configuration of a model; with an input size of the user's, the whole slice at that size."""
    config = timm_config(backbone.model)
    size = backbone.size or config["input_size"][-1]
    resized = size if backbone.size else int(size // config["crop_pct"])
    return Preparation(size, resized, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))


@lru_cache(maxsize=64)
def timm_config(model: str) -> dict[str, Any]:
    """Input size, crop, interpolation, mean and std of a timm model."""
    found = timm.get_pretrained_cfg(model)
    return resolve_model_data_config(None, pretrained_cfg=found.to_dict() if found else {})


class Network:
    """A timm model on a device, ready for several kinds of features from one forward pass.

    Args:
        backbones: all of one network and one input size.
        weights: as `load_weights` gives them.
        precision: "bfloat16" (autocast) or "float32".
    """

    def __init__(self, backbones: list[Backbone], weights: Weights, device: str, precision: str) -> None:
        first = backbones[0]
        options = {"img_size": first.size} if first.size and _takes_img_size(first.model) else {}
        self.model = timm.create_model(first.model, pretrained=False, num_classes=0, **options)
        prepare = getattr(sys.modules[type(self.model).__module__], "checkpoint_filter_fn", None) if options else None
        tensors = dict(weights.tensors)
        self.model.load_state_dict(prepare(tensors, self.model) if prepare else tensors)
        self.model = self.model.eval().to(device, memory_format=torch.channels_last)
        self.backbones = backbones
        self.preparation = preparation(first)
        self.device = device
        self.precision = precision
        p = self.preparation
        mean, std = torch.tensor(p.mean, device=device), torch.tensor(p.std, device=device)
        self._scale, self._shift = (1 / (255 * std)).view(1, 3, 1, 1), (-mean / std).view(1, 3, 1, 1)
        self._stages = sorted({b.stage for b in backbones if b.features == "map"})
        if self._stages:
            self._check_stages()

    def _check_stages(self) -> None:
        model, last = self.backbones[0].model, len(getattr(self.model, "feature_info", None) or ()) - 1
        if not hasattr(self.model, "forward_intermediates"):
            raise UsageError(f"backbone '{model}:map': timm offers no feature maps of this model")
        if self._stages[-1] > last:
            raise UsageError(f"backbone '{model}:map{self._stages[-1]}': got stage {self._stages[-1]}, expected 0 to {last}")

    def prepare(self, slices: torch.Tensor) -> torch.Tensor:
        """(n, 256, 256) float32 grey levels -> (n, S, S): timm's resize and centre crop, rounded as Pillow rounds."""
        p = self.preparation
        if p.resized != SIDE:
            slices = interpolate(slices[:, None], (p.resized, p.resized), mode=p.mode, antialias=True)[:, 0]
            slices = slices.round_().clamp_(0, 255)
        start = round((p.resized - p.size) / 2)
        return slices[:, start : start + p.size, start : start + p.size]

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """(n, S, S) float32 grey levels 0 to 255, cropped and sized -> {backbone name: (n, d) float32}."""
        images = (inputs[:, None] * self._scale + self._shift).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.precision == "bfloat16"):
            kinds = {b.features for b in self.backbones}
            maps: list[torch.Tensor] = []
            if not self._stages:
                last = self.model.forward_features(images)
            elif kinds == {"map"}:
                maps = self.model.forward_intermediates(images, indices=self._stages, intermediates_only=True, stop_early=True)
            else:
                last, maps = self.model.forward_intermediates(images, indices=self._stages)
            pooled = self.model.forward_head(last).float() if "pooled" in kinds else None
        found = {}
        for backbone in self.backbones:
            if backbone.features == "pooled":
                assert pooled is not None
                found[backbone.name] = pooled
            elif backbone.features == "flat":
                found[backbone.name] = last.float().flatten(1)
            else:
                features = maps[self._stages.index(backbone.stage)].float()
                features = (features - features.mean((2, 3), keepdim=True)).flatten(1)
                found[backbone.name] = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return found


def _takes_img_size(model: str) -> bool:
    """True for models whose position tables belong to one input size (vision transformers)."""
    return bool(timm.get_pretrained_cfg(model) and timm.get_pretrained_cfg(model).fixed_input_size)
