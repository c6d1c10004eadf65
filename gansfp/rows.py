"""Vectors of slices as methods read them: a part of the rows at a time, from an array or from a file on disk.

At real size the vectors of one set are half a gigabyte, and what is computed from them as much again. A method that
takes `Rows` asks for one part after the other, so that its memory does not grow with the number of slices.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gansfp import store
from gansfp.errors import DataError

PART = 1 << 22  # numbers in one part: 16 MB


class Rows(Protocol):
    """n vectors of d numbers, float32. A NumPy array (n, d) is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """Returns some of the vectors, (m, d) float32."""


class RowsOnDisk:
    """n vectors of d numbers in a file without a name, which is gone with the last object that reads it.

    The file lies where temporary files do (TMPDIR), and is zero where nothing was written. Raises DataError where there
    is no room for it.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as this object lives)
        self._first, self.shape = 0, shape
        size = 4 * shape[0] * shape[1]
        try:
            # All room at once: a file that only claims its size ends the process (SIGBUS) where the disk becomes full.
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:  # macOS
                self._file.truncate(size)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: cannot hold {size:,} bytes of vectors ({store.one_line(error)}); set TMPDIR "
                "to a folder with more room"
            ) from error

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(len(self))
            return self._read(start, max(start, stop))
        return np.array(self._mapped("r")[rows])

    def _read(self, start: int, stop: int) -> np.ndarray:
        # Not by a mapped file, whose pages each take the kernel's time when they are first touched.
        vectors = np.empty((stop - start, self.shape[1]), np.float32)
        content, offset = vectors.reshape(-1).view(np.uint8).data, 4 * (self._first + start) * self.shape[1]
        done = 0
        while done < len(content):  # one call reads 2 GB at most
            done += os.preadv(self._file.fileno(), [content[done:]], offset + done)
        return vectors

    def __setitem__(self, rows: slice | np.ndarray, vectors: np.ndarray, /) -> None:
        if len(vectors):
            self._mapped("r+")[rows] = vectors

    def part(self, start: int, stop: int) -> RowsOnDisk:
        """Returns the rows from start to stop, in the same file."""
        part = object.__new__(RowsOnDisk)
        part._file, part._first, part.shape = self._file, self._first + start, (stop - start, self.shape[1])
        return part

    def _mapped(self, mode: str) -> np.ndarray:
        # Mapped anew each time: pages that stay mapped would count as memory of this process.
        if not self.shape[0] * self.shape[1]:
            return np.empty(self.shape, np.float32)
        offset = 4 * self._first * self.shape[1]
        return np.memmap(self._file, np.float32, mode, offset, self.shape)  # type: ignore[call-overload]


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """Some rows of x, which are read when they are asked for. rows: (m,)."""

    x: Rows
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, d)."""
        return len(self.rows), self.x.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        return self.x[self.rows[rows]]


def parts(x: Rows) -> Iterator[slice]:
    """Yields the rows in parts of at most PART numbers, or of one row."""
    step = max(1, PART // max(x.shape[1], 1))
    return (slice(start, min(start + step, len(x))) for start in range(0, len(x), step))


def between(x: Rows, start: int, stop: int) -> Rows:
    """Returns the rows from start to stop without a copy."""
    return x.part(start, stop) if isinstance(x, RowsOnDisk) else x[start:stop]


def mapped(x: Rows, compute: Callable[[np.ndarray], np.ndarray]) -> Rows:
    """Returns what `compute` makes of the rows (m, d) of each part, (m, any) float32; on disk where x is on disk."""
    if not isinstance(x, RowsOnDisk) or not len(x):
        return compute(x[:])
    made: RowsOnDisk | None = None
    for part in parts(x):
        vectors = compute(x[part])
        made = made or RowsOnDisk((len(x), vectors.shape[1]))
        made[part] = vectors
    assert made is not None
    return made


def as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """Returns row numbers (n,) as a slice where each follows the last one: NumPy then takes the rows without a copy."""
    first = int(rows[0]) if len(rows) else -1
    follow = first >= 0 and np.array_equal(rows, np.arange(first, first + len(rows)))
    return slice(first, first + len(rows)) if follow else rows
