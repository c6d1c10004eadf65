"""The autoencoder of AI Multimedia Lab 2024 (runs #7 and #8): trained on a set's generated slices alone, and what it
makes of real ones: reconstruction errors, mean error images, how similar a slice's error image is to those.

The paper gives neither architecture nor schedule; here: four 3x3 convolutions of stride 2 with 32, 64, 128 and 256
channels, 128 latent numbers, four transposed 4x4 convolutions back, leaky rectifiers (0.2), a sigmoid at the end,
256x256 grey levels from 0 to 1, mean squared error, Adam 1e-3, 15 % of the generated slices held out for early
stopping. An error image is the squared difference at each pixel; its mean is the slice's error.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import nn

from gansfp.device import in_batches
from gansfp.errors import DataError, UsageError, WeightsError
from gansfp.images.slices import SIDE
from gansfp.networks.model_files import read_model
from gansfp.training.examples import LabelledSlices, SliceExamples, read_blocks, split_by_group
from gansfp.training.loop import Batch, Examples, Report, Settings, train

CHANNELS = (32, 64, 128, 256)
LATENT = 128
HELD_OUT = 0.15  # of the generated slices
BATCH = 64  # slices whose error images are in memory at once
SIZES = (16, 32, 64, 128, SIDE)  # SIDE is meant; smaller ones are for trying out

_SLOPE = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderTraining:
    """The training of one set's autoencoder.

    slices: generated ones; their labels do not matter, their groups (or, where those are "", equal files) are not
    parted by the split. size: pixels a side that the network sees, the means of the slice's.
    Raises UsageError for another size, DataError for fewer than two slices.
    """

    slices: LabelledSlices
    size: int = SIDE
    settings: Settings = field(default_factory=lambda: Settings(batch=64))

    def __post_init__(self) -> None:
        _check_size(self.size)
        if len(self.slices) < 2:
            raise DataError(f"autoencoder: got {len(self.slices)} generated slices, expected two or more")
        if self.slices.side != SIDE:
            raise UsageError(f"autoencoder: got slices of {self.slices.side} pixels a side, expected {SIDE}")

    @property
    def epochs(self) -> int:
        """How many there are at most."""
        return self.settings.epochs

    def identity(self) -> dict[str, Any]:
        """What is trained on what, as model.json says it."""
        architecture = {"kind": "autoencoder", "size": self.size, "channels": list(CHANNELS), "latent": LATENT}
        return architecture | {"examples": self.slices.digest(), "held_out": HELD_OUT}

    def run(self, folder: str, device: str = "cpu", report: Report | None = None) -> dict[str, Any]:
        """Trains FOLDER's autoencoder, or goes on with it; returns what FOLDER/model.json holds. Raises as train."""
        return train(_Learner(self), folder, self.settings, self.identity(), device, report)


class _Learner:
    """gansfp.training.loop.Learner: a slice's loss is the mean of its error image."""

    def __init__(self, training: AutoencoderTraining) -> None:
        slices, seed = training.slices, training.settings.seed
        groups = [group or sha256 for group, sha256 in zip(slices.groups, slices.sha256, strict=True)]
        learnt, held_out = split_by_group([0] * len(slices), groups, HELD_OUT, seed)
        self.train: Examples = SliceExamples(slices.take(learnt))
        self.valid: Examples = SliceExamples(slices.take(held_out))
        self.model: nn.Module = Autoencoder(training.size, seed)
        self.size = training.size

    def losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        given = _input(batch["pixels"], self.size)
        return (model(given).float() - given).square().mean((1, 2, 3))

    def measure(self, model: nn.Module, batch: Batch) -> Batch:
        losses = self.losses(model, batch)
        return {"loss": losses.sum(), "count": torch.tensor(float(len(losses)))}

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["count"]}


class _ToLatent(nn.Linear):
    """A linear layer that sees its features divided by how often 4x4 positions go into theirs, and starts out alike.

    A step of Adam moves every weight by its rate, so from 16x16 positions the latent numbers would move sixteen times
    as far as from 4x4: at 256x256 pixels the sigmoid was driven into saturation, out of which 24 steps did not lead.
    """

    def __init__(self, features: int, latent: int) -> None:
        super().__init__(features, latent)
        self.share = min(1.0, 16 * CHANNELS[-1] / features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features * self.share)


class Autoencoder(nn.Module):
    """(n, 1, size, size) float32 from 0 to 1 -> the same, through 128 numbers. size: of SIZES; seed: of its start."""

    def __init__(self, size: int = SIDE, seed: int = 0) -> None:
        super().__init__()
        _check_size(size)
        side = size // 2 ** len(CHANNELS)
        features = CHANNELS[-1] * side**2
        there = [_stage(nn.Conv2d(a, b, 3, stride=2, padding=1)) for a, b in itertools.pairwise((1, *CHANNELS))]
        back = [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise((*CHANNELS[::-1], 1))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(*there, nn.Flatten(), _ToLatent(features, LATENT))
            self.decoder = nn.Sequential(
                _stage(nn.Linear(LATENT, features)),
                nn.Unflatten(1, (CHANNELS[-1], side, side)),
                *(_stage(layer) for layer in back[:-1]),
                back[-1],
                nn.Sigmoid(),
            )
            self.apply(_initialise)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(pictures))


