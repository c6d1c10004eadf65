"""gansfp.images.slices: decode and examine never raise on random bytes, nor on damaged files of each format."""

import gzip
import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gansfp.images.slices import FORMATS, SIDE, decode, examine, recognise

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

MAGIC = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", bytes(128) + b"DICM"]
MAGIC += [bytes(344) + b"n+1\0", b"\x1f\x8b\x08\0"]
NAMES = ["", "slice.png", "slice.dcm", "s3://bucket/slice.DCM?region=eu"]
HEADER = 400  # bytes in which most damage is done: the pixels follow them


def encode(kind, mode="L", size=(20, 16), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels[..., :3]).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def dicom(bits=16, preamble=True):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 16, 20, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    if bits == 16:
        dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    units = np.random.default_rng(0).choice([-1000, -850, 40, 300], 16 * 20)  # numbers that HU can be
    grey = np.arange(16 * 20).astype(np.uint8)
    dataset.PixelData = (grey if bits == 8 else (units + 1024).astype(np.uint16)).tobytes()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue() if preamble else file.getvalue()[132:]


def nifti():
    volume = np.arange(-1000, 600, 5, dtype=np.int16).reshape(20, 16, 1)
    return nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()


FILES = [
    encode("PNG"),
    encode("PNG", "RGBA"),
    encode("PNG", "P"),
    encode("PNG", "1"),
    encode("JPEG"),
    encode("JPEG", "RGB", progressive=True),
    encode("TIFF"),
    encode("TIFF", "I;16"),
    encode("TIFF", "F"),
    encode("TIFF", compression="tiff_lzw"),
    encode("TIFF", "RGB", compression="tiff_deflate"),
    encode("TIFF", compression="packbits"),
    dicom(),
    dicom(bits=8),
    dicom(preamble=False),
    nifti(),
    gzip.compress(nifti(), mtime=0),
]
NUMBERS = [struct.pack(order + kind, number) for order in "<>" for kind, number in (
    ("H", 0), ("H", 1), ("H", 0xFFFF), ("I", 0), ("I", 0xFFFF), ("I", 0x7FFFFFFF), ("I", 0xFFFFFFFF),
)]  # fmt: skip


def check(data, name):
    """Decodes and examines; the two must agree, and a failure must have a reason in one line."""
    slice_ = decode(data, name)
    assert slice_.status in ("ok", "resized", "failed")
    assert (slice_.pixels is None) == (slice_.status == "failed") == bool(slice_.error)
    assert "\n" not in slice_.error
    assert len(slice_.error) < 260  # 200 and the name of an exception
    assert slice_.needs_package == ""
    header = examine(data, name)
    width, height = header.width, header.height
    assert (header.mode, width, height) == (slice_.mode, slice_.width, slice_.height)
    if slice_.pixels is not None:
        assert (slice_.pixels.shape, slice_.pixels.dtype) == ((SIDE, SIDE), np.uint8)
        assert (slice_.status == "ok") == ((width, height) == (SIDE, SIDE))
    if header.error:  # what the header rules out is not decoded
        assert slice_.error == header.error


def test_the_undamaged_files_are_of_every_format():
    recognised = {recognise(data, "slice.dcm").name for data in FILES}
    assert recognised == {image_format.name for image_format in FORMATS}
    statuses = [decode(data, "slice.dcm").status for data in FILES]
    assert statuses.count("failed") == 1  # floating-point pixels
    for data in FILES:
        check(data, "slice.dcm")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(MAGIC), st.binary(max_size=300), st.sampled_from(NAMES))
def test_random_bytes(magic, data, name):
    check(magic + data, name)


@st.composite
def damaged_files(draw):
    """A real file with up to six bytes or numbers overwritten, most in its header, then cut or lengthened."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.one_of(st.integers(0, min(HEADER, len(data)) - 1), st.integers(0, len(data) - 1)))
        patch = draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from(NUMBERS)))
        data[position : position + len(patch)] = patch
    end = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return bytes(data[:end]) + draw(st.binary(max_size=8))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(damaged_files(), st.sampled_from(NAMES))
def test_damaged_files(data, name):
    check(data, name)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(FILES), st.sampled_from(FILES), st.data())
def test_the_head_of_one_file_and_the_tail_of_another(first, second, data):
    head = first[: data.draw(st.integers(0, len(first)))]
    check(head + second[data.draw(st.integers(0, len(second))) :], data.draw(st.sampled_from(NAMES)))
