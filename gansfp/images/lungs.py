"""Lung masks of single slices on the CPU: where the lungs are in a 256x256 axial chest CT slice, without weights.

This file holds the masks that the decoding tasks compute on CPUs, and the names of all masks. The masks that a network
computes, for batches of slices on the device, are in the room embedding. A mask function takes one slice; it returns an
all-False mask where it finds no lungs.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from gansfp.errors import UsageError

Mask = NDArray[np.bool_]

# Lengths and areas are pixels of the half-size slice (128x128) on which the shapes are found: 2.5 to 3 mm a pixel.
SMALLEST = 16  # a piece of lung below this is noise: 0.1 % of the slice
SMALLEST_SHARE = 0.05  # of the largest piece: smaller ones are airways and bowel, not lung
PIECES = 4  # two lungs, each in up to two pieces where the diaphragm's dome parts it
LARGEST_GAS = 400  # the trachea and most gas in stomach and bowel are smaller than this
CLOSING = 3  # bridges vessels that reach the lung's border, and its notches
LARGEST_HOLE = 50  # vessels and nodules are filled; the dome of the liver within a lung's ring is not lung
LEAKS = (0, 3, 6)  # half widths of the gaps in the chest wall that are sealed when too little lung is left
SUSPECT = 0.3  # lungs that take less of the chest than this may have leaked through its wall
GAIN = 1.3  # sealing must find this much more lung to be believed
SURROUNDED = 3.4  # of a sealed piece's four directions, averaged, must meet tissue: above a table one or two do
_ROW, _COLUMN = np.mgrid[:128, :128] - 63.5
_FIELD = _ROW**2 + _COLUMN**2 < 63**2  # a scanner's round field of view; its corners are black padding, not air


def threshold_mask(pixels: NDArray[np.uint8]) -> Mask:
    """The lungs of one slice by threshold, border cleared, two lungs, filled.

    The threshold lies halfway between Otsu's (Otsu 1979) and the slice's median tissue, so that it follows the window
    of grey levels and takes in ground-glass opacities. Air connected to the border is outside; where so little is left
    that the chest wall must have a gap (blurred generated slices have), the gap is sealed. Gas in airways and bowel,
    which is as dark as the air outside, goes; vessels are filled. Shapes are found at half size, the outline at full.

    pixels: (256, 256) uint8. Returns (256, 256) bool, all False where no lungs were found.
    """
    half = (pixels[::2, ::2].astype(np.uint16) + pixels[1::2, ::2] + pixels[::2, 1::2] + pixels[1::2, 1::2]) // 4
    half = half.astype(np.uint8)
    counts = np.bincount(half.ravel(), minlength=256)
    between = _otsu(counts)
    if not counts[between + 1 :].any():
        return np.zeros(pixels.shape, dtype=bool)
    dark, bright = _median(counts[: between + 1]), between + 1 + _median(counts[between + 1 :])
    limit = (between + bright) / 2
    pieces = _pieces(half, half <= limit, half <= (between + dark) / 2)
    if not pieces.any():
        return np.zeros(pixels.shape, dtype=bool)
    lungs = _fill(_close(pieces, CLOSING))
    return (_double(_dilate(lungs, 1)) & (pixels <= limit)) | _double(_erode(lungs, 1))


MASKS: dict[str, Callable[[NDArray[np.uint8]], Mask]] = {"threshold": threshold_mask}
NETWORK_MASKS: dict[str, bool] = {"lungmask": False, "unet": True}  # kind -> whether a folder follows it: `unet:FOLDER`
MASK_NAMES = sorted(
    [*MASKS, *(f"{kind}:FOLDER" if takes_folder else kind for kind, takes_folder in NETWORK_MASKS.items())]
)


def mask_kind(name: str) -> str:
    """Returns the kind of a lung mask, the part of its name before a colon: "unet" for `unet:FOLDER`."""
    return name.partition(":")[0]


def is_network(name: str) -> bool:
    """Returns True for the name of a mask that a network computes on the device: `lungmask` or `unet:FOLDER`."""
    kind, colon, folder = name.partition(":")
    return kind in NETWORK_MASKS and bool(folder) == bool(colon) == NETWORK_MASKS[kind]


def check_mask(name: str) -> None:
    """Raises UsageError, which lists the names, where no mask has this name."""
    if name not in MASKS and not is_network(name):
        raise UsageError(f"lung mask: got {name!r}, expected one of {MASK_NAMES}")


def get_mask(name: str) -> Callable[[NDArray[np.uint8]], Mask]:
    """The mask of that name that runs on the CPU, slice by slice. Raises UsageError for any other."""
    check_mask(name)
    if name not in MASKS:
        raise UsageError(f"lung mask: got {name!r}, which a network computes, expected one of {sorted(MASKS)}")
    return MASKS[name]


def dice(a: Mask, b: Mask) -> float:
    """Dice's coefficient (Dice 1945) of two masks of one shape, 2|a and b| / (|a| + |b|); 1 for two empty masks."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else 1.0


def _otsu(counts: NDArray[np.int64]) -> int:
    """The grey level that parts a histogram (256 counts) with the largest variance between the classes."""
    below = np.cumsum(counts)
    total = np.cumsum(counts * np.arange(256))
    products = below * (below[-1] - below)
    spread = (total[-1] * below.astype(np.float64) - total * below[-1].astype(np.float64)) ** 2
    return int(np.argmax(np.divide(spread, products, out=np.zeros(256), where=products > 0)))


