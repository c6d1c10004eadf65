"""Training of the lung U-Net (gansfp/networks/lung_unet.py): augmentation, loss and figures of the validation."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gansfp.errors import DataError
from gansfp.images.augmentation import Augmentation, Change
from gansfp.images.lungs import threshold_mask
from gansfp.networks.lung_unet import ARCHITECTURE, LungUnet
from gansfp.training.examples import split_by_group
from gansfp.training.learner import Batch, Example, Examples
from gansfp.training.loop import Settings, train
from gansfp.training.masked_slices import MaskedSlices, read_pair
from gansfp.training.records import Report, TrainingRecord

DECAY = 0.98  # weight of the moving mean at each step; smaller in the first steps, to forget the random start


class Averaging(nn.Module):
    """A network that is trained, and the exponential moving mean of its weights, which makes the predictions.

    The mean predicts better than the last weights, and its figures vary less from epoch to epoch (Polyak and Juditsky
    1992). torch's AveragedModel has other names in its state dict. Model files and checkpoints would need a translation
    of the names in both directions, which is more code than this class.
    """

    steps: torch.Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.average = network, copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.average(pixels)
        with torch.no_grad():
            # On the device: reading the number of steps would wait for a GPU.
            decay = ((1 + self.steps).double() / (10 + self.steps)).clamp(max=DECAY)
            self.steps += 1
            pairs = zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True)
            for mean, current in pairs:
                if mean.is_floating_point():
                    mean.lerp_(current, (1 - decay).to(mean.dtype))
                else:
                    mean.copy_(current)
        return self.network(pixels)


@dataclass(frozen=True)
class LungAugmentation:
    """How slices are changed: half are mirrored, some are rotated, zoomed and shifted, and all get other grey levels.

    Rotation, zoom and shift blur a slice, so the other slices keep the sharpness of real ones. The grey levels change
    so that the network also learns other intensity windows. moved: the share of slices that are rotated, zoomed and
    shifted. gamma: the exponent is e to the power of -gamma to gamma. contrast: the factor, about mid grey, is 1 -
    contrast to 1 + contrast. brightness: -brightness to brightness grey levels are added.
    """

    geometry: Augmentation = field(default_factory=lambda: Augmentation(zoom=0.15, rotation=10.0, shift=0.08))
    moved: float = 0.5
    gamma: float = 0.2
    contrast: float = 0.1
    brightness: float = 10.0

    def apply(self, pixels: np.ndarray, mask: np.ndarray, *numbers: int) -> tuple[np.ndarray, np.ndarray]:
        """Changes pixels, (256, 256) uint8, and mask, (256, 256) bool, alike. numbers: seed, epoch, index."""
        change = self.geometry.draw(*numbers)
        random = np.random.default_rng([*numbers, 1])
        gamma, contrast, brightness = random.uniform(-1, 1, 3) * (self.gamma, self.contrast, self.brightness)
        if random.random() >= self.moved:
            change = Change(change.flip, 1.0, 0.0, 0.0, 0.0)
        levels = 255 * (np.arange(256) / 255) ** np.exp(gamma)
        levels = ((levels - 127.5) * (1 + contrast) + 127.5 + brightness).round().clip(0, 255).astype(np.uint8)
        return levels[change.apply(pixels)], change.apply(mask)


class _Examples:
    """The training loop's Examples: items are {"pixels": (256, 256) uint8, "mask": (256, 256) bool}.

    Without augmentation, as for validation, an item also has "threshold", the threshold mask of the slice.
    """

    def __init__(self, slices: MaskedSlices, augmentation: LungAugmentation | None, seed: int) -> None:
        self.slices, self.augmentation, self.seed = slices, augmentation, seed

    def __len__(self) -> int:
        return len(self.slices)

    def item(self, index: int, epoch: int) -> Example:
        pixels, mask = read_pair(self.slices.images[index], self.slices.masks[index])
        if self.augmentation:
            pixels, mask = self.augmentation.apply(pixels, mask, self.seed, epoch, index)
            return {"pixels": pixels, "mask": mask}
        return {"pixels": pixels, "mask": mask, "threshold": threshold_mask(pixels)}


class _Learner:
    """The training loop's Learner. A slice's loss is cross-entropy plus soft Dice loss (Milletari et al. 2016)."""

    def __init__(self, train_examples: _Examples, valid_examples: _Examples, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: nn.Module = Averaging(LungUnet()).to(memory_format=torch.channels_last)
        self.train: Examples = train_examples
        self.valid: Examples = valid_examples

    def losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return _losses(model(batch["pixels"]).float(), batch["mask"].float())

    def measure(self, model: nn.Module, batch: Batch) -> Batch:
        logits, truth = model(batch["pixels"]).float(), batch["mask"]
        sums = {"loss": _losses(logits, truth.float()).sum(), "count": torch.tensor(len(truth))}
        for name, mask in (("", logits > 0), ("threshold_", batch["threshold"])):
            both, either = (mask & truth).sum((1, 2)), (mask | truth).sum((1, 2))
            sums |= {f"{name}both": both.sum(), f"{name}either": either.sum()}
            empty = either == 0  # both masks are empty, so they agree
            sums[f"{name}dice"] = (2 * both / (both + either)).where(~empty, 1.0).sum()
            sums[f"{name}iou"] = (both / either).where(~empty, 1.0).sum()
        return sums

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns loss, dice and iou, which are means over slices.

        ..._of_pixels: of the pixels of all slices together. threshold_...: of the threshold mask on the same slices.
        """
        figures = {"loss": sums["loss"] / sums["count"]}
        for name in ("", "threshold_"):
            both, either = sums[f"{name}both"], sums[f"{name}either"]
            figures |= {f"{name}{measure}": sums[f"{name}{measure}"] / sums["count"] for measure in ("dice", "iou")}
            figures[f"{name}dice_of_pixels"] = 2 * both / (both + either) if either else 1.0
            figures[f"{name}iou_of_pixels"] = both / either if either else 1.0
        return figures


