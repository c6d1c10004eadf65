"""Augmentation as KDE Lab 2024 published it: flip, zoom, rotation and shifts, by torchvision's v2 transforms.

What is drawn depends on a seed and the numbers given with it alone (epoch, example), never on a global state, so that
a training that goes on, or one in several processes, sees the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from gansfp.errors import UsageError


@dataclass(frozen=True)
class Change:
    """One drawn change of a picture: first flipped, then turned, zoomed and shifted about its centre.

    zoom: factor; angle: degrees, clockwise; down, right: shifts in shares of the side.
    """

    flip: bool
    zoom: float
    angle: float
    down: float
    right: float

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """picture: (side, side) uint8 grey levels or bool, a mask; the same changed.

        Grey levels are bilinear and rounded, a mask takes the nearest pixel; what comes in from beyond the border is
        black, and no mask.
        """
        mask = picture.dtype == bool
        image = torch.from_numpy(picture.astype(np.float32))[None]
        if self.flip:
            image = functional.horizontal_flip(image)
        side = picture.shape[-1]
        image = functional.affine(
            image,
            angle=self.angle,
            translate=[self.right * side, self.down * side],
            scale=self.zoom,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.NEAREST if mask else InterpolationMode.BILINEAR,
            fill=[0.0],
        )
        return image[0].round().numpy().astype(picture.dtype)


@dataclass(frozen=True)
class Augmentation:
    """What changes are drawn from, each uniformly: KDE Lab 2024's, unless told otherwise.

    flip: whether every other picture is mirrored left to right; zoom: 1 - zoom to 1 + zoom; rotation: up to so many
    degrees either way; shift: up to that share of the side, down and right each. The paper leaves open whether both
    axes are zoomed alike (here they are) and what fills the border (here black, a scan's air).
    """

    flip: bool = True
    zoom: float = 0.03
    rotation: float = 10.0
    shift: float = 0.05

    def draw(self, *numbers: int) -> Change:
        """The change that belongs to these numbers, such as seed, epoch and index."""
        random = np.random.default_rng(numbers)
        zoom, angle, down, right = random.uniform(-1, 1, 4).tolist()
        flip = self.flip and bool(random.random() < 0.5)
        return Change(flip, 1 + self.zoom * zoom, self.rotation * angle, self.shift * down, self.shift * right)


AUGMENTATIONS: dict[str, Augmentation] = {"kde-lab-2024": Augmentation()}


def get_augmentation(name: str) -> Augmentation | None:
    """The augmentation of that name, None for "". Raises UsageError, which lists the names, for any other."""
    if name and name not in AUGMENTATIONS:
        raise UsageError(f"augmentation: got {name!r}, expected one of {sorted(AUGMENTATIONS)} or none")
    return AUGMENTATIONS.get(name)
