"""A classifier on its device: the input of its network, its head, its loss, and the Learner made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from gansfp.embedding.preparation import preparation
from gansfp.images.views import boxes, get_view, regions
from gansfp.training.learner import Batch, Examples

DROPOUT = 0.5  # of the head "dropout_dense"; KDE Lab 2024 gives no number


@dataclass(frozen=True)
class Head:
    """The last layers of a classifier. outputs: numbers of the last layer for a number of classes."""

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
    # KDE Lab 2024: dropout, then one dense output with a sigmoid, trained with binary cross-entropy.
    "dropout_dense": Head(lambda classes: 1, DROPOUT, _binary_loss, _binary_probabilities),
}


class InputTransform:
    """Turns pixels and masks into the input of a network, on their device, in the same way as for embedding."""

    def __init__(self, backbone: str, size: int, view: str) -> None:
        self.prepared, self.view = preparation(backbone, size), get_view(view)
        self._scale_and_shift = functools.cache(self.prepared.scale_and_shift)  # copied to a device once

    def __call__(self, pixels: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        """Returns (n, 3, size, size) float32.

        pixels: (n, side, side) uint8. masks: (n, side, side) bool; None where the view needs no masks.
        """
        inputs = pixels.float()
        if masks is None:
            inputs = self.prepared.apply(inputs)
        else:
            inputs = self.prepared.apply_to_view(inputs * regions(masks, self.view), self.view, boxes(masks, self.view))
        scale, shift = self._scale_and_shift(str(pixels.device))
        return (inputs[:, None] * scale + shift).contiguous(memory_format=torch.channels_last)


def has_folded_batch_norms(network: torch.nn.Module) -> bool:
    """Returns whether the batch norms of a network were folded into its convolutions, as for 8-bit arithmetic.

    A folded batch norm only adds a bias to its input: its mean is 0, its variance 1
    minus epsilon. With the statistics of a batch it would change its input, and the layers after it would get values
    that they were not trained for.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    statistics = [(layer.running_mean, layer.running_var) for layer in layers]
    are_folded = [
        mean is not None and not mean.any() and var is not None and not (var == 1).any() for mean, var in statistics
    ]
    return bool(layers) and all(are_folded)


@dataclass
class SliceLearner:
    """A classifier as gansfp.training.learner.Learner.

    keeps_statistics: batch norm uses its running statistics in training, too; see has_folded_batch_norms.
    """

    model: torch.nn.Module
    train: Examples
    valid: Examples
    input_transform: InputTransform
    head: Head
    keeps_statistics: bool = False

    def losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Returns the head's loss, (n,)."""
        for layer in model.modules() if self.keeps_statistics else ():
            if isinstance(layer, BatchNorm):
                layer.eval()
        inputs = self.input_transform(batch["pixels"], batch.get("mask"))
        single = model.training and len(inputs) == 1  # batch norm cannot compute a variance from one example
        logits = model(inputs.repeat(2, 1, 1, 1))[:1] if single else model(inputs)
        return self.head.loss(logits.float(), batch["label"])

    def measure(self, model: torch.nn.Module, batch: Batch) -> Batch:
        """Returns the sum of the losses, the number of right answers and the number of slices."""
        logits = model(self.input_transform(batch["pixels"], batch.get("mask"))).float()
        right = self.head.probabilities(logits).argmax(1) == batch["label"]
        count = torch.tensor(len(right), device=right.device)
        return {"loss": self.head.loss(logits, batch["label"]).sum(), "right": right.sum(), "count": count}

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Returns the mean loss and the accuracy, which is the share of right answers."""
        return {"loss": sums["loss"] / sums["count"], "accuracy": sums["right"] / sums["count"]}