def _losses(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Returns the losses, (n,), of logits and masks, both (n, 256, 256)."""
    entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    lung = logits.sigmoid()
    overlap = (2 * (lung * truth).sum((1, 2)) + 1) / (lung.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return entropy + 1 - overlap


@dataclass(frozen=True)
class UnetTraining:
    """A U-Net and the slices it is trained on, as plain data that can be sent to other processes.

    held_out: volumes to validate with; with none, the seed of the settings draws whole volumes, about `share` of the
    slices. Raises DataError where no slices are left to train on or to validate with.
    """

    SETTINGS: ClassVar[Settings] = Settings("adam", 2e-3, batch=8, epochs=60, patience=12)

    examples: MaskedSlices
    settings: Settings = SETTINGS
    held_out: tuple[str, ...] = ()
    share: float = 0.22
    augmentation: LungAugmentation = field(default_factory=LungAugmentation)

    def __post_init__(self) -> None:
        train_rows, valid_rows = self.split()
        volumes = sorted(set(self.examples.volumes))
        if not len(train_rows) or not len(valid_rows):
            raise DataError(
                f"lung masks: got volumes {volumes[:5]}, held out {list(self.held_out)}, expected some to train on and "
                "others to validate with; groups.csv in the image folder names the volumes"
            )

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows to train on and the rows to validate with."""
        volumes = np.array(self.examples.volumes)
        if self.held_out:
            is_held_out = np.isin(volumes, self.held_out)
            return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
        return split_by_group([0] * len(volumes), self.examples.volumes, self.share, self.settings.seed)

    @property
    def epochs(self) -> int:
        """The most epochs."""
        return self.settings.epochs

    def identity(self) -> dict[str, object]:
        """Returns what identifies the trained network, as JSON: the "identity" in FOLDER/model.json."""
        _, valid_rows = self.split()
        return {
            "kind": "unet",
            "architecture": ARCHITECTURE,
            "examples": self.examples.digest,
            "held_out": sorted({self.examples.volumes[row] for row in valid_rows}),
            "augmentation": asdict(self.augmentation),
        }

    def run(self, folder: str, device: str, report: Report | None = None) -> TrainingRecord:
        """Trains the network in a folder, or resumes its training, and returns what FOLDER/model.json holds.

        For the figures see _Learner.figures; "dice" is the mean over the held-out slices. The loop chose the best epoch
        on these slices, so the network may be a little worse on others. Raises as gansfp.training.loop.train does.
        """
        (train_rows, valid_rows), seed = self.split(), self.settings.seed
        learner = _Learner(
            _Examples(self.examples.take(train_rows), self.augmentation, seed),
            _Examples(self.examples.take(valid_rows), None, seed),
            seed,
        )
        return train(learner, folder, self.settings, self.identity(), device, report)
