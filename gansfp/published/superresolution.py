"""Super-resolution by 4 of slices, as in Method 4 of KDE Lab 2024: by an ESRGAN network, or bicubic.

The network is RRDBNet of ESRGAN (Wang et al. 2018) as the spandrel package builds it: 23 residual-in-residual dense
blocks of 64 channels. Its weights are read from a file. The network gets the grey levels as three equal colours; the
mean of its output colours is the enlarged slice. A slice goes through the network in tiles, so the memory depends on
the tile and not on the slice.

Tiles and one pass over the whole slice may differ near the seams. An output pixel depends on input pixels at most
`reach(blocks)` pixels away: 19 for one block, 349 for the published 23. A margin of that width gives the same grey
levels. Deeper networks use MARGIN, so pixels beside a seam may differ. A slice of up to TILE pixels a side, such as the
published 224, has no seams.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from gansfp import store
from gansfp.device import ieee_float32, is_out_of_memory
from gansfp.errors import UsageError, WeightsError
from gansfp.images import slices
from gansfp.images.views import resample
from gansfp.networks.weights import WEIGHT_ENDINGS, check_folder

FACTOR = 4
BLOCKS = 23  # of the published network
TILE = 256  # input pixels a side in one pass, with margins
MARGIN = 32  # input pixels around a tile that are computed and dropped, at most
NAMES = ("bicubic", "esrgan", "esrgan@random")
FILES = ("RRDB_ESRGAN_x4", "ESRGAN_SRx4_DF2KOST_official-ff704c30")  # names by the authors and by BasicSR

_LEAST_TILE = 16
_MOST_TENSORS = 20_000  # forty times as many as in the published network
_EXTRA = 'pip install "gansfp[superresolution]"'

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class UpscalerWeights:
    """An upscaler: one of NAMES, and for a network its tensors and their digest. It can be sent to other processes."""

    name: str
    tensors: Mapping[str, torch.Tensor]
    digest: str

    @property
    def identity(self) -> str:
        """A folder name that is different for each upscaler."""
        return f"{self.name.replace('@', '-')}-{self.digest}" if self.digest else self.name


def reach(blocks: int) -> int:
    """Returns how many input pixels away, at most, an input pixel can change an output pixel of RRDBNet."""
    # Each block has 15 convolutions of 3x3, and there is one before and one after the blocks. Those after the first
    # enlarging reach half an input pixel, those after the second three quarters, which nearest-neighbour enlarging
    # rounds up to 2.
    return 15 * blocks + 4


def load_upscaler(name: str, folder: str | None, blocks: int = BLOCKS) -> UpscalerWeights:
    """Loads an upscaler by name: "bicubic"; "esrgan", from one of FILES in `folder`; or "esrgan@random", an untrained
    network for trial runs, always the same, which may have fewer `blocks`.

    Raises UsageError for another name, for a missing folder, and if spandrel is not installed. Raises WeightsError if
    there is no file (the message names the file and its folder), or if the file is not an ESRGAN network that enlarges
    one image by 4.
    """
    if name not in NAMES:
        raise UsageError(f"upscaler: got {name!r}, expected one of {sorted(NAMES)}")
    if blocks < 1:
        raise UsageError(f"upscaler: got {blocks!r} blocks, expected at least 1")
    check_folder(folder)
    if name == "bicubic":
        return UpscalerWeights(name, {}, "")
    tensors = _random(blocks) if name == "esrgan@random" else _from_folder(folder)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key}{tuple(tensors[key].shape)}{tensors[key].dtype}".encode())
        digest.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return UpscalerWeights(name, tensors, digest.hexdigest()[:16])


class Upscaler:
    """Enlarges pictures by 4 on one device. If the device runs out of memory, the tile is halved from then on.

    Args:
        weights: from `load_upscaler`.
        device: "cpu", "cuda", ...
        tile: input pixels a side in one pass, with margins; at least 16.
        margin: input pixels around a tile that are computed and dropped. At most a quarter of the tile is used, and at
            most the network's reach.

    Raises UsageError for an impossible tile or margin, and if spandrel is not installed.
    """

    def __init__(self, weights: UpscalerWeights, device: str = "cpu", tile: int = TILE, margin: int = MARGIN) -> None:
        if tile < _LEAST_TILE or margin < 0:
            raise UsageError(f"tile: got {tile!r} pixels with a margin of {margin!r}, expected at least 16 and 0")
        self.identity = weights.identity
        self.tile, self.device = tile, device
        self._margin, self._network = margin, None
        if weights.name != "bicubic":
            self._network = _network(dict(weights.tensors)).to(device).eval()
            self._margin = min(margin, reach(self._network.hyperparameters["num_blocks"]))

    @property
    def margin(self) -> int:
        """The margin that is used with the current tile."""
        return min(self._margin, self.tile // 4)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Enlarges each picture by itself: (n, h, w) uint8 -> (n, 4 h, 4 w) uint8.

        Raises an out-of-memory error only if a tile of 16 pixels needs too much memory.
        """
        enlarged = np.empty((len(pictures), FACTOR * pictures.shape[1], FACTOR * pictures.shape[2]), np.uint8)
        for picture, output in zip(pictures, enlarged, strict=True):
            if self._network is None:
                size = (FACTOR * picture.shape[1], FACTOR * picture.shape[0])
                output[:] = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
            else:
                self._fill(picture, output)
        return enlarged

    def _fill(self, picture: np.ndarray, output: np.ndarray) -> None:
        """Enlarges one picture tile by tile; if memory runs out, starts again with a smaller tile."""
        while True:
            try:
                for rows, columns in product(*(_tiles_of_axis(side, self.tile, self.margin) for side in picture.shape)):
                    tile = self._enlarge(picture[rows.with_margin, columns.with_margin])
                    output[_enlarged(rows.inner), _enlarged(columns.inner)] = tile[
                        _enlarged(rows.inner, rows.with_margin.start),
                        _enlarged(columns.inner, columns.with_margin.start),
                    ]
                return
            except RuntimeError as error:  # OutOfMemoryError is a RuntimeError
                half = min(self.tile, max(picture.shape)) // 2  # half of the size that was tried
                if half < _LEAST_TILE or not is_out_of_memory(error):
                    raise
            self.tile = half  # outside the handler, because the handler would keep the tensors alive
            log.warning("out of memory on %s: continuing with tiles of %d pixels", self.device, self.tile)
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _enlarge(self, tile: np.ndarray) -> np.ndarray:
        """Enlarges a tile in one pass: (h, w) uint8 -> (4 h, 4 w) uint8."""
        assert self._network is not None
        channels = self._network.hyperparameters["in_nc"]
        grey = torch.from_numpy(np.ascontiguousarray(tile)).to(self.device).float() / 255
        with ieee_float32(self.device):
            colours = self._network(grey.expand(1, channels, *grey.shape))[0]
        # Each colour is clamped to its range before the mean, as is usual when the output is stored as an image.
        return (colours.clamp(0, 1).mean(0) * 255).round().to(torch.uint8).cpu().numpy()


