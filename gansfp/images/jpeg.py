"""Opens JPEG files with Pillow."""

import io

from PIL import JpegImagePlugin

from gansfp.images.image_file import GREY, ImageFile, NoSliceError, Numbers
from gansfp.images.pillow_files import SWAPPING, numbers_of, orientation_of, turned

_SCAN = 0xDA  # the marker that ends the header
_COMMENT = 0xFE
_EXIF = 0xE1
_NOT_READ = {
    0xC3: "lossless JPEG",
    0xC5: "hierarchical JPEG",
    0xC6: "hierarchical JPEG",
    0xC7: "lossless JPEG",
    0xCB: "lossless JPEG",
    0xCD: "hierarchical JPEG",
    0xCE: "hierarchical JPEG",
    0xCF: "lossless JPEG",
    0xF7: "JPEG-LS",
}
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of ITU-T T.81 table B.1, and JPEG-LS
# Segments that say how the colours are stored, with the least length that libjpeg looks at: JFIF and Adobe.
_COLOURS = {0xE0: 14, 0xEE: 12}


def open_jpeg(data: bytes) -> ImageFile:
    """Opens a JPEG file. Raises NoSliceError, or what Pillow raises on a bad file."""
    data, exif = _without_side_matter(data)
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    opened = [image]

    def numbers(frame: int) -> Numbers:
        # Pillow decodes an image once: after an exception it would return what is half decoded.
        return turned(
            numbers_of(opened.pop() if opened else JpegImagePlugin.JpegImageFile(io.BytesIO(data))), orientation
        )

    orientation = orientation_of(exif) if exif else 1
    width, height = image.size[::-1] if orientation in SWAPPING else image.size
    return ImageFile(
        "JPEG",
        image.mode,
        width,
        height,
        8,
        GREY,
        numbers,
        turned=orientation != 1,
    )


def _without_side_matter(data: bytes) -> tuple[bytes, bytes]:
    """Returns a file without the segments that say nothing about its pixels, and its EXIF data, b"" for none.

    Pillow fails on some that are bad, although the pixels are good. Raises NoSliceError for a kind of JPEG that is not
    read. A file that is broken is returned as it is from the place on.
    """
    kept, exif = [], b""
    start = position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xFF:  # padding before a marker
            position += 1
            continue
        end = position + 2 + length
        if marker == _SCAN or length < 2 or end > len(data):
            break
        if marker in _FRAMES:
            _check_frame(marker, data[position + 4])
        if (0xE0 <= marker <= 0xEF and length - 2 < _COLOURS.get(marker, 1 << 16)) or marker == _COMMENT:
            if marker == _EXIF and not exif and data.startswith(b"Exif\0\0", position + 4):
                exif = data[position + 4 : end]
            kept.append(data[start:position])
            start = end
        position = end
    return (b"".join([data[:2], *kept, data[start:]]) if kept else data), exif


def _check_frame(marker: int, bits: int) -> None:
    kind = _NOT_READ.get(marker, "")
    if kind or bits != 8:
        raise NoSliceError(f"{kind or f'JPEG of {bits} bits'}, which is not read; save it as PNG")
