"""How numbers are stored in a native DICOM file: padding, bits, sign, byte order, and the head of the file."""

import struct

import numpy as np
import pytest
from dicom_files import NAME, SERIES, chest, claiming, dataset, dicom, encode
from PIL import Image

from gansfp.images.slices import decode, examine

UNITS = chest()
STORED = (UNITS + 1024).astype(np.uint16)
Y, X = np.mgrid[:256, :256] - 127.5
OUTSIDE = X**2 + Y**2 > 125**2  # of the field of view
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"


def window(units):
    return np.rint((np.asarray(units, np.float64) + 1350) * 255 / 1500).clip(0, 255)


def check(data, expected, name="IM0001"):
    slice_, header = decode(data, name), examine(data, name)
    assert (slice_.status, slice_.error, header.error) == ("ok", "", "")
    assert np.abs(slice_.pixels - np.asarray(expected, float)).max() == 0


def padded_file(pixels, value, vr="US", limit=None, syntax=EXPLICIT, **elements):
    """A file with padding outside the field of view; vr: of PixelPaddingValue and PixelPaddingRangeLimit."""
    image = dataset(pixels, syntax, **elements)
    image.add_new("PixelPaddingValue", vr, value)
    if limit is not None:
        image.add_new("PixelPaddingRangeLimit", vr, limit)
    return encode(image)


BLACK_OUTSIDE = np.where(OUTSIDE, 0, window(UNITS))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("value", [63536, 4095, 0, 65535, 2500])
def test_padding_of_unsigned_pixels(value, syntax):
    pixels = np.where(OUTSIDE, value, STORED).astype(np.uint16)
    check(padded_file(pixels, value, syntax=syntax), BLACK_OUTSIDE)


@pytest.mark.parametrize("value", [-2000, -2048, -32768, 3071])
def test_padding_of_signed_pixels(value):
    pixels = np.where(OUTSIDE, value, UNITS).astype(np.int16)
    identity = {"RescaleIntercept": "0"}
    check(padded_file(pixels, value, "SS", **identity), BLACK_OUTSIDE)
    check(padded_file(pixels, value % 65536, "US", **identity), BLACK_OUTSIDE)  # the other sign than the pixels


def test_padding_with_the_other_sign_of_unsigned_pixels():
    pixels = np.where(OUTSIDE, 63536, STORED).astype(np.uint16)
    check(padded_file(pixels, -2000, "SS"), BLACK_OUTSIDE)


def test_padding_that_needs_more_bits_than_are_stored():
    pixels = np.where(OUTSIDE, 63536, STORED).astype(np.uint16)
    check(padded_file(pixels, 63536, BitsStored=12), BLACK_OUTSIDE)
    check(padded_file(pixels, -2000, "SS", BitsStored=12), BLACK_OUTSIDE)
    signed = np.where(OUTSIDE, -2000, UNITS.clip(-1024, 2047)).astype(np.int16)
    check(padded_file(signed, 63536, BitsStored=12, RescaleIntercept="0"), BLACK_OUTSIDE)


@pytest.mark.parametrize(("value", "limit"), [(63000, 64000), (64000, 63000), (-2536, -1536)])
def test_padding_of_a_range_in_either_order(value, limit):
    noise = np.random.default_rng(0).integers(63000, 64001, UNITS.shape)
    pixels = np.where(OUTSIDE, noise, STORED).astype(np.uint16)
    check(padded_file(pixels, value, "US" if value > 0 else "SS", limit), BLACK_OUTSIDE)
    check(padded_file(pixels.view(np.int16) - 1024, value - 1024, "SS" if value < 0 else "US", limit - 1024,
                      RescaleIntercept="0"), np.where(OUTSIDE, 0, window(np.where(OUTSIDE, 0, UNITS))))  # fmt: skip


