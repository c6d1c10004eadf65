"""Views of a slice: the whole slice, its lungs, or all outside them. Works on many slices at once, on their device.

A view is a region, outside of which the slice is set to 0, and a box, which is resampled to the requested size. A slice
without lungs is shown completely in every view. PyTorch is imported inside the functions that use it: worker processes
that compute features on CPUs only need regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gansfp.errors import UsageError
from gansfp.images.slices import SIDE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Masks = TypeVar("Masks", "Tensor", np.ndarray)

MARGIN = 2.0  # pixels around the lungs, so that the view includes their outline
REACH = 2.0  # half width of the bicubic kernel, in pixels of the input or of the output, whichever are larger


@dataclass(frozen=True)
class View:
    """What a backbone sees of a slice.

    region: "all", "lungs" or "outer". crop: whether the view is cropped to the square around the lungs.
    """

    name: str
    region: str
    crop: bool = False


VIEWS: dict[str, View] = {
    "full": View("full", "all"),
    "lungs": View("lungs", "lungs", crop=True),
    "lungs_uncropped": View("lungs_uncropped", "lungs"),
    "outer": View("outer", "outer"),
}


def get_view(name: str) -> View:
    """Returns the view of that name. Raises UsageError, which lists the names, for any other name."""
    if name not in VIEWS:
        raise UsageError(f"view: got {name!r}, expected one of {sorted(VIEWS)}")
    return VIEWS[name]


def regions(masks: Masks, view: View) -> Masks:
    """Returns the pixels that a view shows: (n, 256, 256) bool, all True for a slice without lungs.

    masks: (n, 256, 256) bool, the lungs.
    """
    lungs = as_bytes(masks)
    if view.region == "all":
        return (lungs | 1).view(masks.dtype)
    shown = lungs if view.region == "lungs" else lungs ^ 1
    return (shown | (lungs.any((1, 2)) == 0).reshape(-1, 1, 1)).view(masks.dtype)


def as_bytes(masks: Masks) -> Masks:
    """Returns bools as 0 and 1. On CPUs, PyTorch computes bytes ten to thirty times as fast as bools."""
    if isinstance(masks, np.ndarray):
        return masks.view(np.uint8)
    import torch

    return masks.view(torch.uint8)


def boxes(masks: Tensor, view: View) -> Tensor:
    """Returns the boxes that a view shows, in pixels: (n, 4) float32 y0, x0, y1, x1, inside the slice, ends exclusive.

    A view that crops shows a square around the bounding box of the lungs, which keeps their proportions. Other views,
    and slices without lungs, show the whole slice. masks: (n, 256, 256) bool, the lungs.
    """
    import torch

    whole = torch.zeros(len(masks), 4, device=masks.device)  # made on the device: copying numbers waits for a GPU
    whole[:, 2:] = SIDE
    if not view.crop:
        return whole
    positions = torch.arange(SIDE, device=masks.device)
    lungs = as_bytes(masks)
    occupied = torch.stack([lungs.any(2), lungs.any(1)], 1).bool()  # (n, 2, 256): rows, columns
    low, high = positions.where(occupied, SIDE).amin(2).float(), positions.where(occupied, -1).amax(2).float() + 1
    side = ((high - low).amax(1, keepdim=True) + 2 * MARGIN).clamp(max=SIDE)
    # A square that would leave the slice is moved back into it, so that no pixels outside the slice are invented.
    start = ((low + high - side) / 2).clamp(min=0).minimum(SIDE - side)
    return torch.where(occupied[:, 0].any(1)[:, None], torch.cat([start, start + side], 1), whole)


def resample(images: Tensor, boxes: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Crops and resizes in one step: the box of each image becomes size x size pixels.

    images: (n, 256, 256) or (n, c, 256, 256), uint8 or floating. boxes: (n, 4) y0, x0, y1, x1 in pixels inside the
    slice, also fractions. Returns (n, size, size) or (n, c, size, size) float32.

    mode "bicubic" is antialiased and equals Pillow's `resize(..., BICUBIC, box)` on float images, and therefore also
    timm's transforms, except for their rounding to 8 bits. mode "area" is the exact mean over each output pixel's part
    of the box. Both are separable, so that each slice is multiplied by two matrices of weights. This needs no loop over
    pixels, accepts any box, and is fast in batches. Raises UsageError for another mode.
    """
    import torch

    weight_function = {"bicubic": _bicubic_weights, "area": _area_weights}.get(mode)
    if weight_function is None:
        raise UsageError(f"resampling: got {mode!r}, expected one of ['area', 'bicubic']")
    # bf16 is too coarse for the weights, also where the backbone runs in it.
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = (_matrix(boxes[:, axis], boxes[:, axis + 2], size, weight_function) for axis in (0, 1))
        if images.ndim == 4:
            rows, columns = rows[:, None], columns[:, None]
        return rows @ images.float() @ columns.mT


def area_matrix(side: int, device: torch.device) -> Tensor:
    """Returns (side, 256) float32: a row of means over each of `side` equal parts of 256 pixels."""
    import torch

    ends = torch.tensor([[0.0], [SIDE]], device=device)
    return _matrix(ends[0], ends[1], side, _area_weights)[0]


def _matrix(
    start: Tensor, end: Tensor, size: int, weight_function: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Returns (n, size, 256) float32: the weights of the input pixels in each output pixel.

    start, end: (n,), the box along one axis. Weights are computed only near each output pixel; all others are zero.
    """
    import torch

    # In float32, positions are wrong by up to 1e-5 pixels, which shows in the result.
    start, end = start.double()[:, None, None], end.double()[:, None, None]
    step = (end - start) / size  # input pixels per output pixel
    low = start + torch.arange(size, device=start.device)[:, None] * step
    margin = math.ceil(REACH * max(1.0, SIDE / size))  # input pixels on each side that may have a weight
    first = (low + step / 2).floor().long() - margin
    positions = first + torch.arange(2 * margin + 1, device=start.device)
    weights = weight_function(positions, low, step).where((positions >= 0) & (positions < SIDE), 0.0)
    weights = weights / weights.sum(2, keepdim=True)
    padded = torch.zeros(len(low), size, SIDE + 2 * margin, device=start.device)
    return padded.scatter_(2, positions + margin, weights.float())[:, :, margin:-margin]


def _bicubic_weights(positions: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """Returns the weights of Keys' cubic kernel (1981, a = -1/2), which is widened where the image shrinks."""
    x = ((positions + 0.5 - (low + step / 2)) / step.clamp(min=1.0)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return near.where(x < 1, far.where(x < REACH, 0.0))


def _area_weights(positions: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """Returns the length of the overlap between each output pixel and each input pixel."""
    return ((low + step).minimum(positions + 1) - low.maximum(positions)).clamp(min=0)
