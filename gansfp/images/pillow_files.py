"""Opens PNG and JPEG files with Pillow."""

import io

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from gansfp.images.image_file import GREY, UNKNOWN, ImageFile, NoSliceError, Numbers

_PNG_END = b"IEND\xaeB`\x82"


def open_png(data: bytes) -> ImageFile:
    """Opens a PNG file. Raises NoSliceError, or what Pillow raises on a bad file."""
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))

    def numbers(frame: int) -> Numbers:
        # Pillow decodes a file without a complaint where only its end is missing.
        if _PNG_END not in data[-4096:] and _PNG_END not in data:
            raise NoSliceError("truncated: a PNG file without its end")
        return numbers_of(image)

    wide = image.mode.startswith("I")
    return ImageFile(
        "PNG", image.mode, *image.size, 16 if wide else 8, UNKNOWN if wide else GREY, numbers, image.n_frames
    )


def open_jpeg(data: bytes) -> ImageFile:
    """Opens a JPEG file. Raises what Pillow raises on a bad file."""
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return ImageFile("JPEG", image.mode, *image.size, 8, GREY, lambda frame: numbers_of(image))


def numbers_of(image: Image.Image) -> Numbers:
    """Decodes a Pillow image of any mode."""
    if image.mode.startswith("I"):
        return Numbers(np.array(image), UNKNOWN)
    if image.mode == "F":
        raise NoSliceError("pixels are floating-point numbers, expected 8 or 16 bits")
    if not image.has_transparency_data:
        return Numbers(np.array(image.convert("L")), GREY)
    colour = image.convert("RGBA")
    return Numbers(np.array(colour.convert("L")), GREY, opacity=np.array(colour.getchannel("A")))
