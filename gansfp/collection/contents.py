"""Opens every file of a collection once and keeps what it tells: its hash, its header, what its numbers say.

Files that an earlier catalog holds, and that have not changed since, are not opened again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gansfp import store
from gansfp.collection.layout import Image
from gansfp.images import slices
from gansfp.images.grey_levels import Evidence

_THREADS = 16  # threads wait for disks and networks; hashing and reading release the interpreter lock
_CHUNK = 64  # images per task: many, so that handing out a task costs little
_LARGE = 1 << 25  # bytes of a volume: only one is in memory at a time
_ONE_LARGE_FILE = Lock()
_SALT_CHECK = b"salt_check"  # key in the metadata of a catalog's table
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
        if not self.numbers:
            return None
        low, high, fits, poor, exact, blank = json.loads(self.numbers)
        return Evidence(low, high, tuple(fits), tuple(poor), exact, blank)


class Pseudonyms:
    """Digests of identifiers, with a salt that is in no output.

    The salt is a hash of a file of DATA, a DICOM file if there is one. So who has WORK but not DATA cannot find a
    patient's number by trying all numbers, and the same DATA gives the same groups.
    """

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images

    @cached_property
    def _salt(self) -> bytes:
        others = tuple(ending for known in slices.FORMATS if known.name != "DICOM" for ending in known.endings)
        readable = [image for image in self._images if 0 < image.bytes <= _LARGE]
        # Pictures by a generator may be public.
        readable.sort(key=lambda image: (image.uri.lower().endswith(others), image.purpose.role == "generated"))
        for image in readable:
            with suppress(OSError):
                data = store.read_bytes(image.uri, slices.MAX_BYTES)
                return hashlib.blake2b(data, digest_size=16, person=b"gansfp salt").digest()
        return bytes(16)

    def of(self, identifier: str) -> str:
        """Returns the digest of an identifier, "" for none."""
        if not identifier:
            return ""
        return hashlib.blake2b(identifier.encode(), key=self._salt, digest_size=_DIGEST_BYTES).hexdigest()

    def sign(self, table: pa.Table) -> pa.Table:
        """Returns the table of a catalog with a hash of the salt in its metadata, if it holds digests."""
        if not _has_digests(table):
            return table
        return table.replace_schema_metadata({**(table.schema.metadata or {}), _SALT_CHECK: self._check()})

    def made(self, table: pa.Table) -> bool:
        """Returns True if the digests in the table of a catalog have this salt, or if there are none."""
        return not _has_digests(table) or (table.schema.metadata or {}).get(_SALT_CHECK) == self._check()

    def _check(self) -> bytes:
        return hashlib.blake2b(self._salt, digest_size=16, person=b"gansfp check").hexdigest().encode()


def _has_digests(table: pa.Table) -> bool:
    return any(pc.any(pc.not_equal(table[name], "")).as_py() for name in ("patient", "series"))


def examine_all(
    images: Sequence[Image],
    previous: pa.Table | None,
    pseudonyms: Pseudonyms,
    progress: Callable[[int, int], None] | None = None,
) -> list[Content]:
    """Returns what each file tells, in the order of `images`; a pool of threads reads the files.

    previous: the table of an earlier catalog. pseudonyms: of the identifiers in DICOM files. progress: is called with
    (files done, files in all).
    """
    previous_contents = {} if previous is None else dict(_reusable(previous, pseudonyms))

    def examine(start: int) -> list[Content]:
        chunk = images[start : start + _CHUNK]
        return [
            previous_contents.get((image.uri, image.bytes, image.mtime, image.ctime)) or _examine(image, pseudonyms)
            for image in chunk
        ]

    contents: list[Content] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in pool.map(examine, range(0, len(images), _CHUNK)):
            contents += chunk
            if progress:
                progress(len(contents), len(images))
    return contents


def _reusable(previous: pa.Table, pseudonyms: Pseudonyms) -> Iterator[tuple[tuple[str, int, int, int], Content]]:
    """Yields (uri, size, times) and content of each file that need not be read again.

    Unreadable files are read again: what they lacked (a permission, a package) may be there now. So are files without
    a time, because a change of them would not be seen, and files whose digests have another salt.
    """
    same_salt = pseudonyms.made(previous)
    columns = [previous[name].to_pylist() for name in ("uri", "bytes", "mtime", "ctime", *Content._fields)]
    for uri, size, mtime, ctime, *values in zip(*columns, strict=True):
        content = Content(*values)
        if mtime and content.status == "ok" and (same_salt or not (content.patient or content.series)):
            yield (uri, size, mtime, ctime), content


def _examine(image: Image, pseudonyms: Pseudonyms) -> Content:
    """Reads a file. Returns an unreadable content, with the reason, for one that holds no slice."""
    with _ONE_LARGE_FILE if image.bytes > _LARGE else nullcontext():
        try:
            data = store.read_bytes(image.uri, slices.MAX_BYTES)
        except OSError as error:
            return Content("", status="unreadable", error=store.one_line(error))
        header, sha256 = slices.examine(data, image.uri), hashlib.sha256(data).hexdigest()
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
        pseudonyms.of(header.patient),
        pseudonyms.of(header.series),
        "unreadable" if header.error else "ok",
        header.error,
    )
