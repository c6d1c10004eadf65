"""Writes the files of a simulated challenge."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import Image

from gansfp.errors import DataError, UsageError

_WRITERS = 2  # threads


def numbered(stem: str, count: int) -> list[str]:
    """Returns <stem>_0000, <stem>_0001, ..."""
    return [f"{stem}_{number:04d}" for number in range(count)]


def write_picture(file: str, picture: np.ndarray) -> None:
    """Writes a picture (256, 256) uint8 to <file>.png."""
    Image.fromarray(picture).save(f"{file}.png", compress_level=3)


class Writer:
    """Writes real slices in threads, and groups.csv with their patients at the end. pictures: how many so far."""

    def __init__(self, folder: str) -> None:
        self.folder, self.pictures, self.groups = folder, 0, [("image_id", "group")]
        self._pool = ThreadPoolExecutor(_WRITERS)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, error_type: object, *error: object) -> None:
        self._pool.shutdown(cancel_futures=error_type is not None)
        if error_type is None:
            self.table("groups.csv", self.groups)

    def slices(self, stem: str, pixels: np.ndarray, patients: Iterable[str]) -> list[str]:
        """Writes pixels (n, 256, 256) of patients (n,) to <stem>_0000.png, <stem>_0001.png, ... below the folder.

        Returns the files' names without ending.
        """
        os.makedirs(os.path.join(self.folder, os.path.dirname(stem)), exist_ok=True)
        places = numbered(stem, len(pixels))
        self.groups += zip(places, patients, strict=True)
        list(self._pool.map(write_picture, [os.path.join(self.folder, place) for place in places], pixels))
        self.pictures += len(places)
        return [os.path.basename(place) for place in places]

    def table(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        """Writes a CSV file below the folder."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        self.text(name, buffer.getvalue())

    def text(self, name: str, text: str) -> None:
        """Writes a text file below the folder."""
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)


@contextmanager
def complete_or_absent(out: str) -> Iterator[str]:
    """Yields a new folder beside `out`. It is renamed to `out` if the block succeeds, and deleted if it fails.

    Raises UsageError for a URI, DataError for a folder that is not empty or cannot be written.
    """
    target = os.path.abspath(out)
    if "://" in out:
        raise UsageError(f"got {out!r}, expected a local folder to write the challenge to")
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise DataError(f"got {out!r}, which exists and is not an empty folder; name another folder or remove it")
    partial = f"{target}.partial-{os.getpid()}"
    try:
        os.makedirs(partial)
        yield partial
        os.rename(partial, target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
