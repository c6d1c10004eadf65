"""Reads how a DICOM file is written: its transfer syntax, and where its data set and its pixels begin.

The file meta information is read here and not by pydicom, because pydicom inflates a deflated file, however large it
becomes, before anything of it can be checked.
"""

import struct
from typing import NamedTuple

from gansfp.images.image_file import MissingPackageError, NoSliceError

_NATIVE = {  # transfer syntax -> implicit value representations, little endian
    "1.2.840.10008.1.2": (True, True),
    "1.2.840.10008.1.2.1": (False, True),
    "1.2.840.10008.1.2.2": (False, False),
}
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205")


class Codec(NamedTuple):
    """How the frames of a transfer syntax are decoded.

    name: for messages. plugin: of pydicom; one and no other, because two may differ in the last bit of a lossy frame.
    package: brings the plugin. decoder: the transfer syntax whose decoder of pydicom is taken.
    """

    name: str
    plugin: str
    package: str
    decoder: str


_PREFIX = "1.2.840.10008.1.2."
RLE = f"{_PREFIX}5"
_BASELINE, _JPEG_2000 = f"{_PREFIX}4.50", f"{_PREFIX}4.91"
CODECS = {
    _BASELINE: Codec("JPEG", "pillow", "pillow", _BASELINE),
    # pydicom does not let GDCM decode 12 bits of this syntax. GDCM can: it looks at the frame, not at the syntax.
    f"{_PREFIX}4.51": Codec("JPEG", "gdcm", "python-gdcm", _BASELINE),
    **{f"{_PREFIX}4.{n}": Codec("lossless JPEG", "gdcm", "python-gdcm", f"{_PREFIX}4.{n}") for n in (57, 70)},
    # Not pyjpegls: on a damaged frame it takes seconds, or never ends.
    **{f"{_PREFIX}4.{n}": Codec("JPEG-LS", "gdcm", "python-gdcm", f"{_PREFIX}4.{n}") for n in (80, 81)},
    # High-throughput JPEG 2000 is 201 to 203. pydicom does not offer Pillow for it; OpenJPEG in Pillow decodes it.
    **{f"{_PREFIX}4.{n}": Codec("JPEG 2000", "pillow", "pillow", _JPEG_2000) for n in (90, 91, 201, 202, 203)},
}

_LONG_REPRESENTATIONS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_MOST_META_ELEMENTS = 1000
_PIXELS_GROUP = 0x7FE0
_FLOAT_PIXELS = (0x0008, 0x0009)


class Writing(NamedTuple):
    """How a data set is written.

    syntax: the transfer syntax, "" if the file does not tell. start: of the data set, in bytes. implicit: elements are
    written without their value representation. little: little endian.
    """

    syntax: str
    start: int
    implicit: bool
    little: bool


def read_writing(data: bytes) -> Writing:
    """Reads the transfer syntax. Raises NoSliceError where files of this syntax are not read.

    Source: DICOM PS3.10, 7.1. Group 0002 is always in explicit little endian; some files have it in implicit.
    """
    position, syntax = 132 if data[128:132] == b"DICM" else 0, ""
    for _ in range(_MOST_META_ELEMENTS):
        head = data[position : position + 12]
        if len(head) < 8 or head[:2] != b"\x02\0":
            break
        if head[4:6] in _LONG_REPRESENTATIONS and len(head) == 12:
            value, length = position + 12, int.from_bytes(head[8:12], "little")
        elif head[4:6].isalpha() and head[4:6].isupper():
            value, length = position + 8, int.from_bytes(head[6:8], "little")
        else:
            value, length = position + 8, int.from_bytes(head[4:8], "little")
        if head[2:4] == b"\x10\0":
            syntax = data[value : value + min(length, 64)].strip(b" \0").decode("latin-1")
        position = value + length
    else:
        raise NoSliceError(f"not a DICOM image: more than {_MOST_META_ELEMENTS} elements before the data set")
    return Writing(syntax, position, *_representation(syntax, data[position : position + 2]))


def _representation(syntax: str, first_bytes: bytes) -> tuple[bool, bool]:
    """Returns whether value representations are implicit, and whether numbers are in little endian."""
    if syntax in _NATIVE:
        return _NATIVE[syntax]
    if syntax in CODECS or syntax == RLE:
        return False, True
    if syntax in _DEFLATED:
        raise NoSliceError("deflated DICOM, which is not read; store it uncompressed")
    if syntax:
        known = syntax if set(syntax) <= set("0123456789.") else "that is no UID"
        raise NoSliceError(f"DICOM with transfer syntax {known}, which is not read; store it uncompressed")
    # Without file meta information: group 0008 comes first. pydicom finds out itself whether the rest is explicit.
    return True, first_bytes[:1] != b"\0"


class PixelData(NamedTuple):
    """Where the value of the element PixelData is: data[start:stop]. fragmented: it holds compressed frames.
    words: it is written in words of 16 bits (OW)."""

    start: int
    stop: int
    fragmented: bool
    words: bool


def find_pixel_data(data: bytes, position: int, little: bool) -> PixelData:
    """Reads the head of the element at a position. Raises NoSliceError if it is not PixelData."""
    order = "<" if little else ">"
    head = data[position : position + 12].ljust(12, b"\0")
    group, element = struct.unpack(f"{order}HH", head[:4])
    if group != _PIXELS_GROUP:
        raise NoSliceError("not a DICOM image: no PixelData")
    if element in _FLOAT_PIXELS:
        raise NoSliceError("DICOM with floating-point pixels, expected whole numbers")
    explicit = head[4:6] in (b"OB", b"OW", b"UN")  # a length is even, so it does not look like one of these
    start = position + (12 if explicit else 8)
    (length,) = struct.unpack(f"{order}I", head[8:12] if explicit else head[4:8])
    fragmented = length == 0xFFFFFFFF
    return PixelData(start, len(data) if fragmented else min(start + length, len(data)), fragmented, head[4:6] == b"OW")


def check_decoder(syntax: str) -> None:
    """Raises MissingPackageError if the package that decodes a compressed transfer syntax of CODECS is missing."""
    from pydicom.pixels import get_decoder

    codec = CODECS[syntax]
    if codec.plugin not in get_decoder(codec.decoder).available_plugins:
        raise MissingPackageError(codec.package, f"{codec.name} DICOM needs {codec.package}: install gansfp[dicom]")
