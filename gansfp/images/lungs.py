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

# Shapes are found on the slice at half size (128x128). Lengths and areas are in its pixels, of 2.5 to 3 mm.
SMALLEST = 16  # smallest area of a piece of lung, 0.1 % of the slice; smaller pieces are noise
SMALLEST_SHARE = 0.05  # smallest area as a share of the largest piece; smaller pieces are airways and bowel
PIECES = 4  # largest number of pieces: two lungs, each in up to two pieces where the dome of the diaphragm divides it
LARGEST_GAS = 400  # the trachea and most gas in stomach and bowel have a smaller area
CLOSING = 3  # radius that bridges vessels at the lung's border, and its notches
LARGEST_HOLE = 50  # holes up to this area are vessels and nodules and are filled; a larger one may be the liver's dome
LEAKS = (0, 3, 6)  # half widths of the gaps in the chest wall that are sealed if too little lung is found
SUSPECT = 0.3  # if the lungs take a smaller share of the chest, air may have leaked out through a gap in its wall
GAIN = 1.3  # sealing is accepted if it finds this many times more lung
SURROUNDED = 3.4  # directions of four, averaged over a sealed piece, that must meet tissue; above a table it is 1 or 2
_CROSS = ndimage.generate_binary_structure(2, 1)  # pixels that share an edge are connected
_ROW, _COLUMN = np.mgrid[:128, :128] - 63.5
_FIELD = _ROW**2 + _COLUMN**2 < 63**2  # a scanner's round field of view; the corners are black padding, not air


