"""Opens NIfTI files with nibabel: each axial slice of the volume is a frame."""

from gansfp.images.image_file import ImageFile, MissingPackageError, NoSliceError


def is_nifti(data: bytes) -> bool:
    """Returns True for a NIfTI file in one part (.nii), also inside gzip (.nii.gz)."""
    return data[344:348] in (b"n+1\0",) or data[4:8] == b"n+2\0"


def open_nifti(data: bytes) -> ImageFile:
    """Opens a NIfTI file. Raises NoSliceError, MissingPackageError, or what nibabel raises on a bad file."""
    try:
        import nibabel  # noqa: F401
    except ImportError:
        raise MissingPackageError("nibabel", "NIfTI needs nibabel: install gansfp[nifti]") from None
    raise NoSliceError("NIfTI is not read yet")
