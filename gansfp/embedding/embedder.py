"""The device pass: uploads a batch of slices once and computes the vectors of all its (backbone, view) pairs.

The device computes, in this order: the features without weights, of all views together; the region and crop box of each
view from the lung masks, the crop and resize to the network's input size, the normalisation, and one forward pass for
each (network, input size, view), however many kinds of features it gives. CPUs compute the lung masks and `lbp`
beforehand; the masks of networks are the exception, see gansfp/embedding/network_masks.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gansfp.device import in_batches
from gansfp.embedding.backbone import Backbone, CpuKind, DeviceKind, DeviceNetwork, NetworkKind
from gansfp.embedding.backbones import parse_backbone
from gansfp.errors import UsageError
from gansfp.images.lungs import check_mask, is_network, mask_kind
from gansfp.images.slices import SIDE
from gansfp.images.views import View, boxes, get_view, regions
from gansfp.networks.weights import Weights, check_folder
from gansfp.stopwatch import Stopwatch

AUTO = "auto"  # bfloat16 where it is faster, else float32; see gansfp/runtime/precision.py
COMPUTED_IN = ("bfloat16", "float32")
PRECISIONS = (AUTO, *COMPUTED_IN)
SMALL_BATCH = 16  # slices at once where a command itself embeds, so that it stays small


@dataclass(frozen=True)
class EmbedConfig:
    """What is embedded and how; every field is part of an embedding's identity. Raises UsageError for unknown names.

    pairs: (backbone, view). precision: of the networks; "auto" must be settled before anything is computed or found.
    """

    pairs: tuple[tuple[str, str], ...]
    mask: str = "threshold"
    precision: str = "float32"

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
    def network_pairs(self) -> list[tuple[str, str]]:
        """The pairs whose vectors depend on the precision."""
        return [pair for pair in self.pairs if parse_backbone(pair[0]).needs_weights]

    @property
    def network_mask(self) -> str:
        """The mask's name if a network makes it and a view uses it, so that its weights must be loaded; else ""."""
        return self.mask if is_network(self.mask) and needs_lungs(self.pairs) else ""


def needs_lungs(pairs: Sequence[tuple[str, str]]) -> bool:
    """True if a view among the pairs shows only a part of a slice."""
    return any(get_view(view).region != "all" for _, view in pairs)


def load_all_weights(names: Sequence[str], folder: str | None, mask: str = "") -> dict[str, Weights]:
    """Loads the weights of every network among the backbones, each once, and of the mask (EmbedConfig.network_mask).

    Raises WeightsError where they cannot be loaded, UsageError for a feature level or input size that a model does not
    have.
    """
    check_folder(folder)
    weights: dict[str, Weights] = {}
    for backbone in map(parse_backbone, names):
        if isinstance(backbone.kind, NetworkKind):
            if backbone.network not in weights:
                weights[backbone.network] = backbone.kind.load_weights(backbone, folder)
            backbone.kind.check(backbone, weights[backbone.network])
    if mask:
        from gansfp.embedding.network_masks import load_mask  # most runs do not need it

        weights[mask] = load_mask(mask, folder)
    return weights


def identity(pair: tuple[str, str], config: EmbedConfig, weights: Mapping[str, Weights]) -> dict[str, str]:
    """Returns the values that two comparable embeddings share. Every shard holds them; other shards are not read.

    Raises ValueError for a network whose precision is still "auto".
    """
    backbone = parse_backbone(pair[0])
    if backbone.needs_weights and config.precision not in COMPUTED_IN:
        raise ValueError(f"precision: got {config.precision!r}, expected it to be settled as one of {COMPUTED_IN}")
    mask = config.mask if get_view(pair[1]).region != "all" else ""
    return {
        "backbone": pair[0],
        "weights": weights[backbone.network].digest if backbone.needs_weights else "",
        "view": pair[1],
        # The digest and not the folder: a network that is trained again makes other masks.
        "mask": f"{mask_kind(mask)}:{weights[mask].digest}" if is_network(mask) else mask,
        "size": str(SIDE),
        "precision": config.precision if backbone.needs_weights else "float32",
    }


