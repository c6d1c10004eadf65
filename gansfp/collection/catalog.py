"""What there is: one table of every image of DATA with its part, size, content hash, status, group and duplicates."""

import hashlib
import json
import logging
import posixpath
from collections import defaultdict
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
from gansfp.collection.layout import Image, find_images
from gansfp.errors import DataError, UsageError
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

_THREADS = 16  # they wait for disks and networks; hashing and reading release the interpreter lock
_CHUNK = 64  # images a task, so that handing out tasks costs nothing


@dataclass(frozen=True, eq=False)
class Catalog:
    """The images of DATA. table: n rows of SCHEMA, sorted by image_id; notes: one line each, for the log and report."""

    data: str
    table: pa.Table
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column: (n,) of str or int64."""
        values = self.table[name]
        return np.array(values.to_pylist(), dtype=str if pa.types.is_string(values.type) else np.int64)

    @property
    def ids(self) -> np.ndarray:
        """(n,) str: image_id."""
        return self.column("image_id")

    def sets(self) -> list[str]:
        """The membership sets, sorted."""
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
        """The rows that have every given value; the notes stay."""
        wanted = {"task": task, "set": set, "split": split, "role": role, "status": status}
        table = self.table
        for name, value in wanted.items():
            if value is not None:
                table = table.filter(pc.equal(table[name], value))
        return Catalog(self.data, table, self.notes)

    def where(self, mask: np.ndarray | Sequence[bool] | pa.Array) -> "Catalog":
        """The rows whose entry of mask (n,) is true; the notes stay."""
        return Catalog(self.data, self.table.filter(pa.array(mask, pa.bool_())), self.notes)

    def of_set(self, name: str) -> "Catalog":
        """All slices of a membership set."""
        return self.select(task="membership", set=name)

    def unknown(self, name: str) -> "Catalog":
        """The real slices of a membership set to decide about."""
        return self.select(task="membership", set=name, split="test", role="unknown")

    def sets_to_decide(self) -> list[str]:
        """The membership sets that have slices to decide about, sorted."""
        return [name for name in self.sets() if len(self.unknown(name))]

    def known_generators(self) -> "Catalog":
        """The attribution slices whose generator is known."""
        return self.select(task="attribution", split="train", role="generated")

    def unattributed(self) -> "Catalog":
        """The attribution slices to decide about."""
        return self.select(task="attribution", split="test", role="unknown")

    def hashes(self) -> dict[str, str]:
        """{image_id: sha256 of the file}, in the order of the rows."""
        return dict(zip(self.ids.tolist(), self.column("sha256").tolist(), strict=True))

    def groups(self) -> np.ndarray:
        """(n,) str: what must not be split in resampling; an image without a group is one of its own, its image_id."""
        groups = self.column("group")
        return np.where(groups == "", self.ids, groups)

    def digest(self) -> str:
        """What identifies the images, what they are there for and their groups, wherever they lie."""
        told = ("image_id", "sha256", "task", "set", "split", "role", "generator", "group")
        rows = self.table.select(told).to_pylist()
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def duplicates(self) -> list[Duplicates]:
        """Byte-identical images, the alarming kinds first."""
        return find_duplicates(self.table)


def read_catalog(
    data: str,
    known: pa.Table | None = None,
    *,
    allow_outside: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Reads what DATA (a path or a URI) has: its folders or its table, groups.csv, and each file's hash and header.

    known: an earlier catalog's table; a file whose uri, size and time it has is not opened again.
    allow_outside: lets a table of DATA name files that are not below DATA.
    progress: called with (images done, images in all).
    Raises DataError as find_images does, and for a groups.csv that contradicts itself. A file that is no image is a row
    with status "unreadable" and the reason.
    """
    data = store.absolute(data)
    images, notes = find_images(data, allow_outside)
    groups, group_notes = _read_groups(data, images)
    contents = _examine(images, known, progress)
    columns: dict[str, Sequence[str | int]] = {
        "image_id": [image.image_id for image in images],
        "name": [image.name for image in images],
        "uri": [image.uri for image in images],
        **{
            name: [getattr(image.purpose, name) for image in images]
            for name in ("task", "set", "split", "role", "generator")
        },
        "group": groups,
        "bytes": [image.bytes for image in images],
        "mtime": [image.mtime for image in images],
        **{name: [getattr(content, name) for content in contents] for name in _Content._fields},
    }
    columns["duplicate_of"] = first_of_same(
        pa.table({name: columns[name] for name in ("image_id", "sha256", "status")})
    )
    catalog = Catalog(data, pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA))
    notes += [*group_notes, *_unreadable(catalog), *(str(finding) for finding in catalog.duplicates())]
    return Catalog(data, catalog.table, tuple(notes))


def update_catalog(
    data: str, work: str, *, allow_outside: bool = False, progress: Callable[[int, int], None] | None = None
) -> Catalog:
    """read_catalog with what WORK/catalog.parquet knows, then writes that anew. What jobs call first.

    Which images there are is read from DATA each time: what an earlier run was allowed, this one is not.
    Raises what read_catalog and write_catalog raise.
    """
    catalog = read_catalog(data, read_known(work), allow_outside=allow_outside, progress=progress)
    write_catalog(catalog, work)
    return catalog


