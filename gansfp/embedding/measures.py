"""Plain measurements of a slice that have names: how noisy and bright it is, where the body lies, what files leave.

No score for membership rests on them. They serve the blind control: used and not-used slices that differ in them may
come from different scanners, and a difference between scanners must not be taken for a leak.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gansfp.images.slices import SIDE

NOISE, BRIGHTNESS, POSITION, FILES = "noise", "brightness or window", "position or size of the body", "file format"
IMMERKAER = 6 * 0.6745  # median of the absolute filtered slice, for noise of standard deviation 1
STEP = 2  # pixels: every second row and column is enough for a median and takes a quarter of the time
BLOCK = 8  # pixels of a JPEG's blocks
LEVELS = 256
LEAST = 1e-3  # grey levels: a smaller mean difference is that of a flat slice


class Measure(NamedTuple):
    """A measurement: its name in words, and the kind of difference that it shows."""

    name: str
    kind: str


MEASURES = (
    Measure("noise", NOISE),
    Measure("sharpness", NOISE),
    Measure("mean grey level", BRIGHTNESS),
    Measure("contrast", BRIGHTNESS),
    Measure("share of black pixels", BRIGHTNESS),
    Measure("share of white pixels", BRIGHTNESS),
    Measure("number of grey levels", BRIGHTNESS),
    Measure("centre of the body, down", POSITION),
    Measure("centre of the body, across", POSITION),
    Measure("height of the body", POSITION),
    Measure("width of the body", POSITION),
    Measure("edges of 8x8 blocks", FILES),
)


def measures(pixels: Tensor) -> Tensor:
    """Measures slices, (n, 256, 256) uint8. Returns (n, len(MEASURES)) float32, in grey levels, pixels and shares.

    The noise is the median of the absolute second differences, where no pixel is cut off to black or white (Immerkaer
    1996, with a median in place of the mean, so that edges count little). The sharpness is the mean difference of
    neighbouring pixels divided by that of pixels two apart. Centre and size of the body are mean and standard deviation
    of the pixels' places, weighted by their grey levels. The edges of blocks are the mean difference across the borders
    of 8x8 blocks divided by that of all neighbours, which is 1 in a file that was never a JPEG.
    """
    grey = pixels.float()
    near = (grey[:, :, 1:] - grey[:, :, :-1]).abs()
    steps, apart = near.mean((1, 2)), (grey[:, :, 2:] - grey[:, :, :-2]).abs().mean((1, 2))
    borders = near[:, :, BLOCK - 1 :: BLOCK].mean((1, 2))
    shares = _histograms(pixels) / SIDE**2
    levels = torch.arange(LEVELS, dtype=torch.float32, device=grey.device)
    mean = shares @ levels
    down, height = _centre_and_spread(grey.sum(2))
    across, width = _centre_and_spread(grey.sum(1))
    columns = [
        _noise(grey),
        steps / apart.clamp(min=LEAST),
        mean,
        (shares * (levels - mean[:, None]).square()).sum(1).sqrt(),
        shares[:, 0],
        shares[:, -1],
        (shares > 0).sum(1).float(),
        down,
        across,
        height,
        width,
        borders / steps.clamp(min=LEAST),
    ]
    return torch.stack(columns, 1)


def _histograms(pixels: Tensor) -> Tensor:
    """How many pixels have each grey level, (n, 256) float32, of (n, 256, 256) uint8."""
    offsets = LEVELS * torch.arange(len(pixels), dtype=torch.int32, device=pixels.device)
    places = pixels.flatten(1).int() + offsets[:, None]
    return torch.bincount(places.flatten(), minlength=LEVELS * len(pixels)).view(-1, LEVELS).float()


def _noise(grey: Tensor) -> Tensor:
    """The standard deviation (n,) of the noise of (n, 256, 256) float32; 0 where all pixels are black or white."""
    rows = grey[:, :-2] - 2 * grey[:, 1:-1] + grey[:, 2:]
    filtered = (rows[:, :, :-2] - 2 * rows[:, :, 1:-1] + rows[:, :, 2:])[:, ::STEP, ::STEP].abs()
    middle = grey[:, 1:-1, 1:-1][:, ::STEP, ::STEP]
    shown = (middle > 0) & (middle < 255)
    values = torch.where(shown, filtered, torch.nan).flatten(1)
    return values.nanmedian(1).values.nan_to_num(0.0) / IMMERKAER


def _centre_and_spread(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n,) of places 0 to 255, weighted by (n, 256); the middle where all weights are 0."""
    weights = weights + 1e-3
    shares = weights / weights.sum(1, keepdim=True)
    places = torch.arange(SIDE, dtype=torch.float32, device=weights.device)
    centre = shares @ places
    return centre, (shares * (places - centre[:, None]).square()).sum(1).sqrt()
