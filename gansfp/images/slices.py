"""Decodes image files: a PNG, JPEG, TIFF, DICOM or NIfTI file becomes slices of 256x256 uint8 grey levels, or a reason.

The same rules make the grey levels of every file, so that slices stay comparable:

- Colour becomes ITU-R 601 luma. The colours of a palette are looked up first; its indices are not grey levels.
- Transparent pixels and padding are black. Black is air, which a CT reader expects around a body.
- Numbers of more than 8 bits are Hounsfield units where the file says so, or are read by one rule for all files of a
  class: see grey_levels.py.
- A slice of another size than 256x256 is padded with black to a centred square, so that the anatomy keeps its shape,
  and then resized by area.

To add an image format, add a row to FORMATS.
"""

import logging
import posixpath
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from PIL import Image

from gansfp import store
from gansfp.images.dicom import open_dicom
from gansfp.images.grey_levels import AUTO, Evidence, evidence, evidence_of_range, to_grey
from gansfp.images.image_file import GREY, HU, ImageFile, MissingPackageError, NoSliceError, Numbers
from gansfp.images.jpeg import open_jpeg
from gansfp.images.nifti import is_nifti, open_nifti
from gansfp.images.png import open_png
from gansfp.images.tiff import open_tiff

SIDE = 256
MAX_BYTES = 1 << 29  # 512 MiB: a volume of 512x512x1000 in 16 bits
_SAMPLED_FRAMES = 16  # of a stack whose numbers are looked at

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


class Source(NamedTuple):
    """Where a slice is, and how its numbers are read.

    frame: 0 for a file of one slice, else the number of the slice in the file, from 1. rule: of the numbers of 16 bits
    (grey_levels.SIXTEEN_BITS); "auto" takes the rule that fits the slice.
    """

    uri: str
    frame: int = 0
    rule: str = AUTO


class Header(NamedTuple):
    """What a file tells before its slices are used.

    format: a name of FORMATS. mode, width, height, bits, frames, turned, patient, series: see ImageFile. scale: GREY,
    HU or UNKNOWN. unknown_because: see Numbers. evidence: what the numbers say, None where they were not looked at.
    error: the reason why the file is not read. needs_package: as in Slice.
    """

    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    bits: int = 0
    frames: int = 0
    turned: bool = False
    scale: str = ""
    unknown_because: str = ""
    evidence: Evidence | None = None
    patient: str = ""
    series: str = ""
    error: str = ""
    needs_package: str = ""


def decode(data: bytes, name: str = "", frame: int = 0, rule: str = AUTO) -> Slice:
    """Decodes one slice of a file. Never raises: a bad file becomes a Slice with status "failed" and the reason.

    name: the file's name; only its ending counts, because DICOM files may lack their magic bytes. frame, rule: see
    Source.
    """
    return next(decode_frames(data, name, [(frame, rule)]))


def decode_frames(data: bytes, name: str, frames: Iterable[tuple[int, str]]) -> Iterator[Slice]:
    """Decodes some slices of a file, given as (frame, rule), and opens the file once. Never raises."""
    image: ImageFile | None = None
    failed: Slice | None = None
    for frame, rule in frames:
        if failed:
            yield failed
            continue
        try:
            with _QUIET_WARNINGS:
                if image is None:
                    image = _open(data, name)
                    image.check()
                slice_ = _slice(image, frame, rule)
        except Exception as error:  # decoders raise any exception on a bad file, and one bad file must not end the run
            slice_ = _failed(image, error)
            failed = slice_ if image is None else None
        yield slice_  # outside of the lock


def load(source: Source | str) -> Slice:
    """Reads and decodes one slice. Never raises: a file that cannot be read becomes a failed Slice too."""
    source = Source(source) if isinstance(source, str) else source
    return next(load_all([source]))


def load_all(sources: Sequence[Source]) -> Iterator[Slice]:
    """Reads and decodes slices in their order; a file is read once for slices of it that follow each other."""
    for uri, of_file in groupby(sources, lambda source: source.uri):
        frames = [(source.frame, source.rule) for source in of_file]
        try:
            data = store.read_bytes(uri, MAX_BYTES)
        except Exception as error:
            yield from [Slice(None, "failed", _reason(error))] * len(frames)
        else:
            yield from decode_frames(data, uri, frames)


def examine(data: bytes, name: str = "") -> Header:
    """Returns what a file tells. Never raises.

    Numbers of more than 8 bits are looked at, unless they are compressed HU, which only decoding confirms.
    """
    image: ImageFile | None = None
    try:
        with _QUIET_WARNINGS:
            image = _open(data, name)
            image.check()
            scale, because, numbers = _look_at_numbers(image)
    except Exception as error:
        package = error.package if isinstance(error, MissingPackageError) else ""
        if image is None:
            return Header(error=_reason(error), needs_package=package)
        return _header(image, image.scale)._replace(error=_reason(error), needs_package=package)
    return _header(image, scale)._replace(unknown_because=because, evidence=numbers)


def numbers_of_file(data: bytes, name: str = "") -> Numbers:
    """Returns the numbers of a file of one slice, in its own size. Raises NoSliceError for others, with the reason."""
    try:
        with _QUIET_WARNINGS:
            image = _open(data, name)
            image.check()
            if image.frames > 1:
                raise NoSliceError(f"holds {image.frames} frames, expected one slice a file")
            return image.numbers(0)
    except Exception as error:  # as in decode_frames
        raise NoSliceError(_reason(error)) from None


def _header(image: ImageFile, scale: str) -> Header:
    return Header(
        image.format,
        image.mode,
        image.width,
        image.height,
        image.bits,
        image.frames,
        image.turned,
        scale,
        patient=image.patient,
        series=image.series,
    )