def test_padding_is_black_in_every_kind_of_picture():
    pixels = np.where(OUTSIDE, 4095, STORED).astype(np.uint16)
    check(padded_file(pixels, 4095, PhotometricInterpretation="MONOCHROME1"), np.where(OUTSIDE, 0, 255 - window(UNITS)))
    grey = np.where(OUTSIDE, 255, window(UNITS).clip(0, 254)).astype(np.uint8)
    identity = {"RescaleIntercept": "0"}
    check(padded_file(grey, 255, **identity), np.where(OUTSIDE, 0, grey))
    inverted = np.where(OUTSIDE, 0, 255 - grey)
    check(padded_file(grey, 255, **identity, PhotometricInterpretation="MONOCHROME1"), inverted)
    unknown = padded_file(pixels, 4095, RescaleIntercept=None)
    assert (decode(unknown, rule="hu+1024").pixels == BLACK_OUTSIDE).all()


def test_air_that_is_the_padding_value():
    """All air is clipped to the padding value: what is left has no air, and it is a good slice."""
    units = np.where(UNITS < -500, -1024, UNITS.clip(-100))
    data = padded_file((units + 1024).astype(np.uint16), 0)
    check(data, np.where(units == -1024, 0, window(units)))
    no_air = np.where(OUTSIDE, -2000, UNITS.clip(-100)).astype(np.int16)
    assert "air has about -1000" in decode(padded_file(no_air, -2000, "SS", RescaleIntercept="0")).error


def test_padding_everywhere():
    check(padded_file(np.zeros_like(STORED), 0), np.zeros(UNITS.shape))
    assert "covers all pixels" in decode(padded_file(STORED, 0, limit=65535)).error


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_padding_of_a_range_whose_values_have_different_signs(syntax):
    noise = np.random.default_rng(0).integers(-2000, 1, UNITS.shape)
    pixels = np.where(OUTSIDE, noise, (UNITS + 1024).clip(1)).astype(np.int16)
    expected = np.where(OUTSIDE, 0, window((UNITS + 1024).clip(1) - 1024))
    for value, limit in ((63536, 0), (0, 63536)):
        check(padded_file(pixels, value, "US", limit, syntax), expected)
    for value, limit in ((-2000, 0), (0, -2000)):
        check(padded_file(pixels, value, "SS", limit, syntax), expected)
        if syntax != IMPLICIT:  # which does not tell that the values have a sign
            check(padded_file(pixels.view(np.uint16), value, "SS", limit, syntax), expected)


def test_12_bits():
    signed = UNITS.clip(-1024, 2047)
    check(dicom(signed, BitsStored=12, RescaleIntercept="0"), window(signed))
    without_sign_bits = (signed & 0x0FFF).astype(np.int16)  # the upper bits are not copies of the sign
    check(dicom(without_sign_bits, BitsStored=12, RescaleIntercept="0"), window(signed))
    check(dicom(STORED, BitsStored=12), window(UNITS))


def test_overlays_in_the_upper_bits_are_no_numbers():
    overlay = np.random.default_rng(0).integers(0, 16, UNITS.shape).astype(np.uint16) << 12
    check(dicom(STORED | overlay, BitsStored=12), window(UNITS))
    signed = UNITS.clip(-1024, 2047)
    pixels = ((signed & 0x0FFF).astype(np.uint16) | overlay).view(np.int16)
    check(dicom(pixels, BitsStored=12, RescaleIntercept="0"), window(signed))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.int32])
def test_byte_orders(dtype, syntax):
    if dtype == np.uint8:
        pixels = ((UNITS + 1024) // 16).astype(dtype)
        check(dicom(pixels, syntax, RescaleSlope="16"), window(pixels.astype(int) * 16 - 1024))
    else:
        check(dicom((UNITS + 1024).astype(dtype), syntax), window(UNITS))


def test_8_bits_in_words_of_big_endian():
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 5), dtype=np.uint8)
    image = dataset(frames, BIG, RescaleIntercept=None)
    data = frames.tobytes() + b"\0"
    image.PixelData = np.frombuffer(data, "<u2").astype(">u2").tobytes()
    image["PixelData"].VR = "OW"
    expected = [Image.fromarray(frame).resize((256, 256), Image.Resampling.BOX) for frame in frames]
    for number, picture in enumerate(expected, 1):
        assert (decode(encode(image), frame=number).pixels == np.asarray(picture)).all()


