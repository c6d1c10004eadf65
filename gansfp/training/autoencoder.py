"""The autoencoder of AI Multimedia Lab 2024 (runs #7 and #8): training on the generated slices of a set, error images.

The autoencoder reconstructs real slices. This file computes their reconstruction errors, mean error images, and the
similarity of a slice's error image to the mean error images. An error image is the squared difference at each pixel;
its mean is the error of the slice.

The paper gives neither architecture nor schedule. Here the network has four 3x3 convolutions of stride 2 with 32, 64,
128 and 256 channels, 128 latent numbers, four transposed 4x4 convolutions, leaky rectifiers (0.2) and a sigmoid at the
end. Its input is 256x256 grey levels from 0 to 1. Its loss is the mean squared error, its optimiser Adam with rate
1e-3. 15 % of the generated slices are held out for early stopping.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import nn

from gansfp.device import ieee_float32, in_batches
from gansfp.errors import DataError, UsageError, WeightsError
from gansfp.images.slices import SIDE, Source
from gansfp.labels import NOT_USED, USED
from gansfp.networks.model_files import identity_of, read_model
from gansfp.training.examples import LabelledSlices, SliceExamples, read_blocks, split_by_group
from gansfp.training.learner import Batch, Examples
from gansfp.training.loop import Settings, train
from gansfp.training.records import Report, TrainingRecord

CHANNELS = (32, 64, 128, 256)
LATENT = 128
HELD_OUT = 0.15  # of the generated slices
BATCH = 64  # slices whose error images are in memory at once
SIZES = (16, 32, 64, 128, SIDE)  # SIDE is the default; the others are for quick trials

_SLOPE = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoencoderTraining:
    """The training of the autoencoder of one set.

    slices: the generated slices; their labels are not used. The train/test split keeps the slices of a group together,
    and equal files where the group is "". size: pixels per side of the network's input, which are means of the slice's
    pixels. Raises UsageError for a size that is not in SIZES, DataError for fewer than two slices.
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
        """The most epochs."""
        return self.settings.epochs

    def identity(self) -> dict[str, object]:
        """Returns what identifies the trained network, as JSON: the "identity" in FOLDER/model.json."""
        architecture = {"kind": "autoencoder", "size": self.size, "channels": list(CHANNELS), "latent": LATENT}
        return architecture | {"examples": self.slices.digest(), "held_out": HELD_OUT}

    def run(self, folder: str, device: str = "cpu", report: Report | None = None) -> TrainingRecord:
        """Trains the autoencoder in a folder, or resumes its training, and returns what FOLDER/model.json holds.

        Raises as gansfp.training.loop.train does.
        """
        return train(_Learner(self), folder, self.settings, self.identity(), device, report)


class _Learner:
    """The training loop's Learner. The loss of a slice is the mean of its error image."""

    def __init__(self, training: AutoencoderTraining) -> None:
        slices, seed = training.slices, training.settings.seed
        groups = [group or sha256 for group, sha256 in zip(slices.groups, slices.sha256, strict=True)]
        train_rows, valid_rows = split_by_group([0] * len(slices), groups, HELD_OUT, seed)
        self.train: Examples = SliceExamples(slices.take(train_rows))
        self.valid: Examples = SliceExamples(slices.take(valid_rows))
        self.model: nn.Module = Autoencoder(training.size, seed)
        self.size = training.size

    def losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        inputs = _input(batch["pixels"], self.size)
        return (model(inputs).float() - inputs).square().mean((1, 2, 3))

    def measure(self, model: nn.Module, batch: Batch) -> Batch:
        losses = self.losses(model, batch)
        return {"loss": losses.sum(), "count": torch.tensor(float(len(losses)))}

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["count"]}


