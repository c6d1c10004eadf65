"""gansfp.images.png and jpeg: transparency, 16 bits, orientation and side matter, against cv2 and plain readings."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gansfp.images.image_file import GREY, UNKNOWN, NoSliceError
from gansfp.images.jpeg import open_jpeg
from gansfp.images.png import _without_side_matter, open_png
from gansfp.images.slices import SIDE, decode, examine

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the type of PNG


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def broken(kind, body):
    """A chunk with a wrong checksum."""
    return chunk(kind, body)[:-4] + b"\1\2\3\4"


def packed(samples, depth):
    """The bytes of a PNG picture, unfiltered; samples: (height, width, channels) integers."""
    height = len(samples)
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(samples.astype(np.uint8).reshape(height, -1, 1), axis=2)[:, :, 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in rows)


PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]  # Adam7


def png(samples, depth=8, kind=0, *chunks, interlaced=False, after=b""):
    """A PNG file made by hand. samples: (height, width) or (height, width, channels). chunks: before its pixels."""
    samples = samples.reshape(*samples.shape[:2], CHANNELS[kind])
    height, width = samples.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    if interlaced:
        parts = (samples[top::down, left::right] for top, left, down, right in PASSES)
        rows = b"".join(packed(part, depth) for part in parts if part.size)
    else:
        rows = packed(samples, depth)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + after + chunk(b"IEND", b"")


def numbers(data):
    return open_png(data).numbers(0)


def exif(orientation, order="<"):
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_one_grey_level_is_transparent_at_every_depth(depth, interlaced):
    levels = RNG.integers(0, 1 << depth, (37, 41))
    levels[0, :3] = 0, (1 << depth) - 1, 1
    for key in {0, 1, (1 << depth) - 1}:
        # Bits of the key above the depth do not count (PNG specification, 11.3.2.1).
        for stored in {key, key | 0x100 if depth <= 8 else key}:
            data = png(levels, depth, 0, chunk(b"tRNS", struct.pack(">H", stored)), interlaced=interlaced)
            found = numbers(data)
            scale = 255 // ((1 << depth) - 1) if depth <= 8 else 1
            np.testing.assert_array_equal(found.values, levels * scale)
            np.testing.assert_array_equal(found.opacity, np.where(levels == key, 0, 255))
            assert found.scale == (UNKNOWN if depth == 16 else GREY)


def test_one_colour_is_transparent():
    for depth in (8, 16):
        colours = RNG.integers(0, 1 << depth, (20, 30, 3))
        colours[3, 4] = colours[7, 8] = key = 7, 200, 255
        colours[9, 9] = 7, 200, 254
        found = numbers(png(colours, depth, 2, chunk(b"tRNS", struct.pack(">3H", *key))))
        expected = np.full((20, 30), 255)
        expected[3, 4] = expected[7, 8] = 0
        np.testing.assert_array_equal(found.opacity, expected)


def test_a_key_of_16_bits_is_compared_with_all_16_bits():
    values = np.full((SIDE, SIDE), 1000)
    values[0, 0] = 1001
    found = numbers(png(values, 16, 0, chunk(b"tRNS", struct.pack(">H", 1001))))
    assert (found.opacity == 0).sum() == 1
    assert found.opacity[0, 0] == 0


def luma(red, green, blue):
    """ITU-R 601 in whole numbers, rounded as Pillow does."""
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("most", [255, 4095, 65535])
def test_colour_of_16_bits_keeps_all_its_bits(interlaced, most):
    colours = RNG.integers(0, most + 1, (33, 21, 3))
    found = numbers(png(colours, 16, 2, interlaced=interlaced))
    np.testing.assert_array_equal(found.values, luma(*colours.transpose(2, 0, 1)))
    assert (found.scale, found.opacity, open_png(png(colours, 16, 2)).bits) == (UNKNOWN, None, 16)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("kind", [4, 6])
def test_alpha_of_16_bits(kind, interlaced):
    samples = RNG.integers(0, 65536, (33, 21, CHANNELS[kind]))
    found = numbers(png(samples, 16, kind, interlaced=interlaced))
    grey = samples[..., 0] if kind == 4 else luma(*samples[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(found.values, grey)
    np.testing.assert_array_equal(found.opacity, samples[..., -1] >> 8)


@pytest.mark.parametrize("kind", [2, 4, 6])
def test_eight_bits_saved_in_colour_of_16_bits_are_read(kind):
    samples = np.repeat(PICTURE[..., None], CHANNELS[kind], 2).astype(int)
    if kind != 2:
        samples[..., -1] = 255  # opaque, in eight bits
    for factor in (1, 256, 257):
        slice_ = decode(png(samples * factor, 16, kind))
        np.testing.assert_array_equal(slice_.pixels, PICTURE)


def test_opencv_reads_the_same_colour_of_16_bits():
    cv2 = pytest.importorskip("cv2")
    for channels in (3, 4):
        samples = RNG.integers(0, 65536, (40, 30, channels)).astype(np.uint16)
        data = cv2.imencode(".png", samples)[1].tobytes()
        blue, green, red = (samples[..., channel].astype(int) for channel in range(3))
        np.testing.assert_array_equal(numbers(data).values, luma(red, green, blue))
        again = cv2.imdecode(np.frombuffer(png(samples, 16, 2 if channels == 3 else 6), np.uint8), cv2.IMREAD_UNCHANGED)
        red, green, blue = again[..., 2].astype(int), again[..., 1].astype(int), again[..., 0].astype(int)
        data = png(samples, 16, 2 if channels == 3 else 6)
        np.testing.assert_array_equal(numbers(data).values, luma(red, green, blue))


TOO_LONG = zlib.compress(bytes(1 << 23))
SIDE_MATTER = {
    "text": chunk(b"zTXt", b"a\0\0" + TOO_LONG),
    "international text": chunk(b"iTXt", b"a\0\1\0\0\0" + TOO_LONG),
    "profile": chunk(b"iCCP", b"a\0\0" + TOO_LONG),
    "method of text": chunk(b"zTXt", b"a\0\7" + TOO_LONG),
    "method of profile": chunk(b"iCCP", b"a\0\7abc"),
    "profile without a name": chunk(b"iCCP", b"a"),
    "empty": b"".join(chunk(kind, b"") for kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"pHYs", b"cHRM")),
    "checksums": b"".join(broken(kind, b"abc") for kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"tIME")),
    "exif": chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    "no exif": chunk(b"eXIf", b"nothing of the kind") + chunk(b"sBIT", b""),
    "animation of no frames": chunk(b"acTL", bytes(8)) + chunk(b"fcTL", b"short"),
    "half an animation": chunk(b"acTL", b"\0"),
}


@pytest.mark.parametrize("name", SIDE_MATTER)
def test_side_matter_does_not_make_good_pixels_unreadable(name):
    before = png(PICTURE, 8, 0, SIDE_MATTER[name])
    for data in (before, png(PICTURE, after=SIDE_MATTER[name])):
        slice_ = decode(data)
        assert (slice_.error, slice_.status) == ("", "ok")
        np.testing.assert_array_equal(slice_.pixels, PICTURE)
    assert examine(before).error == ""


def test_the_picture_may_come_after_side_matter():
    data = png(PICTURE)
    slice_ = decode(data[:8] + SIDE_MATTER["text"] + data[8:])
    np.testing.assert_array_equal(slice_.pixels, PICTURE)


def test_a_file_without_side_matter_is_not_copied():
    data = png(PICTURE)
    assert _without_side_matter(data)[0] is data
    assert _without_side_matter(png(PICTURE, 8, 0, SIDE_MATTER["profile"]))[0] == data


def test_damage_to_what_makes_the_pixels_is_a_failure():
    for damage in (broken(b"tRNS", b"\0\7"), chunk(b"tRNS", b"\0"), broken(b"PLTE", bytes(3))):
        assert decode(png(PICTURE, 8, 0, damage)).status == "failed"
    many = png(PICTURE, 8, 0, chunk(b"tEXt", b"a\0b") * 100_001)
    assert decode(many).error == "a PNG file of more than 100000 chunks"


def test_animations_are_refused():
    frames = [Image.fromarray(np.roll(PICTURE, shift)) for shift in range(3)]
    for default in (False, True):
        file = io.BytesIO()
        frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], default_image=default)
        assert decode(file.getvalue()).error == "an animated PNG of 3 frames, expected one picture"
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True)
    assert decode(file.getvalue()).status == "ok"


def as_shown(pixels, orientation):
    """By the words of EXIF: where the first row and the first column of the stored picture are shown."""
    rows_and_columns = {
        1: pixels,  # top, left
        2: pixels[:, ::-1],  # top, right
        3: pixels[::-1, ::-1],  # bottom, right
        4: pixels[::-1],  # bottom, left
        5: pixels.T,  # left, top
        6: pixels.T[:, ::-1],  # right, top
        7: pixels.T[::-1, ::-1],  # right, bottom
        8: pixels.T[::-1],  # left, bottom
    }
    return rows_and_columns[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_turns_png(orientation, order):
    picture = RNG.integers(0, 256, (30, 20), dtype=np.uint8)
    key = chunk(b"tRNS", struct.pack(">H", int(picture[2, 3])))
    body = exif(orientation, order)
    for data in (png(picture, 8, 0, key, chunk(b"eXIf", body)), png(picture, 8, 0, key, after=chunk(b"eXIf", body))):
        image = open_png(data)
        found = image.numbers(0)
        np.testing.assert_array_equal(found.values, as_shown(picture, orientation))
        np.testing.assert_array_equal(found.opacity, as_shown(np.where(picture == picture[2, 3], 0, 255), orientation))
        assert (image.height, image.width) == found.values.shape
        assert image.turned == (orientation != 1)
        assert (examine(data).width, examine(data).turned) == (image.width, image.turned)


def jpeg(picture, segment=b"", **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=100, **options)
    data = file.getvalue()
    return data[:2] + segment + data[2:]


def segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_jpeg_as_opencv_does(orientation):
    picture = RNG.integers(0, 256, (30, 20), dtype=np.uint8)
    data = jpeg(picture, segment(0xE1, b"Exif\0\0" + exif(orientation)))
    image = open_jpeg(data)
    found = image.numbers(0).values
    assert np.abs(found.astype(int) - as_shown(picture, orientation)).max() <= 4
    assert (image.height, image.width, image.turned) == (*found.shape, orientation != 1)
    cv2 = pytest.importorskip("cv2")
    referee = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(found.astype(int) - referee).max() <= 1


BAD_SEGMENTS = {
    "offset of exif": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "number of exif": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200))),
    "type of exif": segment(0xE1, b"Exif\0\0" + exif(6).replace(b"\3\0", b"\x7f\0", 1)),
    "orientation": segment(0xE1, b"Exif\0\0" + exif(9)),
    "short exif": segment(0xE1, b"Exif\0\0"),
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "pictures": segment(0xE2, b"MPF\0abc"),
    "short jfif": segment(0xE0, b"JFIF"),
    "short adobe": segment(0xEE, b"Adobe"),
    "comment": segment(0xFE, b""),
}


@pytest.mark.parametrize("name", BAD_SEGMENTS)
def test_bad_segments_do_not_make_a_good_jpeg_unreadable(name):
    data = jpeg(PICTURE)
    slice_ = decode(jpeg(PICTURE, BAD_SEGMENTS[name]))
    assert (slice_.status, slice_.error) == ("ok", "")
    np.testing.assert_array_equal(slice_.pixels, decode(data).pixels)


def test_colours_of_jpeg_are_converted_as_pillow_does():
    """The segments that say how colours are stored are kept: JFIF and Adobe."""
    colours = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for picture in (Image.fromarray(colours), Image.fromarray(colours).convert("CMYK")):
        for options in ({}, {"subsampling": 0}, {"keep_rgb": True} if picture.mode == "RGB" else {}):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=95, icc_profile=b"profile", **options)
            expected = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("L"))
            np.testing.assert_array_equal(open_jpeg(file.getvalue()).numbers(0).values, expected)


def test_kinds_of_jpeg_that_are_not_read_have_a_reason():
    data = jpeg(PICTURE)
    place = data.index(b"\xff\xc0")
    twelve = data[: place + 4] + b"\x0c" + data[place + 5 :]
    lossless = data[: place + 1] + b"\xc3" + data[place + 2 :]
    jpeg_ls = data[: place + 1] + b"\xf7" + data[place + 2 :]
    assert decode(twelve).error == "JPEG of 12 bits, which is not read; save it as PNG"
    assert decode(lossless).error == "lossless JPEG, which is not read; save it as PNG"
    assert decode(jpeg_ls).error == "JPEG-LS, which is not read; save it as PNG"


@pytest.mark.parametrize("opener", [open_png, open_jpeg])
def test_a_broken_file_fails_each_time_it_is_asked_for(opener):
    """Pillow returns what is half decoded where an image is loaded again after an exception."""
    data = jpeg(PICTURE)[:-9000] if opener is open_jpeg else png(PICTURE)
    if opener is open_png:
        data = data[:20000] + bytes(64) + data[20064:]
    image = opener(data)
    for _ in range(3):
        with pytest.raises((OSError, SyntaxError, NoSliceError)):
            image.numbers(0)


def test_a_file_is_decoded_more_than_once():
    for image in (open_png(png(PICTURE)), open_jpeg(jpeg(PICTURE))):
        np.testing.assert_array_equal(image.numbers(0).values, image.numbers(0).values)
