"""The device pass: one upload of a batch of slices, and from it the vectors of every (backbone, view) pair asked for.

All that runs on the device happens here, in this order: a view's region and crop box from the lung masks, the crop and
resize to the network's input size, the normalisation, one forward pass a (network, input size, view) whatever the
number of feature kinds taken from it, and the weight-free features. Masks and `lbp` are made on CPUs beforehand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gansfp import texture
from gansfp.backbones import Backbone, Network, Weights, load_weights, parse_backbone
from gansfp.errors import UsageError
from gansfp.lungs import get_mask
from gansfp.slices import SIDE
from gansfp.views import View, boxes, get_view, regions, resample

PRECISIONS = ("bfloat16", "float32")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedConfig:
    """What is embedded and how; every field is part of an embedding's identity. Raises UsageError for unknown names."""

    pairs: tuple[tuple[str, str], ...]  # (backbone, view)
    mask: str = "threshold"
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        for backbone, view in self.pairs:
            parse_backbone(backbone)
            get_view(view)
        get_mask(self.mask)
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision: got {self.precision!r}, expected one of {list(PRECISIONS)}")

    @property
    def backbones(self) -> list[str]:
        """The backbones among the pairs, each once."""
        return list(dict.fromkeys(backbone for backbone, _ in self.pairs))


def load_all_weights(names: Sequence[str], folder: str | None) -> dict[str, Weights]:
    """The weights of every network among the backbones, each loaded once. Raises WeightsError."""
    found: dict[str, Weights] = {}
    for backbone in map(parse_backbone, names):
        if backbone.kind == "timm" and backbone.network not in found:
            found[backbone.network] = load_weights(backbone, folder)
    return found


def identity(pair: tuple[str, str], config: EmbedConfig, weights: Mapping[str, Weights]) -> dict[str, str]:
    """What makes two embeddings comparable: written into every shard, and a shard of another identity is never read."""
    backbone = parse_backbone(pair[0])
    timm = backbone.kind == "timm"
    return {
        "backbone": pair[0],
        "weights": weights[backbone.network].digest if timm else "",
        "view": pair[1],
        "mask": config.mask if get_view(pair[1]).region != "all" else "",
        "size": str(SIDE),
        "precision": config.precision if timm else "float32",
    }


@dataclass
class Embedder:
    """Embeds batches on one device. Out of memory on the device halves the batch, for this call and those after it.

    Args:
        pairs: (backbone, view) names; those of `lbp` are not for the device and are refused with a UsageError.
        weights: by network name, for every timm backbone among the pairs.
        device: "cpu", "cuda", "cuda:1", ...
        precision: "bfloat16" or "float32"; the weight-free features are float32 always.
    """

    pairs: Sequence[tuple[str, str]]
    weights: Mapping[str, Weights]
    device: str = "cpu"
    precision: str = "bfloat16"
    batch_limit: int = 1 << 30
    _networks: dict[tuple[str, int, str], Network] = field(init=False, default_factory=dict)
    _weight_free: dict[str, list[Backbone]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        members: dict[tuple[str, int, str], list[Backbone]] = {}
        for name, view in self.pairs:
            backbone = parse_backbone(name)
            if backbone.kind == "lbp":
                raise UsageError(f"backbone {name!r} is computed on CPUs, by cpu_features")
            if backbone.kind == "timm":
                members.setdefault((backbone.network, backbone.size, view), []).append(backbone)
            else:
                self._weight_free.setdefault(view, []).append(backbone)
        built: dict[tuple[str, int, tuple[str, ...]], Network] = {}
        for (network, size, view), backbones in members.items():  # views share a network that gives the same features
            key = (network, size, tuple(b.name for b in backbones))
            if key not in built:
                built[key] = Network(backbones, self.weights[network], self.device, self.precision)
            self._networks[network, size, view] = built[key]

    def __call__(self, pixels: np.ndarray, masks: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """pixels: (n, 256, 256) uint8; masks: (n, 256, 256) bool, all False where no lungs were found.

        Returns {(backbone, view): (n, d) float32}. Raises torch.OutOfMemoryError only when a single slice is too much.
        """
        parts: list[dict[tuple[str, str], np.ndarray]] = []
        start = 0
        while start < len(pixels):
            stop = start + min(self.batch_limit, len(pixels) - start)
            try:
                parts.append(self._embed(pixels[start:stop], masks[start:stop]))
                start = stop
            except torch.OutOfMemoryError:
                if stop - start == 1:
                    raise
                self.batch_limit = (stop - start) // 2
            if start < stop:  # outside the handler: the exception would keep the failed batch's tensors alive
                log.warning("out of memory on %s: going on with batches of %d slices", self.device, self.batch_limit)
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()
        return {pair: np.concatenate([part[pair] for part in parts]) for pair in (parts[0] if parts else {})}

    @torch.inference_mode()
    def _embed(self, pixels: np.ndarray, masks: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        slices = torch.from_numpy(pixels).to(self.device, non_blocking=True).float()
        lungs = torch.from_numpy(masks).to(self.device, non_blocking=True)
        found: dict[tuple[str, str], torch.Tensor] = {}
        for name in dict.fromkeys(view for _, view in self.pairs):
            view = get_view(name)
            region, box = regions(lungs, view), boxes(lungs, view)
            for backbone in self._weight_free.get(name, []):
                found[backbone.name, name] = WEIGHT_FREE[backbone.kind](backbone, slices, region, box)
            viewed = slices if view.region == "all" else slices * region
            for (_, _, of_view), network in self._networks.items():
                if of_view == name:
                    vectors = network(_input(network, viewed, view, box))
                    found |= {(backbone, name): vector for backbone, vector in vectors.items()}
        return {pair: vector.cpu().numpy() for pair, vector in found.items()}


def _input(network: Network, viewed: torch.Tensor, view: View, box: torch.Tensor) -> torch.Tensor:
    """A view at a network's input size. A cropped view fills it: timm's centre crop would cut into the lungs."""
    if not view.crop:
        return network.prepare(viewed)
    return resample(viewed, box, network.preparation.size, mode="bicubic").round_().clamp_(0, 255)


def _highpass(backbone: Backbone, slices: torch.Tensor, region: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    return texture.highpass(slices, region, box, window=backbone.window, side=backbone.size)


def _residual(backbone: Backbone, slices: torch.Tensor, region: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    return texture.residual(slices, region)


WEIGHT_FREE: dict[str, Callable[[Backbone, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "highpass": _highpass,
    "residual": _residual,
}


def cpu_features(pairs: Sequence[tuple[str, str]], pixels: np.ndarray, mask: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """The `lbp` pairs of one slice, pixels (256, 256) uint8 and mask (256, 256) bool: {(backbone, view): (d,) float32}."""
    wanted = [pair for pair in pairs if parse_backbone(pair[0]).kind == "lbp"]
    if not wanted:
        return {}
    codes, lungs = texture.lbp_codes(pixels), torch.from_numpy(mask)[None]
    return {
        (name, view): texture.summarise_lbp(
            codes, regions(lungs, get_view(view))[0].numpy(), parse_backbone(name).features
        )
        for name, view in wanted
    }
