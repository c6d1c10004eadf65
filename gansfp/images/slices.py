"""Decodes one image file: a PNG, JPEG, TIFF or DICOM file becomes 256x256 uint8 grey levels, or a reason why it cannot.

The same rules make the grey levels of every file, so that slices stay comparable:

- Colour becomes ITU-R 601 luma. The colours of a palette are looked up first; its indices are not grey levels.
- Transparent pixels are composited on black. Black is air, which a CT reader expects around a body.
- 16-bit grey levels that all fit into 8 bits keep their values (8-bit slices saved in 16 bits). Otherwise the high byte
  is taken. This undoes both usual ways to widen 8 bits (times 257 and times 256); Pillow does the same with 16-bit
  colour.
- DICOM: rescale slope and intercept (or the modality table) give Hounsfield units. The lung window, centre -600 and
  width 1500, maps -1350 HU to 0 and 150 HU to 255 (LINEAR_EXACT of DICOM PS3.3 C.11.2.1.3.2), rounded. MONOCHROME1 is
  inverted. An 8-bit picture without a rescale intercept is not a CT measurement and keeps its grey levels.
- A slice of another size than 256x256 is padded with black to a centred square, so that the anatomy keeps its shape,
  and then resized by area.

To add an image format, add a row to FORMATS.
"""

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from gansfp import store
from gansfp.quiet import discard_stderr

SIDE = 256
MAX_SIDE = 8192  # 64 megapixels, padded to a square; a larger file is a decompression bomb, not a slice
MAX_BYTES = 1 << 28  # the size of 64 megapixels of uncompressed RGBA
WINDOW_CENTRE, WINDOW_WIDTH = -600.0, 1500.0  # Hounsfield units

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # UID of the DICOM transfer syntax that compresses the whole data set
_PNG_END = b"IEND\xaeB`\x82"
_WARNINGS_LOCK = threading.RLock()  # the filters of `warnings` belong to the whole process
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)  # the slice's error says what is wrong with a bad file


@dataclass(frozen=True)
class Slice:
    """One decoded image.

    pixels: (256, 256) uint8, None where decoding failed. mode, width, height: of the file, before it is resized.
    needs_package: the package without which the file cannot be decoded, "" if none is missing. Once the package is
    installed, the same file may decode.
    """

    pixels: np.ndarray | None
    status: str  # "ok", "resized" or "failed"
    error: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    needs_package: str = ""


class _NoSliceError(Exception):
    """The reason why a file is not one slice."""


class _MissingPackageError(_NoSliceError):
    """The decoder's package is not installed; the file itself may be good."""

    def __init__(self, package: str, message: str) -> None:
        super().__init__(message)
        self.package = package


@dataclass(frozen=True)
class _OpenImage:
    """An image file whose header has been read. grey() decodes its pixels to (height, width) uint8."""

    mode: str
    width: int
    height: int
    frames: int
    grey: Callable[[], np.ndarray]

    def check(self) -> None:
        """Raises _NoSliceError where the pixels must not be decoded."""
        if max(self.width, self.height) > MAX_SIDE:
            raise _NoSliceError(f"{self.width}x{self.height} pixels, at most {MAX_SIDE}x{MAX_SIDE} are read")
        if min(self.width, self.height) < 1:
            raise _NoSliceError(f"{self.width}x{self.height} pixels")
        if self.frames > 1:
            raise _NoSliceError(f"holds {self.frames} frames, expected one slice a file")


def decode(data: bytes, name: str = "") -> Slice:
    """Decodes the bytes of one file. Never raises: a bad file becomes a Slice with status "failed" and the reason.

    name: the file's name; only its ending .dcm counts, because DICOM files may lack their magic bytes.
    """
    mode, width, height = "", 0, 0
    try:
        with _without_warnings():
            image = _open(data, name)
            mode, width, height = image.mode, image.width, image.height
            image.check()
            pixels = image.grey()
            if pixels.shape == (SIDE, SIDE):
                return Slice(pixels, "ok", "", mode, width, height)
            return Slice(_resize(pixels), "resized", "", mode, width, height)
    except Exception as error:  # decoders raise any exception on a bad file, and one bad file must not end the run
        package = error.package if isinstance(error, _MissingPackageError) else ""
        return Slice(None, "failed", _reason(error), mode, width, height, package)


def load(uri: str) -> Slice:
    """Reads and decodes one file. Never raises: a file that cannot be read becomes a failed Slice too."""
    try:
        data = store.read_bytes(uri, MAX_BYTES)
    except Exception as error:
        return Slice(None, "failed", _reason(error))
    return decode(data, uri)


def inspect(data: bytes, name: str = "") -> tuple[str, int, int, str]:
    """Reads the header of a file. Returns (mode, width, height, "") for a slice.

    Never raises: for another file, returns what the header tells and, as the last value, the reason why it is not a
    slice.
    """
    mode, width, height = "", 0, 0
    try:
        with _without_warnings():
            image = _open(data, name)
            mode, width, height = image.mode, image.width, image.height
            image.check()
    except Exception as error:
        return mode, width, height, _reason(error)
    return mode, width, height, ""


def _open(data: bytes, name: str) -> _OpenImage:
    """Opens a file by the first format that recognises its content."""
    if not data:
        raise _NoSliceError("empty file")
    for image_format in FORMATS:
        if image_format.recognises(data, name):
            return image_format.open(data)
    *names, last = (image_format.name for image_format in FORMATS)
    raise _NoSliceError(f"not a {', '.join(names)} or {last} file")