def _look_at_numbers(image: ImageFile) -> tuple[str, str, Evidence | None]:
    """Returns the scale of a file's numbers, why it is unknown, and what they say. Raises what ImageFile.numbers does.

    A file whose numbers are said to be HU, and of which most frames have none, is of unknown scale: a black frame can
    be HU whatever the others are.
    """
    if image.scale == GREY or (image.scale == HU and not image.quick):
        return image.scale, "", None
    sampled = sorted({round(index) for index in np.linspace(0, image.frames - 1, _SAMPLED_FRAMES)})
    results = [_numbers_or_error(image, frame) for frame in sampled]
    frames = [result for result in results if not isinstance(result, Exception)]
    if not frames:
        raise next(result for result in results if isinstance(result, Exception))
    units = [frame for frame in frames if frame.scale == HU]
    if 2 * len(units) >= len(frames):
        return HU, "", evidence_of_range(units)
    unknown = [frame for frame in frames if frame.scale != HU]
    return unknown[0].scale, unknown[0].unknown_because, evidence(unknown)


def _numbers_or_error(image: ImageFile, frame: int) -> Numbers | Exception:
    try:
        return image.numbers(frame)
    except Exception as error:  # of one frame; the others may be good
        return error


def _slice(image: ImageFile, frame: int, rule: str) -> Slice:
    """Decodes one frame to a slice. Raises NoSliceError, or what ImageFile.numbers raises."""
    if not frame and image.frames > 1:
        raise NoSliceError(f"holds {image.frames} frames, expected one slice a file")
    if frame > image.frames:
        raise NoSliceError(f"holds {image.frames} frames, got number {frame}")
    pixels = to_grey(image.numbers(max(frame - 1, 0)), rule)
    header = image.mode, image.width, image.height
    if pixels.shape == (SIDE, SIDE):
        return Slice(pixels, "ok", "", *header)
    return Slice(resize(pixels), "resized", "", *header)


def _failed(image: ImageFile | None, error: Exception) -> Slice:
    package = error.package if isinstance(error, MissingPackageError) else ""
    header = (image.mode, image.width, image.height) if image else ("", 0, 0)
    return Slice(None, "failed", _reason(error), *header, package)


def _open(data: bytes, name: str) -> ImageFile:
    """Opens a file by the first format that recognises its content, else by its name."""
    image_format = recognise(data, name)
    if image_format is None:
        if not data:
            raise NoSliceError("empty file")
        *names, last = (image_format.name for image_format in FORMATS)
        raise NoSliceError(f"not a {', '.join(names)} or {last} file")
    return image_format.open(data)


def recognise(data: bytes, name: str = "") -> "ImageFormat | None":
    """Returns the format of a file, or None.

    data: the file, or at least its first HEAD bytes. The content decides, not the name: some published challenges have
    JPEG files that are named .png. Only DICOM files without a preamble are recognised by their name.
    """
    for image_format in FORMATS:
        if image_format.recognises(data):
            return image_format
    ending = posixpath.splitext(name.lower().partition("?")[0])[1]
    return next((f for f in FORMATS if data and ending in f.sufficient_endings), None)


@dataclass(frozen=True)
class ImageFormat:
    """One format of image files.

    endings: of file names, in lower case. recognises(data): whether a file has this format. open(data): reads the
    header. sufficient_endings: of files that have this format although their content does not show it.
    """

    name: str
    endings: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    open: Callable[[bytes], ImageFile]
    sufficient_endings: tuple[str, ...] = ()


def _starts_with(*magic: bytes) -> Callable[[bytes], bool]:
    """Returns a function that recognises a file by its first bytes."""
    return lambda data: data.startswith(magic)


_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")

# DICOM comes first: the 128 bytes before its magic bytes may look like another format (GE writes a TIFF header there).
FORMATS = (
    ImageFormat("DICOM", _DICOM_ENDINGS, lambda data: data[128:132] == b"DICM", open_dicom, _DICOM_ENDINGS),
    ImageFormat("PNG", (".png",), _starts_with(b"\x89PNG\r\n\x1a\n"), open_png),
    ImageFormat("JPEG", (".jpg", ".jpeg"), _starts_with(b"\xff\xd8\xff"), open_jpeg),
    ImageFormat("TIFF", (".tif", ".tiff"), _starts_with(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), open_tiff),
    ImageFormat("NIfTI", (".nii", ".nii.gz"), is_nifti, open_nifti),
)
HEAD = 4096  # bytes by which every format is recognised
ENDINGS = tuple(ending for image_format in FORMATS for ending in image_format.endings)


def without_ending(name: str) -> str:
    """Returns a file's name, or path, without the ending of an image format. Other dots stay: names may be UIDs."""
    ending = max((ending for ending in ENDINGS if name.lower().endswith(ending)), key=len, default="")
    return name.removesuffix(name[len(name) - len(ending) :]) if ending else name


def resize(pixels: np.ndarray) -> np.ndarray:
    """Converts (height, width) uint8 to (256, 256) uint8: pads to a centred square, then averages over each target
    pixel's area."""
    height, width = pixels.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return np.array(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BOX))


class _QuietWarnings:
    """Ignores the warnings of decoders, but for those that mean a bad file: they become exceptions.

    The filters of `warnings` belong to the whole process. The first of the threads that decode sets them, and the last
    one restores them, so that threads need not wait for each other.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._restore = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._restore.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.filterwarnings("error", "Truncated File Read")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._restore.close()


_QUIET_WARNINGS = _QuietWarnings()


def _reason(error: Exception) -> str:
    """Returns an error as one line of at most 200 characters, with the type of an error that a decoder raised."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(text.split())[:200]
    return line if line and isinstance(error, NoSliceError | OSError) else f"{type(error).__name__}: {line}"
