"""Turns the numbers of a slice into 256 grey levels, and recognises what numbers of 16 bits mean.

Hounsfield units (HU) are shown in the lung window: centre -600 and width 1500 HU, so that -1350 HU is 0 and 150 HU is
255 (LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2), rounded.

A PNG or TIFF file of 16 bits does not say what its numbers are. One rule of SIXTEEN_BITS is right for all files of a
class; a rule that is chosen file by file makes a bright slice dark and a dark one bright. So `evidence` says of each
file which rules its numbers fit, and `choose_rule` takes one rule for all.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gansfp.images.image_file import GREY, HU, NoSliceError, Numbers

WINDOW_CENTRE, WINDOW_WIDTH = -600.0, 1500.0  # HU

AUTO = "auto"
FEW_LEVELS = 32  # a slice that had more grey levels and keeps fewer has lost its texture

AIR = (-1200.0, -500.0)  # HU of air around the body and of lungs, with noise
SOFT_TISSUE = (-200.0, 300.0)  # HU of muscle, blood, fat, liver
DENSER_THAN_WATER = (1.0, 300.0)  # HU of muscle and blood; grey levels of 10 bits look like HU + 1024 that end at 0
POSSIBLE = (-1200.0, 3100.0)  # HU of anything in a patient but metal
_LEAST_SHARE = 0.01  # of air, and of soft tissue, in a CT slice of the chest
_DENSE, _MOST_DENSE = 1900.0, 0.03  # HU above those of bone, and their share
_MOST_EQUAL = 0.15  # share of one number of bone; padding with a large number has more
_LEAST_MEASURED = 0.2  # of the pixels of a slice, the others being padding
_LEAST_BOTH = 0.5  # of both together; lung vessels, bone and the edges between them are the rest
_MOST_OUTLIERS = 0.001  # share of pixels outside a rule's range: metal, a burnt-in mark
_MOST_FILES = 0.9  # share of the files of a class that must fit a rule of HU
_MOST_BRIGHT = 0.75  # share of the files that must use more than 8 bits; dark slices may look like 8 bits in 16


def lung_window(units: np.ndarray) -> np.ndarray:
    """Converts HU, (height, width) of any dtype, to uint8."""
    values = units.astype(np.float64)
    values -= WINDOW_CENTRE  # in place, step by step: each copy of the largest image takes half a gigabyte
    values += WINDOW_WIDTH / 2
    values *= 255
    values /= WINDOW_WIDTH  # this order of the steps is exact for integer HU
    return np.rint(values, out=values).clip(0, 255, out=values).astype(np.uint8)


# What the numbers of 16 bits can be: rule -> conversion to uint8.
SIXTEEN_BITS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    # The high byte undoes both usual ways to widen 8 bits: times 257 and times 256.
    "full": lambda values: (values.clip(0, 0xFFFF).astype(np.uint16) >> 8).astype(np.uint8),
    "low": lambda values: values.clip(0, 0xFF).astype(np.uint8),  # 8-bit grey levels that were saved in 16 bits
    "hu": lung_window,
    "hu+1024": lambda values: lung_window(values.astype(np.float64) - 1024),
    "hu+32768": lambda values: lung_window(values.astype(np.float64) - 32768),
}
_OFFSETS = {"hu+32768": 32768, "hu+1024": 1024, "hu": 0}


def to_grey(numbers: Numbers, rule: str = AUTO) -> np.ndarray:
    """Converts the numbers of a slice to grey levels, (height, width) uint8.

    rule: of SIXTEEN_BITS, for numbers whose scale is unknown; "auto" takes the rule that fits this slice, "" none.
    Raises NoSliceError where the scale is unknown and there is no rule. The numbers of a DICOM or NIfTI file fit none.
    """
    if numbers.scale == GREY:
        grey = numbers.values
    elif numbers.scale == HU:
        grey = lung_window(numbers.values)
    else:
        if numbers.unknown_because and rule in (AUTO, ""):
            raise NoSliceError(f"{numbers.unknown_because}; say what the numbers are with --sixteen-bit")
        if rule == AUTO:
            rule = choose_rule([evidence([numbers])]).rule
        if not rule:
            raise NoSliceError(_what_is_unclear(numbers.values))
        grey = SIXTEEN_BITS[rule](numbers.values)
    if numbers.inverted:
        grey = 255 - grey
    if numbers.opacity is not None:
        # Rounded as Pillow composites.
        product = grey.astype(np.uint32) * numbers.opacity + 128
        grey = ((product + (product >> 8)) >> 8).astype(np.uint8)
    return grey


def _what_is_unclear(values: np.ndarray) -> str:
    """Returns the reason why a file of 16 bits cannot be read without --sixteen-bit."""
    return (
        f"numbers from {values.min():g} to {values.max():g} are neither 8-bit grey levels nor the full range of 16 "
        "bits nor HU; say what they are with --sixteen-bit"
    )


def is_hu(values: np.ndarray) -> str:
    """Returns "" where numbers can be the HU of a CT slice, else the reason why they cannot.

    values: (n,) or more dimensions, without padding. A slice or a volume in which nothing was measured can be.
    """
    if not values.size:
        return ""
    low, high = float(values.min()), float(values.max())
    if low > AIR[1]:
        return f"the lowest value is {low:g} HU, and air has about -1000"
    if high > AIR[1] and not ((values >= AIR[0]) & (values <= AIR[1])).any():
        return f"values are from {low:g} to {high:g} HU, and none is that of air, about -1000"
    return ""


class Evidence(NamedTuple):
    """What the numbers of a file of 16 bits say.

    low, high: the smallest and the largest number. fits: the rules that they fit. poor: the rules that would leave
    fewer than 32 grey levels where the file has more. exact: all numbers are grey levels times 256 or 257. blank: the
    file has one number only, or none.
    """

    low: float
    high: float
    fits: tuple[str, ...]
    poor: tuple[str, ...]
    exact: bool
    blank: bool


def evidence(frames: Sequence[Numbers]) -> Evidence:
    """Returns what the numbers of some frames of one file say. Padding and transparent pixels do not count."""
    parts = [
        (frame.values if frame.opacity is None else frame.values[frame.opacity > 0]).reshape(-1) for frame in frames
    ]
    values = np.concatenate(parts) if parts else np.zeros(0)
    if not values.size:
        return Evidence(0, 0, (), (), False, True)
    levels, counts = _levels(values)
    low, high = float(levels[0]), float(levels[-1])
    natural = low >= 0 and bool((levels == np.rint(levels)).all())
    exact = natural and high > 0xFF and (not (levels % 257).any() or not (levels % 256).any())
    fits = [rule for rule, offset in _OFFSETS.items() if _fits_hu(levels, counts, offset)]
    if natural and counts[levels > 0xFF].sum() <= _MOST_OUTLIERS * counts.sum():
        fits.append("low")
    elif natural and high <= 0xFFFF:
        fits.append("full")
    return Evidence(low, high, tuple(fits), _poor_rules(levels), exact, len(levels) == 1)


def _poor_rules(levels: np.ndarray) -> tuple[str, ...]:
    """Returns the rules that would leave fewer than 32 of these different numbers apart."""
    if len(levels) < FEW_LEVELS:
        return ()
    return tuple(rule for rule, convert in SIXTEEN_BITS.items() if len(np.unique(convert(levels))) < FEW_LEVELS)


def evidence_of_range(frames: Sequence[Numbers]) -> Evidence:
    """Returns the evidence of numbers that need no rule: their range. Padding does not count."""
    parts = [frame.values if frame.opacity is None else frame.values[frame.opacity > 0] for frame in frames]
    low = min((float(part.min()) for part in parts if part.size), default=0.0)
    high = max((float(part.max()) for part in parts if part.size), default=0.0)
    return Evidence(low, high, (), (), False, low == high)


def _levels(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different numbers, sorted, and how often each is there."""
    if values.dtype.kind in "iu" and (low := int(values.min())) > int(values.max()) - (1 << 17):
        counts = np.bincount((values.astype(np.int64) - low).ravel())  # ten times faster than sorting
        levels = np.flatnonzero(counts)
        return levels + low, counts[levels]
    return np.unique(values, return_counts=True)