@dataclass(frozen=True, eq=False)
class MeanErrorImages:
    """Of the used and of the not used labelled slices: (size, size) float64 each."""

    used: np.ndarray
    not_used: np.ndarray

    @property
    def data_range(self) -> float:
        """What SSIM takes for the range of its values: the largest less the smallest pixel of both mean error images.

        One range for all slices, so that their similarities compare. A range over all labelled error images, whose
        largest pixels are near 1, would let SSIM's constants outweigh all that these two pictures differ in.
        """
        both = np.stack([self.used, self.not_used])
        return float(both.max() - both.min()) or 1.0


def errors(folder: str, uris: Sequence[str], device: str = "cpu", batch: int = BATCH) -> np.ndarray:
    """(n,) float64: each slice's mean squared error after FOLDER's autoencoder; NaN where it cannot be read, which a
    warning tells. Raises WeightsError where the folder holds no autoencoder."""
    found = np.full(len(uris), np.nan)
    for rows, images in error_images(folder, uris, device, batch):
        found[rows] = images.mean((1, 2), dtype=np.float64)
    return found


def mean_error_images(
    folder: str, uris: Sequence[str], labels: Sequence[int] | np.ndarray, device: str = "cpu", batch: int = BATCH
) -> MeanErrorImages:
    """The mean error images of the used (label 1) and the not used (0) slices; others are passed over.

    Two pictures are added up while batches go by. Raises DataError where a class has no slice that can be read,
    WeightsError where the folder holds no autoencoder.
    """
    labels = np.asarray(labels)
    known = [int(row) for row in np.flatnonzero((labels == 0) | (labels == 1))]
    sums: list[np.ndarray | float] = [0.0, 0.0]
    counts = [0, 0]
    for rows, images in error_images(folder, [uris[row] for row in known], device, batch):
        classes = labels[known][rows]
        for label in (0, 1):
            sums[label] = sums[label] + images[classes == label].sum(0, dtype=np.float64)
            counts[label] += int((classes == label).sum())
    if not all(counts):
        raise DataError(f"mean error images: got {counts[1]} used and {counts[0]} not used slices, expected both")
    not_used, used = (np.asarray(total / count) for total, count in zip(sums, counts, strict=True))
    return MeanErrorImages(used, not_used)


def similarities(
    folder: str, uris: Sequence[str], means: MeanErrorImages, device: str = "cpu", batch: int = BATCH
) -> np.ndarray:
    """(n, 2) float64: the structural similarity (Wang et al. 2004, scikit-image's defaults) of each slice's error image
    to the mean error image of the used and of the not used slices; NaN where the slice cannot be read, which a warning
    tells. The data range is `means.data_range`. Raises WeightsError where the folder holds no autoencoder."""
    found = np.full((len(uris), 2), np.nan)
    for rows, images in error_images(folder, uris, device, batch):
        for row, image in zip(rows, images.astype(np.float64), strict=True):
            found[row] = [
                structural_similarity(image, mean, data_range=means.data_range) for mean in (means.used, means.not_used)
            ]
    return found


def error_images(
    folder: str, uris: Sequence[str], device: str = "cpu", batch: int = BATCH
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The error images of slices in their order, `batch` at a time: rows (b,) int64, (b, size, size) float32.

    Those that cannot be read are left out, with one warning. Out of memory on the device halves what it computes at
    once. Raises WeightsError where FOLDER holds no autoencoder.
    """
    network, size = _load(folder, device)
    none = ("",) * len(uris)
    unread: list[str] = []
    at_once, compute = batch, partial(_error_images, network, size=size, device=device)
    for block in read_blocks(LabelledSlices(tuple(uris), (-1,) * len(uris), none, none), batch):
        unread += block.errors
        parts, at_once = in_batches(compute, (block.pixels,), at_once, device)
        if block.rows:
            yield np.asarray(block.rows), np.concatenate(parts)
    if unread:
        log.warning("%d of %d slices cannot be read and have no error, such as %s", len(unread), len(uris), unread[0])


@torch.inference_mode()
def _error_images(network: nn.Module, pixels: np.ndarray, size: int, device: str) -> np.ndarray:
    given = _input(torch.from_numpy(pixels).to(device), size)
    return (network(given) - given).square()[:, 0].cpu().numpy()


def _load(folder: str, device: str) -> tuple[nn.Module, int]:
    """FOLDER's autoencoder and its input size."""
    facts, tensors = read_model(folder)
    told = facts["identity"]
    if told.get("kind") != "autoencoder" or told.get("size") not in SIZES:
        raise WeightsError(f"{folder}: holds a trained {told.get('kind', 'network')}, expected an autoencoder")
    network = Autoencoder(told["size"])
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: its tensors are not those of this autoencoder; train it again") from error
    return network.to(device).eval(), told["size"]


def _input(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """(n, 256, 256) uint8 -> (n, 1, size, size) float32 from 0 to 1, by the means of equal squares."""
    return nn.functional.avg_pool2d(pixels[:, None].float() / 255, SIDE // size)


def _stage(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.LeakyReLU(_SLOPE))


def _initialise(layer: nn.Module) -> None:
    """He et al. (2015): by what an output is summed from. PyTorch's own start shrinks a signal from layer to layer, and
    three times as many steps go by before anything but the mean slice comes out."""
    if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
        summed: float = layer.weight[0].numel()
        if isinstance(layer, _ToLatent):
            summed *= layer.share**2
        if isinstance(layer, nn.ConvTranspose2d):  # of its kernel, strides let every output see a part
            summed = layer.in_channels * layer.weight[0, 0].numel() // math.prod(layer.stride)
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / ((1 + _SLOPE**2) * summed)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_size(size: int) -> None:
    if size not in SIZES:
        raise UsageError(f"autoencoder: got size {size!r}, expected one of {list(SIZES)}")
