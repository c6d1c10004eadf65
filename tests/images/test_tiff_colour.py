"""gansfp.images.tiff: colour and palettes of 8 and 16 bits that tifffile wrote."""

import io

import numpy as np
import pytest

from gansfp.images.slices import SIDE, decode
from gansfp.images.tiff import open_tiff

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def tiff(pixels, **options):
    """The bytes of a TIFF file that tifffile writes."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def luma(colours):
    red, green, blue = (colours[..., channel].astype(int) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("most", [255, 65535])
def test_colour_of_16_bits_keeps_all_its_bits(channels, most):
    colours = RNG.integers(0, most + 1, (64, 48, channels)).astype(np.uint16)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    for order in "<>":
        for compression in (None, "zlib"):
            data = tiff(colours, byteorder=order, compression=compression, photometric="rgb", **extra)
            found = open_tiff(data).numbers(0)
            np.testing.assert_array_equal(found.values, luma(colours))
            if channels == 4:
                alpha = colours[..., 3] if most == 255 else colours[..., 3] >> 8
                np.testing.assert_array_equal(found.opacity, alpha)


def test_colour_of_8_bits_and_palettes():
    colours = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for data in (tiff(colours, photometric="rgb"), tiff(colours, photometric="rgb", compression="zlib")):
        np.testing.assert_array_equal(decode(data).pixels, luma(colours))
    palette = RNG.integers(0, 256, (3, 256), dtype=np.uint16)
    expected = luma(palette.T)[PICTURE]
    for factor in (257, 256, 1):  # some programs write 8 bits
        data = tiff(PICTURE, photometric="palette", colormap=palette * factor)
        np.testing.assert_array_equal(decode(data).pixels, expected)
