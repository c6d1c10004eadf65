"""Damages good files of every format in a reproducible way, and reads them: the child of tests/images/test_fuzzing.py.

    python tests/fuzzing.py FIRST COUNT FOLDER

reads the damaged files FIRST to FIRST + COUNT - 1 and prints what it saw as JSON. The lines before it name the file
that is being read, so that a crash of a decoder can be found: `damaged(NUMBER)` makes the same file again.
"""

import io
import json
import logging
import os
import resource
import sys
import time
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gansfp.collection.catalog import read_catalog
from gansfp.collection.submission import problems
from gansfp.collection.truth import read_attribution_truth
from gansfp.errors import GansfpError
from gansfp.images.slices import decode, examine

HEADER = 400  # bytes in which half of the damage is done
LONGEST = 10.0  # seconds for one file
NUMBERS = [0, 1, 2, 7, 8, 15, 16, 32, 255, 256, 4096, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1]


def picture(kind, mode="L", size=(40, 32), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200) if mode == "I;16" else None
    image = image or Image.fromarray(pixels[..., :3]).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def units():
    """HU of a small chest, (32, 40) int16."""
    rng = np.random.default_rng(1)
    return (rng.choice([-1000, -850, 40, 300], (32, 40)) + rng.integers(-20, 20, (32, 40))).astype(np.int16)


def dicom(syntax="ExplicitVRLittleEndian", frames=1):
    import pydicom

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientID, dataset.SeriesInstanceUID, dataset.Modality = "patient", "1.2.3.4", "CT"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 32, 40, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.PixelPaddingValue = -1024, 1, 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PixelData = np.tile(units() + 1024, (frames, 1, 1)).astype(np.uint16).tobytes()
    if syntax != "ExplicitVRLittleEndian":
        dataset.compress(getattr(pydicom.uid, syntax))
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def nifti(name):
    import nibabel

    volume = np.stack([units()] * 3, axis=-1)
    image = nibabel.Nifti1Image(volume, np.diag([-0.7, -0.7, 2.0, 1.0]))
    data = image.to_bytes()
    if name.endswith(".gz"):
        import gzip

        return gzip.compress(data, mtime=0)
    return data


def table():
    columns = {
        "image_id": [f"s{number}" for number in range(6)],
        "uri": [f"{number}.png" for number in range(6)],
        "task": ["attribution"] * 6,
        "split": ["train"] * 4 + ["test"] * 2,
        "role": ["generated"] * 4 + ["unknown"] * 2,
        "generator": ["a", "a", "b", "b", "", ""],
        "group": ["p1", "p1", "p2", "p2", "", ""],
    }
    return pa.table(columns)


def parquet():
    sink = pa.BufferOutputStream()
    pq.write_table(table(), sink)
    return sink.getvalue().to_pybytes()


def csv_table():
    rows = table().to_pylist()
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]).encode() + b"\n"


