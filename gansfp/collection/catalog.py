"""The catalog of DATA: one table of all images with purpose, size, content hash, status, group and duplicates."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.duplicates import Duplicates, find_duplicates, first_of_same
from gansfp.collection.groups import read_groups
from gansfp.collection.layout import Image, Purpose, find_images
from gansfp.errors import UsageError
from gansfp.images import slices

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # unique in DATA
        ("name", pa.string()),  # file name without ending
        ("uri", pa.string()),  # absolute
        ("task", pa.string()),  # membership, attribution
        ("set", pa.string()),  # "" for attribution
        ("split", pa.string()),  # train, test
        ("role", pa.string()),  # generated, used, not_used, unknown
        ("generator", pa.string()),  # of attribution's training slices, else ""
        ("group", pa.string()),  # patient or volume, "" for none
        ("sha256", pa.string()),  # "" where the file cannot be read
        ("bytes", pa.int64()),
        ("mtime", pa.int64()),  # nanoseconds, 0 where the store does not say
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),  # Pillow's mode, or DICOM's photometric interpretation
        ("status", pa.string()),  # ok, unreadable
        ("error", pa.string()),
        ("duplicate_of", pa.string()),  # image_id of the first byte-identical image, "" for none
    ]
)

_THREADS = 16  # threads wait for disks and networks; hashing and reading release the interpreter lock
_CHUNK = 64  # images per task: many, so that handing out a task costs little


@dataclass(frozen=True, eq=False)
class Catalog:
    """The images of DATA.

    table: n rows of SCHEMA, sorted by image_id. notes: one line each, for the log and the report.
    """

    data: str
    table: pa.Table
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """Returns one column: (n,) of str or int64."""
        values = self.table[name]
        return np.array(values.to_pylist(), dtype=str if pa.types.is_string(values.type) else np.int64)

    @property
    def ids(self) -> np.ndarray:
        """(n,) str: image_id."""
        return self.column("image_id")

    def sets(self) -> list[str]:
        """Returns the names of the membership sets, sorted."""
        return sorted(set(self.select(task="membership").column("set").tolist()))

    def select(
        self,
        *,
        task: str | None = None,
        set: str | None = None,
        split: str | None = None,
        role: str | None = None,
        status: str | None = None,
    ) -> "Catalog":
        """Returns the rows that have all given values; the notes stay."""
        conditions = {"task": task, "set": set, "split": split, "role": role, "status": status}
        table = self.table
        for name, value in conditions.items():
            if value is not None:
                table = table.filter(pc.equal(table[name], value))
        return Catalog(self.data, table, self.notes)

    def where(self, mask: np.ndarray | Sequence[bool] | pa.Array) -> "Catalog":
        """Returns the rows whose entry of mask (n,) is true; the notes stay."""
        return Catalog(self.data, self.table.filter(pa.array(mask, pa.bool_())), self.notes)

    def of_set(self, name: str) -> "Catalog":
        """Returns all slices of a membership set."""
        return self.select(task="membership", set=name)

    def unknown(self, name: str) -> "Catalog":
        """Returns the real slices of a membership set for which the audit decides whether they were used."""
        return self.select(task="membership", set=name, split="test", role="unknown")

    def sets_to_decide(self) -> list[str]:
        """Returns the membership sets that have unknown slices, sorted."""
        return [name for name in self.sets() if len(self.unknown(name))]

    def known_generators(self) -> "Catalog":
        """Returns the attribution slices whose generator is known."""
        return self.select(task="attribution", split="train", role="generated")

    def unattributed(self) -> "Catalog":
        """Returns the attribution slices whose generator the audit has to find."""
        return self.select(task="attribution", split="test", role="unknown")

    def hashes(self) -> dict[str, str]:
        """Returns {image_id: sha256 of the file}, in the order of the rows."""
        return dict(zip(self.ids.tolist(), self.column("sha256").tolist(), strict=True))

    def groups(self) -> np.ndarray:
        """Returns (n,) str: the group of each image, which resampling keeps together.

        An image without a group is a group of its own, named by its image_id.
        """
        groups = self.column("group")
        return np.where(groups == "", self.ids, groups)

    def digest(self) -> str:
        """Returns a digest of the images, their purposes and their groups, independent of where the files lie."""
        columns = ("image_id", "sha256", "task", "set", "split", "role", "generator", "group")
        rows = self.table.select(columns).to_pylist()
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def duplicates(self) -> list[Duplicates]:
        """Returns the kinds of byte-identical images, the worst kind first."""
        return find_duplicates(self.table)


def read_catalog(
    data: str,
    previous: pa.Table | None = None,
    *,
    allow_outside: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Reads DATA (a path or a URI): its folders or its table, groups.csv, and the hash and header of each file.

    previous: the table of an earlier catalog; a file with the same uri, size and time as there is not opened again.
    allow_outside: accepts a table of DATA that names files outside DATA.
    progress: is called with (images done, images in all).
    Raises DataError as find_images and read_groups do. A file that is not an image becomes a row with status
    "unreadable" and the reason.
    """
    data = store.absolute(data)
    images, notes = find_images(data, allow_outside)
    groups, group_notes = read_groups(data, images)
    contents = _examine(images, previous, progress)
    columns: dict[str, Sequence[str | int]] = {
        "image_id": [image.image_id for image in images],
        "name": [image.name for image in images],
        "uri": [image.uri for image in images],
        **{name: [getattr(image.purpose, name) for image in images] for name in Purpose._fields},
        "group": groups,
        "bytes": [image.bytes for image in images],
        "mtime": [image.mtime for image in images],
        **{name: [getattr(content, name) for content in contents] for name in _Content._fields},
    }
    columns["duplicate_of"] = first_of_same(
        pa.table({name: columns[name] for name in ("image_id", "sha256", "status")})
    )
    catalog = Catalog(data, pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA))
    notes += [*group_notes, *_notes_of_unreadable(catalog), *(str(duplicates) for duplicates in catalog.duplicates())]
    return Catalog(data, catalog.table, tuple(notes))


