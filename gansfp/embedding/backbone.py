"""The records of the backbone table: one backbone, and what each kind of backbones must provide.

gansfp/embedding/backbones.py holds the table itself. Importing these two files does not import PyTorch or timm: the
tasks that decode slices import both files, and these tasks must start fast and stay small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gansfp.images.views import View

if TYPE_CHECKING:
    from torch import Tensor

    from gansfp.embedding.preparation import Preparation
    from gansfp.networks.weights import Weights


@dataclass(frozen=True)
class Backbone:
    """One way to turn a slice into a vector. The meaning of most fields depends on the kind.

    Args:
        name: the name as the user wrote it.
        kind: the kind of backbones that it belongs to.
        model: the network's name; "" for a kind without a network.
        features: timm: "pooled", "flat", "map" or "sketch"; lbp: "histogram" or "mean".
        level: the feature level of a "map" or "sketch"; 0 is the finest.
        size: timm: the input size that the name asks for, 0 for the model's own; highpass: the side of its result.
        window: highpass: pixels a side of the local mean, 0 for none.
        random: True where the weights are random.
        trained: the folder or URI of weights that were trained here.
        unit_norm: True where every vector has norm 1 (or 0, for flat slices).
    """

    name: str
    kind: Kind
    model: str = ""
    features: str = "pooled"
    level: int = 0
    size: int = 0
    window: int = 0
    random: bool = False
    trained: str = ""
    unit_norm: bool = False

    @property
    def network(self) -> str:
        """The model and the source of its weights. Backbones that share both share one loaded network."""
        source = "random" if self.random else self.trained
        return f"{self.model}@{source}" if source else self.model

    @property
    def needs_weights(self) -> bool:
        """True where a network computes the features: its weights must be loaded, and its precision can be chosen."""
        return isinstance(self.kind, NetworkKind)

    @property
    def on_cpu(self) -> bool:
        """True where CPUs compute the features, slice by slice, in the tasks that decode."""
        return isinstance(self.kind, CpuKind)


@dataclass(frozen=True)
class Kind:
    """What all kinds provide; each kind is one of the three subclasses, which say how its features are computed.

    Args:
        name: the kind's name.
        forms: the names of its backbones as a user writes them; error messages list them.
        pattern: matches the names of its backbones as a whole.
        read: makes the backbone of a name that matches. Raises UsageError for a number outside of its range.
    """

    name: str
    forms: tuple[str, ...]
    pattern: re.Pattern[str]
    read: Callable[[Kind, re.Match[str]], Backbone]


@dataclass(frozen=True)
class NetworkKind(Kind):
    """A kind whose features come from a network, on the device.

    Args:
        load_weights: loads the weights of a backbone; its second argument is the user's folder of weights, or None.
            Raises WeightsError where they cannot be loaded.
        check: raises UsageError where a backbone cannot be computed with these weights.
        create: puts the network on a device: (backbone, weights, device, precision).
    """

    load_weights: Callable[[Backbone, str | None], Weights]
    check: Callable[[Backbone, Weights], None]
    create: Callable[[Backbone, Weights, str, str], DeviceNetwork]


@dataclass(frozen=True)
class DeviceKind(Kind):
    """A kind without weights whose features are computed on the device, many slices at once.

    Args:
        compute: (members, pixels, masks) -> one (n, d) float32 for each member, a backbone and a view. pixels: (n, 256,
            256) uint8; masks: (n, 256, 256) bool, the lungs of those slices.
    """

    compute: Callable[[Sequence[tuple[Backbone, View]], Tensor, Tensor], list[Tensor]]


@dataclass(frozen=True)
class CpuKind(Kind):
    """A kind without weights whose features are computed on CPUs, slice by slice, without PyTorch.

    Args:
        compute: (members, pixels, mask) -> one (d,) float32 for each member, a backbone and a view. pixels: (256, 256)
            uint8; mask: (256, 256) bool, the lungs of that slice.
    """

    compute: Callable[
        [Sequence[tuple[Backbone, View]], NDArray[np.uint8], NDArray[np.bool_]], list[NDArray[np.float32]]
    ]


class DeviceNetwork(Protocol):
    """A network on a device; backbones that share the model, its weights and its input size share it."""

    preparation: Preparation

    def __call__(self, inputs: Tensor, backbones: Sequence[Backbone]) -> dict[str, Tensor]:
        """Runs one forward pass: (n, size, size) float32 grey levels, prepared -> {backbone name: (n, d) float32}."""
