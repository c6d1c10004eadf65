"""Confirms that numbers which the header of a DICOM file calls HU can be the HU of a CT slice.

Headers lie: programs that convert a slice to grey levels keep the rescale of the scanner, and padding that no element
declares becomes white. The limits are generous, because slices of children, of the skull, with contrast medium or with
metal, and slices that were cropped, are good.
"""

import numpy as np

from gansfp.images.dicom_pixels import Layout
from gansfp.images.grey_levels import AIR, SOFT_TISSUE, is_hu

_MOSTLY_AIR, _NOISE = 0.9, 50  # share of values near their median in a slice of nothing but air, and how near, in HU
_FROM_1000 = 100  # HU by which that median may differ from -1000
_DENSEST, _MOST_DENSEST = 2000.0, 0.04  # HU above those of bone, and their share: metal, teeth
_HEAVIEST, _MOST_HEAVIEST = 31000.0, 0.001  # HU above the scale that scanners have for metal; -2000 without sign is
_PLATEAU, _MOST_EQUAL = 1000.0, 0.08  # HU, and share of the largest number where it is at least that
_MUSCLE, _LEAST_WET = 40.0, 0.3  # HU, and share of soft tissue that is denser than water where nothing is denser
_MOST_BONE, _LEAST_BY_BONE = 0.15, 1 / 2  # share of bone in a slice, and least soft tissue beside more, by its share
_MOST_UNUSUAL, _LEAST_BY_UNUSUAL = 0.1, 1 / 8  # the same for what is neither air nor soft tissue
_CORNERS = [0, 0, -1, -1], [0, -1, 0, -1]
_LEAST_SHARE = 0.01  # of air, and of soft tissue, in a frame that speaks for other frames


def why_not_hu(units: np.ndarray, stored: np.ndarray, padded: np.ndarray | None, layout: Layout) -> str:
    """Returns "" where numbers can be the HU of a CT slice, else the reason why they cannot.

    units, stored: (rows, columns), HU and the stored numbers. padded: where padding is, or None.
    """
    seen = units if padded is None else units[~padded]
    because = is_hu(seen)
    if because and padded is not None:
        padding = units[padded]
        if padding.min() >= AIR[0] and padding.max() <= AIR[1]:  # air was taken for padding
            because = is_hu(units)
    if because or not seen.size:
        return because
    low, high = seen.min(), seen.max()
    if low < high < AIR[0]:
        return f"values are from {low:g} to {high:g} HU, and none is that of air, about -1000"
    if high < SOFT_TISSUE[0]:
        return _why_no_tissue(seen, stored if padded is None else stored[~padded], layout)
    corners = units[_CORNERS] if padded is None or not padded[_CORNERS].any() else np.zeros(0)
    return _why_too_dense(seen, high, corners) or _why_a_picture(seen, high)


def establishes_hu(units: np.ndarray, padded: np.ndarray | None) -> bool:
    """Returns True where the numbers of a frame, which can be HU, are also those of air and of soft tissue."""
    seen = units if padded is None else units[~padded]
    return bool(seen.size) and min(_share(seen, *AIR), _share(seen, *SOFT_TISSUE)) >= _LEAST_SHARE


def _share(values: np.ndarray, low: float, high: float = np.inf) -> float:
    """Returns the share of values from `low` to `high`."""
    inside = values >= low
    if high < np.inf:
        inside &= values <= high
    return np.count_nonzero(inside) / values.size


def _why_no_tissue(seen: np.ndarray, stored: np.ndarray, layout: Layout) -> str:
    """Returns "" where numbers below those of soft tissue can be HU, else the reason.

    They can in a slice of nothing but air, and in a part of a lung; but grey levels of 8 bits end at 255.
    """
    low, high = stored.min(), stored.max()
    if layout.bits_stored > 8:
        if low < 0 or low == high or high > 0xFF:
            return ""
        median = float(np.median(seen))
        if abs(median + 1000) <= _FROM_1000 and _share(seen, median - _NOISE, median + _NOISE) >= _MOSTLY_AIR:
            return ""
    return f"no value is above {seen.max():g} HU; stored numbers from {low} to {high} look like grey levels"


def _why_too_dense(seen: np.ndarray, high: float, corners: np.ndarray) -> str:
    """Returns "" where there are not more large numbers than bone, teeth and metal have, else the reason.

    corners: the numbers in the four corners of the slice, where padding outside of the field of view is; or none.
    """
    padding = "this is padding that PixelPaddingValue does not declare, or these are grey levels"
    for limit, most in ((_HEAVIEST, _MOST_HEAVIEST), (_DENSEST, _MOST_DENSEST)):
        if high > limit and (share := _share(seen, limit)) > most:
            return f"{share:.1%} of the values are above {limit:g} HU, as in no patient; {padding}"
    if high < _PLATEAU:
        return ""
    if corners.size and (corners == high).all():
        return f"the four corners have the largest value, {high:g} HU; {padding}"
    if (share := _share(seen, high)) > _MOST_EQUAL:
        return f"{share:.0%} of the values are the largest one, {high:g} HU; {padding}"
    return ""


def _why_a_picture(seen: np.ndarray, high: float) -> str:
    """Returns "" where soft tissue is at its place, else the reason: grey levels of 10 to 12 bits have it elsewhere."""
    tissue, bone = _share(seen, *SOFT_TISSUE), _share(seen, SOFT_TISSUE[1])
    if high < _MUSCLE and _share(seen, 0) < _LEAST_WET * tissue:
        return f"the largest value is {high:g} HU, and muscle has more; they look like grey levels"
    unusual = 1 - tissue - np.count_nonzero(seen <= AIR[1]) / seen.size
    for share, most, least, what in (
        (bone, _MOST_BONE, _LEAST_BY_BONE, "those of bone"),
        (unusual, _MOST_UNUSUAL, _LEAST_BY_UNUSUAL, "neither air nor soft tissue"),
    ):
        if share > most and tissue < least * share:
            place = f"{SOFT_TISSUE[0]:g} to {SOFT_TISSUE[1]:g} HU"
            return (
                f"{tissue:.1%} of the values are those of soft tissue ({place}), and {share:.0%} are {what}; they "
                "look like grey levels"
            )
    return ""
