"""Reads compressed frames: the size that a JPEG, JPEG-LS or JPEG 2000 frame gives itself, and frames of RLE.

Decoders allocate memory by the size in the frame, not by the size in the header of the DICOM file.
"""

import struct
from typing import NamedTuple

import numpy as np

from gansfp.images.image_file import NoSliceError

_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # frames of JPEG, also lossless; F7 is JPEG-LS
_RST = range(0xD0, 0xD8)
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
_MOST_BOXES = 100


class FrameSize(NamedTuple):
    """What a compressed frame says of itself. bits: of a sample."""

    width: int
    height: int
    components: int
    bits: int


def frame_size(frame: bytes) -> FrameSize:
    """Reads the size in a JPEG, JPEG-LS or JPEG 2000 frame, (SOFn of ISO 10918-1 and ISO 14495-1, SIZ of ISO 15444-1).

    Raises NoSliceError if there is none.
    """
    size = _jpeg_2000_size(frame) if frame.startswith((_J2K_START, _JP2_START)) else _jpeg_size(frame)
    if size is None:
        raise NoSliceError("a compressed frame without a size: the file is damaged")
    return size


def _jpeg_size(frame: bytes) -> FrameSize | None:
    position = 2 if frame.startswith(bytes([0xFF, _SOI])) else len(frame)
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _SOF:
            if position + 10 > len(frame):
                return None
            bits, height, width, components = struct.unpack(">BHHB", frame[position + 4 : position + 10])
            return FrameSize(width, height, components, bits)
        elif marker in (_SOI, _EOI, _SOS, _TEM) or marker in _RST:
            return None
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _jpeg_2000_size(frame: bytes) -> FrameSize | None:
    if frame.startswith(_JP2_START):
        frame = _codestream_of_jp2(frame)
    if not frame.startswith(_J2K_START) or len(frame) < 45:
        return None
    right, bottom, left, top = struct.unpack(">4I", frame[8:24])
    components, depth, step_x, step_y = struct.unpack(">HBBB", frame[40:45])
    if step_x != 1 or step_y != 1:  # the component has another size than the picture
        return None
    return FrameSize(right - left, bottom - top, components, (depth & 0x7F) + 1)


def _codestream_of_jp2(frame: bytes) -> bytes:
    """Returns what follows the head of the first box with a codestream, b"" if there is none."""
    position = 0
    for _ in range(_MOST_BOXES):
        head = frame[position : position + 16]
        if len(head) < 8:
            break
        length, size_of_head = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, size_of_head = int.from_bytes(head[8:16], "big"), 16
        if head[4:8] == b"jp2c":
            return frame[position + size_of_head : position + size_of_head + 64]
        if length < size_of_head:
            break
        position += length
    return b""


def decode_rle(frame: bytes, pixels: int, bytes_each: int) -> np.ndarray:
    """Decodes a frame of DICOM's RLE (PS3.5, annex G) to (pixels,) unsigned integers of that many bytes.

    pydicom decodes all runs of a segment before it looks at their length; this stops at the last pixel. Raises
    NoSliceError on a damaged frame.
    """
    if len(frame) < 64:
        raise NoSliceError("an RLE frame without its header: the file is damaged")
    segments, *starts = struct.unpack("<16I", frame[:64])
    if segments != bytes_each:
        raise NoSliceError(f"an RLE frame of {segments} segments, expected {bytes_each}")
    stops = [*starts[1:segments], len(frame)]
    planes = [_unpack_runs(frame[start:stop], pixels) for start, stop in zip(starts, stops, strict=False)]
    most_significant_first = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], axis=-1)
    return most_significant_first.view(f">u{bytes_each}")[:, 0].astype(f"u{bytes_each}")


def _unpack_runs(segment: bytes, length: int) -> bytes:
    """Unpacks a segment (PackBits) up to a length in bytes."""
    unpacked = bytearray()
    position = 0
    while len(unpacked) < length and position + 1 < len(segment):
        head = segment[position]
        if head < 128:
            unpacked += segment[position + 1 : position + head + 2]
            position += head + 2
        elif head > 128:
            unpacked += segment[position + 1 : position + 2] * (257 - head)
            position += 2
        else:
            position += 1
    if len(unpacked) < length:
        raise NoSliceError("an RLE frame that is cut off: the file is damaged")
    return bytes(unpacked[:length])
