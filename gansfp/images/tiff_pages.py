"""Reads the pages of a TIFF file: what the tags of each one say, without its pixels.

Source: TIFF 6.0 (Adobe, 1992), and the BigTIFF extension of libtiff.
"""

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gansfp.images.image_file import MAX_FRAMES, NoSliceError

NEW_SUBFILE_TYPE, SUBFILE_TYPE = 254, 255
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
DESCRIPTION, STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_A_STRIP, STRIP_BYTES = 270, 273, 274, 277, 278, 279
PLANAR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS = 284, 320, 322, 323, 324
EXTRA_SAMPLES, SAMPLE_FORMAT, DEPTH = 338, 339, 32997
_METAMORPH_PLANES = 33629  # UIC2Tag of MetaMorph's STK; its count is the number of planes

# Values of tags.
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6  # PhotometricInterpretation
ASSOCIATED, UNASSOCIATED = 1, 2  # ExtraSamples: an alpha channel, with which the colours have been multiplied or not
RAW = 1  # Compression
SEPARATE = 2  # PlanarConfiguration: all numbers of a channel, then those of the next one

# Types of tags that hold integers or text.
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_OTHER_SIZES = {5: 8, 7: 1, 10: 8, 11: 4, 12: 8}  # bytes of one value of the types that are not read here

_OME = re.compile(r"<(?:\w+:)?OME\b")
_OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)")
_OME_SIZE = re.compile(r"""\bSize([XYZCT])\s*=\s*["']\s*(\d{1,9})\s*["']""")


@dataclass(frozen=True)
class Page:
    """The tags of one page. order: of bytes, "<" or ">". entries: tag -> (type, count, position of its values)."""

    data: bytes
    order: str
    entries: dict[int, tuple[int, int, int]]

    def numbers(self, tag: int) -> np.ndarray:
        """Returns the integers of a tag, (n,); none if there is no such tag. Raises NoSliceError if they are cut."""
        kind, count, position = self.entries.get(tag, (1, 0, 0))
        dtype = np.dtype(self.order + _TYPES.get(kind, "u1"))
        if kind not in _TYPES:
            return np.zeros(0, int)
        if position + count * dtype.itemsize > len(self.data):
            raise NoSliceError(f"truncated: a TIFF file without the values of its tag {tag}")
        return np.frombuffer(self.data, dtype, count, position)

    def number(self, tag: int, default: int) -> int:
        """Returns the first integer of a tag."""
        values = self.numbers(tag)
        return int(values[0]) if len(values) else default

    def text(self, tag: int) -> str:
        """Returns a tag of type ASCII, "" if there is none."""
        is_text = self.entries.get(tag, (0, 0, 0))[0] == 2
        return self.numbers(tag).tobytes().partition(b"\0")[0].decode(errors="replace") if is_text else ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored, in pixels."""
        return self.number(WIDTH, 0), self.number(HEIGHT, 0)

    @property
    def alpha(self) -> int:
        """ASSOCIATED or UNASSOCIATED where the first extra sample is an alpha channel, else 0."""
        kind = self.number(EXTRA_SAMPLES, 0)
        return kind if kind in (ASSOCIATED, UNASSOCIATED) else 0

    @property
    def is_slice(self) -> bool:
        """Returns False for a thumbnail, a smaller copy, or a transparency mask of another page."""
        return not self.number(NEW_SUBFILE_TYPE, 0) & 0b101 and self.number(SUBFILE_TYPE, 0) != 2


def read_pages(data: bytes) -> list[Page]:
    """Returns the pages of a TIFF or BigTIFF file, at least one. A chain of pages that comes back to one ends there.

    Raises NoSliceError where the file is cut, has too many pages, or is big-endian BigTIFF, which Pillow cannot read.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    if big and order == ">":
        raise NoSliceError("big-endian BigTIFF is not supported; save it as TIFF")
    pages: list[Page] = []
    seen: set[int] = set()
    try:
        (position,) = struct.unpack_from("<Q" if big else order + "I", data, 8 if big else 4)
        while position and position not in seen:
            if len(pages) == MAX_FRAMES:
                raise NoSliceError(f"holds more than {MAX_FRAMES} pages, at most {MAX_FRAMES} are read")
            seen.add(position)
            page, position = _read_page(data, order, big, position)
            pages.append(page)
    except (struct.error, OverflowError):
        raise NoSliceError(f"truncated: a TIFF file without its page {len(pages) + 1}") from None
    if not pages:
        raise NoSliceError("a TIFF file without pages")
    return pages


