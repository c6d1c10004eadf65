"""Decompression bombs, small files of large images: refused by their header, or read within bounded memory."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
INFLATED = 400  # MB
BOUND = 100  # MB more than a harmless image takes

MEASURE = """
import json, resource, sys
from pathlib import Path
from gansfp.images import slices
folder = Path(sys.argv[1])
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
results = {}
for name in ["harmless.png", "harmless.dcm", *sys.argv[2:]]:
    before, data = peak(), (folder / name).read_bytes()
    header_error = slices.examine(data, name).error
    slice_ = slices.decode(data, name)
    results[name] = slice_.status, slice_.error, header_error, peak() - before
print(json.dumps(results))
"""


def squeezed(window=15) -> bytes:
    """INFLATED MB of zeros; window -15: without zlib's header, as DICOM wants it."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, window)
    return b"".join([*(deflate.compress(bytes(1 << 20)) for _ in range(INFLATED)), deflate.flush()])


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks, side=256, data=None):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", data or zlib.compress(bytes(257 * 256)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def jpeg(side):
    """A JPEG file whose header gives this side."""
    file = io.BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def tiff(data, side=256, rows=256, count=None, tile=0):
    """A deflated grey TIFF file: one strip with this number of rows, or one tile."""
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile, 324: 0, 325: len(data)} if tile else {273: 0, 278: rows, 279: count or len(data)}
    tags[324 if tile else 273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def dicom(kind, pixels=bytes(65536), side=256, inflating=b""):
    """An 8-bit DICOM file of a transfer syntax; inflating: what follows its header instead of a data set."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, kind)
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.add_new("PixelData", "OB", pixels)
    dataset["PixelData"].is_undefined_length = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    data = file.getvalue()
    return data[: 144 + struct.unpack("<I", data[140:144])[0]] + inflating if inflating else data


def encapsulated(frame):
    return pytest.importorskip("pydicom").encaps.encapsulate([frame])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """For each bomb (status, error, error of examine, MB of memory); all in one process."""
    folder, inflating = tmp_path_factory.mktemp("bombs"), squeezed()
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (INFLATED * 8192)
    files = {
        "harmless.png": png(),
        "harmless.dcm": dicom("ExplicitVRLittleEndian"),
        "header.png": png(side=60000),
        "text.png": png(chunk(b"zTXt", b"a\0\0" + inflating)),
        "international.png": png(chunk(b"iTXt", b"a\0\1\0\0\0" + inflating)),
        "profile.png": png(chunk(b"iCCP", b"a\0\0" + inflating)),
        "after.png": png()[:-12] + chunk(b"zTXt", b"a\0\0" + inflating) + png()[-12:],
        "pixels.png": png(data=inflating),
        "header.jpg": jpeg(65000),
        "header.tif": tiff(inflating, side=60000),
        "strip.tif": tiff(inflating, rows=2**31 - 1),
        "count.tif": tiff(zlib.compress(bytes(65536)), count=2**32 - 1),
        "tile.tif": tiff(inflating, tile=16384),
        "header.dcm": dicom("ExplicitVRLittleEndian", side=60000),
        "deflated.dcm": dicom("DeflatedExplicitVRLittleEndian", inflating=squeezed(-15)),
        "runs.dcm": dicom("RLELossless", encapsulated(runs)),
        "jpeg.dcm": dicom("JPEGBaseline8Bit", encapsulated(jpeg(65000))),
    }
    for name, data in files.items():
        assert len(data) < 8 << 20
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(folder), *list(files)[2:]]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


REFUSED = {  # by the header
    "header.png": "60000x60000 pixels, at most 8192x8192 are read",
    "header.jpg": "65000x65000 pixels, at most 8192x8192 are read",
    "header.tif": "60000x60000 pixels, at most 8192x8192 are read",
    "tile.tif": "tiles of 16384 pixels, at most 8192 are read",
    "header.dcm": "60000x60000 pixels, at most 8192x8192 are read",
    "deflated.dcm": "deflated DICOM, which is not read",
    "runs.dcm": "bytes of pixels, too many for 256x256",
}


GOOD = ("pixels.png", "text.png", "international.png", "profile.png", "after.png", "strip.tif")  # their pixels


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is counted in other units elsewhere")
def test_bombs_stay_small(results):
    assert results["harmless.png"][:3] == results["harmless.dcm"][:3] == ["ok", "", ""]
    large = {name: megabytes for name, (*_, megabytes) in results.items() if megabytes > BOUND}
    assert not set(large) - {"harmless.png", "harmless.dcm"}, large  # for these two, libraries are loaded


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_too_large_is_refused_by_its_header(results, name):
    status, error, header_error, _ = results[name]
    assert status == "failed"
    assert REFUSED[name] in error
    assert header_error == error


def test_data_beyond_the_pixels_is_not_unpacked(results):
    """Zeros follow the image's pixels, or are in texts and colour profiles; decoders stop before them."""
    assert [results[name][0] for name in GOOD] == ["ok"] * len(GOOD)
    assert [results[name][0] for name in ("count.tif", "jpeg.dcm")] == ["failed"] * 2


def test_compressed_dicom_is_read():
    from gansfp.images.slices import decode

    pydicom = pytest.importorskip("pydicom")
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    dataset = pydicom.dcmread(io.BytesIO(dicom("ExplicitVRLittleEndian", pixels.tobytes())))
    dataset.compress(pydicom.uid.RLELossless)  # noise: it takes more bytes than before
    file = io.BytesIO()
    dataset.save_as(file)
    assert (decode(file.getvalue()).pixels == pixels).all()
