"""Opens DICOM files with pydicom."""

import io
import logging

import numpy as np

from gansfp.images.image_file import GREY, HU, ImageFile, MissingPackageError, NoSliceError, Numbers

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # UID of the DICOM transfer syntax that compresses the whole data set


def open_dicom(data: bytes) -> ImageFile:
    """Opens a DICOM file. Raises NoSliceError, MissingPackageError, or what pydicom raises on a bad file."""
    try:
        import pydicom
    except ImportError:
        raise MissingPackageError("pydicom", "DICOM needs pydicom: install gansfp[dicom]") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    if _DEFLATED in data:  # pydicom inflates the whole file, however large, before its size can be checked
        raise NoSliceError("deflated DICOM, which is not read; store it uncompressed")
    image = pydicom.dcmread(io.BytesIO(data), force=True)  # force: files exported from a PACS often lack the preamble
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation", "PixelData"):
        if keyword not in image:
            raise NoSliceError(f"not a DICOM image: no {keyword}")
    mode = str(image.PhotometricInterpretation)
    if mode not in ("MONOCHROME1", "MONOCHROME2"):
        raise NoSliceError(f"DICOM of kind {mode}, expected MONOCHROME1 or MONOCHROME2")
    frames = int(image.get("NumberOfFrames") or 1)
    if len(image.PixelData) > 4096 + 2 * frames * image.Rows * image.Columns * image.BitsAllocated // 8:
        raise NoSliceError(f"{len(image.PixelData)} bytes of pixels, too many for {image.Columns}x{image.Rows}")
    scale = HU if image.BitsStored > 8 or "RescaleIntercept" in image else GREY

    def numbers(frame: int) -> Numbers:
        stored = pydicom.pixels.pixel_array(image, index=frame if frames > 1 else None)
        values = pydicom.pixels.apply_modality_lut(stored, image)
        return Numbers(values if scale == HU else values.astype(np.uint8), scale, inverted=mode == "MONOCHROME1")

    return ImageFile("DICOM", mode, int(image.Columns), int(image.Rows), int(image.BitsStored), scale, numbers, frames)
