"""gansfp.images.tiff: slices side by side in the channels of a page, extra channels, and what OME-XML tells."""

import io

import numpy as np
import pytest
from PIL import Image

from gansfp.images.slices import SIDE, decode, examine
from gansfp.images.tiff import open_tiff

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
CHANNELS = RNG.integers(0, 256, (6, SIDE, SIDE), dtype=np.uint8)
IN_ONE_PAGE = "holds {} frames in one page, which is not read; save one page a slice"


def tiff(pixels, **options):
    """The bytes of a TIFF file that tifffile writes."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def channels(count, planes="contig", dtype=np.uint8, **options):
    """A page of some channels, each of which is another picture."""
    pixels = CHANNELS[:count].astype(dtype)
    return tiff(pixels if planes == "separate" else np.stack(list(pixels), 2), planarconfig=planes, **options)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_slices_in_the_channels_of_a_page_are_a_stack(planes, compression, count):
    options = {"planes": planes, "compression": compression}
    for more in (
        {"photometric": "minisblack"},
        {"photometric": "miniswhite"},
        {"photometric": "minisblack", "dtype": np.uint16},
        {"photometric": "minisblack", "tile": (64, 64)},
        {"photometric": "minisblack", "metadata": None, "byteorder": ">"},
    ):
        data = channels(count, **options, **more)
        assert decode(data).error == examine(data).error == IN_ONE_PAGE.format(count)


def test_an_alpha_channel_is_one_of_two_only():
    mixed = channels(3, photometric="minisblack", extrasamples=["unassalpha", "unspecified"])
    assert decode(mixed).error == IN_ONE_PAGE.format(3)


def test_channels_in_several_pages_are_counted():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for _ in range(3):
            pair = np.stack(list(CHANNELS[:2]), 2)
            writer.write(pair, photometric="minisblack", planarconfig="contig", metadata=None)
    assert decode(file.getvalue()).error == "holds 6 frames in 3 pages, which is not read; save one page a slice"


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_grey_with_alpha_is_composited_on_black(kind, compression):
    grey, alpha = CHANNELS[0], (CHANNELS[1] > 100) * np.uint8(255)
    stored = grey if kind == "unassalpha" else np.where(alpha, grey, 0)
    options = {"photometric": "minisblack", "extrasamples": [kind], "compression": compression}
    data = tiff(np.dstack([stored, alpha]).astype(np.uint8), planarconfig="contig", **options)
    np.testing.assert_array_equal(decode(data).pixels, np.where(alpha, grey, 0))
    separate = tiff(np.stack([stored, alpha]).astype(np.uint8), planarconfig="separate", **options)
    assert decode(separate).error == (
        "TIFF of 1 + 1 channels in separate planes (grey + alpha), which is not read; save it as PNG"
    )


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_palette_with_alpha_is_read_and_one_with_another_channel_is_not(compression):
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    alpha = (CHANNELS[1] > 100) * np.uint8(255)
    picture = Image.frombytes("PA", (SIDE, SIDE), np.dstack([CHANNELS[0], alpha]).tobytes())
    picture.putpalette(colours.tobytes())
    file = io.BytesIO()
    picture.save(file, "TIFF", compression=compression)
    data = bytearray(file.getvalue())
    luma = np.array(Image.fromarray(colours[None]).convert("L"))[0]
    np.testing.assert_array_equal(decode(bytes(data)).pixels, np.where(alpha, luma[CHANNELS[0]], 0))
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as written:
        data[written.pages[0].tags["ExtraSamples"].valueoffset] = 0
    assert (
        decode(bytes(data)).error == "TIFF of 1 + 1 channels (palette + unspecified), which is not read; save it as PNG"
    )


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["unspecified", "unassalpha", "assocalpha"])
@pytest.mark.parametrize(("photometric", "needed"), [("rgb", 3), ("separated", 4), ("ycbcr", 3)])
@pytest.mark.parametrize("extra", [1, 2])
def test_colours_with_extra_channels_are_read_alike_or_have_a_reason(
    planes, compression, kind, photometric, needed, extra
):
    """All layouts of the same channels give the same picture, or a reason, which is none of Pillow's own."""
    kinds = [kind] + ["unspecified"] * (extra - 1)
    options = {"photometric": photometric, "metadata": None, "extrasamples": kinds}
    slice_ = decode(channels(needed + extra, planes, compression=compression, **options))
    if slice_.pixels is None:
        assert f"TIFF of {needed} + {extra} channels" in slice_.error
        assert planes == "separate" or photometric == "ycbcr" or (photometric == "separated" and "alpha" in kind)
    else:
        np.testing.assert_array_equal(slice_.pixels, decode(channels(needed + extra, **options)).pixels)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (channels(3, photometric="cielab"), "TIFF of photometric interpretation 8, which is not read; save it as PNG"),
        (channels(5, photometric="rgb", dtype=np.uint16), "TIFF of 5 channels of 16 bits that is not plain RGB"),
        (
            tiff(CHANNELS[0].astype(np.uint16), photometric="palette", colormap=np.zeros((3, 65536), np.uint16)),
            "TIFF with a palette of 16 bits",
        ),
    ],
)
def test_other_colours_have_a_reason(data, reason):
    assert decode(data).error.startswith(reason)


