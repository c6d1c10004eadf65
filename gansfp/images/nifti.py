"""Opens NIfTI files with nibabel: each axial slice of the volume is a frame.

A slice is shown as radiologists look at it: the patient's right is at the left side, and anterior is at the top. The
first frame is the most inferior one. The file's affine decides, whatever the order in which the volume is stored.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import zlib
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gansfp.images.grey_levels import AIR, choose_rule, evidence, is_hu
from gansfp.images.image_file import GREY, HU, UNKNOWN, ImageFile, MissingPackageError, NoSliceError, Numbers

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_GZIP = b"\x1f\x8b"
_HEADER = 540  # bytes of NIfTI-2's header; NIfTI-1's is shorter
_MOST_BYTES = 1 << 30  # of a volume: 512x512x1000 in 32 bits
_SAMPLED_SLICES, _SAMPLED_SIDE = 16, 256  # of a volume, to see what its numbers are; pixels, about


def is_nifti(data: bytes) -> bool:
    """Returns True for a NIfTI file, also inside gzip, and for the header of a NIfTI file in two parts.

    data: the file, or at least its first 4096 bytes.
    """
    return bool(_magic(_start(data)))


def _start(data: bytes) -> bytes:
    """Returns the first bytes of a file, inflated if they are inside gzip."""
    if not data.startswith(_GZIP):
        return data[:_HEADER]
    try:
        return zlib.decompressobj(31).decompress(data[:4096], _HEADER)
    except zlib.error:
        return b""


def _magic(start: bytes) -> bytes:
    """Returns n+1, ni1, n+2 or ni2 for NIfTI-1 and 2, in one part and in two; b"" for another file."""
    first, second = start[344:348], start[4:12]
    if first in (b"n+1\0", b"ni1\0"):
        return first[:3]
    return second[:3] if second in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n") else b""


def open_nifti(data: bytes) -> ImageFile:
    """Opens a NIfTI file. Raises NoSliceError, MissingPackageError, or what nibabel raises on a bad file."""
    try:
        import nibabel
    except ImportError:
        raise MissingPackageError("nibabel", "NIfTI needs nibabel: install gansfp[nifti]") from None
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)
    start = _start(data)
    magic = _magic(start)
    if magic.startswith(b"ni"):
        raise NoSliceError("NIfTI in two files (.hdr and .img), which is not read; save it as one .nii file")
    kind = nibabel.Nifti2Header if magic == b"n+2" else nibabel.Nifti1Header
    header = kind.from_fileobj(io.BytesIO(start))
    volume = _Volume(data, header)
    frames, height, width = volume.axial.shape
    return ImageFile(
        "NIfTI",
        volume.dtype.name,
        width,
        height,
        8 * volume.dtype.itemsize,
        GREY if volume.is_grey else HU,
        volume.numbers,
        frames,
        quick=True,
    )


class _Volume:
    """The voxels of a file. dtype: as stored. axial: a view, (frames, height, width), of the stored numbers."""

    def __init__(self, data: bytes, header: Nifti1Header) -> None:
        self.dtype = header.get_data_dtype()
        shape = _shape(header.get_data_shape())
        if self.dtype.kind not in "iuf" or self.dtype.itemsize > 8:
            raise NoSliceError(f"voxels are {self.dtype.name}, expected integers or floating-point numbers")
        self._slope, self._intercept = header.get_slope_inter()
        self._stored = _voxels(data, header, shape, self.dtype)
        self.axial = _axial(self._stored, header.get_best_affine())

    @property
    def is_grey(self) -> bool:
        """Whether the numbers are grey levels of 8 bits, and the file does not say that they are something else."""
        return self.dtype == np.uint8 and not self._is_scaled

    @property
    def _is_scaled(self) -> bool:
        return (self._slope, self._intercept) not in ((None, None), (1.0, 0.0))

    def _scaled(self, stored: np.ndarray) -> np.ndarray:
        """Returns some of the stored numbers as the file means them. Only these are copied."""
        if self._is_scaled:
            return stored.astype(np.float64) * self._slope + self._intercept
        return stored.astype(self.dtype.newbyteorder("="))

    @cached_property
    def _why_no_hu(self) -> str:
        """Why the numbers of the volume are not HU, or "".

        The header does not say it. So the numbers are recognised, as those of a PNG file of 16 bits are.
        """
        values = self._sample()
        values = values[np.isfinite(values)]
        if not values.size:
            return ""
        levels, counts = np.unique(values, return_counts=True)
        # The most frequent number may be a background that was written into the volume: it is no evidence of air.
        measured = values[values != levels[counts.argmax()]]
        rule = choose_rule([evidence([Numbers(measured, UNKNOWN)])]).rule
        if rule == "hu":
            return ""
        found = f"look like {rule}" if rule else "lack the air and the soft tissue of HU at their places"
        return is_hu(values[values >= AIR[0]]) or f"numbers from {levels[0]:g} to {levels[-1]:g} {found}"

    def _sample(self) -> np.ndarray:
        """Returns the numbers, (n,), of some slices, evenly spread; of large slices every so many rows and columns."""
        width, height, depth = self._stored.shape
        step = max(1, max(width, height) // _SAMPLED_SIDE)
        chosen = sorted({round(index) for index in np.linspace(0, depth - 1, _SAMPLED_SLICES)})
        return np.concatenate([self._scaled(self._stored[::step, ::step, index]).ravel() for index in chosen])

    def numbers(self, frame: int) -> Numbers:
        """Decodes a frame. Numbers that are not finite were not measured."""
        because = "" if self.is_grey else self._why_no_hu
        scale = GREY if self.is_grey else UNKNOWN if because else HU
        stored = self.axial[frame]
        values = np.ascontiguousarray(
            self._scaled(stored) if scale == HU else stored.astype(self.dtype.newbyteorder("="))
        )
        measured = np.isfinite(values)
        if measured.all():
            return Numbers(values, scale, unknown_because=because)
        opacity = np.where(measured, 255, 0).astype(np.uint8)
        return Numbers(np.where(measured, values, 0), scale, opacity=opacity, unknown_because=because)


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns the three sizes of a volume; a picture is a volume of one slice. Raises NoSliceError for other shapes."""
    described = "x".join(map(str, shape))
    if len(shape) < 2 or min(shape) < 1:
        raise NoSliceError(f"{len(shape)} dimensions ({described}), expected a volume")
    if math.prod(shape[3:]) != 1:
        raise NoSliceError(f"{len(shape)} dimensions ({described}), expected 3; save one volume a file")
    width, height, depth = (*shape[:3], 1)[:3]
    return int(width), int(height), int(depth)