def _read_page(data: bytes, order: str, big: bool, position: int) -> tuple[Page, int]:
    """Returns a page and the position of the next one, 0 after the last. Raises struct.error where it is cut."""
    count_format, entry_format = ("Q", "HHQ") if big else ("H", "HHI")
    room = 8 if big else 4  # bytes for values in the entry itself
    (count,) = struct.unpack_from(order + count_format, data, position)
    position += struct.calcsize(order + count_format)
    entry = struct.Struct(order + entry_format)
    if position + count * (entry.size + room) > len(data):
        raise struct.error
    entries = {}
    for _ in range(count):
        tag, kind, n = entry.unpack_from(data, position)
        size = np.dtype(_TYPES[kind]).itemsize if kind in _TYPES else _OTHER_SIZES.get(kind, 1)
        values = position + entry.size
        if n * size > room:
            (values,) = struct.unpack_from(order + ("Q" if big else "I"), data, values)
        entries[tag] = kind, n, values
        position += entry.size + room
    (following,) = struct.unpack_from(order + ("Q" if big else "I"), data, position)
    return Page(data, order, entries), following


def count_frames(pages: Sequence[Page]) -> int:
    """Returns how many slices some pages of one size hold.

    A page may hold a stack: its depth, its channels, its strips, or the description that ImageJ or tifffile wrote say
    so, or OME-XML. The other slices that OME-XML tells of may be in other files; they count too.
    """
    in_pages = sum(max(1, page.number(DEPTH, 1), *_planes(page)) * _grey_channels(page) for page in pages)
    width, height = pages[0].size
    pixels = max(1, width * height * pages[0].number(SAMPLES, 1))
    described = -(-sum(_tifffile_pixels(page) for page in pages) // pixels)
    return max(in_pages, described, *map(_imagej_images, pages), *map(_ome_planes, pages))


def _grey_channels(page: Page) -> int:
    """Returns how many slices are side by side in the channels of a page; 1 for colours, and for grey with alpha."""
    samples = page.number(SAMPLES, 1)
    is_grey = page.number(PHOTOMETRIC, -1) in (MIN_IS_WHITE, MIN_IS_BLACK)
    return samples if is_grey and not (samples == 2 and page.alpha) else 1


def _planes(page: Page) -> tuple[int, int, int]:
    """Returns how many planes MetaMorph's tag, the number of strips or tiles, and their bytes make."""
    _, metamorph, _ = page.entries.get(_METAMORPH_PLANES, (0, 0, 0))
    width, height = page.size
    samples = page.number(SAMPLES, 1)
    layers = samples if page.number(PLANAR, 1) == SEPARATE else 1
    by_number = by_bytes = 0
    if TILE_OFFSETS in page.entries:
        across, down = (
            -(-side // max(1, page.number(tag, side))) for side, tag in ((width, TILE_WIDTH), (height, TILE_HEIGHT))
        )
        by_number = len(page.numbers(TILE_OFFSETS)) // max(1, across * down * layers)
    elif ROWS_A_STRIP in page.entries:
        strips = -(-height // max(1, page.number(ROWS_A_STRIP, height)))
        by_number = len(page.numbers(STRIP_OFFSETS)) // max(1, strips * layers)
    if page.number(COMPRESSION, 1) == RAW:
        row = -(-width * page.number(BITS, 1) * samples // 8)
        by_bytes = int(page.numbers(STRIP_BYTES).sum(dtype=np.float64)) // max(1, row * height)
    return metamorph, by_number, by_bytes


def _imagej_images(page: Page) -> int:
    """Returns how many images ImageJ's description tells of, 0 for another description."""
    text = page.text(DESCRIPTION)
    found = re.search(r"^images=(\d{1,9})\s*$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    return int(found[1]) if found else 0


def _ome_planes(page: Page) -> int:
    """Returns how many slices of the page's size OME-XML tells of, 0 for another description.

    Source: the OME data model, 2016-06. The channels of a colour are one slice.
    """
    text = page.text(DESCRIPTION)
    if not _OME.search(text):
        return 0
    width, height = page.size
    planes = 0
    for attributes in _OME_PIXELS.findall(text):
        sizes = {axis: int(size) for axis, size in _OME_SIZE.findall(attributes)}
        if (sizes.get("X", width), sizes.get("Y", height)) == page.size:
            colours = -(-sizes.get("C", 1) // max(1, page.number(SAMPLES, 1)))
            planes += sizes.get("Z", 1) * sizes.get("T", 1) * colours
    return planes


def _tifffile_pixels(page: Page) -> int:
    """Returns how many pixels, times samples, tifffile's description tells of, 0 for another description."""
    text = page.text(DESCRIPTION)
    if not text.startswith('{"shape":'):
        return 0
    try:
        shape = json.loads(text)["shape"]
        return math.prod(abs(int(side)) for side in shape)
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
