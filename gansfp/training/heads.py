"""A classifier on its device: what goes into the network, the head on top of it, its loss, and learning with both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from gansfp.embedding.preparation import preparation
from gansfp.images.views import boxes, get_view, regions
from gansfp.training.loop import Batch, Examples

DROPOUT = 0.5  # of the head "dropout_dense"; KDE Lab 2024 gives no number


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


class InputTransform:
    """Pixels and masks become a network's input, on their device, and as for embedding."""

    def __init__(self, backbone: str, size: int, view: str) -> None:
        self.prepared, self.view = preparation(backbone, size), get_view(view)

    def __call__(self, pixels: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        """pixels: (n, side, side) uint8; masks: the same of bool, None where the view needs none.

        Returns (n, 3, size, size) float32.
        """
        seen = pixels.float()
        if masks is None:
            seen = self.prepared.apply(seen)
        else:
            seen = self.prepared.see(seen * regions(masks, self.view), self.view, boxes(masks, self.view))
        scale, shift = self.prepared.scale_and_shift(str(pixels.device))
        return (seen[:, None] * scale + shift).contiguous(memory_format=torch.channels_last)


def folded(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The batch norms of a network into which they were folded, as for 8-bit arithmetic; none of any other network.

    Each leaves its input as it is but for a bias: mean 0, variance 1 less epsilon. By a batch's own statistics it would
    not, and the layers behind it would see nothing that they know.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    statistics = [(layer.running_mean, layer.running_var) for layer in layers]
    as_folded = [
        mean is not None and not mean.any() and var is not None and not (var == 1).any() for mean, var in statistics
    ]
    return list(layers) if all(as_folded) else []


@dataclass
class SliceLearner:
    """A classifier as gansfp.training.loop.Learner. frozen: layers that keep their statistics, see folded."""

    model: torch.nn.Module
    train: Examples
    valid: Examples
    input_transform: InputTransform
    head: Head
    frozen: Sequence[torch.nn.Module] = ()

    def losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """(n,) the head's loss."""
        for layer in self.frozen:
            layer.eval()
        inputs = self.input_transform(batch["pixels"], batch.get("mask"))
        alone = model.training and len(inputs) == 1  # batch norm has no variance to go by
        logits = model(inputs.repeat(2, 1, 1, 1))[:1] if alone else model(inputs)
        return self.head.loss(logits.float(), batch["label"])

    def measure(self, model: torch.nn.Module, batch: Batch) -> Batch:
        """Sums of the loss, of right answers and of slices."""
        logits = model(self.input_transform(batch["pixels"], batch.get("mask"))).float()
        right = self.head.probabilities(logits).argmax(1) == batch["label"]
        count = torch.tensor(len(right), device=right.device)
        return {"loss": self.head.loss(logits, batch["label"]).sum(), "right": right.sum(), "count": count}

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Mean loss, and accuracy: the share of right answers."""
        return {"loss": sums["loss"] / sums["count"], "accuracy": sums["right"] / sums["count"]}
