"""Establishes what the stored numbers of a DICOM file mean: grey levels, HU, or nothing that the file tells.

Sources: DICOM PS3.3, C.11.1 (modality LUT and rescale), C.7.6.16.2.9 (the same in functional groups), C.7.5.1.1.2
(padding).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from gansfp.images.dicom_elements import Dataset, items, read, read_text, read_whole_number, short
from gansfp.images.dicom_hu import establishes_hu, why_not_hu
from gansfp.images.dicom_pixels import Layout
from gansfp.images.image_file import GREY, HU, UNKNOWN, NoSliceError, Numbers

_UNSPECIFIC = ("", "OT", "SC")  # modalities that do not tell what was measured
_CT_OR_CAPTURE = ("1.2.840.10008.5.1.4.1.1.2.", "1.2.840.10008.5.1.4.1.1.7.")  # storage classes, and what begins so
_Ranges: TypeAlias = tuple[tuple[int, int], ...]


class _UnknownScaleError(Exception):
    """Why the file does not tell that its numbers are HU."""


@dataclass(frozen=True, eq=False)
class Meaning:
    """What the header says of the numbers of a frame. scale: GREY, HU or UNKNOWN.

    slope, intercept: HU are stored numbers times slope plus intercept. lut: or they are looked up, as (the stored
    number of the first entry, int64 entries). because: for UNKNOWN, the reason.
    """

    scale: str
    slope: float = 1
    intercept: float = 0
    lut: tuple[int, np.ndarray] | None = None
    because: str = ""

    def units(self, stored: np.ndarray) -> np.ndarray:
        """Returns the HU of stored numbers: int64 or int32 where slope and intercept are whole, else float64."""
        if self.lut:
            first, table = self.lut
            return table[np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)]
        if not (self.slope.is_integer() and self.intercept.is_integer()):
            return stored * np.float64(self.slope) + self.intercept
        if stored.itemsize <= 2 and self.slope == 1 and abs(self.intercept) < 1 << 30:
            return np.add(stored, np.int32(self.intercept), dtype=np.int32)
        if abs(self.slope) < 1 << 24 and abs(self.intercept) < 1 << 60:
            return stored.astype(np.int64) * int(self.slope) + int(self.intercept)
        return stored * np.float64(self.slope) + self.intercept


def read_meaning(dataset: Dataset, frame: int, layout: Layout) -> Meaning:
    """Returns what the header says of the numbers of a frame.

    Raises NoSliceError if the header cannot be read, or for 8 bits that are neither grey levels nor HU.
    """
    places = dataset, *_transformations(dataset, frame)
    try:
        tables = items(dataset, "ModalityLUTSequence")
        lut = _read_lut(tables[0], dataset, layout) if tables else None
        slope, intercept = _read_float(places, "RescaleSlope"), _read_float(places, "RescaleIntercept")
        if layout.bits_stored <= 8 and slope in (None, 1) and intercept in (None, 0) and not lut:
            if layout.signed:
                raise NoSliceError("8-bit numbers with a sign, which are no grey levels")
            return Meaning(GREY)
        _check_that_it_is_ct(dataset)
        if lut:
            if intercept is not None or slope is not None:
                raise _UnknownScaleError("both a ModalityLUTSequence and a rescale are given")
            return Meaning(HU, lut=lut)
        if slope == 0:
            raise _UnknownScaleError("RescaleSlope is 0")
        if intercept is None:
            raise _UnknownScaleError(f"{read_text(dataset, 'Modality')} numbers without RescaleIntercept".strip())
        kind = str(_read_agreed(places, "RescaleType") or "").strip()
        if kind.upper() not in ("", "HU"):
            raise _UnknownScaleError(f"RescaleType is {short(kind)}, not HU")
    except _UnknownScaleError as error:
        _refuse_8_bits(layout, str(error))
        return Meaning(UNKNOWN, because=str(error))
    return Meaning(HU, 1.0 if slope is None else slope, intercept)


def _transformations(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """Yields the pixel value transformations of a frame: its own one, then the one that all frames share."""
    for keyword, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = items(dataset, keyword)
        if index < len(groups):
            yield from items(groups[index], "PixelValueTransformationSequence")[:1]


def _read_agreed(places: Sequence[Dataset], keyword: str) -> object:
    """Returns an element of the data set, or of the first transformation that has it; None if it is nowhere."""
    top, *in_groups = (_read_or_text(place, keyword) for place in places)
    group = next((value for value in in_groups if value is not None), None)
    if top is not None and group is not None and top != group:
        raise _UnknownScaleError(f"{keyword} is given twice: {short(top)} and {short(group)}")
    return group if top is None else top


def _read_or_text(dataset: Dataset, keyword: str) -> object:
    """Returns an element's value, or its bytes as text where the value is no number."""
    try:
        return read(dataset, keyword)
    except NoSliceError:
        return bytes(dataset.get_item(keyword).value).decode("latin-1").strip()


def _read_float(places: Sequence[Dataset], keyword: str) -> float | None:
    value = _read_agreed(places, keyword)
    if value is None:
        return None
    if isinstance(value, list):
        raise _UnknownScaleError(f"{keyword} has several values, expected one")
    try:
        number = float(str(value))
    except ValueError:
        raise _UnknownScaleError(f"{keyword} is {short(value)}, which is no number") from None
    if not math.isfinite(number):
        raise _UnknownScaleError(f"{keyword} is {number:g}")
    return number