def ome(*images, prefix="", quote='"'):
    """OME-XML of some images, each given as its sizes."""
    described = "".join(
        f"<{prefix}Image><{prefix}Pixels Type='uint8' "
        + " ".join(f"Size{axis}={quote}{size}{quote}" for axis, size in ({"X": SIDE, "Y": SIDE} | sizes).items())
        + f"><{prefix}TiffData/></{prefix}Pixels></{prefix}Image>"
        for sizes in images
    )
    return f"<?xml version='1.0'?><!-- a comment --><{prefix}OME>{described}</{prefix}OME>"


OME_OF_THREE = {
    "depth": ome({"C": 1, "T": 1, "Z": 3}),
    "time": ome({"C": 1, "T": 3, "Z": 1}),
    "channels": ome({"C": 3, "T": 1, "Z": 1}),
    "single quotes and a prefix": ome({"Z": 3}, prefix="ome:", quote="'"),
    "images": ome({"Z": 1}, {"Z": 2}),
}


@pytest.mark.parametrize("name", OME_OF_THREE)
def test_a_page_of_which_ome_tells_more_slices_is_refused(name):
    data = tiff(CHANNELS[0], metadata=None, description=OME_OF_THREE[name])
    assert decode(data).error == examine(data).error == IN_ONE_PAGE.format(3)


def test_ome_of_two_axes_and_of_fewer_pages():
    data = tiff(CHANNELS[:2], photometric="minisblack", metadata=None, description=ome({"C": 2, "T": 3, "Z": 4}))
    assert decode(data).error == "holds 24 frames in 2 pages, which is not read; save one page a slice"


def test_ome_that_tells_of_one_slice_does_no_harm():
    for text in (
        ome({"C": 1, "T": 1, "Z": 1}),
        ome({}),
        ome({"Z": 1}, {"X": 64, "Y": 64, "Z": 9}),
        ome({"Z": 0}),
        "<OME><Pixels SizeZ=",
        "<Pixels SizeZ='3'/>",
    ):
        assert decode(tiff(CHANNELS[0], metadata=None, description=text)).status == "ok", text
    colour = channels(3, photometric="rgb", metadata=None, description=ome({"C": 3, "T": 1, "Z": 1}))
    assert decode(colour).status == "ok"


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "CYX", "TCYX"])
def test_stacks_that_tifffile_writes_as_ome_are_read(axes):
    shape = (2, 3) if axes == "TCYX" else (6,)
    stack = CHANNELS.reshape(*shape, SIDE, SIDE)
    image = open_tiff(tiff(stack, photometric="minisblack", ome=True, metadata={"axes": axes}))
    assert image.frames == 6
    np.testing.assert_array_equal(image.numbers(4).values, CHANNELS[4])
