"""Views of a slice: the whole of it, its lungs, or what lies outside them; many slices at once, on their device.

A view is a region, outside of which the slice is set to 0, and a box, which is resampled to the size that is asked.
A slice without lungs is seen whole in every view.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gansfp.errors import UsageError
from gansfp.slices import SIDE

MARGIN = 2.0  # pixels around the lungs: the outline, which is half in and half out, stays in the picture


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


def regions(masks: Tensor, view: View) -> Tensor:
    """The pixels that a view shows. masks: (n, 256, 256) bool, the lungs. Returns the same; all True without lungs."""
    if view.region == "all":
        return torch.ones_like(masks)
    without_lungs = ~masks.flatten(1).any(1)
    shown = masks if view.region == "lungs" else ~masks
    return shown | without_lungs[:, None, None]


def boxes(masks: Tensor, view: View) -> Tensor:
    """The boxes that a view shows, in pixels: (n, 4) float32 y0, x0, y1, x1, ends exclusive, within the slice.

    Cropped, they are squares around the lungs' bounding box (so the aspect is kept), else and without lungs the slice.
    masks: (n, 256, 256) bool, the lungs.
    """
    whole = torch.tensor([0.0, 0.0, SIDE, SIDE], device=masks.device).expand(len(masks), 4)
    if not view.crop:
        return whole.clone()
    places = torch.arange(SIDE, device=masks.device)
    first, last = [], []
    for beside in (2, 1):  # rows, then columns
        taken = masks.any(beside)
        first.append(places.where(taken, SIDE).amin(1))
        last.append(places.where(taken, -1).amax(1) + 1)
    low, high = torch.stack(first, 1).float(), torch.stack(last, 1).float()
    side = ((high - low).amax(1, keepdim=True) + 2 * MARGIN).clamp(max=SIDE)
    # A square that would leave the slice moves back into it, so that nothing beyond the border is made up.
    start = ((low + high - side) / 2).clamp(min=0).minimum(SIDE - side)
    return torch.where(masks.flatten(1).any(1)[:, None], torch.cat([start, start + side], 1), whole)


def resample(images: Tensor, boxes: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Crop and resize in one step: each image's box to size x size.

    images: (n, 256, 256) or (n, c, 256, 256), uint8 or floating; boxes: (n, 4) y0, x0, y1, x1 in pixels, fractional or
    not. Returns (n, size, size) or (n, c, size, size) float32. "bicubic" is antialiased and equals Pillow's
    `resize(..., BICUBIC, box)` on float images (so also timm's transforms, but for their rounding to 8 bit);
    "area" is the exact mean over each output pixel's part of the box. Both are separable: two products with a
    matrix of weights a slice, which has no sampling loop, takes any box, and is fast in batches.
    Raises UsageError for another mode.
    """
    weigh = {"bicubic": _bicubic_weights, "area": _area_weights}.get(mode)
    if weigh is None:
        raise UsageError(f"resampling: got {mode!r}, expected one of ['area', 'bicubic']")
    boxes = boxes.double()  # float32 places are off by 1e-5 pixels, which shows at edges
    # The weights are no place for bf16, whatever precision the backbone runs in.
    with torch.autocast(images.device.type, enabled=False):
        rows = weigh(boxes[:, 0], boxes[:, 2], size).float()
        columns = weigh(boxes[:, 1], boxes[:, 3], size).float()
        if images.ndim == 4:
            rows, columns = rows[:, None], columns[:, None]
        return rows @ images.float() @ columns.mT


def _bicubic_weights(start: Tensor, end: Tensor, size: int) -> Tensor:
    """(n, size, 256): each output pixel's weights on the input: Keys' cubic (1981, a = -1/2), widened to shrink."""
    scale = ((end - start) / size)[:, None, None]
    centres = start[:, None, None] + (torch.arange(size, device=start.device)[None, :, None] + 0.5) * scale
    x = ((torch.arange(SIDE, device=start.device) + 0.5 - centres) / scale.clamp(min=1.0)).abs().float()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return weights / weights.sum(2, keepdim=True)


def _area_weights(start: Tensor, end: Tensor, size: int) -> Tensor:
    """(n, size, 256): the share of each output pixel's stretch of the box that lies in each input pixel."""
    step = ((end - start) / size)[:, None, None]
    low = start[:, None, None] + torch.arange(size, device=start.device)[None, :, None] * step
    pixels = torch.arange(SIDE, device=start.device, dtype=start.dtype)
    return ((low + step).minimum(pixels + 1) - low.maximum(pixels)).clamp(min=0) / step