def update_catalog(
    data: str, work: str, *, allow_outside: bool = False, progress: Callable[[int, int], None] | None = None
) -> Catalog:
    """Reads the catalog of DATA, with WORK/catalog.parquet as the previous one, and writes it there.

    The list of images is read from DATA each time, so that files outside DATA that an earlier run was allowed to read
    are refused without allow_outside. Raises the errors of read_catalog and write_catalog.
    """
    catalog = read_catalog(data, read_previous(work), allow_outside=allow_outside, progress=progress)
    write_catalog(catalog, work)
    return catalog


def write_catalog(catalog: Catalog, work: str) -> None:
    """Writes WORK/catalog.parquet. Raises UsageError where WORK is DATA: later runs would read it as DATA's table."""
    if store.absolute(work) == catalog.data:
        raise UsageError(f"got {work!r} for data and for work, expected two folders; choose another work folder")
    sink = pa.BufferOutputStream()
    pq.write_table(catalog.table, sink)
    store.write_bytes_atomically(store.join(work, "catalog.parquet"), sink.getvalue())


def read_previous(work: str) -> pa.Table | None:
    """Returns the table in WORK/catalog.parquet, or None if it is missing, broken or of another version."""
    uri = store.join(work, "catalog.parquet")
    try:
        table = store.read_parquet(uri)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        log.warning("%s: cannot be read (%s); every image is read again", uri, store.one_line(error))
        return None
    return table if table.schema.equals(SCHEMA) else None


class _Content(NamedTuple):
    """The columns of a catalog for which the file must be opened."""

    sha256: str
    width: int
    height: int
    mode: str
    status: str
    error: str


def _examine(
    images: Sequence[Image], previous: pa.Table | None, progress: Callable[[int, int], None] | None
) -> list[_Content]:
    """Returns hash and header of every image, in the order of `images`; a pool of threads reads them."""
    previous_contents = {} if previous is None else dict(_reusable(previous))

    def examine(start: int) -> list[_Content]:
        chunk = images[start : start + _CHUNK]
        return [previous_contents.get((image.uri, image.bytes, image.mtime)) or _open(image) for image in chunk]

    contents: list[_Content] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in pool.map(examine, range(0, len(images), _CHUNK)):
            contents += chunk
            if progress:
                progress(len(contents), len(images))
    return contents


def _reusable(previous: pa.Table) -> Iterator[tuple[tuple[str, int, int], _Content]]:
    """Yields (uri, size, time) and content of each file that need not be read again.

    Unreadable files are read again: what they lacked (a permission, the package pydicom) may be there now. So are files
    without a time, because a change of them would not be seen.
    """
    columns = [previous[name].to_pylist() for name in ("uri", "bytes", "mtime", *_Content._fields)]
    for uri, size, mtime, *values in zip(*columns, strict=True):
        content = _Content(*values)
        if mtime and content.status == "ok":
            yield (uri, size, mtime), content


def _open(image: Image) -> _Content:
    """Reads a file. Returns an unreadable content, with the reason, for one that is not a slice."""
    try:
        data = store.read_bytes(image.uri, slices.MAX_BYTES)
    except OSError as error:
        return _Content("", 0, 0, "", "unreadable", store.one_line(error))
    header = slices.examine(data, image.uri)
    status = "unreadable" if header.error else "ok"
    sha256 = hashlib.sha256(data).hexdigest()
    return _Content(sha256, header.width, header.height, header.mode, status, header.error)


def _notes_of_unreadable(catalog: Catalog) -> list[str]:
    rows = catalog.select(status="unreadable").table.to_pylist()
    return [f"{len(rows)} unreadable images, such as {rows[0]['image_id']}: {rows[0]['error']}"] if rows else []