def _median(counts: NDArray[np.int64]) -> int:
    """The (upper) median of what a histogram counts, as an index into it."""
    below = np.cumsum(counts)
    return int(np.searchsorted(below, below[-1] // 2, side="right"))


def _middle(values: NDArray[np.uint8]) -> float:
    """The median of one value or more, by counting, which is several times faster than sorting."""
    below = np.cumsum(np.bincount(values, minlength=256))
    low, high = np.searchsorted(below, [(values.size - 1) // 2, values.size // 2], side="right")
    return float(low + high) / 2


def _pieces(half: NDArray[np.uint8], air: Mask, clear_air: Mask) -> Mask:
    """The pieces of lung among the air, gaps in the chest wall sealed where the lungs have leaked through them.

    clear_air: the air by a lower threshold, which takes a wall that is only blurred for tissue.
    """
    best = _chosen(half, *_enclosed(air))
    found = np.count_nonzero(best)
    if found >= SUSPECT * (found + np.count_nonzero(~air)):
        return best
    around = _surroundings(_dilate(_erode(~air, 2), 2))  # without thin lines: tables, clothes
    for limited in (air, clear_air):
        if np.count_nonzero(limited & (around >= 3)) <= GAIN * found:
            break  # no air left in the chest that could be lung
        for gap in LEAKS:
            labels, areas, outside = _enclosed(_erode(limited, gap))
            inside = np.bincount(labels.ravel(), weights=around.ravel(), minlength=areas.size)
            areas[inside < SURROUNDED * areas] = 0
            sealed = _dilate(_chosen(half, labels, areas, outside), gap) & air
            if np.count_nonzero(sealed) > GAIN * found:
                best, found = sealed, np.count_nonzero(sealed)
    return best


def _enclosed(air: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64], Mask]:
    """The air's components: their labels, their areas by label (0 for those that touch the border), and the latter."""
    labels, count = ndimage.label(air)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    border = np.zeros(count + 1, dtype=bool)
    border[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    border[0] = False
    areas[border] = 0
    areas[0] = 0
    return labels, areas, border[labels]


def _chosen(half: NDArray[np.uint8], labels: NDArray[np.int32], areas: NDArray[np.int64], outside: Mask) -> Mask:
    """The components that are lung: the largest ones, without gas."""
    kept = np.zeros(areas.size, dtype=bool)
    order = [int(k) for k in np.argsort(-areas, kind="stable")[: 4 * PIECES] if areas[k] >= SMALLEST]
    if not order:
        return kept[labels]
    # Gas is nearer to the air outside than to the slice's typical lung. Strictly: where a window clips all three to
    # one level, nothing is gas.
    air_outside = half[outside & _FIELD]
    darkest = _middle(air_outside) if air_outside.size else -1.0
    gas = (darkest + _middle(half[(areas > 0)[labels]])) / 2
    largest = 0
    for k in order:
        if areas[k] < SMALLEST_SHARE * largest or np.count_nonzero(kept) == PIECES:
            break
        if areas[k] < LARGEST_GAS and _middle(half[labels == k]) < gas:
            continue
        largest = largest or int(areas[k])
        kept[k] = True
    return kept[labels]


def _surroundings(tissue: Mask) -> NDArray[np.uint8]:
    """For each pixel the number of directions (up, down, left, right) in which there is tissue."""
    seen = np.zeros(tissue.shape, dtype=np.uint8)
    for axis in (0, 1):
        seen += np.logical_or.accumulate(tissue, axis=axis)
        seen += np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis=axis), axis)
    return seen


def _fill(mask: Mask) -> Mask:
    """The mask, which is not empty, with its small holes filled."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    # Holes are within the mask's bounding box, and what is around it is not one.
    box = np.s_[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2]
    labels, count = ndimage.label(~mask[box])
    filled = np.bincount(labels.ravel(), minlength=count + 1) <= LARGEST_HOLE
    filled[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    filled[0] = True
    out = mask.copy()
    out[box] = filled[labels]
    return out


def _dilate(mask: Mask, radius: int) -> Mask:
    """Dilation by an octagon, squares and crosses in turn: shifted ors are several times faster than ndimage's."""
    for step in range(radius):
        wide = mask.copy()
        wide[1:] |= mask[:-1]
        wide[:-1] |= mask[1:]
        across = wide if step % 2 else mask
        out = wide.copy()
        out[:, 1:] |= across[:, :-1]
        out[:, :-1] |= across[:, 1:]
        mask = out
    return mask


def _erode(mask: Mask, radius: int) -> Mask:
    """Erosion by the same octagon; what lies beyond the border counts as mask."""
    return ~_dilate(~mask, radius)


def _close(mask: Mask, radius: int) -> Mask:
    """Closing by the same octagon, on a padded slice so that the border does not attract the mask."""
    padded = _erode(_dilate(np.pad(mask, radius), radius), radius)
    return padded[radius:-radius, radius:-radius]


def _double(mask: Mask) -> Mask:
    """Each pixel twice in both directions."""
    return mask.repeat(2, axis=0).repeat(2, axis=1)