class _ToLatent(nn.Linear):
    """A linear layer that scales its input down by the number of positions, relative to 4x4 positions.

    A step of Adam changes every weight by about the learning rate. From 16x16 positions the latent numbers would
    therefore change sixteen times as much as from 4x4 positions. Without the scaling, the sigmoid saturated at 256x256
    pixels, and 24 steps did not bring it back. _initialise makes up for the scaling at the start.
    """

    def __init__(self, features: int, latent: int) -> None:
        super().__init__(features, latent)
        self.scale = min(1.0, 16 * CHANNELS[-1] / features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features * self.scale)


class Autoencoder(nn.Module):
    """Maps (n, 1, size, size) float32 from 0 to 1 to the same shape and range, through 128 latent numbers.

    size: one of SIZES. seed: of the random weights.
    """

    def __init__(self, size: int = SIDE, seed: int = 0) -> None:
        super().__init__()
        _check_size(size)
        side = size // 2 ** len(CHANNELS)
        features = CHANNELS[-1] * side**2
        down = [_activated(nn.Conv2d(a, b, 3, stride=2, padding=1)) for a, b in itertools.pairwise((1, *CHANNELS))]
        up = [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise((*CHANNELS[::-1], 1))]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(*down, nn.Flatten(), _ToLatent(features, LATENT))
            self.decoder = nn.Sequential(
                _activated(nn.Linear(LATENT, features)),
                nn.Unflatten(1, (CHANNELS[-1], side, side)),
                *(_activated(layer) for layer in up[:-1]),
                up[-1],
                nn.Sigmoid(),
            )
            self.apply(_initialise)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(pictures))


@dataclass(frozen=True, eq=False)
class MeanErrorImages:
    """The mean error images of the used and of the not used labelled slices: (size, size) float64 each."""

    used: np.ndarray
    not_used: np.ndarray

    @property
    def data_range(self) -> float:
        """The range of values for SSIM: the largest minus the smallest pixel of both mean error images.

        All slices share one range, so their similarities can be compared. The range of all labelled error images, whose
        largest pixels are near 1, would make SSIM's constants larger than all differences between the two mean images.
        """
        both = np.stack([self.used, self.not_used])
        return float(both.max() - both.min()) or 1.0


def errors(folder: str, sources: Sequence[Source], device: str = "cpu", batch: int = BATCH) -> np.ndarray:
    """Returns the mean squared error of each slice's reconstruction, (n,) float64.

    folder: of the autoencoder. Slices that cannot be read get NaN, with a warning. Raises WeightsError where the folder
    holds no autoencoder.
    """
    mean_errors = np.full(len(sources), np.nan)
    for rows, images in error_images(folder, sources, device, batch):
        mean_errors[rows] = images.mean((1, 2), dtype=np.float64)
    return mean_errors


def mean_error_images(
    folder: str, sources: Sequence[Source], labels: Sequence[int] | np.ndarray, device: str = "cpu", batch: int = BATCH
) -> MeanErrorImages:
    """Returns the mean error images of the used (label 1) and of the not used (label 0) slices; ignores other labels.

    Only the two sums and one batch of error images are in memory. Raises DataError where a class has no slice that can
    be read, WeightsError where the folder holds no autoencoder.
    """
    labels = np.asarray(labels)
    labelled_rows = [int(row) for row in np.flatnonzero((labels == NOT_USED) | (labels == USED))]
    sums: dict[int, np.ndarray | float] = {NOT_USED: 0.0, USED: 0.0}
    counts = {NOT_USED: 0, USED: 0}
    for rows, images in error_images(folder, [sources[row] for row in labelled_rows], device, batch):
        batch_labels = labels[labelled_rows][rows]
        for label in sums:
            sums[label] = sums[label] + images[batch_labels == label].sum(0, dtype=np.float64)
            counts[label] += int((batch_labels == label).sum())
    if not all(counts.values()):
        raise DataError(
            f"mean error images: got {counts[USED]} used and {counts[NOT_USED]} not used slices, expected both"
        )
    means = {label: np.asarray(sums[label] / counts[label]) for label in sums}
    return MeanErrorImages(means[USED], means[NOT_USED])


