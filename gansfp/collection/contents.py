"""Opens every file of a collection once and keeps what it tells: its hash, its header, what its numbers say.

Files that an earlier catalog holds, and that have not changed since, are not opened again.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import NamedTuple

import pyarrow as pa

from gansfp import store
from gansfp.collection.layout import Image
from gansfp.images import slices
from gansfp.images.grey_levels import Evidence

_THREADS = 16  # threads wait for disks and networks; hashing and reading release the interpreter lock
_CHUNK = 64  # images per task: many, so that handing out a task costs little
_LARGE = 1 << 25  # bytes of a volume: only one is in memory at a time
_ONE_LARGE_FILE = Lock()
_SALT = b"salt"  # key in the metadata of a catalog's table
_DIGEST_BYTES = 10


class Content(NamedTuple):
    """What one file tells; each field is a column of the catalog.

    sha256: of the file, "" where it cannot be read. format, mode, bits, width, height, frames, turned, scale,
    unknown_because: see slices.Header. numbers: its evidence as JSON, "" for none. patient, series: digests of the
    identifiers in a DICOM file, "" for none. status: "ok" or "unreadable". error: why the file cannot be read.
    """

    sha256: str
    format: str = ""
    mode: str = ""
    bits: int = 0
    width: int = 0
    height: int = 0
    frames: int = 0
    turned: bool = False
    scale: str = ""
    unknown_because: str = ""
    numbers: str = ""
    patient: str = ""
    series: str = ""
    status: str = "ok"
    error: str = ""

    @property
    def evidence(self) -> Evidence | None:
        """What the numbers say; None where they were not looked at."""
        return evidence_of(self.numbers)


def evidence_of(text: str) -> Evidence | None:
    """Reads the column `numbers` of a catalog."""
    if not text:
        return None
    low, high, fits, poor, exact, blank = json.loads(text)
    return Evidence(low, high, tuple(fits), tuple(poor), exact, blank)


def salt_of(previous: pa.Table | None) -> bytes:
    """Returns the salt of the digests in an earlier catalog, or a new one.

    Without a salt, whoever has the catalog could find a patient's number by trying all numbers.
    """
    written = (previous.schema.metadata or {}).get(_SALT) if previous is not None else None
    return bytes.fromhex(written.decode()) if written else secrets.token_bytes(16)


def with_salt(table: pa.Table, salt: bytes) -> pa.Table:
    """Returns the table of a catalog with its salt in the metadata, for the next run."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _SALT: salt.hex().encode()})


def examine_all(
    images: Sequence[Image],
    previous: pa.Table | None,
    salt: bytes,
    progress: Callable[[int, int], None] | None = None,
) -> list[Content]:
    """Returns what each file tells, in the order of `images`; a pool of threads reads the files.

    previous: the table of an earlier catalog with the same salt. progress: is called with (files done, files in all).
    """
    previous_contents = {} if previous is None else dict(_reusable(previous))

    def examine(start: int) -> list[Content]:
        chunk = images[start : start + _CHUNK]
        return [
            previous_contents.get((image.uri, image.bytes, image.mtime, image.ctime)) or _examine(image, salt)
            for image in chunk
        ]

    contents: list[Content] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in pool.map(examine, range(0, len(images), _CHUNK)):
            contents += chunk
            if progress:
                progress(len(contents), len(images))
    return contents


def _reusable(previous: pa.Table) -> Iterator[tuple[tuple[str, int, int, int], Content]]:
    """Yields (uri, size, times) and content of each file that need not be read again.

    Unreadable files are read again: what they lacked (a permission, a package) may be there now. So are files without
    a time, because a change of them would not be seen.
    """
    columns = [previous[name].to_pylist() for name in ("uri", "bytes", "mtime", "ctime", *Content._fields)]
    for uri, size, mtime, ctime, *values in zip(*columns, strict=True):
        content = Content(*values)
        if mtime and content.status == "ok":
            yield (uri, size, mtime, ctime), content


def _examine(image: Image, salt: bytes) -> Content:
    """Reads a file. Returns an unreadable content, with the reason, for one that holds no slice."""
    with _ONE_LARGE_FILE if image.bytes > _LARGE else nullcontext():
        try:
            data = store.read_bytes(image.uri, slices.MAX_BYTES)
        except OSError as error:
            return Content("", status="unreadable", error=store.one_line(error))
        header, sha256 = slices.examine(data, image.uri), hashlib.sha256(data).hexdigest()

    def digest(identifier: str) -> str:
        if not identifier:
            return ""
        return hashlib.blake2b(identifier.encode(), key=salt, digest_size=_DIGEST_BYTES).hexdigest()

    return Content(
        sha256,
        header.format,
        header.mode,
        header.bits,
        header.width,
        header.height,
        header.frames,
        header.turned,
        header.scale,
        header.unknown_because,
        json.dumps(header.evidence) if header.evidence else "",
        digest(header.patient),
        digest(header.series),
        "unreadable" if header.error else "ok",
        header.error,
    )
