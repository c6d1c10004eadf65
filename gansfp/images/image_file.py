"""What an opened image file tells: its header, and the numbers of each frame with what they mean.

The openers (pillow_files.py, tiff.py, dicom.py, nifti.py) make an ImageFile of the bytes of a file. grey_levels.py
turns numbers into grey levels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAX_SIDE = 8192  # 64 megapixels, padded to a square; a larger file is a decompression bomb, not a slice
MAX_FRAMES = 10_000

GREY = "grey"  # 0 is black, 255 is white
HU = "HU"  # Hounsfield units: air is -1000, water is 0
UNKNOWN = "unknown"  # numbers of more than 8 bits, and the file does not tell what they are


class NoSliceError(Exception):
    """The reason why a file, or a frame of it, is not a slice: one line."""


class MissingPackageError(NoSliceError):
    """The decoder's package is not installed; the file itself may be good."""

    def __init__(self, package: str, message: str) -> None:
        super().__init__(message)
        self.package = package


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of one frame.

    values: (height, width); uint8 if the scale is GREY, else any integer or floating-point dtype.
    scale: GREY, HU or UNKNOWN.
    inverted: small numbers are shown white (MONOCHROME1 of DICOM, MinIsWhite of TIFF).
    opacity: (height, width) uint8, or None for 255 everywhere. It is 0 where nothing was measured or drawn (padding,
    transparent pixels). The picture is composited on black.
    unknown_because: for UNKNOWN, why the file does not tell what the numbers are, where it should have told (DICOM,
    NIfTI); "" where such files never tell (PNG, TIFF).
    """

    values: np.ndarray
    scale: str
    inverted: bool = False
    opacity: np.ndarray | None = None
    unknown_because: str = ""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image file whose header has been read.

    format: a name of slices.FORMATS. mode: Pillow's mode, DICOM's photometric interpretation or NIfTI's dtype. width,
    height: in pixels, as they are shown. bits: of one number. frames: slices in the file. scale: what the header says
    of the numbers; a scale of HU is only a claim, which `numbers` confirms or not. turned: the orientation tag turns or
    mirrors the picture. patient, series: PatientID and SeriesInstanceUID; they must not appear in any output.
    quick: reading all numbers takes about as long as reading the file, because they are not compressed.
    numbers: decodes one frame, counted from 0. It raises NoSliceError, or what a decoder raises on a bad file.
    """

    format: str
    mode: str
    width: int
    height: int
    bits: int
    scale: str
    numbers: Callable[[int], Numbers]
    frames: int = 1
    turned: bool = False
    quick: bool = False
    patient: str = ""
    series: str = ""

    def check(self) -> None:
        """Raises NoSliceError where the numbers must not be decoded."""
        if max(self.width, self.height) > MAX_SIDE:
            raise NoSliceError(f"{self.width}x{self.height} pixels, at most {MAX_SIDE}x{MAX_SIDE} are read")
        if min(self.width, self.height) < 1:
            raise NoSliceError(f"{self.width}x{self.height} pixels")
        if self.frames > MAX_FRAMES:
            raise NoSliceError(f"holds {self.frames} frames, at most {MAX_FRAMES} are read")
