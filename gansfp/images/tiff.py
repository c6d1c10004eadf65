"""Opens TIFF files with Pillow: single pictures and stacks, of which each page is a slice."""

import io
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
from PIL import ImagePalette, TiffImagePlugin

from gansfp.images import tiff_pages as tags
from gansfp.images.image_file import GREY, MAX_SIDE, UNKNOWN, ImageFile, NoSliceError, Numbers
from gansfp.images.pillow_files import numbers_of, numbers_of_wide_colour
from gansfp.images.tiff_pages import Page, count_frames, read_pages
from gansfp.quiet import discard_stderr

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # sample formats
# Photometric interpretations that Pillow reads: their names, and how many channels they need.
_COLOURS = {
    tags.MIN_IS_WHITE: ("grey", 1),
    tags.MIN_IS_BLACK: ("grey", 1),
    tags.RGB: ("RGB", 3),
    tags.PALETTE: ("palette", 1),
    tags.CMYK: ("CMYK", 4),
    tags.YCBCR: ("YCbCr", 3),
}
_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}  # ends of Pillow's raw modes


def open_tiff(data: bytes) -> ImageFile:
    """Opens a TIFF file. Raises NoSliceError, or what Pillow raises on a bad file."""
    pages = read_pages(data)
    indices = [index for index, page in enumerate(pages) if page.is_slice] or list(range(len(pages)))
    slices = [pages[index] for index in indices]
    _check_pages(slices)
    reader = _Reader(data, pages, indices)
    first = reader.open(0)
    bits = slices[0].number(tags.BITS, 1)
    scale = GREY if bits <= 8 else UNKNOWN
    turned = any(page.number(tags.ORIENTATION, 1) in range(2, 9) for page in slices)
    return ImageFile("TIFF", first.mode, *first.size, max(bits, 8), scale, reader.numbers, len(slices), turned)


def _check_pages(pages: Sequence[Page]) -> None:
    """Raises NoSliceError where pages are not slices of one size and kind, one in each page, or are not read."""
    sizes = sorted({page.size for page in pages})
    if len(sizes) > 1:
        described = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
        raise NoSliceError(f"holds pages of different sizes, such as {described}, expected slices of one size")
    if len({_kind(page) for page in pages}) > 1:
        raise NoSliceError("holds pages of different kinds of pixels, expected slices of one kind")
    for page in pages:
        tile = max(page.number(tags.TILE_WIDTH, 0), page.number(tags.TILE_HEIGHT, 0))
        if tile > MAX_SIDE:  # libtiff decodes whole tiles, however small the image is
            raise NoSliceError(f"tiles of {tile} pixels, at most {MAX_SIDE} are read")
    frames = count_frames(pages)
    if frames > len(pages):
        where = "one page" if len(pages) == 1 else f"{len(pages)} pages"
        raise NoSliceError(f"holds {frames} frames in {where}, which is not read; save one page a slice")
    reason = _why_not_read(pages[0])
    if reason:
        raise NoSliceError(reason)


def _kind(page: Page) -> tuple[object, ...]:
    """Returns what pages must have in common to be slices of one stack. Orientation and compression may differ."""
    numbers = (tuple(page.numbers(tag).tolist()) for tag in (tags.BITS, tags.SAMPLE_FORMAT, tags.EXTRA_SAMPLES))
    return page.number(tags.PHOTOMETRIC, -1), page.number(tags.SAMPLES, 1), *numbers


def _why_not_read(page: Page) -> str:
    """Returns the reason why a page is not read, or "". Pillow reads some of these kinds wrong."""
    compression = page.number(tags.COMPRESSION, 1)
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return f"TIFF compression {compression}, which is not read; save it uncompressed"
    if tags.PHOTOMETRIC not in page.entries:
        return "TIFF without PhotometricInterpretation, so that black may be white"
    bits, samples = page.number(tags.BITS, 1), page.number(tags.SAMPLES, 1)
    formats = set(page.numbers(tags.SAMPLE_FORMAT).tolist())
    if _FLOAT in formats:
        return "pixels are floating-point numbers, expected 8 or 16 bits"
    if _SIGNED in formats and (bits <= 8 or samples > 1):
        return f"pixels are signed numbers of {bits} bits, which is not read; save them unsigned"
    if formats - {_UNSIGNED, _SIGNED}:
        return f"TIFF of sample format {max(formats)}, expected unsigned or signed integers"
    if bits == 32 and page.order == ">" and (compression != tags.RAW or _SIGNED not in formats):
        return "big-endian TIFF of 32 bits, which is not read; save it in 16 bits"
    if bits > 8 and samples > 1 and not _is_plain_rgb(page):
        return f"TIFF of {samples} channels of {bits} bits that is not plain RGB; save it as PNG"
    return _why_colours_are_not_read(page)


def _why_colours_are_not_read(page: Page) -> str:
    """Returns the reason why a page of this photometric interpretation, with these extra channels, is not read."""
    photometric, samples = page.number(tags.PHOTOMETRIC, -1), page.number(tags.SAMPLES, 1)
    if photometric not in _COLOURS:
        return f"TIFF of photometric interpretation {photometric}, which is not read; save it as PNG"
    name, needed = _COLOURS[photometric]
    if photometric == tags.PALETTE and page.number(tags.BITS, 1) > 8:
        return f"TIFF with a palette of {page.number(tags.BITS, 1)} bits, which is not read; save it as PNG"
    if samples > needed and not _are_extra_channels_read(page):
        kind = "alpha" if page.alpha else "unspecified"
        where = " in separate planes" if page.number(tags.PLANAR, 1) == tags.SEPARATE else ""
        channels = f"{needed} + {samples - needed} channels{where} ({name} + {kind})"
        return f"TIFF of {channels}, which is not read; save it as PNG"
    return ""


