"""Augmentation as KDE Lab 2024 published it: flip, zoom, rotation and shifts, by torchvision's v2 transforms.

What is drawn depends only on a seed and on the numbers beside it (epoch, example), not on a global state. A training
that resumes, or one in several processes, therefore sees the same images.
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
    """One random change of an image: a flip, then a rotation, zoom and shift about its centre.

    zoom: factor. angle: degrees, clockwise. down, right: shifts as shares of the side.
    """

    flip: bool
    zoom: float
    angle: float
    down: float
    right: float

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the changed image, of the same shape and dtype.

        pixels: (side, side), uint8 grey levels or a bool mask. Grey levels are interpolated bilinearly and rounded; a
        mask takes the nearest pixel. Pixels from outside the image are black, and False in a mask.
        """
        is_mask = pixels.dtype == bool
        image = torch.from_numpy(pixels.astype(np.float32))[None]
        if self.flip:
            image = functional.horizontal_flip(image)
        side = pixels.shape[-1]
        image = functional.affine(
            image,
            angle=self.angle,
            translate=[self.right * side, self.down * side],
            scale=self.zoom,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.NEAREST if is_mask else InterpolationMode.BILINEAR,
            fill=[0.0],
        )
        return image[0].round().numpy().astype(pixels.dtype)


@dataclass(frozen=True)
class Augmentation:
    """The ranges from which changes are drawn uniformly. The defaults are those of KDE Lab 2024.

    flip: whether half of the images are mirrored left to right. zoom: the factor is 1 - zoom to 1 + zoom. rotation: the
    largest angle in degrees, in both directions. shift: the largest shift along each axis, as a share of the side.
    The paper does not say whether both axes have the same zoom (here they have) and what fills the border (here black,
    which is air).
    """

    flip: bool = True
    zoom: float = 0.03
    rotation: float = 10.0
    shift: float = 0.05

    def draw(self, *numbers: int) -> Change:
        """Returns the change for these numbers, such as seed, epoch and index; always the same one for them."""
        random = np.random.default_rng(numbers)
        zoom, angle, down, right = random.uniform(-1, 1, 4).tolist()
        flip = self.flip and bool(random.random() < 0.5)
        return Change(flip, 1 + self.zoom * zoom, self.rotation * angle, self.shift * down, self.shift * right)


AUGMENTATIONS: dict[str, Augmentation] = {"kde-lab-2024": Augmentation()}


def get_augmentation(name: str) -> Augmentation | None:
    """Returns the augmentation of that name, None for "". Raises UsageError, which lists the names, for other names."""
    if name and name not in AUGMENTATIONS:
        raise UsageError(f"augmentation: got {name!r}, expected one of {sorted(AUGMENTATIONS)} or none")
    return AUGMENTATIONS.get(name)
