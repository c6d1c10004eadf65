"""What the training loop (gansfp/training/loop.py) needs of a network: a Learner with its examples and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

Example = Mapping[str, np.ndarray | int]
Batch = dict[str, torch.Tensor]


class Examples(Protocol):
    """The examples to train on. An item depends only on its index and epoch, so a resumed training sees the same."""

    def __len__(self) -> int: ...

    def item(self, index: int, epoch: int) -> Example:
        """Returns one example: arrays, whose shapes are the same for all examples, and numbers."""


class Learner(Protocol):
    """A network with its examples and its loss.

    The methods get the model, which the loop may have wrapped for several processes. They must call it as a whole.
    """

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def train(self) -> Examples: ...

    @property
    def valid(self) -> Examples:
        """The examples to validate with. Where there are none, the last epoch counts as the best."""

    def losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Returns the loss of each example, (n,), differentiable."""

    def measure(self, model: torch.nn.Module, batch: Batch) -> Batch:
        """Returns sums over the examples of a validation batch; "loss" and "count" are among them."""

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """Turns the sums over all batches into the figures of the validation; "loss" is one of them."""