def _voxels(data: bytes, header: Nifti1Header, shape: tuple[int, int, int], dtype: np.dtype) -> np.ndarray:
    """Returns the stored numbers, inflated if need be. Raises NoSliceError where they are too many or not all there."""
    offset, size = header.get_data_offset(), math.prod(shape) * dtype.itemsize
    if size > _MOST_BYTES:
        described = "x".join(map(str, shape))
        raise NoSliceError(f"a volume of {size / 2**30:.1f} GiB ({described} {dtype.name}), at most 1 GiB is read")
    content = _inflated(data, offset + size) if data.startswith(_GZIP) else np.frombuffer(data, np.uint8)
    if len(content) < offset + size:
        raise NoSliceError(f"truncated: a NIfTI file of {len(content)} bytes, expected {offset + size}")
    return np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape, order="F")


def _inflated(data: bytes, size: int) -> np.ndarray:
    """Inflates at most `size` bytes of gzip. Raises NoSliceError where the file is damaged."""
    inflated = np.empty(size, np.uint8)
    filled = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while filled < size and (read := file.readinto(inflated[filled:].data)):
                filled += read
            file.read(1)  # at the end of the file, this compares its checksum
    except (OSError, EOFError, zlib.error) as error:
        raise NoSliceError(f"truncated or damaged gzip: {error}") from None
    return inflated[:filled]


def _axial(stored: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Returns a view, (frames, height, width), of a volume, (i, j, k), by its affine from indices to RAS+."""
    from nibabel.orientations import io_orientation

    if not np.isfinite(affine).all():
        raise NoSliceError("its affine has numbers that are not finite, so that its orientation is unknown")
    orientation = io_orientation(affine)  # of each stored axis: the axis of the patient, and 1 or -1 for its direction
    lost = np.isnan(orientation[:, 0])
    if any(lost & (np.array(stored.shape) > 1)):
        raise NoSliceError("its affine gives an axis no direction, so that its orientation is unknown")
    free = [axis for axis in range(3) if axis not in orientation[:, 0]]
    for index in np.flatnonzero(lost):
        orientation[index] = free.pop(0), 1
    stored_axis = {int(axis): index for index, (axis, _) in enumerate(orientation)}
    view = stored.transpose(stored_axis[2], stored_axis[1], stored_axis[0])
    # RAS+ grows to the right, to anterior and to superior; the picture to the left and to posterior.
    steps = [direction * orientation[stored_axis[axis], 1] for axis, direction in ((2, 1), (1, -1), (0, -1))]
    return view[tuple(slice(None, None, int(step)) for step in steps)]
