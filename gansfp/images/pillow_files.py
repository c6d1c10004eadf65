"""What PNG, JPEG and TIFF files have in common: numbers of a Pillow image, and the orientation of a picture."""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import ExifTags, Image

from gansfp.images.image_file import GREY, UNKNOWN, NoSliceError, Numbers

# Orientations of EXIF and TIFF but 1, which turns nothing: (height, width) array -> as it is shown.
_TURNS: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda values: np.rot90(values, -1),  # 90 degrees clockwise
    7: lambda values: np.rot90(values, 2).T,
    8: np.rot90,
}
SWAPPING = (5, 6, 7, 8)  # orientations that make rows of columns


def orientation_of(exif: bytes) -> int:
    """Returns the orientation tag of EXIF data, 1 to 8. It is 1 where there is none, and where the data are bad."""
    exif_tags = Image.Exif()
    try:
        exif_tags.load(exif)
        orientation = exif_tags.get(ExifTags.Base.Orientation)
    except Exception:  # bad EXIF makes Pillow raise any exception, and the pixels may be good
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def turned(numbers: Numbers, orientation: int) -> Numbers:
    """Returns the numbers as the picture is shown. orientation: 1 to 8, as in EXIF."""
    if orientation not in _TURNS:
        return numbers
    turn = _TURNS[orientation]
    opacity = None if numbers.opacity is None else np.ascontiguousarray(turn(numbers.opacity))
    values = np.ascontiguousarray(turn(numbers.values))
    return Numbers(values, numbers.scale, numbers.inverted, opacity, numbers.unknown_because)


def numbers_of(image: Image.Image) -> Numbers:
    """Decodes a Pillow image of any mode. Raises NoSliceError for floating-point numbers, or what Pillow raises."""
    if image.mode.startswith("I"):
        return Numbers(np.array(image), UNKNOWN)
    if image.mode == "F":
        raise NoSliceError("pixels are floating-point numbers, expected 8 or 16 bits")
    if not image.has_transparency_data:
        return Numbers(np.array(image if image.mode == "L" else image.convert("L")), GREY)
    colour = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Numbers(np.array(colour.convert("L")), GREY, opacity=np.array(colour.getchannel("A")))


def numbers_of_wide_colour(samples: np.ndarray) -> Numbers:
    """Returns the ITU-R 601 luma of colours of 16 bits, in 16 bits, and their opacity.

    samples: (height, width, channels) uint16; 2 channels are grey and alpha, 3 are RGB, 4 are RGB and alpha.

    8-bit pictures that were saved in 16 bits may have an alpha of 255 where they are opaque. So where no alpha is
    larger, it is taken for one of 8 bits: otherwise nothing at all could be seen.
    """
    channels = samples.shape[2]
    if channels == 2:
        luma = samples[..., 0].copy()
    else:
        red, green, blue = (samples[..., channel].astype(np.uint32) for channel in range(3))
        # Pillow's weights of 8-bit luma; their sum is 2 ** 16.
        luma = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint16)
    if channels == 3:
        return Numbers(luma, UNKNOWN)
    alpha = samples[..., -1]
    opacity = (alpha if alpha.max() <= 0xFF else alpha >> 8).astype(np.uint8)
    return Numbers(luma, UNKNOWN, opacity=opacity)
