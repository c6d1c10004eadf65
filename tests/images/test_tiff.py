"""gansfp.images.tiff: numbers, stacks and orientation against tifffile, which wrote the files."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from gansfp.images.image_file import GREY, UNKNOWN
from gansfp.images.slices import SIDE, decode, examine
from gansfp.images.tiff import open_tiff

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)


def tiff(pixels, **options):
    """The bytes of a TIFF file that tifffile writes."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pillow_tiff(pixels, **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, "TIFF", **options)
    return file.getvalue()


def retagged(data, tag, value, code=None):
    """The same file of tifffile or Pillow with another value of a short tag, and another code of it."""
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for page in file.pages:
            place, order = page.tags[tag].offset, file.byteorder
            kind, count = struct.unpack_from(order + "HI", data, place + 2)
            assert count == 1
            struct.pack_into(
                order + ("H" if kind == 3 else "I"), changed, place + (12 if file.is_bigtiff else 8), value
            )
            struct.pack_into(order + "H", changed, place, code or page.tags[tag].code)
    return bytes(changed)


MASK = {"subfiletype": 2}  # page_by_page makes it a transparency mask, which tifffile does not write


def page_by_page(*pages):
    """A file with a page for each (pixels, options), without descriptions."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, options in pages:
            writer.write(pixels, metadata=None, **options)
    data = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(file.getvalue())) as written:
        for page in written.pages:
            if page.subfiletype == 2:
                data[page.tags[254].valueoffset] = 4
    return bytes(data)


def compressions(pixels):
    """A picture by several compressions: tifffile's own, and those that libtiff writes for Pillow."""
    yield tiff(pixels)
    yield tiff(pixels, compression="zlib", predictor=pixels.dtype.itemsize <= 2)
    yield tiff(pixels, rowsperstrip=7)
    yield tiff(pixels, tile=(64, 64))
    yield tiff(pixels, compression="zlib", tile=(128, 64))
    yield tiff(pixels, bigtiff=True)


def orders(pixels):
    for order in "<>":
        yield tiff(pixels, byteorder=order)
        yield tiff(pixels, byteorder=order, compression="zlib", rowsperstrip=50)