def upscale_files(
    sources: Sequence[slices.Source], hashes: Sequence[str], folder: str, upscaler: Upscaler, side: int = 224
) -> list[str]:
    """Enlarges slices and writes them as files. Slices that have a file already are not enlarged again.

    Each slice is decoded, resized to side x side (bicubic, antialiased), enlarged by 4 and written as an 8-bit grey PNG
    to FOLDER/<upscaler>-<side>/<hash>.png. The folder holds only the pictures of this upscaler.

    hashes: of the slices, as Catalog.hashes has them. Returns the URIs of the pictures in the order of `sources`; ""
    where a slice cannot be read, and a warning names it. Raises UsageError for arguments that contradict each other,
    DataError if a file cannot be written.
    """
    if len(sources) != len(hashes):
        raise UsageError(f"super-resolution: got {len(hashes)} hashes for {len(sources)} slices, expected one for each")
    if not 8 <= side <= slices.SIDE:
        raise UsageError(f"super-resolution: got side {side!r}, expected 8 to {slices.SIDE}")
    folder = store.join(folder, f"{upscaler.identity}-{side}")
    existing, pictures = set(store.list_files(folder, ".png")), []
    for source, digest in zip(sources, hashes, strict=True):
        picture = store.join(folder, f"{digest}.png")
        if picture not in existing:
            loaded = slices.load(source)
            if loaded.pixels is None:
                log.warning("%s: left out of super-resolution (%s)", source.uri, loaded.error)
                picture = ""
            else:
                content = io.BytesIO()
                Image.fromarray(upscaler(_resized(loaded.pixels, side)[None])[0]).save(content, "PNG")
                store.write_bytes_atomically(picture, content.getvalue())
                existing.add(picture)
        pictures.append(picture)
    return pictures


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """(256, 256) uint8 -> (side, side) uint8."""
    whole = torch.tensor([[0.0, 0.0, slices.SIDE, slices.SIDE]])
    return resample(torch.from_numpy(pixels)[None], whole, side)[0].round().clamp(0, 255).to(torch.uint8).numpy()