@lru_cache(maxsize=1)
def seeds():
    """The good files: (name, content). The name says how they are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            ("grey.png", picture("PNG")),
            ("rgba.png", picture("PNG", "RGBA")),
            ("palette.png", picture("PNG", "P")),
            ("bits.png", picture("PNG", "1")),
            ("wide.png", picture("PNG", "I;16")),
            ("transparent.png", picture("PNG", transparency=7)),
            ("grey.jpg", picture("JPEG")),
            ("colour.jpg", picture("JPEG", "RGB", progressive=True)),
            ("grey.tif", picture("TIFF")),
            ("wide.tif", picture("TIFF", "I;16")),
            ("lzw.tif", picture("TIFF", compression="tiff_lzw")),
            ("deflate.tif", picture("TIFF", "RGB", compression="tiff_deflate")),
            ("stack.tif", picture("TIFF", save_all=True, append_images=[Image.new("L", (40, 32))] * 2)),
            ("plain.dcm", dicom()),
            ("frames.dcm", dicom(frames=3)),
            ("runs.dcm", dicom("RLELossless")),
            ("ls.dcm", dicom("JPEGLSLossless")),
            ("wavelets.dcm", dicom("JPEG2000Lossless")),
            ("volume.nii", nifti("volume.nii")),
            ("volume.nii.gz", nifti("volume.nii.gz")),
            ("catalog.csv", csv_table()),
            ("catalog.parquet", parquet()),
            ("groups.csv", b"image_id,group\ns0,p1\ns1,p1\ns2,p2\n"),
            ("truth.csv", b"image_id,generator\ns4,a\ns5,b\n"),
            ("submission.csv", b"s4,1\ns5,0\n"),
        )


def damaged(number):
    """The name and the content of a damaged file."""
    rng = np.random.default_rng([7, number])
    files = seeds()
    name, content = files[number % len(files)]
    data = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4, 8]))):
        position = int(rng.integers(0, min(HEADER, len(data)) if rng.random() < 0.5 else len(data))) if data else 0
        kind = rng.integers(0, 8)
        if kind < 3 and data:
            data[position] = int(rng.integers(0, 256))
        elif kind < 5:
            width, order = int(rng.choice([2, 4])), str(rng.choice(["little", "big"]))
            value = int(rng.choice(NUMBERS)) % 256**width
            data[position : position + width] = value.to_bytes(width, order)
        elif kind == 5:  # a part of another file
            other = files[int(rng.integers(len(files)))][1]
            start = int(rng.integers(len(other)))
            data[position : position + 64] = other[start : start + 64]
        elif kind == 6:  # a part twice
            data[position:position] = data[position : position + int(rng.integers(1, 64))]
        else:  # a part lost
            del data[position : position + int(rng.integers(1, 64))]
    if rng.random() < 0.1:
        del data[int(rng.integers(0, len(data) + 1)) :]
    return name, bytes(data)


def read(name, data, folder):
    """Reads a damaged file as the product would; returns what went wrong, "" for nothing."""
    if name.endswith(".csv") or name.endswith(".parquet"):
        return read_table(name, data, folder)
    header = examine(data, name)
    slices = [decode(data, name, frame) for frame in range(min(header.frames, 3) + 1)]
    for frame, slice_ in enumerate(slices):
        again = decode(data, name, frame)
        if (slice_.status, slice_.error) != (again.status, again.error):
            return f"frame {frame}: {slice_.status} {slice_.error!r}, then {again.status} {again.error!r}"
        if slice_.pixels is None:
            if not slice_.error or "\n" in slice_.error:
                return f"frame {frame}: the reason is {slice_.error!r}"
        elif slice_.pixels.shape != (256, 256) or not (slice_.pixels == again.pixels).all():
            return f"frame {frame}: other pixels when it is read again"
    if header.error and any(slice_.pixels is not None for slice_ in slices):
        return f"examine refuses what decode reads: {header.error}"
    return ""


def read_table(name, data, folder):
    for file in ("catalog.csv", "catalog.parquet", "groups.csv", "attribution/test/truth.csv"):
        (folder / file).unlink(missing_ok=True)
    if name == "submission.csv":
        problems(data, ["s4", "s5"])
        return ""
    if not name.startswith("catalog"):
        (folder / "catalog.csv").write_bytes(csv_table())
    (folder / ("attribution/test/truth.csv" if name == "truth.csv" else name)).write_bytes(data)
    try:
        catalog = read_catalog(str(folder))
        read_attribution_truth(str(folder), catalog)
    except GansfpError as error:
        if not str(error) or "\n" in str(error):
            return f"the message is {str(error)!r}"
    return ""


def main():
    first, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    logging.disable()
    (folder / "attribution/test").mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(picture("PNG", size=(40, 32 + number)))
    for name, content in seeds():
        read(name, content, folder)  # loads the libraries
    wrong, longest, base = [], 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoded = 0
    for number in range(first, first + count):
        name, data = damaged(number)
        print(f"reading {number} {name}", flush=True)
        started = time.perf_counter()
        try:
            problem = read(name, data, folder)
        except BaseException as error:
            problem = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        longest = max(longest, seconds)
        if seconds > LONGEST:
            problem = f"took {seconds:.0f} s"
        if problem:
            wrong.append(f"{number} {name}: {problem}")
        decoded += not name.endswith((".csv", ".parquet")) and decode(data, name).pixels is not None
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    print(json.dumps({"wrong": wrong, "longest": longest, "grown": grown, "decoded": decoded}))


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
