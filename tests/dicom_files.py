"""Makes DICOM files for tests: a chest-like slice in HU, written with any elements and in any transfer syntax."""

import io

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

SIDE = 256
PATIENT, NAME, SERIES = "secret-id-4711", "Secretname^Anna", "1.2.3.4711"
EXPLICIT = "1.2.840.10008.1.2.1"


def chest(side: int = SIDE, seed: int = 0) -> np.ndarray:
    """A body with two lungs in HU, (side, side) int16: air -1000, lungs -850, soft tissue 40, bone 700, and noise."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    units = np.where((x / 0.45) ** 2 + (y / 0.36) ** 2 < 1, 40.0, -1000.0)
    for centre in (-0.2, 0.2):
        units[((x - centre) / 0.14) ** 2 + (y / 0.24) ** 2 < 1] = -850
    units[x**2 + (y - 0.25) ** 2 < 0.05**2] = 700
    units += np.random.default_rng(seed).normal(0, 8, units.shape)
    return units.round().clip(-1020, 3000).astype(np.int16)


def dataset(pixels: np.ndarray, syntax: str = EXPLICIT, **elements: object) -> FileDataset:
    """A CT image of stored numbers, (height, width) or (frames, height, width); its dtype gives bits and sign.

    elements: by keyword. They replace what is there; None removes an element. Without a rescale among them the stored
    numbers are HU + 1024.
    """
    uid = pydicom.uid.UID(syntax)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    image = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.4"
    image.Modality, image.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PatientID, image.PatientName, image.PatientBirthDate = PATIENT, NAME, "19700102"
    image.SeriesInstanceUID, image.StudyInstanceUID = SERIES, "1.2.3"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape[-2:]
    bits = int(elements.get("BitsAllocated", pixels.dtype.itemsize * 8))
    image.BitsAllocated, image.BitsStored = bits, int(elements.get("BitsStored", bits))
    image.HighBit, image.PixelRepresentation = image.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        image.NumberOfFrames = len(pixels)
    image.RescaleIntercept, image.RescaleSlope = "-1024", "1"
    data = pixels.astype(pixels.dtype.newbyteorder("<" if uid.is_little_endian else ">")).tobytes()
    image.add_new("PixelData", "OB" if bits == 8 else "OW", data + bytes(len(data) % 2))
    for keyword, value in elements.items():
        if value is not None:
            setattr(image, keyword, value)
        elif keyword in image:
            delattr(image, keyword)
    return image


def encode(image: Dataset, part_10: bool = True) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, image, enforce_file_format=part_10)
    return file.getvalue()


def dicom(pixels: np.ndarray, syntax: str = EXPLICIT, **elements: object) -> bytes:
    """The bytes of a native file: see `dataset`."""
    return encode(dataset(pixels, syntax, **elements))


def item(**elements: object) -> Dataset:
    """An item of a sequence."""
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def functional_group(**rescale: object) -> Dataset:
    """An item of a functional groups sequence with a pixel value transformation."""
    return item(PixelValueTransformationSequence=[item(**rescale)])


def with_raw(image: Dataset, keyword: str, vr: str, text: bytes) -> bytes:
    """A file, in explicit little endian, with an element whose bytes pydicom would not write."""
    mark = b"MARK" * 4
    if keyword in image:
        delattr(image, keyword)
    image.add_new(keyword, "LO", mark.decode())
    data = encode(image)
    place = data.index(mark)
    text += b" " * (len(text) % 2)
    return data[: place - 4] + vr.encode() + len(text).to_bytes(2, "little") + text + data[place + len(mark) :]


def claiming(data: bytes, syntax: str) -> bytes:
    """A file that names another transfer syntax than it is written in."""
    place = data.index(b"\x02\0\x10\0UI") + 6
    length = int.from_bytes(data[place : place + 2], "little")
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    return data[:place] + len(uid).to_bytes(2, "little") + uid + data[place + 2 + length :]
