"""One image: the bytes of a PNG, JPEG, TIFF or DICOM file become 256x256 uint8 grey levels, or a reason why not.

How grey levels are made, whatever the file (every choice is the same for each image, so that slices stay comparable):

- Colour becomes ITU-R 601 luma; a palette is looked up first, its indices are never read as grey levels.
- Alpha is composited on black: black is air, and what a CT reader expects around a body.
- 16-bit grey keeps its values where all fit 8 bits (8-bit slices saved in 16), otherwise its high byte is taken: this
  undoes both customary ways of widening (times 257 and times 256) and is what Pillow does with 16-bit colour.
- DICOM: rescale slope and intercept (or the modality table) give Hounsfield units; the lung window, centre -600 and
  width 1500, maps -1350 HU to 0 and 150 HU to 255 (LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2), rounded; MONOCHROME1 is
  inverted. An 8-bit picture without a rescale intercept is no CT measurement and keeps its grey levels.
- Another size than 256x256 is padded with black to a centred square, so that anatomy keeps its shape, then resized by
  area.
"""

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from gansfp import store
from gansfp.quiet import discard_stderr

SIDE = 256
MAX_SIDE = 8192  # 64 megapixels once padded to a square; more is a decompression bomb, not a slice
MAX_BYTES = 1 << 28  # what 64 megapixels take as uncompressed RGBA
WINDOW_CENTRE, WINDOW_WIDTH = -600.0, 1500.0  # Hounsfield units

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # DICOM's name of the transfer syntax that is compressed as a whole
_PNG_END = b"IEND\xaeB`\x82"
_QUIET = threading.RLock()  # the filters of `warnings` belong to the whole process
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)  # what it has to say about a bad file is in the slice's error


@dataclass(frozen=True)
class Slice:
    """One decoded image; pixels: (256, 256) uint8, None where it failed; mode, width, height: those of the file."""

    pixels: np.ndarray | None
    status: str  # "ok", "resized" or "failed"
    error: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    needs_package: str = ""  # the package without which this file cannot be decoded; once it is there, try again


class _NoSliceError(Exception):
    """The reason why a file is not one slice."""


class _MissingPackageError(_NoSliceError):
    """A decoder's package is not installed; the file itself may be fine."""

    def __init__(self, package: str, message: str) -> None:
        super().__init__(message)
        self.package = package


@dataclass(frozen=True)
class _Opened:
    """A file whose header was read; `grey` decodes it to (height, width) uint8."""

    mode: str
    width: int
    height: int
    frames: int
    grey: Callable[[], np.ndarray]

    def refuse(self) -> None:
        """Raises _NoSliceError for what must not be decoded."""
        if max(self.width, self.height) > MAX_SIDE:
            raise _NoSliceError(f"{self.width}x{self.height} pixels, at most {MAX_SIDE}x{MAX_SIDE} are read")
        if min(self.width, self.height) < 1:
            raise _NoSliceError(f"{self.width}x{self.height} pixels")
        if self.frames > 1:
            raise _NoSliceError(f"holds {self.frames} frames, expected one slice a file")


def decode(data: bytes, name: str = "") -> Slice:
    """Decodes the bytes of one file; a bad one never raises. Of `name` only .dcm counts (DICOM may lack its magic)."""
    mode, width, height = "", 0, 0
    try:
        with _quietly():
            opened = _open(data, name)
            mode, width, height = opened.mode, opened.width, opened.height
            opened.refuse()
            pixels = opened.grey()
            if pixels.shape == (SIDE, SIDE):
                return Slice(pixels, "ok", "", mode, width, height)
            return Slice(_resize(pixels), "resized", "", mode, width, height)
    except Exception as error:  # decoders raise anything at all on a bad file, and one bad file must not end the run
        package = error.package if isinstance(error, _MissingPackageError) else ""
        return Slice(None, "failed", _reason(error), mode, width, height, package)


def load(uri: str) -> Slice:
    """Reads and decodes one file; one that cannot be read is a failed slice too."""
    try:
        data = store.read_bytes(uri, MAX_BYTES)
    except Exception as error:
        return Slice(None, "failed", _reason(error))
    return decode(data, uri)


def inspect(data: bytes, name: str = "") -> tuple[str, int, int, str]:
    """(mode, width, height, "") from a file's header alone, or what is known of it and why it is no slice."""
    mode, width, height = "", 0, 0
    try:
        with _quietly():
            opened = _open(data, name)
            mode, width, height = opened.mode, opened.width, opened.height
            opened.refuse()
    except Exception as error:
        return mode, width, height, _reason(error)
    return mode, width, height, ""


