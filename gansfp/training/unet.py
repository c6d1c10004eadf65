"""Training of the lung U-Net (gansfp/networks/lung_unet.py): augmentation, loss, validation figures."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gansfp.errors import DataError
from gansfp.images.augmentation import Augmentation, Change
from gansfp.images.lungs import threshold_mask
from gansfp.networks.lung_unet import ARCHITECTURE, LungUnet
from gansfp.training.examples import split_by_group
from gansfp.training.loop import Batch, Examples, Report, Settings, train
from gansfp.training.masked_slices import MaskedSlices, read_pair

KEPT = 0.98  # of the averaged weights at each step, once there were many; those of the start are soon forgotten


class Averaging(nn.Module):
    """A network that is trained, and beside it the moving mean of its weights, which is what is used.

    It is better than the last weights, and its figures do not jump from epoch to epoch (Polyak and Juditsky 1992).
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
            kept = min(KEPT, float(1 + self.steps) / float(10 + self.steps))
            self.steps += 1
            for mean, now in zip(self.average.state_dict().values(), self.network.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(now, 1 - kept)
                else:
                    mean.copy_(now)
        return self.network(pixels)


@dataclass(frozen=True)
class LungAugmentation:
    """How slices are changed: every other one mirrored; some turned, zoomed and shifted, which blurs them, so that the
    others stay as sharp as real ones; and their grey levels, so that other windows are covered.

    moved: the share that is turned; gamma: e to the power of up to so much either way; contrast: a factor up to so far
    from 1, about mid grey; brightness: grey levels.
    """

    geometry: Augmentation = field(default_factory=lambda: Augmentation(zoom=0.15, rotation=10.0, shift=0.08))
    moved: float = 0.5
    gamma: float = 0.2
    contrast: float = 0.1
    brightness: float = 10.0

    def apply(self, pixels: np.ndarray, mask: np.ndarray, *numbers: int) -> tuple[np.ndarray, np.ndarray]:
        """(256, 256) uint8 and (256, 256) bool, changed as these numbers (seed, epoch, index) say."""
        change = self.geometry.draw(*numbers)
        random = np.random.default_rng([*numbers, 1])
        gamma, contrast, brightness = random.uniform(-1, 1, 3) * (self.gamma, self.contrast, self.brightness)
        if random.random() >= self.moved:
            change = Change(change.flip, 1.0, 0.0, 0.0, 0.0)
        levels = 255 * (np.arange(256) / 255) ** np.exp(gamma)
        levels = ((levels - 127.5) * (1 + contrast) + 127.5 + brightness).round().clip(0, 255).astype(np.uint8)
        return levels[change.apply(pixels)], change.apply(mask)


class _Examples:
    """gansfp.training.loop.Examples: {"pixels": (256, 256) uint8, "mask": (256, 256) bool}; without augmentation also
    "threshold", the threshold mask."""

    def __init__(self, slices: MaskedSlices, augmentation: LungAugmentation | None, seed: int) -> None:
        self.slices, self.augmentation, self.seed = slices, augmentation, seed

    def __len__(self) -> int:
        return len(self.slices)

    def item(self, index: int, epoch: int) -> dict[str, Any]:
        pixels, mask = read_pair(self.slices.images[index], self.slices.masks[index])
        if self.augmentation:
            pixels, mask = self.augmentation.apply(pixels, mask, self.seed, epoch, index)
            return {"pixels": pixels, "mask": mask}
        return {"pixels": pixels, "mask": mask, "threshold": threshold_mask(pixels)}


class _Learner:
    """gansfp.training.loop.Learner: cross-entropy and soft Dice (Milletari et al. 2016), each slice counting alike."""

    def __init__(self, learnt: _Examples, held_out: _Examples, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: nn.Module = Averaging(LungUnet()).to(memory_format=torch.channels_last)
        self.train: Examples = learnt
        self.valid: Examples = held_out

    def losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return _losses(model(batch["pixels"]).float(), batch["mask"].float())

    def measure(self, model: nn.Module, batch: Batch) -> Batch:
        logits, truth = model(batch["pixels"]).float(), batch["mask"]
        sums = {"loss": _losses(logits, truth.float()).sum(), "count": torch.tensor(len(truth))}
        for name, found in (("", logits > 0), ("threshold_", batch["threshold"])):
            both, either = (found & truth).sum((1, 2)), (found | truth).sum((1, 2))
            sums |= {f"{name}both": both.sum(), f"{name}either": either.sum()}
            empty = either == 0  # neither has lungs: they agree
            sums[f"{name}dice"] = (2 * both / (both + either)).where(~empty, 1.0).sum()
            sums[f"{name}iou"] = (both / either).where(~empty, 1.0).sum()
        return sums

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """loss; dice and iou: means over slices; ..._of_pixels: of all pixels of all slices together; threshold_...: of
        the threshold mask on the same slices."""
        found = {"loss": sums["loss"] / sums["count"]}
        for name in ("", "threshold_"):
            both, either = sums[f"{name}both"], sums[f"{name}either"]
            found |= {f"{name}{what}": sums[f"{name}{what}"] / sums["count"] for what in ("dice", "iou")}
            found[f"{name}dice_of_pixels"] = 2 * both / (both + either) if either else 1.0
            found[f"{name}iou_of_pixels"] = both / either if either else 1.0
        return found


def _losses(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """(n,) of logits and masks (n, 256, 256)."""
    entropy = binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
    lung = logits.sigmoid()
    overlap = (2 * (lung * truth).sum((1, 2)) + 1) / (lung.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return entropy + 1 - overlap


@dataclass(frozen=True)
class UnetTraining:
    """A U-Net and what it is trained on; as plain data, to be sent to other processes.

    held_out: volumes to validate with; none: `share` of the slices, in whole volumes drawn by the settings' seed.
    Raises DataError where that leaves nothing to train on or to validate with.
    """

    SETTINGS: ClassVar[Settings] = Settings("adam", 2e-3, batch=8, epochs=60, patience=12)

    examples: MaskedSlices
    settings: Settings = SETTINGS
    held_out: tuple[str, ...] = ()
    share: float = 0.22
    augmentation: LungAugmentation = field(default_factory=LungAugmentation)

    def __post_init__(self) -> None:
        learnt, held = self.split()
        volumes = sorted(set(self.examples.volumes))
        if not len(learnt) or not len(held):
            raise DataError(
                f"lung masks: got volumes {volumes[:5]}, held out {list(self.held_out)}, expected some to train on and "
                "others to validate with; groups.csv beside the images names them"
            )

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows to validate with."""
        volumes = np.array(self.examples.volumes)
        if self.held_out:
            held = np.isin(volumes, self.held_out)
            return np.flatnonzero(~held), np.flatnonzero(held)
        return split_by_group([0] * len(volumes), self.examples.volumes, self.share, self.settings.seed)

    @property
    def epochs(self) -> int:
        """How many there are at most."""
        return self.settings.epochs

    def identity(self) -> dict[str, Any]:
        """What is trained on what."""
        _, held = self.split()
        return {
            "kind": "unet",
            "architecture": ARCHITECTURE,
            "examples": self.examples.digest,
            "held_out": sorted({self.examples.volumes[row] for row in held}),
            "augmentation": asdict(self.augmentation),
        }

    def run(self, folder: str, device: str, report: Report | None = None) -> dict[str, Any]:
        """Trains the network in `folder`, or goes on with it; returns what its model.json holds.

        Its figures: see _Learner.figures; "dice" is the mean over the held-out slices. The epoch that is kept was
        chosen on these slices, so that on others the network may be a little worse.
        """
        rows, seed = self.split(), self.settings.seed
        learner = _Learner(
            _Examples(self.examples.take(rows[0]), self.augmentation, seed),
            _Examples(self.examples.take(rows[1]), None, seed),
            seed,
        )
        return train(learner, folder, self.settings, self.identity(), device, report)
