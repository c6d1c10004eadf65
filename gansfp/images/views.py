"""Views of a slice: the whole of it, its lungs, or what lies outside them; many slices at once, on their device.

A view is a region, outside of which the slice is set to 0, and a box, which is resampled to the size that is asked.
A slice without lungs is seen whole in every view. PyTorch is imported where it is needed: worker processes that compute
features on CPUs need regions alone.
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
    from torch import Tensor

Masks = TypeVar("Masks", "Tensor", np.ndarray)

MARGIN = 2.0  # pixels around the lungs: the outline, which is half in and half out, stays in the picture
REACH = 2.0  # of the bicubic kernel, in pixels of whichever side has the larger ones


@dataclass(frozen=True)
class View:
    """What is seen of a slice. region: "all", "lungs" or "outer"; crop: to the square around the lungs."""

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
    """The view of that name. Raises UsageError, which lists the names, for any other."""
    if name not in VIEWS:
        raise UsageError(f"view: got {name!r}, expected one of {sorted(VIEWS)}")
    return VIEWS[name]


def regions(masks: Masks, view: View) -> Masks:
    """The pixels that a view shows. masks: (n, 256, 256) bool, the lungs. Returns the same; all True without lungs."""
    if view.region == "all":
        return masks | True
    shown = masks if view.region == "lungs" else ~masks
    return shown | ~masks.any((1, 2)).reshape(-1, 1, 1)


def boxes(masks: Tensor, view: View) -> Tensor:
    """The boxes that a view shows, in pixels: (n, 4) float32 y0, x0, y1, x1, ends exclusive, within the slice.

    Cropped, they are squares around the lungs' bounding box (so the aspect is kept), else and without lungs the slice.
    masks: (n, 256, 256) bool, the lungs.
    """
    import torch

    whole = torch.tensor([0.0, 0.0, SIDE, SIDE], device=masks.device).expand(len(masks), 4)
    if not view.crop:
        return whole.clone()
    places = torch.arange(SIDE, device=masks.device)
    taken = torch.stack([masks.any(2), masks.any(1)], 1)  # rows, columns
    low, high = places.where(taken, SIDE).amin(2).float(), places.where(taken, -1).amax(2).float() + 1
    side = ((high - low).amax(1, keepdim=True) + 2 * MARGIN).clamp(max=SIDE)
    # A square that would leave the slice moves back into it, so that nothing beyond the border is made up.
    start = ((low + high - side) / 2).clamp(min=0).minimum(SIDE - side)
    return torch.where(taken[:, 0].any(1)[:, None], torch.cat([start, start + side], 1), whole)


def resample(images: Tensor, boxes: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Crop and resize in one step: each image's box to size x size.

    images: (n, 256, 256) or (n, c, 256, 256), uint8 or floating; boxes: (n, 4) y0, x0, y1, x1 in pixels within the
    slice, fractional or not. Returns (n, size, size) or (n, c, size, size) float32. "bicubic" is antialiased and equals
    Pillow's `resize(..., BICUBIC, box)` on float images (so also timm's transforms, but for their rounding to 8 bit);
    "area" is the exact mean over each output pixel's part of the box. Both are separable: two products with a
    matrix of weights a slice, which has no sampling loop, takes any box, and is fast in batches.
    Raises UsageError for another mode.
    """
    import torch

    weigh = {"bicubic": _bicubic_weights, "area": _area_weights}.get(mode)
    if weigh is None:
        raise UsageError(f"resampling: got {mode!r}, expected one of ['area', 'bicubic']")
    # The weights are no place for bf16, whatever precision the backbone runs in.
    with torch.autocast(images.device.type, enabled=False):
        rows, columns = (_matrix(boxes[:, axis], boxes[:, axis + 2], size, weigh) for axis in (0, 1))
        if images.ndim == 4:
            rows, columns = rows[:, None], columns[:, None]
        return rows @ images.float() @ columns.mT


def _matrix(start: Tensor, end: Tensor, size: int, weigh: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """(n, size, 256) float32: each output pixel's weights on the input pixels, weighed only where they are not zero."""
    import torch

    start, end = (
        start.double()[:, None, None],
        end.double()[:, None, None],
    )  # float32 is off by 1e-5 pixels, which shows
    step = (end - start) / size  # input pixels to an output pixel
    low = start + torch.arange(size, device=start.device)[:, None] * step
    margin = math.ceil(REACH * max(1.0, SIDE / size))  # as far as weights reach from an output pixel's own stretch
    first = (low + step / 2).floor().long() - margin
    places = first + torch.arange(2 * margin + 1, device=start.device)
    weights = weigh(places, low, step).where((places >= 0) & (places < SIDE), 0.0)
    weights = weights / weights.sum(2, keepdim=True)
    padded = torch.zeros(len(low), size, SIDE + 2 * margin, device=start.device)
    return padded.scatter_(2, places + margin, weights.float())[:, :, margin:-margin]


def _bicubic_weights(places: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """Keys' cubic (1981, a = -1/2), widened to shrink."""
    x = ((places + 0.5 - (low + step / 2)) / step.clamp(min=1.0)).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return near.where(x < 1, far.where(x < REACH, 0.0))


def _area_weights(places: Tensor, low: Tensor, step: Tensor) -> Tensor:
    """The length of each output pixel's stretch of the box that lies in each input pixel."""
    return ((low + step).minimum(places + 1) - low.maximum(places)).clamp(min=0)
