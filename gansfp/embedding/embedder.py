"""The device pass: one upload of a batch of slices, and from it the vectors of every (backbone, view) pair asked for.

All that runs on the device happens here, in this order: a view's region and crop box from the lung masks, the crop and
resize to the network's input size, the normalisation, one forward pass a (network, input size, view) whatever the
number of feature kinds taken from it, and the weight-free features. Masks (but for those of networks, see
gansfp/embedding/network_masks.py) and `lbp` are made on CPUs beforehand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gansfp.device import in_batches
from gansfp.embedding import weight_free
from gansfp.embedding.backbones import Backbone, Network, check_runs, parse_backbone
from gansfp.errors import UsageError
from gansfp.images.lungs import check_mask, is_network
from gansfp.images.slices import SIDE
from gansfp.images.views import boxes, get_view, regions
from gansfp.networks.weights import Weights, check_folder, load_weights
from gansfp.stopwatch import Stopwatch

PRECISIONS = ("bfloat16", "float32")


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
        check_mask(self.mask)
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision: got {self.precision!r}, expected one of {list(PRECISIONS)}")

    @property
    def backbones(self) -> list[str]:
        """The backbones among the pairs, each once."""
        return list(dict.fromkeys(backbone for backbone, _ in self.pairs))

    @property
    def network_mask(self) -> str:
        """The mask where a network makes it and a view asks for it: its weights must be had. Otherwise ""."""
        return self.mask if is_network(self.mask) and needs_lungs(self.pairs) else ""


def needs_lungs(pairs: Sequence[tuple[str, str]]) -> bool:
    """True where a view among the pairs shows not all of a slice."""
    return any(get_view(view).region != "all" for _, view in pairs)


def load_all_weights(names: Sequence[str], folder: str | None, mask: str = "") -> dict[str, Weights]:
    """The weights of every network among the backbones, each loaded once, and of the mask's (EmbedConfig.network_mask).

    Raises WeightsError where they cannot be had, UsageError for a feature map or input size that a model does not have.
    """
    check_folder(folder)
    found: dict[str, Weights] = {}
    for backbone in map(parse_backbone, names):
        if backbone.kind == "timm":
            if backbone.network not in found:
                found[backbone.network] = load_weights(backbone.model, folder, backbone.random, backbone.trained)
            check_runs(backbone, found[backbone.network])
    if mask:
        from gansfp.embedding.network_masks import load_mask  # which most runs do without

        found[mask] = load_mask(mask, folder)
    return found


def identity(pair: tuple[str, str], config: EmbedConfig, weights: Mapping[str, Weights]) -> dict[str, str]:
    """What makes two embeddings comparable: written into every shard, and a shard of another identity is never read."""
    backbone = parse_backbone(pair[0])
    timm = backbone.kind == "timm"
    mask = config.mask if get_view(pair[1]).region != "all" else ""
    return {
        "backbone": pair[0],
        "weights": weights[backbone.network].digest if timm else "",
        "view": pair[1],
        # Not the folder: a network that is trained again makes other masks.
        "mask": f"{mask.partition(':')[0]}:{weights[mask].digest}" if is_network(mask) else mask,
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
        batch_limit: slices that are on the device at once, at most.
    """

    pairs: Sequence[tuple[str, str]]
    weights: Mapping[str, Weights]
    device: str = "cpu"
    precision: str = "bfloat16"
    batch_limit: int = 256
    seconds: Counter[str] = field(init=False, default_factory=Counter)  # by step, of all calls together
    _networks: dict[tuple[str, int], Network] = field(init=False, default_factory=dict)
    _members: dict[str, list[Backbone]] = field(init=False, default_factory=dict)  # the backbones of a view

    def __post_init__(self) -> None:
        for name, view in self.pairs:
            backbone = parse_backbone(name)
            if backbone.kind == "lbp":
                raise UsageError(f"backbone {name!r} is computed on CPUs, by gansfp.embedding.lbp")
            key = (backbone.network, backbone.size)
            if backbone.kind == "timm" and key not in self._networks:  # one for all views and kinds of features
                self._networks[key] = Network(backbone, self.weights[key[0]], self.device, self.precision)
            self._members.setdefault(view, []).append(backbone)

    def __call__(self, pixels: np.ndarray, masks: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """pixels: (n, 256, 256) uint8; masks: (n, 256, 256) bool, all False where no lungs were found.

        Returns {(backbone, view): (n, d) float32}. Raises an out-of-memory error only when a single slice is too much.
        """
        parts, self.batch_limit = in_batches(self._embed, (pixels, masks), self.batch_limit, self.device)
        return {pair: np.concatenate([part[pair] for part in parts]) for pair in (parts[0] if parts else {})}

    @torch.inference_mode()
    def _embed(self, pixels: np.ndarray, masks: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        watch = Stopwatch(self.device)
        slices, lungs = self._upload(pixels).float(), self._upload(masks)
        watch.mark("upload")
        found: dict[tuple[str, str], torch.Tensor] = {}
        for name, backbones in self._members.items():
            view = get_view(name)
            region, box = regions(lungs, view), boxes(lungs, view)
            viewed = slices if view.region == "all" else slices * region
            inputs: dict[tuple[int, int, str], torch.Tensor] = {}
            together: dict[tuple[str, int], list[Backbone]] = {}
            for backbone in backbones:
                if backbone.kind == "timm":
                    together.setdefault((backbone.network, backbone.size), []).append(backbone)
                else:
                    watch.mark("view")
                    found[backbone.name, name] = WEIGHT_FREE[backbone.kind](backbone, slices, region, box)
                    watch.mark("features")
            for key, wanted in together.items():
                network = self._networks[key]
                geometry = network.preparation.geometry
                if geometry not in inputs:
                    inputs[geometry] = network.preparation.see(viewed, view, box)
                watch.mark("view")
                vectors = network(inputs[geometry], wanted)
                found |= {(backbone, name): vector for backbone, vector in vectors.items()}
                watch.mark("forward")
        on_host = {pair: vectors.to("cpu", non_blocking=True) for pair, vectors in found.items()}
        watch.mark("download")
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)  # once, for all vectors
        self.seconds.update(watch.seconds())
        return {pair: vectors.numpy() for pair, vectors in on_host.items()}

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        """Onto the device; from pinned memory where it is a GPU, so that the host does not wait."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.startswith("cuda") else tensor


def _highpass(backbone: Backbone, slices: torch.Tensor, region: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    return weight_free.highpass(slices, region, box, window=backbone.window, side=backbone.size)


def _residual(backbone: Backbone, slices: torch.Tensor, region: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    return weight_free.residual(slices, region)


WEIGHT_FREE: dict[str, Callable[[Backbone, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "highpass": _highpass,
    "residual": _residual,
}