def _open_png(data: bytes) -> _OpenImage:
    image = _from_pillow(PngImagePlugin.PngImageFile(io.BytesIO(data)))

    def grey() -> np.ndarray:
        # Pillow decodes a file without a complaint where only its end is missing.
        if _PNG_END not in data[-4096:] and _PNG_END not in data:
            raise _NoSliceError("truncated: a PNG file without its end")
        return image.grey()

    return replace(image, grey=grey)


def _open_jpeg(data: bytes) -> _OpenImage:
    return _from_pillow(JpegImagePlugin.JpegImageFile(io.BytesIO(data)))


def _open_tiff(data: bytes) -> _OpenImage:
    file = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    tile = max(file.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), file.tag_v2.get(TiffImagePlugin.TILELENGTH, 0))
    if tile > MAX_SIDE:  # libtiff decodes whole tiles, however small the image is
        raise _NoSliceError(f"tiles of {tile} pixels, at most {MAX_SIDE} are read")
    image = _from_pillow(file)
    if file.tile and file.tile[0][0] != "libtiff":
        return image

    def grey() -> np.ndarray:
        with discard_stderr():  # libtiff writes what it finds wrong in a file to file descriptor 2
            return image.grey()

    return replace(image, grey=grey)


def _from_pillow(image: Image.Image) -> _OpenImage:
    # Each opener calls Pillow's plugin itself. Image.open would warn of a large image before its size can be checked,
    # and would try formats that this project does not read (PostScript, ...).
    return _OpenImage(image.mode, *image.size, getattr(image, "n_frames", 1), lambda: _grey(image))


def _grey(image: Image.Image) -> np.ndarray:
    """Returns a Pillow image of any mode as (height, width) uint8."""
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise _NoSliceError("pixels are floating-point numbers, expected 8 or 16 bits")
    if not image.has_transparency_data:
        return np.array(image.convert("L"))
    colour = image.convert("RGBA")
    return np.array(Image.composite(colour.convert("L"), Image.new("L", colour.size), colour.getchannel("A")))


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    """Converts (height, width) of any integer dtype, 0 to 65535, to uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise _NoSliceError(f"pixels from {low} to {high}, expected 0 to 65535")
    return (values if high <= 0xFF else values >> 8).astype(np.uint8)


def _open_dicom(data: bytes) -> _OpenImage:
    try:
        import pydicom
    except ImportError:
        raise _MissingPackageError("pydicom", "DICOM needs pydicom: install gansfp[dicom]") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if _DEFLATED in data:  # pydicom inflates the whole file, however large, before its size can be checked
        raise _NoSliceError("deflated DICOM, which is not read; store it uncompressed")
    image = pydicom.dcmread(io.BytesIO(data), force=True)  # force: files exported from a PACS often lack the preamble
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
            values -= WINDOW_CENTRE  # in place, step by step: each copy of the largest image takes half a gigabyte
            values += WINDOW_WIDTH / 2
            values *= 255
            values /= WINDOW_WIDTH  # this order of the steps is exact for integer HU
        pixels = np.rint(values, out=values).clip(0, 255, out=values).astype(np.uint8)
        return 255 - pixels if mode == "MONOCHROME1" else pixels

    return _OpenImage(mode, int(image.Columns), int(image.Rows), frames, grey)


@dataclass(frozen=True)
class ImageFormat:
    """One format of image files.

    endings: of file names, in lower case. recognises(data, name): whether a file has this format. open(data): reads the
    header.
    """

    name: str
    endings: tuple[str, ...]
    recognises: Callable[[bytes, str], bool]
    open: Callable[[bytes], _OpenImage]


def _starts_with(*magic: bytes) -> Callable[[bytes, str], bool]:
    """Returns a function that recognises a file by its first bytes."""
    return lambda data, name: data.startswith(magic)


def _is_dicom(data: bytes, name: str) -> bool:
    return data[128:132] == b"DICM" or name.lower().partition("?")[0].endswith(".dcm")


# The first format that recognises a file opens it. The content decides, not the name: some published challenges have
# JPEG files that are named .png. Only DICOM files without a preamble are recognised by their name.
FORMATS = (
    ImageFormat("PNG", (".png",), _starts_with(b"\x89PNG\r\n\x1a\n"), _open_png),
    ImageFormat("JPEG", (".jpg", ".jpeg"), _starts_with(b"\xff\xd8\xff"), _open_jpeg),
    ImageFormat("TIFF", (".tif", ".tiff"), _starts_with(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _open_tiff),
    ImageFormat("DICOM", (".dcm",), _is_dicom, _open_dicom),
)
ENDINGS = tuple(ending for image_format in FORMATS for ending in image_format.endings)


def _resize(pixels: np.ndarray) -> np.ndarray:
    """Converts (height, width) uint8 to (256, 256) uint8: pads to a centred square, then averages over each target
    pixel's area."""
    height, width = pixels.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return np.array(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BOX))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignores the warnings of decoders, but for those that mean a bad file: they become exceptions."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("error", "Corrupt EXIF data|Truncated File Read|Tag data larger than file")
        yield


def _reason(error: Exception) -> str:
    """Returns an error as one line of at most 160 characters, with the type of an error that a decoder raised."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = (text.strip().splitlines() or [""])[0][:160]
    return line if line and isinstance(error, _NoSliceError | OSError) else f"{type(error).__name__}: {line}"