class _TileOfAxis(NamedTuple):
    """A tile along one axis of the picture. inner: the pixels that are kept."""

    inner: slice
    with_margin: slice


def _tiles_of_axis(length: int, tile: int, margin: int) -> list[_TileOfAxis]:
    """Divides an axis into tiles of about equal length; with its margins no tile is longer than `tile`."""
    if length <= tile:
        return [_TileOfAxis(slice(0, length), slice(0, length))]
    count = math.ceil(length / (tile - 2 * margin))
    ends = [length * number // count for number in range(count + 1)]
    return [
        _TileOfAxis(slice(start, stop), slice(max(start - margin, 0), min(stop + margin, length)))
        for start, stop in pairwise(ends)
    ]


def _enlarged(pixels: slice, origin: int = 0) -> slice:
    """Returns the output pixels of these input pixels, counted from the input pixel `origin`."""
    return slice(FACTOR * (pixels.start - origin), FACTOR * (pixels.stop - origin))


def _from_folder(folder: str | None) -> dict[str, torch.Tensor]:
    """Reads the tensors from the first of FILES that exists. Raises WeightsError as `load_upscaler` does."""
    paths = [os.path.join(folder, name + ending) for name in FILES for ending in WEIGHT_ENDINGS] if folder else []
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        place = f"into {folder}" if folder else "into a folder and name it with --weights"
        raise WeightsError(
            f"super-resolution: got no ESRGAN weights; put {FILES[0]}.pth (or .safetensors) {place}, "
            "or use bicubic or esrgan@random"
        )
    _spandrel()  # if it is not installed, say so before the file is blamed
    try:
        if path.endswith(".safetensors"):
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = _tensors(_network(state))
    except Exception as error:  # the parser may raise any exception for a broken file or another network's file
        raise WeightsError(
            f"{path}: cannot be read as an ESRGAN network for one image by {FACTOR} "
            f"({type(error).__name__}: {store.one_line(error)[:160]}); put {FILES[0]}.pth as published in its place"
        ) from error
    return tensors


def _random(blocks: int) -> dict[str, torch.Tensor]:
    """Returns the published architecture with PyTorch's initial weights, always the same.

    The global random state does not change.
    """
    arch = _spandrel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _tensors(arch.ESRGAN(num_blocks=blocks))


def _network(state: object) -> Any:
    """Returns spandrel's RRDBNet with these tensors. Raises ValueError for tensors of another architecture."""
    arch = _spandrel()
    from spandrel import ArchRegistry, ArchSupport, ModelLoader

    if not isinstance(state, dict) or len(state) > _MOST_TENSORS:
        raise ValueError("it is not a state dict")
    registry = ArchRegistry()
    registry.add(ArchSupport.from_architecture(arch.ESRGANArch()))
    loaded = ModelLoader(registry=registry).load_from_state_dict(state)  # it reads no file, only these tensors
    channels = (loaded.input_channels, loaded.output_channels)
    if loaded.scale != FACTOR or channels not in ((1, 1), (3, 3)) or loaded.model.shuffle_factor:
        raise ValueError(f"it enlarges by {loaded.scale}, from {channels[0]} to {channels[1]} channels")
    return loaded.model.float().eval()


def _tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().float().contiguous() for name, tensor in network.state_dict().items()}


def _spandrel() -> Any:
    """Imports spandrel's ESRGAN. Raises UsageError if the package is not installed."""
    try:
        from spandrel.architectures import ESRGAN
    except ImportError as error:
        raise UsageError(f"super-resolution by ESRGAN needs the package spandrel: {_EXTRA}") from error
    return ESRGAN


@dataclass(frozen=True)
class Pictures:
    """Enlarged slices on disk.

    folder: of the real slices, below WORK/enlarged. uris: of the pictures of real and generated slices, by the sha256
    of the slices' files.
    """

    folder: str
    uris: dict[str, str]
