"""Compressed DICOM: each transfer syntax against another decoder, missing decoders, and frames that lie."""

import base64
import io
import struct

import numpy as np
import pydicom
import pytest
from dicom_files import PATIENT, chest, claiming, dataset, encode
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels.common import CoderBase

from gansfp.images.codestreams import decode_rle, frame_size
from gansfp.images.frame_decoder import FrameDecoder
from gansfp.images.image_file import NoSliceError
from gansfp.images.slices import decode, examine

UNITS = chest()
STORED = (UNITS + 1024).astype(np.uint16)
GREY_LEVELS = np.random.default_rng(1).integers(0, 256, UNITS.shape, dtype=np.uint8)
PREFIX = "1.2.840.10008.1.2."
BASELINE, EXTENDED, LOSSLESS, SV1 = (f"{PREFIX}4.{number}" for number in (50, 51, 57, 70))
JPEG_LS, NEAR_LOSSLESS, J2K, LOSSY_J2K = (f"{PREFIX}4.{number}" for number in (80, 81, 90, 91))
RLE = f"{PREFIX}5"


def window(units):
    return np.rint((np.asarray(units, np.float64) + 1350) * 255 / 1500).clip(0, 255)


def check(data, expected, tolerance=0, frame=0):
    slice_, header = decode(data, "IM0001", frame), examine(data, "IM0001")
    assert (slice_.status, slice_.error, header.error) == ("ok", "", "")
    assert np.abs(slice_.pixels - np.asarray(expected, float)).max() <= tolerance


def with_frames(image, syntax, *frames, offsets=True):
    """A file with these compressed frames."""
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = encapsulate(list(frames), has_bot=offsets)
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    return encode(image)


def by_pydicom(pixels, syntax, **elements):
    """Compressed by pyjpegls, OpenJPEG or pydicom."""
    image = dataset(pixels, **elements)
    image.compress(syntax, generate_instance_uid=False)
    return encode(image)


def by_gdcm(pixels, syntax, folder, **elements):
    """Compressed by GDCM."""
    gdcm = pytest.importorskip("gdcm")
    (folder / "native.dcm").write_bytes(encode(dataset(pixels, **elements)))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "native.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "compressed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    made = pydicom.dcmread(folder / "compressed.dcm")
    assert made.file_meta.TransferSyntaxUID == syntax
    return with_frames(dataset(pixels, **elements), syntax, frame_of(made))


def frame_of(image):
    return pydicom.encaps.get_frame(image.PixelData, 0, number_of_frames=1)