def write_catalog(catalog: Catalog, work: str) -> None:
    """Writes WORK/catalog.parquet. Raises UsageError where WORK is DATA: it would be taken for DATA's own table."""
    if store.absolute(work) == catalog.data:
        raise UsageError(f"got {work!r} for data and for work, expected two folders")
    sink = pa.BufferOutputStream()
    pq.write_table(catalog.table, sink)
    store.write_bytes_atomically(store.join(work, "catalog.parquet"), sink.getvalue())


def read_known(work: str) -> pa.Table | None:
    """The table in WORK/catalog.parquet, or None where there is none, a broken one or one of another version."""
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
    """What opening a file tells."""

    sha256: str
    width: int
    height: int
    mode: str
    status: str
    error: str


def _examine(
    images: Sequence[Image], known: pa.Table | None, progress: Callable[[int, int], None] | None
) -> list[_Content]:
    """Hash and header of every image, by a pool of threads, in the order of `images`."""
    earlier = {} if known is None else dict(_remembered(known))

    def examine(start: int) -> list[_Content]:
        chunk = images[start : start + _CHUNK]
        return [earlier.get((image.uri, image.bytes, image.mtime)) or _open(image) for image in chunk]

    contents: list[_Content] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in pool.map(examine, range(0, len(images), _CHUNK)):
            contents += chunk
            if progress:
                progress(len(contents), len(images))
    return contents


def _remembered(known: pa.Table) -> Iterator[tuple[tuple[str, int, int], _Content]]:
    """What need not be read again; bad files are, as what was missing (a right, pydicom) may be there now."""
    columns = [known[name].to_pylist() for name in ("uri", "bytes", "mtime", *_Content._fields)]
    for uri, size, mtime, *content in zip(*columns, strict=True):
        found = _Content(*content)
        if mtime and found.status == "ok":
            yield (uri, size, mtime), found


def _open(image: Image) -> _Content:
    try:
        data = store.read_bytes(image.uri, slices.MAX_BYTES)
    except OSError as error:
        return _Content("", 0, 0, "", "unreadable", store.one_line(error))
    mode, width, height, error_line = slices.inspect(data, image.uri)
    status = "unreadable" if error_line else "ok"
    return _Content(hashlib.sha256(data).hexdigest(), width, height, mode, status, error_line)


def _unreadable(catalog: Catalog) -> list[str]:
    bad = catalog.select(status="unreadable").table.to_pylist()
    return [f"{len(bad)} unreadable images, such as {bad[0]['image_id']}: {bad[0]['error']}"] if bad else []


def _read_groups(data: str, images: Sequence[Image]) -> tuple[list[str], list[str]]:
    """Each image's group, from DATA's table and from DATA/groups.csv, and notes. Raises DataError for a contradiction,
    and where no id at all fits an image."""
    groups = [image.group for image in images]
    uri = store.join(data, "groups.csv")
    if not store.exists(uri):
        return groups, []
    columns = store.read_csv(uri, ("image_id", "group"))
    given: dict[str, str] = {}
    for image_id, group in zip(columns["image_id"], columns["group"], strict=True):
        if given.setdefault(image_id, group) != group:
            raise DataError(f"{uri}: {image_id!r} has two groups, {given[image_id]!r} and {group!r}")
    index_of = {image.image_id: index for index, image in enumerate(images)}
    named: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        named[image.name].append(index)
    if any(image_id not in index_of and image_id not in named for image_id in given):
        # a path below DATA is right as well where the name alone would do
        index_of = {_below(data, image): index for index, image in enumerate(images)} | index_of
    unknown: list[str] = []
    several: list[str] = []
    for image_id, group in given.items():
        fits = [index_of[image_id]] if image_id in index_of else named.get(image_id, [])
        if not fits:
            unknown.append(image_id)
        elif len(fits) > 1:
            several.append(image_id)
        for index in fits:
            if groups[index] not in ("", group):
                raise DataError(f"{uri}: {images[index].uri} has two groups, {groups[index]!r} and {group!r}")
            groups[index] = group
    if given and len(unknown) == len(given):  # resampling slice by slice after all would make every figure too sure
        raise DataError(
            f"{uri}: none of its {len(given)} ids fits an image, such as {unknown[0]!r}; "
            "expected file names without ending, or paths below the data folder without ending"
        )
    notes = []
    if several:
        notes.append(
            f"groups.csv: {len(several)} names fit several images each, all get the group, such as {several[0]}"
        )
    if unknown:
        notes.append(f"groups.csv: {len(unknown)} ids fit no image, such as {unknown[0]}")
    return groups, notes


def _below(data: str, image: Image) -> str:
    """The image's path below DATA, without ending."""
    path, base = store.open_store(image.uri)[1], store.open_store(data)[1]
    return posixpath.splitext(path.removeprefix(base).lstrip("/"))[0]
