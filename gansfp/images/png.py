"""Opens PNG files with Pillow."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import PngImagePlugin

from gansfp.images.image_file import GREY, UNKNOWN, ImageFile, NoSliceError, Numbers
from gansfp.images.pillow_files import SWAPPING, numbers_of, numbers_of_wide_colour, orientation_of, turned

_END = b"IEND\xaeB`\x82"
_MOST_CHUNKS = 100_000  # the largest slice has 65,536 of the size that libpng writes
_CHUNK = struct.Struct(">I4s")
_ANCILLARY = 0x20  # a bit of the first letter of a chunk's name
# Types of PNG. Its palette type is 3.
_GREY, _RGB, _GREY_AND_ALPHA, _RGB_AND_ALPHA = 0, 2, 4, 6
# The raw modes by which Pillow unpacks the high and the low bytes of samples of 16 bits.
_WIDE_COLOUR = {_RGB: ("RGB;16B", "RGB;16L"), _RGB_AND_ALPHA: ("RGBA;16B", "RGBA;16L")}


def open_png(data: bytes) -> ImageFile:
    """Opens a PNG file. Raises NoSliceError, or what Pillow raises on a bad file."""
    data, side = _without_side_matter(data)
    if b"acTL" in side:
        # Without a chunk fcTL before the pixels, these are shown only by programs that do not know animations.
        pictures = int.from_bytes(side[b"acTL"][:4], "big") + (b"fcTL" not in side)
        if pictures > 1:
            raise NoSliceError(f"an animated PNG of {pictures} frames, expected one picture")
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    if data[12:16] != b"IHDR":
        raise NoSliceError("a PNG file that does not start with its header")
    opened = [image]
    bits = 16 if data[24] == 16 else 8
    orientation = orientation_of(side[b"eXIf"]) if b"eXIf" in side else 1

    def numbers(frame: int) -> Numbers:
        # Pillow decodes a file without a complaint where only its end is missing.
        if _END not in data[-4096:] and _END not in data:
            raise NoSliceError("truncated: a PNG file without its end")
        # Pillow decodes an image once: after an exception it would return what is half decoded.
        picture = opened.pop() if opened else PngImagePlugin.PngImageFile(io.BytesIO(data))
        return turned(_numbers(data, picture, side.get(b"tRNS", b"")), orientation)

    width, height = image.size[::-1] if orientation in SWAPPING else image.size
    scale = UNKNOWN if bits == 16 else GREY
    return ImageFile("PNG", image.mode, width, height, bits, scale, numbers, turned=orientation != 1)


def _numbers(data: bytes, image: PngImagePlugin.PngImageFile, transparent: bytes) -> Numbers:
    """Decodes a picture. transparent: the body of its chunk tRNS."""
    depth, kind = data[24], data[25]
    has_key = bool(transparent) and kind in (_GREY, _RGB)
    if has_key:  # Pillow would compare the key, which has the depth of the file, with pixels that it has scaled
        image.info.pop("transparency", None)
    if depth == 16 and kind in (_RGB, _GREY_AND_ALPHA, _RGB_AND_ALPHA):
        samples = _wide_samples(data, kind)
        found = numbers_of_wide_colour(samples)
    else:
        found = numbers_of(image)
        samples = np.array(image) if has_key and kind == _RGB else found.values[..., None]
    if not has_key:
        return found
    most = (1 << depth) - 1
    key = np.frombuffer(transparent, ">u2", 3 if kind == _RGB else 1) & most
    if depth < 8:
        key = key * (255 // most)
    opacity = np.where((samples == key).all(axis=2), 0, 255).astype(np.uint8)
    return Numbers(found.values, found.scale, opacity=opacity)


def _wide_samples(data: bytes, kind: int) -> np.ndarray:
    """Returns the samples of 16 bits of a picture with more than one channel: (height, width, 2 to 4) uint16."""
    if kind == _GREY_AND_ALPHA:  # its pixels have four bytes, as those of RGBA of 8 bits
        return _unpacked(data, "RGBA").view(">u2").astype(np.uint16)
    high, low = (_unpacked(data, raw_mode) for raw_mode in _WIDE_COLOUR[kind])
    return high.astype(np.uint16) << 8 | low


def _unpacked(data: bytes, raw_mode: str) -> np.ndarray:
    """Returns the pixels as Pillow unpacks them from a raw mode: (height, width, 3 or 4) uint8."""
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
    return np.array(image)


def _without_side_matter(data: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Returns a file without the chunks that say nothing about its pixels, and the bodies of some chunks by their name.

    Pillow fails on text and colour profiles that are bad or inflate too far, although the pixels are good. The same
    object is returned where there is nothing to leave out. A chunk with a wrong checksum says nothing.
    """
    kept, start, before_pixels = [], 0, True
    bodies: dict[bytes, bytes] = {}
    for name, position, end in _chunks(data):
        if name == b"IDAT":
            before_pixels = False
        if not name[0] & _ANCILLARY:
            continue
        if name == b"tRNS" and before_pixels:  # it belongs to the pixels: Pillow refuses it where it is damaged
            bodies[name] = data[position + 8 : end - 4]
            continue
        kept.append(data[start:position])
        start = end
        if name == b"eXIf" or (name in (b"acTL", b"fcTL") and before_pixels):
            body = data[position + 8 : end - 4]
            if zlib.crc32(name + body) == int.from_bytes(data[end - 4 : end], "big"):
                bodies.setdefault(name, body)
    return (b"".join([*kept, data[start:]]) if kept else data), bodies


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name, position and end of the chunks of a file, to its last one or to where it is broken.

    Raises NoSliceError where there are too many to be looked at one by one.
    """
    position = 8
    for _ in range(_MOST_CHUNKS):
        if position + 12 > len(data):
            return
        length, name = _CHUNK.unpack_from(data, position)
        end = position + 12 + length
        if name == b"IEND" or not name.isalpha() or end > len(data):
            return
        yield name, position, end
        position = end
    raise NoSliceError(f"a PNG file of more than {_MOST_CHUNKS} chunks")