def _fits_hu(levels: np.ndarray, counts: np.ndarray, offset: int) -> bool:
    """Returns True where numbers minus an offset are the HU of a chest: air, soft tissue, and nothing impossible.

    Numbers below those of air were not measured (padding outside of the field of view, 0), and do not count.
    """
    if not offset and levels[0] >= 0:
        return False  # HU without an offset have negative numbers
    measured = (levels >= offset + AIR[0]) & (levels != 0 if offset else True)
    levels, counts, everything = levels[measured], counts[measured], counts.sum()
    total = counts.sum()
    if total < _LEAST_MEASURED * everything:
        return False

    def share(low: float, high: float) -> float:
        return float(counts[(levels >= low + offset) & (levels <= high + offset)].sum()) / total

    if 1 - share(*POSSIBLE) > _MOST_OUTLIERS or share(_DENSE, POSSIBLE[1]) > _MOST_DENSE:
        return False
    if (counts[levels > offset + SOFT_TISSUE[1]] > _MOST_EQUAL * total).any():
        return False
    air, tissue = share(*AIR), share(*SOFT_TISSUE)
    return min(air, share(*DENSER_THAN_WATER)) >= _LEAST_SHARE and air + tissue >= _LEAST_BOTH


@dataclass(frozen=True)
class Choice:
    """The rule for the 16-bit files of a class: "" where none is sure enough. why: for the log."""

    rule: str
    why: str


def choose_rule(files: Sequence[Evidence]) -> Choice:
    """Chooses the rule for all 16-bit files of a class by what their numbers say.

    HU are taken where nine of ten files have the air and the soft tissue of a chest at their places; "low" where no
    file has more than a few numbers above 255; "full" where three of four files have numbers above 255, none looks like
    HU, the numbers use the upper half of the range, and most slices keep their grey levels. Blank files do not count,
    unless all are blank.
    """
    counted = [file for file in files if not file.blank] or list(files)
    votes = Counter(rule for file in counted for rule in file.fits)
    n, high = len(counted), max((file.high for file in counted), default=0.0)
    for rule in _OFFSETS:
        if votes[rule] and votes[rule] >= _MOST_FILES * n:
            return Choice(rule, f"{votes[rule]} of {n} files have air and soft tissue where {rule} puts them")
    if n and votes["low"] == n:
        return Choice("low", f"no file has more than a few numbers above 255 (highest {high:g})")
    if votes["full"] >= max(1, _MOST_BRIGHT * n) and not any(votes[rule] for rule in _OFFSETS):
        why = _why_full(counted, high)
        if why:
            return Choice("full", why)
    return Choice("", f"not sure: of {n} files with numbers up to {high:g}, {_in_words(votes)}")


def _why_full(files: Sequence[Evidence], high: float) -> str:
    """Returns why bright files, none of them HU, use the full range of 16 bits; "" where they may not."""
    if all(file.exact for file in files):
        return "sure: all are 8-bit levels times 256 or 257"
    lose_levels = sum("full" in file.poor for file in files)
    return f"likely: up to {high:g}" if high > 0x7FFF and lose_levels <= len(files) / 2 else ""


def _in_words(votes: "Counter[str]") -> str:
    return ", ".join(f"{count} fit {rule}" for rule, count in votes.most_common()) or "none fits a rule"