def _check_that_it_is_ct(dataset: Dataset) -> None:
    """Raises _UnknownScaleError where modality or storage class say that the numbers were not measured by CT."""
    modality = read_text(dataset, "Modality").upper()
    if modality == "CT":
        return
    if modality not in _UNSPECIFIC:
        raise _UnknownScaleError(f"Modality is {short(modality)}, and only CT has HU")
    storage = read_text(dataset, "SOPClassUID")
    if storage and not f"{storage}.".startswith(_CT_OR_CAPTURE):
        from pydicom.uid import UID

        raise _UnknownScaleError(f"{UID(storage).name[:60]}, and only CT has HU")


def _read_lut(item: Dataset, dataset: Dataset, layout: Layout) -> tuple[int, np.ndarray]:
    """Returns (the stored number of the first entry, int64 entries) of a modality LUT of HU."""
    kind = read_text(item, "ModalityLUTType")
    if kind.upper() != "HU":
        raise _UnknownScaleError(f"ModalityLUTType is {short(kind)}, not HU")
    try:
        n, first, bits = (int(number) for number in items(item, "LUTDescriptor"))
        entries = read(item, "LUTData")
        if isinstance(entries, bytes):
            order = "<" if dataset.original_encoding[1] else ">"
            entries = np.frombuffer(entries, f"{order}u2")
        table = np.atleast_1d(np.asarray(entries, np.int64))[: n or 1 << 16]
        if len(table) != (n or 1 << 16) or not 8 <= bits <= 16:
            raise ValueError
    except (TypeError, ValueError):
        raise _UnknownScaleError("the ModalityLUTSequence is damaged") from None
    # Entries have no sign, and HU are below 32768: larger entries are negative HU in two's complement.
    table = np.where(table > 0x7FFF, table - 0x10000, table)
    return first - 0x10000 if layout.signed and first > 0x7FFF else first, table


def read_padding(dataset: Dataset, layout: Layout) -> _Ranges:
    """Returns the ranges of numbers that mean padding, as (smallest, largest); () where there is none.

    Both values have 16 bits, and many files give them with the other sign than the pixels: 63536 for -2000.
    """
    if read(dataset, "PixelPaddingValue") is None:
        return ()
    value = read_whole_number(dataset, "PixelPaddingValue")
    values = value, read_whole_number(dataset, "PixelPaddingRangeLimit", value)
    if layout.signed:
        low, high = sorted(number - 0x10000 if number > 0x7FFF else number for number in values)
        return ((low, high),)
    low, high = sorted(values)
    if high < 0:
        return ((low + 0x10000, high + 0x10000),)
    return ((0, high), (low + 0x10000, 0xFFFF)) if low < 0 else ((low, high),)


def interpret(
    cells: np.ndarray, layout: Layout, meaning: Meaning, padding: _Ranges, others_are_hu: Callable[[], bool]
) -> Numbers:
    """Returns the numbers of a frame with what they mean. HU that the header claims are confirmed by the numbers.

    cells: (rows, columns) of the layout's dtype. others_are_hu: whether other frames of the file show that numbers of
    this meaning are HU; it is asked where this frame does not. Raises NoSliceError for 8 bits that are neither grey
    levels nor HU.
    """
    stored = layout.numbers(cells)
    padded = _padded(cells, stored, layout, padding)
    opacity = None if padded is None else np.where(padded, np.uint8(0), np.uint8(255))
    inverted = layout.photometric == "MONOCHROME1"
    if meaning.scale == GREY:
        return Numbers(_grey_levels(stored, layout), GREY, inverted, opacity)
    because = meaning.because
    if meaning.scale == HU:
        units = meaning.units(stored)
        because = why_not_hu(units, stored, padded, layout)
        if not because or others_are_hu():
            return Numbers(units, HU, inverted, opacity)
    _refuse_8_bits(layout, because)
    return Numbers(stored, UNKNOWN, inverted, opacity, because)


def shows_hu(cells: np.ndarray, layout: Layout, meaning: Meaning, padding: _Ranges) -> bool:
    """Returns True where a frame has the air and the soft tissue of a CT slice. Parameters: as in `interpret`."""
    stored = layout.numbers(cells)
    padded = _padded(cells, stored, layout, padding)
    units = meaning.units(stored)
    return establishes_hu(units, padded) and not why_not_hu(units, stored, padded, layout)


def _refuse_8_bits(layout: Layout, because: str) -> None:
    """Raises NoSliceError for 8 bits of unknown scale: no option says what they are."""
    if layout.bits_stored <= 8:
        raise NoSliceError(f"{layout.bits_stored}-bit numbers that are neither grey levels nor HU: {because}")


def _padded(cells: np.ndarray, stored: np.ndarray, layout: Layout, padding: _Ranges) -> np.ndarray | None:
    """Returns where padding is, (rows, columns) of bool, or None if it is nowhere."""
    if not padding:
        return None
    padded = np.zeros(stored.shape, bool)
    for low, high in padding:
        padded |= (stored >= low) & (stored <= high)
        if low < layout.range[0] or high > layout.range[1]:  # padding that needs more bits than are stored
            padded |= (cells >= low) & (cells <= high)
    if not padded.any():
        return None
    if padded.all() and stored.min() != stored.max():
        ranges = " and ".join(f"from {low} to {high}" for low, high in padding)
        raise NoSliceError(f"padding {ranges} (PixelPaddingValue) covers all pixels")
    return padded


def _grey_levels(stored: np.ndarray, layout: Layout) -> np.ndarray:
    """Converts numbers of at most 8 bits to uint8, so that the largest number of BitsStored is white."""
    if layout.bits_stored == 8:
        return stored.astype(np.uint8)
    return np.rint(stored * (255 / layout.range[1])).astype(np.uint8)
