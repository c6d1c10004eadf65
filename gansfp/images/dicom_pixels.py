"""Reads the stored numbers of a frame of a DICOM file: native, or compressed by a codec of dicom_syntax.CODECS."""

import io
from dataclasses import dataclass

import numpy as np

from gansfp.images.codestreams import decode_rle, frame_size
from gansfp.images.dicom_syntax import CODECS, RLE, PixelData, Writing, check_decoder
from gansfp.images.frame_decoder import FRAME_DECODER
from gansfp.images.image_file import NoSliceError

_SLACK = 4096  # bytes by which an image may be longer than its pixels: padding, heads of fragments


@dataclass(frozen=True)
class Layout:
    """The image pixel module of a DICOM file: how the numbers of its frames are stored. Sizes are in pixels."""

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str

    def check(self) -> None:
        """Raises NoSliceError for a layout that is not read."""
        if self.photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise NoSliceError(f"DICOM of kind {self.photometric[:20]}, expected MONOCHROME1 or MONOCHROME2")
        if self.bits_allocated not in (8, 16, 32):
            raise NoSliceError(f"BitsAllocated is {self.bits_allocated}, expected 8, 16 or 32")
        if not 1 <= self.bits_stored <= self.bits_allocated:
            raise NoSliceError(f"BitsStored is {self.bits_stored}, expected 1 to {self.bits_allocated}")
        if self.frames < 1:
            raise NoSliceError(f"NumberOfFrames is {self.frames}")

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def frame_bytes(self) -> int:
        return self.pixels * self.bits_allocated // 8

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest number of BitsStored."""
        if self.signed:
            return -(1 << self.bits_stored - 1), (1 << self.bits_stored - 1) - 1
        return 0, (1 << self.bits_stored) - 1

    def numbers(self, cells: np.ndarray) -> np.ndarray:
        """Returns the numbers in pixel cells: the bits above BitsStored may hold overlays (PS3.5, 8.1.1)."""
        unused = self.bits_allocated - self.bits_stored
        if not unused:
            return cells
        if self.signed:
            return (cells << unused) >> unused
        return cells & cells.dtype.type(self.range[1])


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """The pixels of a DICOM file. data: the file. offsets: the extended offset table and its lengths, or None."""

    data: bytes
    writing: Writing
    where: PixelData
    layout: Layout
    offsets: tuple[bytes, bytes] | None = None

    @property
    def compressed(self) -> bool:
        return self.writing.syntax in CODECS or self.writing.syntax == RLE

    def check(self) -> None:
        """Raises NoSliceError where the frames must not be decoded, MissingPackageError where they cannot be."""
        length, layout = self.where.stop - self.where.start, self.layout
        if length > _SLACK + 2 * layout.frames * layout.frame_bytes:
            raise NoSliceError(f"{length} bytes of pixels, too many for {layout.columns}x{layout.rows}")
        if self.compressed != self.where.fragmented:
            states = "compressed", "not compressed"
            claimed, found = states if self.compressed else states[::-1]
            raise NoSliceError(f"the transfer syntax says that pixels are {claimed}, and they are {found}")
        if self.writing.syntax in CODECS:
            check_decoder(self.writing.syntax)

    def cells(self, frame: int) -> np.ndarray:
        """Returns the pixel cells of a frame, (rows, columns) of the layout's dtype, perhaps read-only.

        Raises NoSliceError, or what a decoder raises on a damaged frame.
        """
        if not self.compressed:
            cells = self._native(frame)
        elif self.writing.syntax == RLE:
            unsigned = decode_rle(self._frame(frame), self.layout.pixels, self.layout.bits_allocated // 8)
            cells = unsigned.view(self.layout.dtype)
        else:
            cells = self._decoded(self._frame(frame))
        return cells.reshape(self.layout.rows, self.layout.columns)

    def _native(self, frame: int) -> np.ndarray:
        layout = self.layout
        start = self.where.start + frame * layout.frame_bytes
        if start + layout.frame_bytes > self.where.stop:
            have = max(0, self.where.stop - start)
            raise NoSliceError(f"the file is cut off: {have} of {layout.frame_bytes} bytes of pixels")
        if self.writing.little:
            return np.frombuffer(self.data, layout.dtype.newbyteorder("<"), layout.pixels, start)
        if layout.bits_allocated == 8 and self.where.words:  # two pixels in a word, the second one first
            first = start - (start - self.where.start) % 2
            words = np.frombuffer(self.data, ">u2", (start - first + layout.pixels + 1) // 2, first)
            return words.astype("<u2").view(layout.dtype)[start - first :][: layout.pixels]
        big = np.frombuffer(self.data, layout.dtype.newbyteorder(">"), layout.pixels, start)
        return big.astype(layout.dtype)

    def _frame(self, frame: int) -> bytes:
        """Returns a compressed frame."""
        from pydicom.encaps import get_frame

        file = io.BytesIO(self.data)  # it shares the memory of the bytes
        file.seek(self.where.start)
        try:
            return get_frame(file, frame, number_of_frames=self.layout.frames, extended_offsets=self.offsets)
        except Exception:  # pydicom raises several exceptions, with offsets that help nobody
            raise NoSliceError("compressed pixels whose fragments are damaged") from None

    def _decoded(self, compressed: bytes) -> np.ndarray:
        layout, size = self.layout, frame_size(compressed)
        if (size.width, size.height) != (layout.columns, layout.rows):
            expected = f"{layout.columns}x{layout.rows}"
            raise NoSliceError(f"a compressed frame of {size.width}x{size.height} pixels, expected {expected}")
        if size.components != 1 or size.bits > layout.bits_allocated:
            raise NoSliceError(
                f"a compressed frame of {size.components} components of {size.bits} bits, expected 1 of at most "
                f"{layout.bits_allocated}"
            )
        codec = CODECS[self.writing.syntax]
        options: dict[str, str | int] = {
            "syntax": codec.decoder,
            "decoding_plugin": codec.plugin,
            "rows": layout.rows,
            "columns": layout.columns,
            "number_of_frames": 1,
            "samples_per_pixel": 1,
            "photometric_interpretation": layout.photometric,
            "bits_allocated": layout.bits_allocated,
            "bits_stored": layout.bits_stored,
            "pixel_representation": int(layout.signed),
        }
        return np.frombuffer(FRAME_DECODER.decode(compressed, options), layout.dtype, layout.pixels)