def test_odd_numbers_of_bytes():
    frames = np.random.default_rng(0).integers(0, 256, (3, 7, 5), dtype=np.uint8)
    data = dicom(frames, RescaleIntercept=None)
    for number, frame in enumerate(frames, 1):
        square = np.zeros((7, 7), np.uint8)
        square[:, 1:6] = frame
        expected = Image.fromarray(square).resize((256, 256), Image.Resampling.BOX)
        assert (decode(data, frame=number).pixels == np.asarray(expected)).all()


@pytest.mark.parametrize(
    "head", [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xa5" * 128]
)
def test_the_preamble_does_not_decide(head):
    data = dicom(STORED)
    for name in ("IM0001", "slice.IMA", "slice.dicom", "slice.png", ".IMA", ""):
        check(head.ljust(128, b"\0") + data[128:], window(UNITS), name)


def test_without_preamble_it_is_recognised_by_its_name():
    with_meta = dicom(STORED)[132:]
    for syntax in (IMPLICIT, EXPLICIT):
        data = dicom(STORED, syntax)
        length = struct.unpack("<I", data[140:144])[0]
        bare = data[144 + length :]
        for name in ("a.dcm", "s3://bucket/slice.DCM?region=eu", "a.ima"):
            check(bare, window(UNITS), name)
        assert decode(bare, "a.png").status == "failed"
    check(with_meta, window(UNITS), "a.dcm")
    big = dicom(STORED, BIG)
    check(big[144 + struct.unpack("<I", big[140:144])[0] :], window(UNITS), "a.dcm")


def test_the_transfer_syntax_is_read_not_searched_for():
    deflated = "1.2.840.10008.1.2.1.99"
    check(dicom(STORED, ImageComments=f"was {deflated}"), window(UNITS))
    image = dataset(STORED)
    image.file_meta.ImplementationVersionName = "1.2.1.99"
    image.file_meta.PrivateInformationCreatorUID = deflated
    image.file_meta.PrivateInformation = b"\x02\0\x10\0UI\x16\0" + deflated.encode()
    check(encode(image), window(UNITS))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG])
def test_a_file_that_is_cut_off_inside_an_element(syntax):
    whole = dicom(STORED, syntax)
    place = whole.index(SERIES.encode())
    for length in (place + 3, place - 2, place - 5, whole.index(NAME.encode()) + 2):
        for data in (whole[:length], whole[132:length]):
            for error in (decode(data, "a.dcm").error, examine(data, "a.dcm").error):
                assert error == "the file is cut off: its data set ends inside an element"
    assert "bytes of pixels" in decode(whole[:-5]).error
    assert decode(dicom(STORED, syntax, PixelData=None)).error == "not a DICOM image: no PixelData"
    assert decode(b"some text, and no DICOM", "a.dcm").error == "not a DICOM image: no Rows"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"])
@pytest.mark.parametrize("preamble", [True, False])
def test_deflated_files_are_refused(syntax, preamble):
    data = claiming(dicom(STORED), syntax)
    error = decode(data if preamble else data[132:], "a.dcm").error
    assert error == "deflated DICOM, which is not read; store it uncompressed"
    assert examine(data).error == error


@pytest.mark.parametrize("syntax", ["1.2.840.113619.5.2", "1.2.840.10008.1.2.4.100", "1.2.3"])
def test_other_transfer_syntaxes_are_refused_by_name(syntax):
    expected = f"DICOM with transfer syntax {syntax}, which is not read; store it uncompressed"
    assert decode(claiming(dicom(STORED), syntax)).error == expected


def test_a_wrong_transfer_syntax():
    """The data set is implicit although the file says explicit: it can be read. Pixels in fragments are refused."""
    check(claiming(dicom(STORED, IMPLICIT), EXPLICIT), window(UNITS))
    expected = "the transfer syntax says that pixels are compressed, and they are not compressed"
    assert decode(claiming(dicom(STORED), "1.2.840.10008.1.2.4.70")).error == expected


def test_a_black_frame_does_not_make_a_stack_hu():
    rng = np.random.default_rng(0)
    frames = rng.integers(2000, 3000, (6, 32, 32)).astype(np.uint16)  # 976 to 1976 HU, as no slice has
    frames[0] = frames[5] = 24  # air
    header = examine(dicom(frames))
    assert header.scale == "unknown"
    assert "HU" in header.unknown_because
