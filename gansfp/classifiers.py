"""Fine-tuned classifiers: a timm model trained stage by stage on labelled slices, and what it says of others.

FOLDER/stage-1, stage-2, ... hold the network after each stage, as gansfp.training leaves them; FOLDER itself holds that
of the last one, which is a backbone by the name MODEL@FOLDER.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional

from gansfp import store
from gansfp.augmentation import get_augmentation
from gansfp.backbones import Preparation, parse_backbone, preparation
from gansfp.errors import DataError, UsageError, WeightsError
from gansfp.examples import LabelledSlices, Masker, SliceExamples, masker_of, read_blocks, split_by_group
from gansfp.models import read_finished, read_model, write_model
from gansfp.slices import SIDE
from gansfp.training import Batch, Report, train
from gansfp.transfers import Stage
from gansfp.views import get_view
from gansfp.weights import Weights, create, digest_of, has_fixed_size, translate, without_head

COPIED = "real"  # the class of which `copies` are made
DROPOUT = 0.5  # of the head "dropout_dense"; KDE Lab 2024 gives no number

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """What is on top of a network: outputs a class, or one for two classes; dropout before it; the loss."""

    outputs: Callable[[int], int]
    dropout: float
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (n, outputs), (n,) int64 -> (n,)
    probabilities: Callable[[torch.Tensor], torch.Tensor]  # (n, outputs) -> (n, classes)


def _binary_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")


def _binary_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.cat([(-logits).sigmoid(), logits.sigmoid()], 1)


HEADS: dict[str, Head] = {
    "linear": Head(
        lambda classes: classes,
        0.0,
        lambda logits, labels: functional.cross_entropy(logits, labels, reduction="none"),
        lambda logits: logits.softmax(1),
    ),
    # KDE Lab 2024: dropout, then one dense number by a sigmoid, trained with binary cross-entropy.
    "dropout_dense": Head(lambda classes: 1, DROPOUT, _binary_loss, _binary_probabilities),
}


@dataclass(frozen=True)
class ClassifierTraining:
    """What is to be trained and how; raises UsageError or DataError, in one line, for what cannot be.

    backbone: a timm model, by its name alone. start: its weights (see gansfp.weights.load_weights); None: random.
    size: pixels a side of its inputs, 0 for its own. copies: augmented pictures that a slice of the class "real"
    becomes; the other classes are not augmented then. share: of every class, by groups, to validate with.
    """

    backbone: str
    stages: tuple[Stage, ...]
    view: str = "full"
    mask: str = "threshold"
    size: int = 0
    augmentation: str = ""
    copies: int = 1
    head: str = "linear"
    start: Weights | None = None
    seed: int = 0
    share: float = 0.2

    def __post_init__(self) -> None:
        name = f"{self.backbone}:{self.size}" if self.size else self.backbone
        parsed = parse_backbone(name)
        if (parsed.kind, parsed.model) != ("timm", self.backbone):
            raise UsageError(f"backbone: got {self.backbone!r}, expected the name of a timm model alone")
        get_view(self.view)
        get_augmentation(self.augmentation)
        if self.head not in HEADS:
            raise UsageError(f"head: got {self.head!r}, expected one of {sorted(HEADS)}")
        if self.copies < 1 or (self.copies > 1 and not self.augmentation):
            raise UsageError(f"copies: got {self.copies}, expected 1, or more with an augmentation")
        if not 0 < self.share < 1:
            raise UsageError(f"share to validate with: got {self.share}, expected more than 0 and less than 1")
        if self.start and self.start.network.partition("@")[0] != self.backbone:
            raise UsageError(f"start: got weights of {self.start.network!r}, expected some of {self.backbone!r}")
        if all(stage.skipped for stage in self.stages):
            told = "; ".join(f"{stage.name!r}: {stage.skipped}" for stage in self.stages) or "none named"
            raise DataError(f"no stage can be trained ({told})")
        for stage in self.stages:
            if stage.skipped or stage.examples is None:
                continue
            if self.head == "dropout_dense" and stage.labels == "supervised" and len(stage.examples.classes) != 2:
                raise UsageError(f"stage {stage.name!r}: head 'dropout_dense' tells two classes apart, got more")
            if stage.examples.side != SIDE and self.view != "full":
                raise UsageError(
                    f"view: got {self.view!r} of pictures of {stage.examples.side} pixels, expected 'full'"
                )
        self._check_size()

    def _check_size(self) -> None:
        """Raises UsageError where the network does not take inputs of that size."""
        pixels = preparation(self.backbone, self.size).size
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                create(self.backbone, 2, self.size).eval()(torch.zeros(1, 3, pixels, pixels))
        except Exception as error:  # models refuse a size in many ways
            raise UsageError(
                f"backbone {self.backbone!r}: no classifier of {pixels} pixels ({store.one_line(error)[:150]})"
            ) from error

    @property
    def epochs(self) -> int:
        """How many there are at most, in all stages together."""
        return sum(stage.settings.epochs for stage in self.stages if not stage.skipped)

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The stages that will not be trained, as far as is known beforehand: name and why."""
        return [{"stage": stage.name, "why": stage.skipped} for stage in self.stages if stage.skipped]

    def identity(self) -> dict[str, Any]:
        """What is trained on what, as JSON; in FOLDER/model.json `classes` are added, those of the last stage."""
        stages = [
            {
                "name": stage.name,
                "labels": stage.labels,
                "examples": stage.examples.digest() if stage.examples else "",
                "settings": asdict(stage.settings),
            }
            for stage in self.stages
            if not stage.skipped
        ]
        return {
            "kind": "classifier",
            "backbone": self.backbone,
            "size": self.size,
            "view": self.view,
            "mask": self.mask if get_view(self.view).region != "all" else "",
            "head": self.head,
            "augmentation": self.augmentation,
            "copies": self.copies,
            "seed": self.seed,
            "share": self.share,
            "start": f"{self.start.network} {self.start.digest}" if self.start else "random",
            "stages": stages,
        }

    def run(self, folder: str, device: str, report: Report | None = None) -> dict[str, Any]:
        """Trains all stages, or goes on where they were left, and returns what FOLDER/model.json holds."""
        raise NotImplementedError


def predict(
    folder: str, slices: LabelledSlices, device: str, batch: int = 256, masker: Masker | None = None
) -> np.ndarray:
    """What a trained classifier says of slices: (n, classes) float32 probabilities, NaN for those not to be read."""
    raise NotImplementedError