@dataclass
class Embedder:
    """Embeds batches on one device. Out of memory on the device halves the batch, for this call and those after it.

    Args:
        pairs: (backbone, view) names. Backbones that CPUs compute raise a UsageError.
        weights: by network name, for every backbone among the pairs that needs weights.
        device: "cpu", "cuda", "cuda:1", ...
        precision: "bfloat16" or "float32", of the networks; features without weights are always float32.
        batch_limit: the largest number of slices that are on the device at once.
    """

    pairs: Sequence[tuple[str, str]]
    weights: Mapping[str, Weights]
    device: str = "cpu"
    precision: str = "float32"
    batch_limit: int = 256
    seconds: Counter[str] = field(init=False, default_factory=Counter)  # by step, of all calls together
    _networks: dict[tuple[str, int], DeviceNetwork] = field(init=False, default_factory=dict)
    _without_network: dict[DeviceKind, list[tuple[Backbone, View]]] = field(init=False, default_factory=dict)
    _by_view: dict[str, list[Backbone]] = field(init=False, default_factory=dict)  # backbones with a network
    _copies: torch.cuda.Stream | None = field(init=False, default=None)  # the GPU's copies beside its work

    def __post_init__(self) -> None:
        if self.device.startswith("cuda"):
            self._copies = torch.cuda.Stream(self.device)
        for name, view in self.pairs:
            backbone = parse_backbone(name)
            key = (backbone.network, backbone.size)
            if isinstance(backbone.kind, CpuKind):
                raise UsageError(f"backbone {name!r} is computed on CPUs; use gansfp.embedding.backbones.cpu_features")
            if isinstance(backbone.kind, NetworkKind) and key not in self._networks:
                # One network for all views and all kinds of features.
                weights = self.weights[backbone.network]
                self._networks[key] = backbone.kind.create(backbone, weights, self.device, self.precision)
            if isinstance(backbone.kind, DeviceKind):
                self._without_network.setdefault(backbone.kind, []).append((backbone, get_view(view)))
            else:
                self._by_view.setdefault(view, []).append(backbone)

    def __call__(self, pixels: np.ndarray, masks: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """pixels: (n, 256, 256) uint8; masks: (n, 256, 256) bool, all False where no lungs were found.

        masks may also be their bits, (n, 8192) uint8 as of numpy.packbits: a GPU needs an eighth of the time to copy
        them. Returns {(backbone, view): (n, d) float32}. Raises an out-of-memory error only if one slice does not fit.
        """
        launched: list[_Launched] = []

        def launch(*arrays: np.ndarray) -> None:
            launched.append(self._launch(*arrays))
            if len(launched) > 1:  # the host waits for a batch while the GPU works on the next one
                launched[-2].wait(self.seconds)

        _, self.batch_limit = in_batches(launch, (pixels, masks), self.batch_limit, self.device)
        if not launched:
            return {}
        launched[-1].wait(self.seconds)
        return {
            pair: np.concatenate([batch.vectors[pair].numpy() for batch in launched]) for pair in launched[0].vectors
        }

    @torch.inference_mode()
    def _launch(self, pixels: np.ndarray, masks: np.ndarray) -> _Launched:
        watch = Stopwatch(self.device)
        slices, lungs = self._upload(pixels), self._upload(masks)
        if lungs.ndim == 2:
            lungs = _unpacked(lungs)
        watch.mark("upload")
        on_device: dict[tuple[str, str], torch.Tensor] = {}
        for kind, members in self._without_network.items():
            of_members = kind.compute(members, slices, lungs)
            on_device |= {(m[0].name, m[1].name): vectors for m, vectors in zip(members, of_members, strict=True)}
        watch.mark("features")
        grey_levels = slices.float() if self._by_view else slices  # once for all views
        for view in self._by_view:
            vectors = self._embed_view(view, grey_levels, lungs, watch)
            on_device |= {(backbone, view): vector for backbone, vector in vectors.items()}
        on_host = {pair: vectors.to("cpu", non_blocking=True) for pair, vectors in on_device.items()}
        watch.mark("download")
        return _Launched(on_host, watch)

    def _embed_view(
        self, name: str, slices: torch.Tensor, lungs: torch.Tensor, watch: Stopwatch
    ) -> dict[str, torch.Tensor]:
        """Computes one view by networks, by backbone. slices: (n, 256, 256) float32; lungs: (n, 256, 256) bool."""
        view = get_view(name)
        region, box = regions(lungs, view), boxes(lungs, view)
        viewed = slices if view.region == "all" else slices * region
        vectors: dict[str, torch.Tensor] = {}
        by_network: dict[tuple[str, int], list[Backbone]] = {}
        for backbone in self._by_view[name]:
            by_network.setdefault((backbone.network, backbone.size), []).append(backbone)
        inputs: dict[tuple[int, int, str], torch.Tensor] = {}
        for key, backbones in by_network.items():
            network = self._networks[key]
            geometry = network.preparation.geometry
            if geometry not in inputs:
                inputs[geometry] = network.preparation.apply_to_view(viewed, view, box)
            watch.mark("view")
            vectors |= network(inputs[geometry], backbones)
            watch.mark("forward")
        return vectors

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        """Copies an array to the device. A GPU copies from pinned memory, beside the batch on which it still works."""
        if self._copies is None:
            return torch.from_numpy(array if array.flags.writeable else array.copy())  # arrays of Ray are read-only
        pinned = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), pin_memory=True)
        pinned.numpy()[:] = array
        with torch.cuda.stream(self._copies):
            tensor = pinned.to(self.device, non_blocking=True)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_stream(self._copies)
        tensor.record_stream(stream)  # so that its memory is not used again while this stream works
        return tensor


@dataclass
class _Launched:
    """A batch on whose vectors, on the host, a GPU may still work."""

    vectors: Mapping[tuple[str, str], torch.Tensor]
    watch: Stopwatch

    def wait(self, seconds: Counter[str]) -> None:
        """Waits until the vectors are there, and adds the seconds of each step."""
        self.watch.wait()
        seconds.update(self.watch.seconds())


def _unpacked(bits: torch.Tensor) -> torch.Tensor:
    """(n, 8192) uint8, the bits of a mask as of numpy.packbits -> (n, 256, 256) bool, on the same device."""
    shifts = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    return (bits[:, :, None] >> shifts & 1).bool().view(len(bits), SIDE, SIDE)