CASES = {
    "unsigned": (STORED, {}),
    "12 bits": (STORED, {"BitsStored": 12}),
    "signed": (UNITS, {"RescaleIntercept": "0"}),
    "12 bits with a sign": (UNITS.clip(-1024, 2047), {"RescaleIntercept": "0", "BitsStored": 12}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("syntax", [JPEG_LS, J2K, RLE])
def test_lossless_by_pydicom(syntax, case):
    pixels, elements = CASES[case]
    check(by_pydicom(pixels, syntax, **elements), window(UNITS))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("syntax", [LOSSLESS, SV1, JPEG_LS, J2K, RLE])
def test_lossless_by_gdcm(syntax, case, tmp_path):
    pixels, elements = CASES[case]
    check(by_gdcm(pixels, syntax, tmp_path, **elements), window(UNITS))


@pytest.mark.parametrize("syntax", [SV1, JPEG_LS, J2K, RLE])
def test_8_bits(syntax, tmp_path):
    check(by_gdcm(GREY_LEVELS, syntax, tmp_path, RescaleIntercept="0"), GREY_LEVELS)


@pytest.mark.parametrize(
    ("syntax", "plugin"), [(EXTENDED, "gdcm"), (NEAR_LOSSLESS, "pyjpegls"), (LOSSY_J2K, "pylibjpeg")]
)
def test_lossy_12_bits(syntax, plugin, tmp_path):
    """As another decoder reads the same file, but for its rounding."""
    data = by_gdcm(STORED, syntax, tmp_path, BitsStored=12)
    if syntax == EXTENDED:
        gdcm = pytest.importorskip("gdcm")
        reader = gdcm.ImageReader()
        reader.SetFileName(str(tmp_path / "compressed.dcm"))
        assert reader.Read()
        buffer = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
        stored = np.frombuffer(buffer, np.uint16).reshape(STORED.shape)
    else:
        stored = pydicom.pixels.pixel_array(pydicom.dcmread(io.BytesIO(data)), decoding_plugin=plugin)
    assert np.abs(stored.astype(int) - STORED).max() < 60
    check(data, window(stored.astype(int) - 1024), 1)


HTJ2K = base64.b64decode(  # made with OpenJPH: 16x16, 0 to 2295 in steps of 9
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAH4AAf+TwAAmifoFB3QAAMAAEsAAEwCiAQd0AEb6Awd0AMAAE0AAE4AQ9ACC"
    "dAAgBekAo1QAwAAVEAAFWMYY86pwAnUAhhoyZOjAQgHstgDAACsgABaYAAAAAOfAp6enwngAHj08PDw8PDz+/Yxge/Yxgey6AP/Z"
)


@pytest.mark.parametrize("number", [201, 202, 203])
def test_high_throughput_jpeg_2000(number):
    stored = np.arange(256, dtype=np.uint16).reshape(16, 16) * 9
    image = with_frames(dataset(stored), f"{PREFIX}4.{number}", HTJ2K)
    assert (decode(image).pixels == np.kron(window(stored.astype(int) - 1024), np.ones((16, 16)))).all()


def test_jpeg_of_8_bits():
    """JPEG baseline and extended of 8 bits, as Pillow reads them."""
    picture = window(UNITS).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    for syntax in (BASELINE, EXTENDED):
        data = with_frames(dataset(picture, RescaleIntercept="0"), syntax, file.getvalue())
        check(data, np.asarray(Image.open(file)), 1)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_simpleitk_writes_and_reads_the_same(compressor, tmp_path):
    itk = pytest.importorskip("SimpleITK")
    (tmp_path / "native.dcm").write_bytes(encode(dataset(STORED, RescaleType="HU")))
    image = itk.Cast(itk.ReadImage(str(tmp_path / "native.dcm")), itk.sitkInt16)
    writer = itk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(tmp_path / "itk.dcm"))
    writer.Execute(image)
    read = itk.GetArrayFromImage(itk.ReadImage(str(tmp_path / "itk.dcm")))[0]
    written = pydicom.dcmread(tmp_path / "itk.dcm")
    assert written.file_meta.TransferSyntaxUID.is_compressed
    assert (read == UNITS).all()
    assert "RescaleType is 'US', not HU" in decode(encode(written)).error  # SimpleITK does not know that it is HU
    written.RescaleType = "HU"
    check(encode(written), window(read))


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("syntax", [SV1, J2K, JPEG_LS, RLE])
def test_frames(syntax, offsets, tmp_path):
    units = [chest(seed=seed) for seed in range(4)]
    frames = []
    for each in units:
        one = pydicom.dcmread(io.BytesIO(by_gdcm((each + 1024).astype(np.uint16), syntax, tmp_path)))
        frames.append(frame_of(one))
    image = dataset(np.stack([(each + 1024).astype(np.uint16) for each in units]))
    data = with_frames(image, syntax, *frames, offsets=offsets)
    assert examine(data).frames == 4
    for number, each in enumerate(units, 1):
        check(data, window(each), frame=number)


def test_an_extended_offset_table():
    image = dataset(np.stack([STORED, STORED[::-1]]))
    image.compress(JPEG_LS, encapsulate_ext=True, generate_instance_uid=False)
    data = encode(image)
    assert "ExtendedOffsetTable" in pydicom.dcmread(io.BytesIO(data))
    check(data, window(UNITS), frame=1)
    check(data, window(UNITS[::-1]), frame=2)


def test_a_frame_in_fragments():
    whole = pydicom.dcmread(io.BytesIO(by_pydicom(STORED, J2K)))
    image = dataset(STORED)
    image.file_meta.TransferSyntaxUID = J2K
    image.PixelData = encapsulate([frame_of(whole)], fragments_per_frame=5)
    image["PixelData"].is_undefined_length = True
    check(encode(image), window(UNITS))


MISSING = {
    BASELINE: "JPEG DICOM needs pillow",
    EXTENDED: "JPEG DICOM needs python-gdcm",
    SV1: "lossless JPEG DICOM needs python-gdcm",
    NEAR_LOSSLESS: "JPEG-LS DICOM needs python-gdcm",
    J2K: "JPEG 2000 DICOM needs pillow",
    f"{PREFIX}4.203": "JPEG 2000 DICOM needs pillow",
}


@pytest.mark.parametrize("syntax", MISSING)
def test_a_missing_decoder_is_named_when_the_file_is_opened(syntax, monkeypatch):
    monkeypatch.setattr(CoderBase, "available_plugins", property(lambda coder: ()))
    data = claiming(by_pydicom(STORED, JPEG_LS), syntax)
    expected = f"{MISSING[syntax]}: install gansfp[dicom]"
    slice_, header = decode(data), examine(data)
    assert slice_.error == header.error == expected
    assert slice_.needs_package == header.needs_package == expected.split()[-3][:-1]


def test_rle_needs_no_package(monkeypatch):
    data = by_pydicom(STORED, RLE)
    monkeypatch.setattr(CoderBase, "available_plugins", property(lambda coder: ()))
    check(data, window(UNITS))


def encoded(syntax, shape=(128, 128)):
    """A compressed frame of another size than the header of the file will say."""
    image = pydicom.dcmread(io.BytesIO(by_pydicom(STORED[: shape[0], : shape[1]], syntax)))
    return frame_of(image)


def jpeg(size=(256, 256), mode="L", **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, options.pop("format", "JPEG"), **options)
    return file.getvalue()


def test_a_frame_of_another_size_is_not_decoded(monkeypatch):
    monkeypatch.setattr(FrameDecoder, "decode", None)
    expected = "a compressed frame of 128x128 pixels, expected 256x256"
    for syntax in (JPEG_LS, J2K):
        assert decode(with_frames(dataset(STORED), syntax, encoded(syntax))).error == expected
    grey = dataset(GREY_LEVELS, RescaleIntercept="0")
    assert decode(with_frames(grey, BASELINE, jpeg((128, 128)))).error == expected
    assert decode(with_frames(grey, LOSSY_J2K, jpeg((128, 128), format="JPEG2000"))).error == expected
    lossless = jpeg((128, 128)).replace(b"\xff\xc0", b"\xff\xc3", 1)
    assert decode(with_frames(grey, SV1, lossless)).error == expected
    assert "3 components" in decode(with_frames(grey, BASELINE, jpeg(mode="RGB"))).error
    wide = dataset(GREY_LEVELS, RescaleIntercept="0")
    assert "of 16 bits, expected 1 of at most 8" in decode(with_frames(wide, J2K, encoded(J2K, (256, 256)))).error
    for damaged in (b"\0\0", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"no frame at all", jpeg()[:24], encoded(J2K)[:30]):
        assert "the file is damaged" in decode(with_frames(grey, BASELINE, damaged)).error


def test_frame_size():
    assert frame_size(jpeg((30, 20))) == (30, 20, 1, 8)
    assert frame_size(jpeg((30, 20), "RGB")) == (30, 20, 3, 8)
    jp2 = jpeg((30, 20), format="JPEG2000")
    assert frame_size(jp2) == frame_size(jp2[jp2.index(b"\xff\x4f\xff\x51") :]) == (30, 20, 1, 8)
    assert frame_size(encoded(JPEG_LS, (20, 30))) == (30, 20, 1, 16)
    with pytest.raises(NoSliceError):
        frame_size(jp2[:40])


def test_rle_by_hand():
    frame = struct.pack("<16I", 2, 64, 68, *[0] * 13) + b"\xfd\x01\x80\x80" + b"\x03\x00\x01\x02\x03"
    assert decode_rle(frame, 4, 2).tolist() == [256, 257, 258, 259]
    for damaged in (frame[:40], frame[:-1], struct.pack("<16I", 3, *[64] * 15), b"\0" * 64):
        with pytest.raises(NoSliceError, match="RLE"):
            decode_rle(damaged, 4, 2)


def test_damaged_frames_fail_or_decode_without_output(capfd, tmp_path):
    rng = np.random.default_rng(0)
    failed = 0
    for syntax in (EXTENDED, SV1, NEAR_LOSSLESS, LOSSY_J2K, RLE):
        whole = by_gdcm(STORED, syntax, tmp_path, BitsStored=12)
        capfd.readouterr()  # of the encoder
        start = whole.index(b"\xe0\x7f\x10\0")
        for cut in (True, False):
            for _ in range(6):
                damaged = bytearray(whole)
                for place in rng.integers(start + 40, len(whole), 20):
                    damaged[place] = rng.integers(0, 256)
                data = bytes(damaged[: rng.integers(start + 40, len(whole))] if cut else damaged)
                slice_, again = decode(data), decode(data)
                failed += slice_.status == "failed"
                assert slice_.error == again.error
                assert PATIENT not in slice_.error
                assert "\n" not in slice_.error
                assert slice_.pixels is None or (slice_.pixels == again.pixels).all()
    assert failed > 25
    assert capfd.readouterr() == ("", "")
