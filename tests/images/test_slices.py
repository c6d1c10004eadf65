"""gansfp.images.slices: each kind of file against a plain reading, each kind of broken file against its reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from gansfp.images import slices
from gansfp.images.slices import SIDE, decode, examine, load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


def encode(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def luma(colour):
    """ITU-R 601-2 in plain numbers: (..., 3) -> (...)."""
    red, green, blue = (colour[..., channel].astype(float) for channel in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def check(data, expected, mode, tolerance=0.0, status="ok"):
    slice_ = decode(data)
    assert (slice_.status, slice_.error, slice_.mode) == (status, "", mode)
    assert slice_.pixels.shape == (SIDE, SIDE)
    assert slice_.pixels.dtype == np.uint8
    assert slice_.pixels.flags.writeable  # torch warns of arrays that are not
    assert np.abs(slice_.pixels - np.asarray(expected, float)).max() <= tolerance
    header = examine(data)
    assert (header.mode, header.width, header.height, header.error) == (mode, slice_.width, slice_.height, "")


def test_grey_modes():
    check(encode(GREY), GREY, "L")
    check(encode(Image.fromarray(GREY > 100)), np.where(GREY > 100, 255, 0), "1")
    opaque = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (SIDE, SIDE), 255)])
    check(encode(opaque), GREY, "LA")


def test_alpha_is_composited_on_black():
    seen = GREY * (ALPHA / 255.0)
    check(encode(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])), seen, "LA", 1)
    rgba = np.dstack([COLOUR, ALPHA])
    check(encode(rgba), luma(COLOUR) * (ALPHA / 255.0), "RGBA", 1.01)
    check(encode(np.dstack([COLOUR, np.full_like(ALPHA, 255)])), luma(COLOUR), "RGBA", 0.51)
    check(encode(GREY, transparency=7), np.where(GREY == 7, 0, GREY), "L")


def test_colour_becomes_luma():
    check(encode(COLOUR), luma(COLOUR), "RGB", 0.51)


def test_palette_is_looked_up_and_indices_are_never_grey_levels():
    indices = Image.fromarray(GREY)
    indices = Image.frombytes("P", indices.size, indices.tobytes())
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    indices.putpalette(palette.tobytes())
    expected = luma(palette)[GREY]
    check(encode(indices), expected, "P", 0.51)
    check(encode(indices, transparency=bytes([0] * 128 + [255] * 128)), np.where(GREY < 128, 0, expected), "P", 0.51)
    inverted = indices.copy()
    inverted.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3).tobytes())
    check(encode(inverted), 255 - GREY, "P")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits(kind):
    wide = RNG.integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
    check(encode(wide, kind), wide // 256, "I;16")
    check(encode(GREY.astype(np.uint16), kind), GREY, "I;16")  # fits 8 bits
    check(encode(GREY.astype(np.uint16) * 257, kind), GREY, "I;16")  # both ways of widening are undone
    check(encode(GREY.astype(np.uint16) * 256, kind), GREY, "I;16")


def test_16_bits_big_endian_and_other_number_types():
    wide = RNG.integers(0, 65536, (SIDE, SIDE)).astype(np.uint16)
    big = Image.frombytes("I;16B", (SIDE, SIDE), wide.astype(">u2").tobytes())
    check(encode(big, "TIFF"), wide // 256, "I;16B")
    check(encode(wide.astype(np.int32), "TIFF"), wide // 256, "I")
    below = decode(encode(wide.astype(np.int32) - 1024, "TIFF"))
    assert (below.status, below.pixels) == ("failed", None)
    assert f"numbers from {int(wide.min()) - 1024} to {int(wide.max()) - 1024} are neither" in below.error
    assert "floating-point" in decode(encode(GREY.astype(np.float32), "TIFF")).error


def test_jpeg_and_tiff():
    jpeg = encode(GREY, "JPEG")
    check(jpeg, np.asarray(Image.open(io.BytesIO(jpeg))), "L")
    check(encode(COLOUR, "JPEG", quality=100, subsampling=0), luma(COLOUR), "RGB", 6)
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits"):
        check(encode(GREY, "TIFF", compression=compression), GREY, "L")


def test_the_content_decides_not_the_name():
    slice_ = decode(encode(GREY, "TIFF"), "slice.png")
    assert slice_.status == "ok"
    assert (slice_.pixels == GREY).all()


def area_mean(square):
    """Each target pixel is the mean over its area of the source: a slow plain reference, (side, side) -> (256, 256)."""
    side = len(square)
    weights = np.zeros((SIDE, side))
    for target in range(SIDE):
        low, high = target * side / SIDE, (target + 1) * side / SIDE
        for source in range(side):
            weights[target, source] = max(0.0, min(high, source + 1) - max(low, source)) / (high - low)
    return weights @ square @ weights.T


def test_another_size_is_resized_by_area():
    check(encode(GREY.repeat(2, 0).repeat(2, 1)), GREY, "L", status="resized")
    big = RNG.integers(0, 256, (512, 512), dtype=np.uint8)
    check(encode(big), area_mean(big), "L", 1, "resized")
    small = encode(GREY[:64, :64])
    check(small, GREY[:64, :64].repeat(4, 0).repeat(4, 1), "L", status="resized")
    slice_ = decode(small)
    assert (slice_.width, slice_.height) == (64, 64)


def test_other_shapes_are_padded_to_a_square_first():
    tall = RNG.integers(0, 256, (512, 320), dtype=np.uint8)
    square = np.zeros((512, 512), np.uint8)
    square[:, 96:416] = tall
    check(encode(tall), area_mean(square), "L", 1, "resized")
    check(encode(tall.T), area_mean(square.T), "L", 1, "resized")


def png_header(width, height):
    """A PNG file whose header gives this size, without pixels."""
    chunks = b""
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(60000, 60000), (10000, 10000), (1_000_000, 2), (2, 1_000_000)])
def test_decompression_bombs_are_refused_by_their_header(size, monkeypatch):
    def decoded(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr(slices, "to_grey", decoded)
    slice_ = decode(png_header(*size))
    assert (slice_.status, slice_.pixels) == ("failed", None)
    assert slice_.error == f"{size[0]}x{size[1]} pixels, at most 8192x8192 are read"
    assert (slice_.width, slice_.height) == size
    assert examine(png_header(*size)).error == slice_.error


def test_pillows_own_bomb_warning_is_a_failure(monkeypatch):
    def warn(numbers, rule):
        warnings.warn("too many pixels", Image.DecompressionBombWarning, stacklevel=1)

    monkeypatch.setattr(slices, "to_grey", warn)
    slice_ = decode(encode(GREY))
    assert (slice_.status, slice_.error) == ("failed", "DecompressionBombWarning: too many pixels")


BROKEN = {
    "empty": b"",
    "text": b"this is no image\n",
    "one byte": b"\x89",
    "signature": b"\x89PNG\r\n\x1a\n",
    "html": b"<!doctype html><title>404</title>" * 50,
    "no pixels": png_header(0, 10),
    "png half": encode(GREY)[:30000],
    "png without end": encode(GREY)[:-12],
    "png without its last byte": encode(GREY)[:-1],
    "png damaged": encode(GREY)[:20000] + b"\0" * 64 + encode(GREY)[20064:],
    "jpeg half": encode(GREY, "JPEG")[:9000],
    "jpeg without its last byte": encode(GREY, "JPEG")[:-1],
    "tiff half": encode(GREY, "TIFF")[:30000],
    "tiff lzw without its last byte": encode(GREY, "TIFF", compression="tiff_lzw")[:-1],
    "tiff lzw damaged": encode(GREY, "TIFF", compression="tiff_lzw").replace(
        encode(GREY, "TIFF", compression="tiff_lzw")[500:700], b"\xff" * 200
    ),
    "tiff deflate damaged": encode(GREY, "TIFF", compression="tiff_deflate").replace(
        encode(GREY, "TIFF", compression="tiff_deflate")[500:700], b"\xff" * 200
    ),
    "two pages": encode(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)]),
    "gif": encode(Image.fromarray(GREY), "GIF"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_fail_with_a_reason_and_without_output(kind, capfd, recwarn, caplog):
    slice_ = decode(BROKEN[kind], "slice.png")
    assert (slice_.status, slice_.pixels) == ("failed", None)
    assert 0 < len(slice_.error) < 200
    assert "\n" not in slice_.error
    examine(BROKEN[kind], "slice.png")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not caplog.records


def test_reasons_differ():
    assert decode(b"").error == "empty file"
    assert decode(BROKEN["text"], "a.png").error == "not a DICOM, PNG, JPEG, TIFF or NIfTI file"
    assert "truncated" in decode(BROKEN["png half"]).error
    assert "truncated" in decode(BROKEN["png without end"]).error
    assert decode(BROKEN["two pages"]).error == "holds 2 frames, expected one slice a file"


def test_no_damage_raises():
    """A hundred cut and overwritten files of each kind: each becomes a slice or a reason."""
    rng = np.random.default_rng(1)
    whole = [encode(GREY), encode(GREY, "JPEG"), encode(GREY, "TIFF"), encode(GREY, "TIFF", compression="tiff_lzw")]
    failed = 0
    for data in whole:
        for _ in range(100):
            damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
            for place in rng.integers(0, min(len(damaged), int(rng.choice([100, 100_000]))), 4):
                damaged[place] = rng.integers(0, 256)
            slice_ = decode(bytes(damaged))
            assert (slice_.pixels is None) == (slice_.status == "failed") == bool(slice_.error)
            failed += slice_.status == "failed"
    assert failed > 200


def test_load(tmp_path):
    path = tmp_path / "slice.png"
    path.write_bytes(encode(GREY))
    assert (load(str(path)).pixels == GREY).all()
    assert load(str(tmp_path / "nothing.png")).error == "No such file or directory"
    assert load(str(tmp_path)).status == "failed"
    assert load("nowhere://bucket/slice.png").status == "failed"


def test_every_shared_slice_is_read_as_pillow_reads_it(shared):
    paths = sorted((shared / "challenge").rglob("*.png"))
    assert len(paths) > 2000
    for index, path in enumerate(paths):
        slice_ = load(str(path))
        assert (slice_.status, slice_.error, slice_.mode) == ("ok", "", "L")
        if index % 10 == 0:
            assert (slice_.pixels == np.asarray(Image.open(path))).all()
