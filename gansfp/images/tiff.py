"""Opens TIFF files with Pillow: single pictures and stacks, of which each page is a slice."""

import io

from PIL import TiffImagePlugin

from gansfp.images.image_file import GREY, MAX_SIDE, UNKNOWN, ImageFile, NoSliceError, Numbers
from gansfp.images.pillow_files import numbers_of
from gansfp.quiet import discard_stderr


def open_tiff(data: bytes) -> ImageFile:
    """Opens a TIFF file. Raises NoSliceError, or what Pillow raises on a bad file."""
    file = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    tile = max(file.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0), file.tag_v2.get(TiffImagePlugin.TILELENGTH, 0))
    if tile > MAX_SIDE:  # libtiff decodes whole tiles, however small the image is
        raise NoSliceError(f"tiles of {tile} pixels, at most {MAX_SIDE} are read")

    def numbers(frame: int) -> Numbers:
        file.seek(frame)
        with discard_stderr():  # libtiff writes what it finds wrong in a file to file descriptor 2
            return numbers_of(file)

    wide = file.mode.startswith("I")
    return ImageFile(
        "TIFF", file.mode, *file.size, 16 if wide else 8, UNKNOWN if wide else GREY, numbers, file.n_frames
    )