@pytest.mark.parametrize("bits", [8, 16])
def test_min_is_white(bits):
    stored = PICTURE if bits == 8 else WIDE
    white = {"photometric": "miniswhite"}
    files = [tiff(stored, byteorder=order, **white) for order in "<>"]
    files += [tiff(stored, byteorder=order, compression="zlib", predictor=True, **white) for order in "<>"]
    files += [retagged(data, "PhotometricInterpretation", 0) for data in compressions(stored)]
    image = Image.fromarray(stored)
    files += [
        retagged(pillow_tiff(image, compression=compression), "PhotometricInterpretation", 0)
        for compression in (None, "tiff_lzw", "tiff_deflate", "packbits")
    ]
    for data in files:
        found = open_tiff(data).numbers(0)
        if bits == 8:
            np.testing.assert_array_equal(found.values, 255 - stored)
            assert not found.inverted
        else:
            np.testing.assert_array_equal(found.values, stored)
            assert found.inverted
        expected = 255 - (stored if bits == 8 else stored // 256)
        np.testing.assert_array_equal(decode(data).pixels, expected)


def test_min_is_white_of_few_bits():
    cv2 = pytest.importorskip("cv2")
    black = PICTURE > 100
    for data in (tiff(black, photometric="miniswhite"), tiff(black, photometric="minisblack")):
        inverted = tifffile.TiffFile(io.BytesIO(data)).pages[0].photometric == 0
        np.testing.assert_array_equal(decode(data).pixels, np.where(black != inverted, 255, 0))
        referee = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(decode(data).pixels, referee)
    fax = pillow_tiff(Image.fromarray(black), compression="group4")
    np.testing.assert_array_equal(decode(fax).pixels, np.where(black, 255, 0))
    nibbles = PICTURE >> 4
    four = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).astype(np.uint8)
    data = tiff(four, metadata=None)
    for photometric, expected in ((1, nibbles * 17), (0, 255 - nibbles * 17)):
        changed = retagged(retagged(data, "ImageWidth", SIDE), "BitsPerSample", 4)
        changed = retagged(changed, "PhotometricInterpretation", photometric)
        np.testing.assert_array_equal(decode(changed).pixels, expected)


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "u4"])
def test_numbers_of_more_than_8_bits_are_as_they_were_written(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    stored = RNG.integers(low, high, (SIDE, SIDE), dtype=dtype, endpoint=True)
    stored[0, :2] = low, high
    for data in [*compressions(stored), *orders(stored)]:
        image = open_tiff(data) if "4" not in dtype or data.startswith(b"II") else None
        if image is None:
            continue
        found = image.numbers(0)
        assert (found.scale, image.bits, image.scale) == (UNKNOWN, np.dtype(dtype).itemsize * 8, UNKNOWN)
        np.testing.assert_array_equal(found.values, tifffile.imread(io.BytesIO(data)))
        np.testing.assert_array_equal(found.values, stored)


def test_signed_numbers_that_are_hu_are_recognised():
    units = RNG.normal(40, 20, (SIDE, SIDE))
    units[50:200, 40:220] = RNG.normal(-850, 40, (150, 180))
    stored = units.astype(np.int16)
    for data in orders(stored):
        assert (decode(data).pixels == decode(data, rule="hu").pixels).all()
        assert examine(data).evidence.fits[0] == "hu"


def test_twelve_bits():
    stored = WIDE >> 4
    pairs = np.stack([stored[:, ::2] >> 4, (stored[:, ::2] & 15) << 4 | stored[:, 1::2] >> 8, stored[:, 1::2] & 255], 2)
    data = tiff(pairs.reshape(SIDE, -1).astype(np.uint8), metadata=None)
    data = retagged(retagged(data, "ImageWidth", SIDE), "BitsPerSample", 12)
    image = open_tiff(data)
    np.testing.assert_array_equal(image.numbers(0).values, stored)
    assert image.bits == 12


REASONS = {
    "int8": (tiff(PICTURE.view(np.int8)), "pixels are signed numbers of 8 bits"),
    "int8 lzw": (retagged(tiff(PICTURE.view(np.int8), compression="zlib"), "PhotometricInterpretation", 0), "signed"),
    "float16": (tiff(PICTURE.astype(np.float16)), "pixels are floating-point numbers"),
    "float32": (tiff(PICTURE.astype(np.float32)), "pixels are floating-point numbers"),
    "float64": (tiff(PICTURE.astype(np.float64)), "pixels are floating-point numbers"),
    "complex": (tiff(PICTURE.astype(np.complex64)), "TIFF of sample format 6"),
    "compression": (retagged(tiff(PICTURE, compression="zlib"), "Compression", 34712), "TIFF compression 34712"),
    "no photometric": (retagged(tiff(PICTURE), "PhotometricInterpretation", 1, code=260), "black may be white"),
    "32 bits": (tiff(WIDE.astype(np.uint32), byteorder=">"), "big-endian TIFF of 32 bits"),
    "big": (tiff(WIDE, bigtiff=True, byteorder=">"), "big-endian BigTIFF is not supported; save it as TIFF"),
    "separate": (tiff(WIDE[None].repeat(3, 0), photometric="rgb", planarconfig="separate"), "that is not plain RGB"),
    "cmyk": (tiff(WIDE[..., None].repeat(4, 2), photometric="separated"), "that is not plain RGB"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_read_has_a_reason(name):
    data, reason = REASONS[name]
    slice_ = decode(data)
    assert (slice_.status, slice_.pixels) == ("failed", None)
    assert reason in slice_.error
    assert examine(data).error == slice_.error


def test_a_cut_file_fails():
    data = page_by_page(*[(PICTURE, {})] * 3)
    for end in (4, 8, 100, len(data) // 2, len(data) - 300):
        assert decode(data[:end], frame=3).status == "failed"
    assert "truncated: a TIFF file without its page 1" in decode(data[:100]).error


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_as_opencv_does(orientation):
    cv2 = pytest.importorskip("cv2")
    picture = RNG.integers(0, 256, (30, 20), dtype=np.uint8)
    for stored in (picture, picture.astype(np.uint16) * 257):
        for compression in (None, "zlib"):
            tag = [(274, 3, 1, orientation, True)]
            data = tiff(stored, compression=compression, extratags=tag)
            image = open_tiff(data)
            found = image.numbers(0).values
            assert (image.height, image.width, image.turned) == (*found.shape, orientation != 1)
            eight = found if found.dtype == np.uint8 else found // 257
            np.testing.assert_array_equal(eight, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE))


def test_an_orientation_in_xmp_is_not_one_of_tiff():
    xmp = b'<x:xmpmeta tiff:Orientation="6"/>'
    data = tiff(PICTURE, extratags=[(700, 1, len(xmp), xmp, True)])
    np.testing.assert_array_equal(decode(data).pixels, PICTURE)


@pytest.mark.parametrize("tag", [34665, 34853, 40965, 34675, 700])  # EXIF, GPS, interoperability, ICC profile, XMP
def test_bad_side_matter_does_not_make_good_pixels_unreadable(tag):
    for compression in (None, "zlib"):
        for place in (0, 7, 200, 5000, 1 << 31):
            data = tiff(PICTURE, compression=compression, extratags=[(65000, 4, 1, place, True)])
            data = retagged(data, 65000, place, code=tag)
            np.testing.assert_array_equal(decode(data).pixels, PICTURE)


STACK = RNG.integers(0, 256, (5, 40, 30), dtype=np.uint8)
STACKS = {
    "tifffile": tiff(STACK, photometric="minisblack"),
    "compressed": tiff(STACK, photometric="minisblack", compression="zlib", rowsperstrip=9),
    "tiles": tiff(STACK, photometric="minisblack", tile=(16, 16)),
    "imagej": tiff(STACK, imagej=True),
    "bigtiff": tiff(STACK, photometric="minisblack", bigtiff=True),
    "ome": tiff(STACK, photometric="minisblack", ome=True),
    "big-endian": tiff(STACK, photometric="minisblack", byteorder=">"),
    "16 bits": tiff(STACK.astype(np.uint16), photometric="minisblack"),
    "pillow": pillow_tiff(STACK[0], save_all=True, append_images=[Image.fromarray(page) for page in STACK[1:]]),
    "no description": page_by_page(*((page, {}) for page in STACK)),
    "thumbnails": page_by_page(
        (STACK[0, ::2, ::2], {"subfiletype": 1}),
        *(item for page in STACK for item in ((page, {}), (page[::2, ::2], {"subfiletype": 1}), (page, MASK))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_each_page_is_a_slice_in_any_order(name):
    image = open_tiff(STACKS[name])
    assert image.frames == 5
    for frame in (3, 0, 4, 1, 2, 2, 0):
        np.testing.assert_array_equal(image.numbers(frame).values, STACK[frame])
    assert examine(STACKS[name]).frames == 5
    assert decode(STACKS[name], frame=5).status == "resized"


def test_a_damaged_page_fails_each_time_and_the_others_are_read():
    data = bytearray(tiff(STACK, photometric="minisblack", compression="zlib", rowsperstrip=40))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        place = file.pages[2].dataoffsets[0]
    data[place + 20 : place + 200] = bytes(180)
    image = open_tiff(bytes(data))
    for frame in (2, 2, 1, 2, 3, 2, 0):
        if frame == 2:
            with pytest.raises(OSError, match="decoder error"):
                image.numbers(frame)
        else:
            np.testing.assert_array_equal(image.numbers(frame).values, STACK[frame])


def test_thumbnails_and_masks_are_no_slices():
    small = PICTURE[::4, ::4]
    for subfile in ({"subfiletype": 1}, MASK, {"extratags": [(255, 3, 1, 2, True)]}):
        for pages in (((PICTURE, {}), (small, subfile)), ((small, subfile), (PICTURE, {}))):
            slice_ = decode(page_by_page(*pages))
            assert slice_.status == "ok", slice_.error
            np.testing.assert_array_equal(slice_.pixels, PICTURE)
    np.testing.assert_array_equal(decode(page_by_page((PICTURE, {"subfiletype": 1}))).pixels, PICTURE)


def test_pages_that_do_not_belong_together_are_refused():
    sizes = page_by_page((PICTURE, {}), (PICTURE[::2, ::2], {}))
    assert decode(sizes).error.startswith("holds pages of different sizes, such as 128x128 and 256x256")
    assert decode(page_by_page((PICTURE, {}), (WIDE, {}))).error.startswith("holds pages of different kinds")


THREE = np.stack([PICTURE, PICTURE[::-1], PICTURE.T])
GREY_STACK = {"photometric": "minisblack"}
ONE_PAGE = {
    "imagej": tiff(THREE, imagej=True, truncate=True),
    "imagej 16 bits": tiff(THREE.astype(np.uint16), imagej=True, truncate=True),
    "imagej time": tiff(THREE[:, None], imagej=True, truncate=True, metadata={"axes": "TZYX"}),
    "tifffile": tiff(THREE, truncate=True, **GREY_STACK),
    "tifffile big-endian": tiff(THREE.astype(np.uint16), truncate=True, byteorder=">", **GREY_STACK),
    "depth": tiff(THREE, volumetric=True, tile=(1, 64, 64), **GREY_STACK),
    "depth compressed": tiff(THREE, volumetric=True, compression="zlib", **GREY_STACK),
    "depth without a description": tiff(THREE, volumetric=True, metadata=None, **GREY_STACK),
    "planes of metamorph": tiff(PICTURE, metadata=None, extratags=[(33629, 5, 3, (1, 1) * 3, True)]),
}


@pytest.mark.parametrize("name", ONE_PAGE)
def test_a_stack_in_one_page_is_refused(name):
    slice_ = decode(ONE_PAGE[name])
    assert slice_.error == "holds 3 frames in one page, which is not read; save one page a slice"


def test_more_strips_than_one_page_needs_are_a_stack():
    volume = tiff(THREE, volumetric=True, metadata=None, compression="zlib", **GREY_STACK)
    assert "holds 3 frames" in decode(retagged(volume, 32997, 1)).error
    long = tiff(THREE.reshape(-1, SIDE), metadata=None, **GREY_STACK)
    long = retagged(retagged(long, "ImageLength", SIDE), "RowsPerStrip", SIDE)
    assert "holds 3 frames" in decode(long).error


def test_descriptions_that_tell_of_one_slice_do_no_harm():
    for text in (
        "ImageJ=1.53\nimages=1\n",
        '{"shape": [256, 256]}',
        '{"shape": "x"}',
        '{"shape":',
        "ImageJ=\nimages=x",
    ):
        assert decode(tiff(PICTURE, metadata=None, description=text)).status == "ok"


def test_loops_and_long_chains_of_pages_end():
    data = bytearray(tiff(STACK, **GREY_STACK))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        page = file.pages[2]
        entries = struct.unpack_from("<H", data, page.offset)[0]
        struct.pack_into("<I", data, page.offset + 2 + 12 * entries, file.pages[1].offset)
    assert "holds 5 frames in 3 pages" in decode(bytes(data)).error
    one = pillow_tiff(STACK[0])
    (first,) = struct.unpack_from("<I", one, 4)
    (entries,) = struct.unpack_from("<H", one, first)
    chain = bytearray(one)
    directory = one[first : first + 2 + 12 * entries]
    struct.pack_into("<I", chain, first + len(directory), len(chain))
    for _ in range(12_000):
        chain += directory + struct.pack("<I", len(chain) + len(directory) + 4)
    assert decode(bytes(chain)).error == "holds more than 10000 pages, at most 10000 are read"
    struct.pack_into("<I", chain, first + len(directory) + 0, first)
    assert open_tiff(bytes(chain)).frames == 1


def test_grey_levels_of_8_bits_are_grey():
    image = open_tiff(tiff(PICTURE))
    assert (image.scale, image.bits, image.turned, image.mode) == (GREY, 8, False, "L")