def threshold_mask(pixels: NDArray[np.uint8]) -> Mask:
    """Returns the lungs of one slice: pixels below a threshold, without the air at the border, with holes filled.

    The threshold lies halfway between Otsu's (Otsu 1979) and the median of the tissue, so that it follows the window
    of grey levels and includes ground-glass opacities. Air that is connected to the border is outside the body. Where
    so little air is left that the chest wall must have a gap (as in blurred generated slices), the gap is sealed. Gas
    in airways and bowel is as dark as the air outside and is removed; vessels are filled. Shapes are found at half
    size, the outline at full size.

    pixels: (256, 256) uint8. Returns (256, 256) bool, all False where it finds no lungs.
    """
    pairs = pixels[::2].astype(np.uint16) + pixels[1::2]
    half = ((pairs[:, ::2] + pairs[:, 1::2]) >> 2).astype(np.uint8)
    counts = np.bincount(half.ravel(), minlength=256)
    otsu = _otsu(counts)
    if not counts[otsu + 1 :].any():
        return np.zeros(pixels.shape, dtype=bool)
    dark, bright = _median(counts[: otsu + 1]), otsu + 1 + _median(counts[otsu + 1 :])
    limit = (otsu + bright) // 2  # a half more would include the same grey levels
    pieces = _pieces(half, half <= limit, half <= (otsu + dark) // 2)
    if not pieces.any():
        return np.zeros(pixels.shape, dtype=bool)
    lungs = _fill(_close(pieces, CLOSING))
    # The outline comes from the full size; inside it, all pixels are lung.
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
    """Returns the mask function of that name, for one slice on the CPU. Raises UsageError for any other name."""
    check_mask(name)
    if name not in MASKS:
        raise UsageError(f"lung mask: got {name!r}, which a network computes, expected one of {sorted(MASKS)}")
    return MASKS[name]


def dice(a: Mask, b: Mask) -> float:
    """Returns Dice's coefficient (Dice 1945) of two masks of one shape, 2|a and b| / (|a| + |b|); 1 for empty masks."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else 1.0


def _otsu(counts: NDArray[np.int64]) -> int:
    """Returns the grey level that divides a histogram (256 counts) with the largest variance between the classes."""
    below = np.cumsum(counts)
    total = np.cumsum(counts * np.arange(256))
    products = below * (below[-1] - below)
    spread = (total[-1] * below.astype(np.float64) - total * below[-1].astype(np.float64)) ** 2
    return int(np.argmax(np.divide(spread, products, out=np.zeros(256), where=products > 0)))


def _median(counts: NDArray[np.int64]) -> int:
    """Returns the (upper) median of the values that a histogram counts: an index into it."""
    below = np.cumsum(counts)
    return int(np.searchsorted(below, below[-1] // 2, side="right"))


def _middle(values: NDArray[np.uint8]) -> float:
    """Returns the median of one or more values, by counting, which is several times faster than sorting."""
    below = np.cumsum(np.bincount(values, minlength=256))
    low, high = np.searchsorted(below, [(values.size - 1) // 2, values.size // 2], side="right")
    return float(low + high) / 2


def _pieces(half: NDArray[np.uint8], air: Mask, clear_air: Mask) -> Mask:
    """Returns the pieces of lung in the air. Seals gaps in the chest wall through which the lungs touch the outside.

    clear_air: the air by a lower threshold, for which a blurred wall is still tissue.
    """
    lungs = _select_lungs(half, *_enclosed(air))
    area = np.count_nonzero(lungs)
    if area >= SUSPECT * (area + np.count_nonzero(~air)):
        return lungs
    directions = _directions_with_tissue(_dilate(_erode(~air, 2), 2))  # erosion removes thin lines: tables, clothes
    for candidate_air in (air, clear_air):
        if np.count_nonzero(candidate_air & (directions >= 3)) <= GAIN * area:
            break  # no more air in the chest that could be lung
        for gap in LEAKS:
            labels, areas, outside = _enclosed(_erode(candidate_air, gap))
            direction_sums = np.bincount(labels.ravel(), weights=directions.ravel(), minlength=areas.size)
            areas[direction_sums < SURROUNDED * areas] = 0
            sealed = _dilate(_select_lungs(half, labels, areas, outside), gap) & air
            if np.count_nonzero(sealed) > GAIN * area:
                lungs, area = sealed, np.count_nonzero(sealed)
    return lungs


def _enclosed(air: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64], Mask]:
    """Returns the connected components of the air: labels, areas by label, and the mask of those at the border.

    The area of a component that touches the border, and of label 0, is 0.
    """
    labels, count = ndimage.label(air, _CROSS)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    border = np.zeros(count + 1, dtype=bool)
    border[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    border[0] = False
    areas[border] = 0
    areas[0] = 0
    return labels, areas, border.take(labels)


def _select_lungs(half: NDArray[np.uint8], labels: NDArray[np.int32], areas: NDArray[np.int64], outside: Mask) -> Mask:
    """Returns the components that are lung: the largest ones that are not gas."""
    is_lung = np.zeros(areas.size, dtype=bool)
    largest_first = [int(k) for k in np.argsort(-areas, kind="stable")[: 4 * PIECES] if areas[k] >= SMALLEST]
    if not largest_first:
        return is_lung.take(labels)
    # The grey level of gas is nearer to the air outside than to the slice's typical lung. The comparison below is
    # strict: if a window clips all three to one level, nothing is gas.
    air_outside = half[outside & _FIELD]
    darkest = _middle(air_outside) if air_outside.size else -1.0
    gas = (darkest + _middle(half[(areas > 0).take(labels)])) / 2
    largest = 0
    for k in largest_first:
        if areas[k] < SMALLEST_SHARE * largest or np.count_nonzero(is_lung) == PIECES:
            break
        if areas[k] < LARGEST_GAS and _middle(half[labels == k]) < gas:
            continue
        largest = largest or int(areas[k])
        is_lung[k] = True
    return is_lung.take(labels)


def _directions_with_tissue(tissue: Mask) -> NDArray[np.uint8]:
    """Returns, for each pixel, in how many directions (up, down, left, right) there is tissue: 0 to 4."""
    directions = np.zeros(tissue.shape, dtype=np.uint8)
    for axis in (0, 1):
        directions += np.logical_or.accumulate(tissue, axis=axis)
        directions += np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis=axis), axis)
    return directions


def _fill(mask: Mask) -> Mask:
    """Returns a mask that is not empty, with its small holes filled."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    # All holes are inside the bounding box of the mask. The box has a margin of 1 pixel, which is not a hole.
    box = np.s_[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2]
    labels, count = ndimage.label(~mask[box], _CROSS)
    filled = np.bincount(labels.ravel(), minlength=count + 1) <= LARGEST_HOLE
    filled[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    filled[0] = True
    out = mask.copy()
    out[box] = filled.take(labels)
    return out


def _dilate(mask: Mask, radius: int) -> Mask:
    """Dilates by an octagon: by crosses and squares in turn. Shifted ors are several times faster than ndimage's."""
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
    """Erodes by the same octagon; pixels outside the slice count as mask."""
    return ~_dilate(~mask, radius)


def _close(mask: Mask, radius: int) -> Mask:
    """Closes by the same octagon, on a padded slice, so that the mask does not grow towards the border."""
    padded = _erode(_dilate(np.pad(mask, radius), radius), radius)
    return padded[radius:-radius, radius:-radius]


def _double(mask: Mask) -> Mask:
    """Doubles the size: repeats each pixel in both directions."""
    pairs = mask.view(np.uint8) * np.uint16(0x0101)  # a byte for each of two pixels of a row
    return pairs.view(bool).repeat(2, axis=0)