def _open(data: bytes, name: str) -> _Opened:
    """Chooses by content, never by the name: generators of challenges have named JPEG files .png."""
    if not data:
        raise _NoSliceError("empty file")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _open_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _opened(JpegImagePlugin.JpegImageFile(io.BytesIO(data)))
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _open_tiff(data)
    if data[128:132] == b"DICM" or name.lower().partition("?")[0].endswith(".dcm"):
        return _open_dicom(data)
    raise _NoSliceError("not a PNG, JPEG, TIFF or DICOM file")


def _open_png(data: bytes) -> _Opened:
    opened = _opened(PngImagePlugin.PngImageFile(io.BytesIO(data)))

    def grey() -> np.ndarray:
        if _PNG_END not in data[-4096:] and _PNG_END not in data:  # Pillow reads on where only the end is missing
            raise _NoSliceError("truncated: a PNG file without its end")
        return opened.grey()

    return _Opened(opened.mode, opened.width, opened.height, opened.frames, grey)


def _open_tiff(data: bytes) -> _Opened:
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    tile = max(image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0))
    if tile > MAX_SIDE:  # libtiff decodes a whole one, however small the image
        raise _NoSliceError(f"tiles of {tile} pixels, at most {MAX_SIDE} are read")
    opened = _opened(image)
    if image.tile and image.tile[0][0] != "libtiff":
        return opened

    def grey() -> np.ndarray:
        with discard_stderr():  # libtiff writes what it finds wrong in a file to file descriptor 2
            return opened.grey()

    return _Opened(opened.mode, opened.width, opened.height, opened.frames, grey)


def _opened(image: Image.Image) -> _Opened:
    # The plugins are called by themselves: Image.open would warn of large images before their size can be asked for,
    # and would try formats (PostScript, ...) that nobody wants opened unasked.
    return _Opened(image.mode, *image.size, getattr(image, "n_frames", 1), lambda: _grey(image))


def _grey(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as (height, width) uint8."""
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise _NoSliceError("pixels are floating-point numbers, expected 8 or 16 bits")
    if not image.has_transparency_data:
        return np.array(image.convert("L"))
    colour = image.convert("RGBA")
    return np.array(Image.composite(colour.convert("L"), Image.new("L", colour.size), colour.getchannel("A")))


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    """(height, width) of any integer dtype, 0 to 65535 -> uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise _NoSliceError(f"pixels from {low} to {high}, expected 0 to 65535")
    return (values if high <= 0xFF else values >> 8).astype(np.uint8)


def _open_dicom(data: bytes) -> _Opened:
    try:
        import pydicom
    except ImportError:
        raise _MissingPackageError("pydicom", "DICOM needs pydicom: install gansfp[dicom]") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if _DEFLATED in data:  # pydicom inflates all of it before anything can be asked, whatever comes out
        raise _NoSliceError("deflated DICOM, which is not read; store it uncompressed")
    image = pydicom.dcmread(io.BytesIO(data), force=True)  # force: files cut from a PACS often lack the preamble
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation", "PixelData"):
        if keyword not in image:
            raise _NoSliceError(f"not a DICOM image: no {keyword}")
    mode = str(image.PhotometricInterpretation)
    if mode not in ("MONOCHROME1", "MONOCHROME2"):
        raise _NoSliceError(f"DICOM of kind {mode}, expected MONOCHROME1 or MONOCHROME2")
    frames = int(image.get("NumberOfFrames") or 1)
    if len(image.PixelData) > 4096 + 2 * frames * image.Rows * image.Columns * image.BitsAllocated // 8:
        raise _NoSliceError(f"{len(image.PixelData)} bytes of pixels, too many for {image.Columns}x{image.Rows}")

    def grey() -> np.ndarray:
        values = pydicom.pixels.apply_modality_lut(image.pixel_array, image).astype(np.float64, copy=False)
        if image.BitsStored > 8 or "RescaleIntercept" in image:
            values -= WINDOW_CENTRE  # step by step in one place: the largest images take half a gigabyte each time
            values += WINDOW_WIDTH / 2
            values *= 255
            values /= WINDOW_WIDTH  # exact where HU are integers
        pixels = np.rint(values, out=values).clip(0, 255, out=values).astype(np.uint8)
        return 255 - pixels if mode == "MONOCHROME1" else pixels

    return _Opened(mode, int(image.Columns), int(image.Rows), frames, grey)


def _resize(pixels: np.ndarray) -> np.ndarray:
    """(height, width) uint8 -> (256, 256) uint8: a centred square, then the mean over each target pixel's area."""
    height, width = pixels.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return np.array(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BOX))


@contextmanager
def _quietly() -> Iterator[None]:
    """No warning of a decoder gets out; two of them mean that a file is bad and become its error."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("error", "Corrupt EXIF data|Truncated File Read|Tag data larger than file")
        yield


def _reason(error: Exception) -> str:
    """An error in one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = (text.strip().splitlines() or [""])[0][:160]
    return line if line and isinstance(error, _NoSliceError | OSError) else f"{type(error).__name__}: {line}"
