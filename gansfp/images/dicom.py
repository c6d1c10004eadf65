"""Opens DICOM files with pydicom."""

import io
import logging
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from gansfp.images.dicom_elements import Dataset, read, read_text, read_whole_number
from gansfp.images.dicom_pixels import Layout, StoredPixels
from gansfp.images.dicom_syntax import Writing, find_pixel_data, read_writing
from gansfp.images.dicom_values import Meaning, interpret, read_meaning, read_padding, shows_hu
from gansfp.images.image_file import HU, ImageFile, MissingPackageError, NoSliceError, Numbers

if TYPE_CHECKING:
    from pydicom.tag import BaseTag

_CUT_OFF = "the file is cut off: its data set ends inside an element"
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # FloatPixelData, DoubleFloatPixelData, PixelData
_MOST_OTHERS, _MOST_PIXELS = 16, 16 << 20  # frames that are asked about another one, and their pixels together
_READ = (  # other elements are skipped
    *("ImageType", "SOPClassUID", "Modality", "PatientID", "SeriesInstanceUID"),
    *("SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)


def open_dicom(data: bytes) -> ImageFile:
    """Opens a DICOM file. Raises NoSliceError or MissingPackageError.

    Its frames are HU where the header says so and the numbers can be HU, grey levels where it has 8 bits and no
    rescale, else unknown, with the reason.
    """
    try:
        import pydicom
    except ImportError:
        raise MissingPackageError("pydicom", "DICOM needs pydicom: install gansfp[dicom]") from None
    logger = logging.getLogger(pydicom.__name__)
    if logger.level <= logging.CRITICAL:  # the slice's error says what is wrong with a bad file
        logger.setLevel(logging.CRITICAL + 1)

    writing = read_writing(data)
    dataset, position = _read_header(data, writing)
    layout = _read_layout(dataset)
    where = find_pixel_data(data, position, writing.little)
    layout.check()
    if "LOCALIZER" in str(read(dataset, "ImageType") or "").upper():
        raise NoSliceError("a localizer, not an axial slice")
    offsets, lengths = read(dataset, "ExtendedOffsetTable"), read(dataset, "ExtendedOffsetTableLengths")
    tables = (offsets, lengths) if isinstance(offsets, bytes) and isinstance(lengths, bytes) else None
    pixels = StoredPixels(data, writing, where, layout, tables)
    pixels.check()
    frames = _Frames(dataset, pixels)
    return ImageFile(
        "DICOM",
        layout.photometric,
        layout.columns,
        layout.rows,
        layout.bits_stored,
        frames.meaning(0).scale,
        frames.numbers,
        layout.frames,
        quick=not pixels.compressed,
        patient=read_text(dataset, "PatientID"),
        series=read_text(dataset, "SeriesInstanceUID"),
    )


class _Frames:
    """The frames of a file, counted from 0."""

    def __init__(self, dataset: Dataset, pixels: StoredPixels) -> None:
        self._dataset, self._pixels, self._layout = dataset, pixels, pixels.layout
        self._padding = read_padding(dataset, pixels.layout)
        self._first_meaning = read_meaning(dataset, 0, pixels.layout)
        self._shown: dict[tuple[float, float], bool] = {}  # slope and intercept -> some frame shows that they give HU

    def meaning(self, frame: int) -> Meaning:
        """Returns what the header says of a frame. Raises NoSliceError as read_meaning does."""
        return self._first_meaning if frame == 0 else read_meaning(self._dataset, frame, self._layout)

    def numbers(self, frame: int) -> Numbers:
        """Decodes a frame: see ImageFile."""
        meaning = self.meaning(frame)
        cells = self._pixels.cells(frame)
        return interpret(cells, self._layout, meaning, self._padding, lambda: self._others_are_hu(frame, meaning))

    def _others_are_hu(self, frame: int, meaning: Meaning) -> bool:
        """Returns True where another frame with the same rescale shows that it gives HU: a frame may have no air.

        A frame that cannot be decoded ends the search, so that a damaged file does not take long.
        """
        rescale = meaning.slope, meaning.intercept
        if rescale not in self._shown:
            most = min(_MOST_OTHERS, max(1, _MOST_PIXELS // self._layout.pixels))
            others = sorted({round(index) for index in np.linspace(0, self._layout.frames - 1, most)} - {frame})
            try:
                self._shown[rescale] = any(self._shows_hu(other, rescale) for other in others)
            except Exception:  # decoders raise any
                self._shown[rescale] = False
        return self._shown[rescale]

    def _shows_hu(self, frame: int, rescale: tuple[float, float]) -> bool:
        meaning = self.meaning(frame)
        if meaning.scale != HU or (meaning.slope, meaning.intercept) != rescale:
            return False
        return shows_hu(self._pixels.cells(frame), self._layout, meaning, self._padding)


def _read_header(data: bytes, writing: Writing) -> tuple[Dataset, int]:
    """Returns the elements of a data set before its pixels, and the position of the pixels' element."""
    from pydicom.filereader import read_dataset

    file = _ElementsFile(data)
    file.seek(writing.start)
    try:
        dataset = read_dataset(
            file,
            writing.implicit,
            writing.little,
            stop_when=lambda tag, representation, length: tag in _PIXELS,
            specific_tags=_tags(),
        )
    except Exception as error:  # any, on a damaged file, and its text may hold bytes of the file: names of patients
        if file.is_cut_off:
            raise NoSliceError(_CUT_OFF) from None
        raise NoSliceError(f"damaged DICOM: its elements cannot be read ({type(error).__name__})") from None
    if file.is_cut_off and file.tell() >= len(data) and (dataset or data[128:132] == b"DICM"):
        raise NoSliceError(_CUT_OFF)
    return dataset, file.tell()


class _ElementsFile(io.BytesIO):
    """A data set in memory that knows whether it ended inside an element when it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size, self._reads_at_the_end, self.is_cut_off = len(data), 0, False

    def read(self, size: int | None = -1) -> bytes:
        """Reads bytes. Behind the last element there is nothing to read: once, and not behind the end of the file."""
        start = self.tell()
        found = super().read(size)
        if size is not None and len(found) < size:
            self._reads_at_the_end += 1
            self.is_cut_off |= bool(found) or start > self._size or self._reads_at_the_end > 1
        return found


@cache
def _tags() -> list["BaseTag | int"]:
    from pydicom.tag import Tag

    return [Tag(keyword) for keyword in _READ]


def _read_layout(dataset: Dataset) -> Layout:
    """Reads the image pixel module. Raises NoSliceError if it lacks something, or contradicts itself."""
    rows, columns, allocated, stored = (
        read_whole_number(dataset, keyword) for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored")
    )
    photometric = str(read(dataset, "PhotometricInterpretation") or "").strip()
    if not photometric:
        raise NoSliceError("not a DICOM image: no PhotometricInterpretation")
    layout = Layout(
        rows,
        columns,
        read_whole_number(dataset, "NumberOfFrames", 1),
        allocated,
        stored,
        read_whole_number(dataset, "PixelRepresentation", 0) != 0,
        photometric,
    )
    layout.check()
    for keyword, expected in (("SamplesPerPixel", 1), ("HighBit", stored - 1)):
        if (found := read_whole_number(dataset, keyword, expected)) != expected:
            raise NoSliceError(f"{keyword} is {found}, expected {expected}")
    return layout
