"""Opens DICOM files with pydicom."""

import io
import logging
from functools import cache
from typing import TYPE_CHECKING

from gansfp.images.dicom_elements import Dataset, read, read_text, read_whole_number
from gansfp.images.dicom_pixels import Layout, StoredPixels
from gansfp.images.dicom_syntax import Writing, find_pixel_data, read_writing
from gansfp.images.dicom_values import interpret, read_meaning, read_padding
from gansfp.images.image_file import ImageFile, MissingPackageError, NoSliceError, Numbers

if TYPE_CHECKING:
    from pydicom.tag import BaseTag

_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # FloatPixelData, DoubleFloatPixelData, PixelData
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
    padding = read_padding(dataset, layout)
    first_meaning = read_meaning(dataset, 0, layout)

    def numbers(frame: int) -> Numbers:
        meaning = first_meaning if frame == 0 else read_meaning(dataset, frame, layout)
        return interpret(pixels.cells(frame), layout, meaning, padding)

    return ImageFile(
        "DICOM",
        layout.photometric,
        layout.columns,
        layout.rows,
        layout.bits_stored,
        first_meaning.scale,
        numbers,
        layout.frames,
        quick=not pixels.compressed,
        patient=read_text(dataset, "PatientID"),
        series=read_text(dataset, "SeriesInstanceUID"),
    )


def _read_header(data: bytes, writing: Writing) -> tuple[Dataset, int]:
    """Returns the elements of a data set before its pixels, and the position of the pixels' element."""
    from pydicom.filereader import read_dataset

    file = io.BytesIO(data)
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
        raise NoSliceError(f"damaged DICOM: its elements cannot be read ({type(error).__name__})") from None
    return dataset, file.tell()


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