def _are_extra_channels_read(page: Page) -> bool:
    """Returns True where Pillow reads the colours of a page right that has extra channels of 8 bits."""
    photometric, samples = page.number(tags.PHOTOMETRIC, -1), page.number(tags.SAMPLES, 1)
    in_one_plane = page.number(tags.PLANAR, 1) != tags.SEPARATE
    by_libtiff = page.number(tags.COMPRESSION, 1) != tags.RAW
    if not page.alpha:
        return photometric in (tags.RGB, tags.CMYK) and (in_one_plane or by_libtiff)
    if photometric == tags.RGB:
        return in_one_plane or (samples == 4 and (by_libtiff or page.alpha == tags.UNASSOCIATED))
    return photometric in (tags.MIN_IS_BLACK, tags.PALETTE) and in_one_plane and samples == 2


def _is_plain_rgb(page: Page) -> bool:
    """Returns True for RGB of 16 bits, with or without an alpha that has not been multiplied with the colours."""
    return (
        page.number(tags.BITS, 1) == 16
        and page.number(tags.SAMPLES, 1) <= 4
        and page.number(tags.PHOTOMETRIC, -1) == tags.RGB
        and page.number(tags.PLANAR, 1) != tags.SEPARATE
        and page.alpha != tags.ASSOCIATED
    )


class _Reader:
    """Decodes the slices of a file in any order.

    indices: of the pages that are slices. Numbers of more than 8 bits are read as unsigned MinIsBlack numbers, which
    Pillow reads alike in both byte orders and all compressions; `numbers` restores their sign and what is white.
    """

    def __init__(self, data: bytes, pages: Sequence[Page], indices: Sequence[int]) -> None:
        self._pages, self._indices = pages, indices
        self._files: dict[bool, TiffImagePlugin.TiffImageFile] = {}
        stream = io.BytesIO(data)
        for page in pages:
            if page.number(tags.BITS, 1) > 8 and page.number(tags.SAMPLES, 1) == 1:
                if page.number(tags.PHOTOMETRIC, -1) == tags.MIN_IS_WHITE:
                    _overwrite(stream, page, tags.PHOTOMETRIC, tags.MIN_IS_BLACK)
                if page.number(tags.BITS, 1) == 16 and page.number(tags.SAMPLE_FORMAT, 1) == _SIGNED:
                    _overwrite(stream, page, tags.SAMPLE_FORMAT, _UNSIGNED)
        self._data = stream.getvalue()  # this copies nothing, nor does BytesIO, as long as nothing is written

    def open(self, frame: int, low_bytes: bool = False) -> TiffImagePlugin.TiffImageFile:
        """Returns the Pillow image of a slice. low_bytes: of samples of 16 bits, where Pillow takes the high ones."""
        file = self._files.pop(low_bytes, None)
        if file is None:
            file = TiffImagePlugin.TiffImageFile(io.BytesIO(self._data))
            file.is_animated = True  # of single pages Pillow would also load all EXIF, which may be bad
        index = self._indices[frame]
        file.seek(index)
        file.info.pop("xmp", None)  # Pillow would turn the picture by it, and no other program does
        if low_bytes:
            file.tile = [tile._replace(args=_swapped(tile.args)) for tile in file.tile]
        colours = self._pages[index].numbers(tags.COLOUR_MAP)
        if file.mode == "P" and len(colours) and colours.max() <= 0xFF:  # some programs write 8 bits
            file.palette = ImagePalette.raw("RGB;L", colours.astype(np.uint8).tobytes())
        self._files[low_bytes] = file  # only now: after an exception, Pillow would return what is half decoded
        return file

    def numbers(self, frame: int) -> Numbers:
        """Decodes a slice. Raises NoSliceError, or what Pillow raises on a bad file."""
        try:
            return self._decode(frame)
        except BaseException:
            self._files.clear()
            raise

    def _decode(self, frame: int) -> Numbers:
        page = self._pages[self._indices[frame]]
        file = self.open(frame)
        wide_colour = page.number(tags.BITS, 1) == 16 and page.number(tags.SAMPLES, 1) > 1
        low = self.open(frame, low_bytes=True) if wide_colour else file
        by_libtiff = bool(file.tile) and file.tile[0][0] == "libtiff"
        with discard_stderr() if by_libtiff else nullcontext():  # it writes what is wrong to file descriptor 2
            if wide_colour:
                return numbers_of_wide_colour(np.array(file).astype(np.uint16) << 8 | np.array(low))
            found = numbers_of(file)
        if found.scale == GREY:
            return found
        values, signed = found.values, page.number(tags.SAMPLE_FORMAT, 1) == _SIGNED
        if values.dtype.itemsize == 2 and signed:
            values = values.astype(np.uint16).view(np.int16)
        elif values.dtype.itemsize == 4 and not signed:
            values = values.view(np.uint32)
        return Numbers(values, UNKNOWN, page.number(tags.PHOTOMETRIC, -1) == tags.MIN_IS_WHITE)


def _overwrite(stream: io.BytesIO, page: Page, tag: int, number: int) -> None:
    """Replaces all integers of a tag."""
    stream.seek(page.entries[tag][2])
    stream.write(np.full_like(page.numbers(tag), number).tobytes())


def _swapped(arguments: object) -> tuple[object, ...]:
    """Returns the arguments of a decoder, the first of which is a raw mode, for the other half of 16 bits."""
    assert isinstance(arguments, tuple)
    raw_mode = arguments[0]
    return raw_mode[:-1] + _SWAPPED[raw_mode[-1]], *arguments[1:]
