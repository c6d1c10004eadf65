"""Super-resolution by 4 of slices, as Method 4 of KDE Lab 2024: an ESRGAN network, or bicubic where asked for by name.

The network is RRDBNet of ESRGAN (Wang et al. 2018) as the spandrel package builds it: 23 residual-in-residual dense
blocks of 64 channels. Its weights come from a file; grey levels go in as three equal colours and come out as their
mean. A picture goes through in tiles, so that a pass takes the memory of a tile, whatever the picture.

How far tiles agree with a picture in one piece: what a pixel becomes depends on the input up to `reach(blocks)` pixels
away, 19 for one block and 349 for the published 23. A margin of that width gives the same grey levels; with MARGIN, as
is used for deeper networks, pixels beside a seam may differ. A picture of up to TILE pixels a side, such as the
published 224, has no seams.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from gansfp import store
from gansfp.device import is_out_of_memory
from gansfp.errors import UsageError, WeightsError
from gansfp.images import slices
from gansfp.images.views import resample
from gansfp.networks.weights import WEIGHT_ENDINGS, check_folder

FACTOR = 4
BLOCKS = 23  # of the published network
TILE = 256  # input pixels a side that one pass takes, margins included
MARGIN = 32  # input pixels around a tile that are computed and thrown away, at most
NAMES = ("bicubic", "esrgan", "esrgan@random")
FILES = ("RRDB_ESRGAN_x4", "ESRGAN_SRx4_DF2KOST_official-ff704c30")  # as the authors and as BasicSR publish it

_LEAST_TILE = 16
_MOST_TENSORS = 20_000  # forty times those of the published network
_EXTRA = 'pip install "gansfp[superresolution]"'

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class UpscalerWeights:
    """What upscales: a name of NAMES, and for a network its tensors and their digest. May be sent between processes."""

    name: str
    tensors: Mapping[str, torch.Tensor]
    digest: str

    @property
    def identity(self) -> str:
        """What tells pictures of this upscaler from another's; fit for a folder's name."""
        return f"{self.name.replace('@', '-')}-{self.digest}" if self.digest else self.name


def reach(blocks: int) -> int:
    """How many input pixels away, at most, something still changes an output pixel of RRDBNet."""
    # 15 convolutions of 3x3 a block, one before and one after them; then half a pixel at twice the size and three
    # quarters at four times, which nearest-neighbour enlarging rounds up to 2.
    return 15 * blocks + 4


def load_upscaler(name: str, folder: str | None, blocks: int = BLOCKS) -> UpscalerWeights:
    """What upscales, by name: "bicubic"; "esrgan", from one of FILES in `folder`; "esrgan@random", untrained, always
    the same, for trying out, of which `blocks` may be fewer.

    Raises UsageError for another name, a folder that is not there and where spandrel is not installed; WeightsError,
    which names the file to put and where, when there is none, and when it is no ESRGAN network for one image by 4.
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
    """Enlarges pictures by 4 on one device. Out of memory on the device halves the tile, for this call and later ones.

    Args:
        weights: as `load_upscaler` gives them.
        device: "cpu", "cuda", ...
        tile: input pixels a side that go through at once, margins included; at least 16.
        margin: input pixels around a tile that are computed and thrown away; no more than a quarter of the tile is
            used, and no more than the network's reach.

    Raises UsageError for a tile or a margin that cannot be, and where spandrel is not installed.
    """

    def __init__(self, weights: UpscalerWeights, device: str = "cpu", tile: int = TILE, margin: int = MARGIN) -> None:
        if tile < _LEAST_TILE or margin < 0:
            raise UsageError(f"tiles: got {tile!r} pixels with a margin of {margin!r}, expected at least 16 and 0")
        self.identity = weights.identity
        self.tile, self.device = tile, device
        self._margin, self._network = margin, None
        if weights.name != "bicubic":
            self._network = _network(dict(weights.tensors)).to(device).eval()
            self._margin = min(margin, reach(self._network.hyperparameters["num_blocks"]))

    @property
    def margin(self) -> int:
        """The margin that is used with the present tile."""
        return min(self._margin, self.tile // 4)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """(n, h, w) uint8 -> (n, 4 h, 4 w) uint8, each by itself.

        Raises an out-of-memory error only where a tile of 16 pixels is too much.
        """
        enlarged = np.empty((len(pictures), FACTOR * pictures.shape[1], FACTOR * pictures.shape[2]), np.uint8)
        for picture, into in zip(pictures, enlarged, strict=True):
            if self._network is None:
                size = (FACTOR * picture.shape[1], FACTOR * picture.shape[0])
                into[:] = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
            else:
                self._fill(picture, into)
        return enlarged

    def _fill(self, picture: np.ndarray, into: np.ndarray) -> None:
        """One picture, tile by tile; from the start again with a smaller tile where memory is short."""
        while True:
            try:
                for rows, columns in product(*(_stretches(side, self.tile, self.margin) for side in picture.shape)):
                    (top, bottom, above, below), (left, right, before, after) = rows, columns
                    seen = self._enlarge(picture[above:below, before:after])
                    kept = seen[_times(top - above, bottom - above), _times(left - before, right - before)]
                    into[_times(top, bottom), _times(left, right)] = kept
                return
            except RuntimeError as error:  # of which OutOfMemoryError is one
                half = min(self.tile, max(picture.shape)) // 2  # of what was tried
                if half < _LEAST_TILE or not is_out_of_memory(error):
                    raise
            self.tile = half  # outside the handler, which would keep the tensors alive
            log.warning("out of memory on %s: going on with tiles of %d pixels", self.device, self.tile)
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _enlarge(self, part: np.ndarray) -> np.ndarray:
        """(h, w) uint8 -> (4 h, 4 w) uint8, in one pass."""
        assert self._network is not None
        channels = self._network.hyperparameters["in_nc"]
        grey = torch.from_numpy(np.ascontiguousarray(part)).to(self.device).float() / 255
        colours = self._network(grey.expand(1, channels, *grey.shape))[0]
        # Each colour within its range before the mean is taken: the customary way to store what the network gives.
        return (colours.clamp(0, 1).mean(0) * 255).round().to(torch.uint8).cpu().numpy()


def upscale_files(
    uris: Sequence[str],
    sha256: Sequence[str],
    folder: str,
    upscaler: Upscaler,
    side: int = 224,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[str]:
    """Slices enlarged and kept: each decoded, resized to side x side (bicubic, antialiased), enlarged by 4 and written
    as an 8-bit grey PNG under FOLDER/<upscaler>-<side>/<sha256>.png, where no other upscaler's pictures are.

    sha256: of the slices' files, as the catalog has them. What is there already is not made again. report: called after
    each slice with done, of, made. Returns the pictures' URIs in the order of `uris`, "" where a slice cannot be read,
    which a warning names. Raises UsageError for what does not fit together, DataError where nothing can be written.
    """
    if len(uris) != len(sha256):
        raise UsageError(f"super-resolution: got {len(sha256)} digests for {len(uris)} slices")
    if not 8 <= side <= slices.SIDE:
        raise UsageError(f"super-resolution: got side {side!r}, expected 8 to {slices.SIDE}")
    folder = store.join(folder, f"{upscaler.identity}-{side}")
    there, made, pictures = set(store.list_files(folder, ".png")), 0, []
    for done, (uri, digest) in enumerate(zip(uris, sha256, strict=True), start=1):
        picture = store.join(folder, f"{digest}.png")
        if picture not in there:
            one = slices.load(uri)
            if one.pixels is None:
                log.warning("%s: left out of super-resolution (%s)", uri, one.error)
                picture = ""
            else:
                content = io.BytesIO()
                Image.fromarray(upscaler(_resized(one.pixels, side)[None])[0]).save(content, "PNG")
                store.write_bytes_atomically(picture, content.getvalue())
                there.add(picture)
                made += 1
        pictures.append(picture)
        if report:
            report({"done": done, "of": len(uris), "made": made})
    return pictures


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """(256, 256) uint8 -> (side, side) uint8."""
    whole = torch.tensor([[0.0, 0.0, slices.SIDE, slices.SIDE]])
    return resample(torch.from_numpy(pixels)[None], whole, side)[0].round().clamp(0, 255).to(torch.uint8).numpy()


def _stretches(length: int, tile: int, margin: int) -> list[tuple[int, int, int, int]]:
    """One axis in even stretches: (start, stop) of what is kept and of what is seen, which is `tile` long at most."""
    if length <= tile:
        return [(0, length, 0, length)]
    count = math.ceil(length / (tile - 2 * margin))
    ends = [length * number // count for number in range(count + 1)]
    return [(start, stop, max(start - margin, 0), min(stop + margin, length)) for start, stop in pairwise(ends)]


def _times(start: int, stop: int) -> slice:
    return slice(FACTOR * start, FACTOR * stop)


def _from_folder(folder: str | None) -> dict[str, torch.Tensor]:
    """The tensors of the first of FILES that is there, known to be a network for one image by 4."""
    paths = [os.path.join(folder, name + ending) for name in FILES for ending in WEIGHT_ENDINGS] if folder else []
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        place = f"into {folder}" if folder else "into a folder and name it with --weights"
        raise WeightsError(
            f"super-resolution: no ESRGAN weights; put {FILES[0]}.pth (or .safetensors) {place}, "
            "or ask for bicubic or esrgan@random"
        )
    _spandrel()  # where it is missing, that is what is wrong
    try:
        if path.endswith(".safetensors"):
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = _tensors(_network(state))
    except Exception as error:  # a broken file, or another network's, raises whatever it leads the reader to
        raise WeightsError(
            f"{path}: cannot be read as an ESRGAN network for one image by {FACTOR} "
            f"({type(error).__name__}: {store.one_line(error)[:160]}); put {FILES[0]}.pth as published in its place"
        ) from error
    return tensors


def _random(blocks: int) -> dict[str, torch.Tensor]:
    """The published architecture, untrained: PyTorch's own start, the same each time, global random state untouched."""
    arch = _spandrel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _tensors(arch.ESRGAN(num_blocks=blocks))


def _network(state: dict[str, Any]) -> Any:
    """spandrel's RRDBNet with these tensors: the one architecture it may find in them. Raises ValueError for others."""
    arch = _spandrel()
    from spandrel import ArchRegistry, ArchSupport, ModelLoader

    if not isinstance(state, dict) or len(state) > _MOST_TENSORS:
        raise ValueError("no state dict")
    registry = ArchRegistry()
    registry.add(ArchSupport.from_architecture(arch.ESRGANArch()))
    found = ModelLoader(registry=registry).load_from_state_dict(state)  # tensors only: it reads no file here
    channels = (found.input_channels, found.output_channels)
    if found.scale != FACTOR or channels not in ((1, 1), (3, 3)) or found.model.shuffle_factor:
        raise ValueError(f"it enlarges by {found.scale}, from {channels[0]} to {channels[1]} channels")
    return found.model.float().eval()


def _tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().float().contiguous() for name, tensor in network.state_dict().items()}


def _spandrel() -> Any:
    """spandrel's ESRGAN. Raises UsageError where the package is not installed."""
    try:
        from spandrel.architectures import ESRGAN
    except ImportError as error:
        raise UsageError(f"super-resolution by ESRGAN needs the package spandrel: {_EXTRA}") from error
    return ESRGAN


@dataclass(frozen=True)
class Pictures:
    """folder: of the enlarged real slices, below WORK/enlarged; uris: the pictures by the sha256 of the slices' files,
    generated ones too."""

    folder: str
    uris: dict[str, str]