def similarities(
    folder: str, sources: Sequence[Source], means: MeanErrorImages, device: str = "cpu", batch: int = BATCH
) -> np.ndarray:
    """Returns the structural similarity of each slice's error image to both mean error images, (n, 2) float64.

    The columns are the similarity to the used and to the not used slices (Wang et al. 2004, scikit-image's defaults,
    data range `means.data_range`). Slices that cannot be read get NaN, with a warning. Raises WeightsError where the
    folder holds no autoencoder.
    """
    similarity = np.full((len(sources), 2), np.nan)
    for rows, images in error_images(folder, sources, device, batch):
        for row, image in zip(rows, images.astype(np.float64), strict=True):
            similarity[row] = [
                structural_similarity(image, mean, data_range=means.data_range) for mean in (means.used, means.not_used)
            ]
    return similarity


def error_images(
    folder: str, sources: Sequence[Source], device: str = "cpu", batch: int = BATCH
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the error images of slices in their order, `batch` at a time: rows (b,) int64, (b, size, size) float32.

    Leaves out slices that cannot be read, with one warning. Where the device is out of memory, it computes half as many
    at once. Raises WeightsError where the folder holds no autoencoder.
    """
    network, size = _load(folder, device)
    blank = ("",) * len(sources)
    unreadable: list[str] = []
    at_once, compute = batch, partial(_error_images, network, size=size, device=device)
    for block in read_blocks(LabelledSlices.unlabelled(sources, blank, blank), batch):
        unreadable += block.errors
        parts, at_once = in_batches(compute, (block.pixels,), at_once, device)
        if block.rows:
            yield np.asarray(block.rows), np.concatenate(parts)
    if unreadable:
        log.warning(
            "%d of %d slices cannot be read and get no error, such as %s", len(unreadable), len(sources), unreadable[0]
        )


@torch.inference_mode()
def _error_images(network: nn.Module, pixels: np.ndarray, size: int, device: str) -> np.ndarray:
    inputs = _input(torch.from_numpy(pixels).to(device), size)
    with ieee_float32(device):
        return (network(inputs) - inputs).square()[:, 0].cpu().numpy()


def _load(folder: str, device: str) -> tuple[nn.Module, int]:
    """Returns the autoencoder in a folder and its input size."""
    content, tensors = read_model(folder)
    identity = cast(Mapping[str, Any], identity_of(content))
    if identity.get("kind") != "autoencoder" or identity.get("size") not in SIZES:
        raise WeightsError(f"{folder}: got a trained {identity.get('kind', 'network')}, expected an autoencoder")
    network = Autoencoder(identity["size"])
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{folder}: its tensors do not fit this autoencoder; train it again") from error
    return network.to(device).eval(), identity["size"]


def _input(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Maps (n, 256, 256) uint8 to (n, 1, size, size) float32 from 0 to 1, the means of equal squares of pixels."""
    return nn.functional.avg_pool2d(pixels[:, None].float() / 255, SIDE // size)


def _activated(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.LeakyReLU(_SLOPE))


def _initialise(layer: nn.Module) -> None:
    """Draws random weights as in He et al. (2015): by the number of inputs that an output is summed from.

    PyTorch's default weights make the signal smaller from layer to layer. With them the network needs three times as
    many steps before its output is more than the mean slice.
    """
    if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
        fan_in: float = layer.weight[0].numel()
        if isinstance(layer, _ToLatent):
            fan_in *= layer.scale**2
        if isinstance(layer, nn.ConvTranspose2d):  # with a stride, each output is summed from a part of the kernel
            fan_in = layer.in_channels * layer.weight[0, 0].numel() // math.prod(layer.stride)
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / ((1 + _SLOPE**2) * fan_in)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _check_size(size: int) -> None:
    if size not in SIZES:
        raise UsageError(f"autoencoder: got size {size!r}, expected one of {list(SIZES)}")
