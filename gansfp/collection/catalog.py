"""The catalog of DATA: one table of all slices with purpose, size, content hash, reading, status, group, duplicates."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.contents import Content, Pseudonyms, examine_all
from gansfp.collection.default_groups import Origin, complete_groups
from gansfp.collection.differences import Labelled, find_differences
from gansfp.collection.duplicates import Duplicates, find_duplicates, first_of_same
from gansfp.collection.groups import path_below, read_groups
from gansfp.collection.layout import Image, find_images
from gansfp.collection.names import frame_ending
from gansfp.collection.readings import (
    Reading,
    ReadingCount,
    choose_readings,
    content_hash,
    count_readings,
    note_lost_levels,
    note_misfits,
)
from gansfp.errors import DataError, UsageError
from gansfp.images.grey_levels import AUTO
from gansfp.images.slices import Source

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # unique in DATA
        ("name", pa.string()),  # file name without ending
        ("uri", pa.string()),  # absolute
        ("frame", pa.int32()),  # 0 for a file of one slice, else the slice's number in the file, from 1
        ("task", pa.string()),  # membership, attribution
        ("set", pa.string()),  # "" for attribution
        ("split", pa.string()),  # train, test
        ("role", pa.string()),  # generated, used, not_used, unknown
        ("generator", pa.string()),  # of attribution's training slices, else ""
        ("group", pa.string()),  # patient or volume, "" for none
        ("sha256", pa.string()),  # of the file, "" where it cannot be read
        ("content", pa.string()),  # hash of the slice's grey levels: of file, frame and reading
        ("bytes", pa.int64()),
        ("mtime", pa.int64()),  # nanoseconds, 0 where the store does not say
        ("ctime", pa.int64()),  # nanoseconds, 0 where the store does not say
        ("format", pa.string()),  # PNG, JPEG, TIFF, DICOM, NIfTI
        ("mode", pa.string()),  # Pillow's mode, DICOM's photometric interpretation, NIfTI's dtype
        ("bits", pa.int32()),  # of one number
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),  # slices in the file
        ("turned", pa.bool_()),  # by the file's orientation tag
        ("scale", pa.string()),  # grey, HU, unknown: what the file says of its numbers
        ("unknown_because", pa.string()),
        ("numbers", pa.string()),  # JSON: what the numbers say, see gansfp.images.grey_levels.Evidence
        ("reading", pa.string()),  # how the numbers became grey levels, "" for none
        ("rule", pa.string()),  # for numbers that the file does not explain
        ("patient", pa.string()),  # salted digest of DICOM's PatientID
        ("series", pa.string()),  # salted digest of DICOM's SeriesInstanceUID
        ("status", pa.string()),  # ok, unreadable
        ("error", pa.string()),
        ("duplicate_of", pa.string()),  # image_id of the first byte-identical image, "" for none
    ]
)

_SIXTEEN_BIT = b"sixteen_bit"  # key in the metadata of the table
_PART = 4096  # rows that are dictionaries at once: these take many times the memory of the table


@dataclass(frozen=True, eq=False)
class Catalog:
    """The images of DATA.

    table: n rows of SCHEMA, sorted by image_id. notes: one line each, for the log and the report. findings: the notes
    on what may mislead a membership score.
    """

    data: str
    table: pa.Table
    notes: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

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
        table = self.table
        for name, value in {"task": task, "set": set, "split": split, "role": role, "status": status}.items():
            if value is not None:
                table = table.filter(pc.equal(table[name], value))
        return replace(self, table=table)

    def where(self, mask: np.ndarray | Sequence[bool] | pa.Array) -> "Catalog":
        """Returns the rows whose entry of mask (n,) is true; the notes stay."""
        return replace(self, table=self.table.filter(pa.array(mask, pa.bool_())))

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
        """Returns {image_id: hash of the slice's grey levels}, in the order of the rows."""
        return dict(zip(self.ids.tolist(), self.column("content").tolist(), strict=True))

    def sources(self) -> list[Source]:
        """Returns where each slice is and how it is read, in the order of the rows."""
        columns = (self.table[name].to_pylist() for name in ("uri", "frame", "rule"))
        return [Source(*values) for values in zip(*columns, strict=True)]

    def readings(self) -> list[ReadingCount]:
        """Returns how many slices were read in each way, the most frequent first."""
        return count_readings(self.table["reading"].to_pylist(), self.table["image_id"].to_pylist())

    def groups(self) -> np.ndarray:
        """Returns (n,) str: the group of each image, which resampling keeps together.

        An image without a group is a group of its own, named by its image_id.
        """
        groups = self.column("group")
        return np.where(groups == "", self.ids, groups)

    def digest(self) -> str:
        """Returns a digest of the images, their purposes and their groups, independent of where the files lie."""
        columns = ("image_id", "content", "task", "set", "split", "role", "generator", "group")
        # A search of an earlier version of gansfp wrote the hash of the content under the name sha256.
        table, digest = self.table.select(columns).rename_columns({"content": "sha256"}), hashlib.sha256(b"[")
        for start in range(0, len(self), _PART):  # of the JSON list of all rows, which is in memory in parts
            text = json.dumps(table.slice(start, _PART).to_pylist())[1:-1]
            digest.update(f"{', ' if start else ''}{text}".encode())
        digest.update(b"]")
        return digest.hexdigest()

    def duplicates(self) -> list[Duplicates]:
        """Returns the kinds of byte-identical images, the worst kind first."""
        return find_duplicates(self.table)


def read_catalog(
    data: str,
    previous: pa.Table | None = None,
    *,
    allow_outside: bool = False,
    sixteen_bit: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Reads DATA (a path or a URI): its folders or its table, groups.csv, and the hash and header of each file.

    previous: the table of an earlier catalog; a file with the same uri, size and times as there is not opened again.
    allow_outside: accepts a table of DATA that names files outside DATA.
    sixteen_bit: what the numbers of 16 bits are, of readings.READ_AS; None is as in `previous`, else "auto".
    progress: is called with (files done, files in all).
    Raises DataError as find_images and read_groups do. A file that is not an image becomes a row with status
    "unreadable" and the reason. A file of several slices becomes several rows.
    """
    data = store.absolute(data)
    images, notes = find_images(data, allow_outside)
    groups, group_notes = read_groups(data, images)
    pseudonyms, sixteen_bit = Pseudonyms(images), sixteen_bit or _sixteen_bit_of(previous)
    contents = examine_all(images, previous, pseudonyms, progress)
    catalog = catalog_of(data, images, contents, groups, sixteen_bit)
    metadata = {_SIXTEEN_BIT: sixteen_bit.encode()}
    table = pseudonyms.sign(catalog.table.replace_schema_metadata(metadata))
    return replace(catalog, table=table, notes=(*notes, *group_notes, *catalog.notes))


def catalog_of(
    data: str, images: Sequence[Image], contents: Sequence[Content], groups: Sequence[str], sixteen_bit: str = AUTO
) -> Catalog:
    """Returns the catalog of images whose files have been examined, with notes on what was read.

    Raises DataError where two slices get the same image_id.
    """
    readings, notes = choose_readings([image.purpose for image in images], contents, sixteen_bit)
    rows = [row for file in zip(images, contents, readings, groups, strict=True) for row in _slices_of(data, *file)]
    rows.sort(key=lambda row: row.image_id)
    for row, following in pairwise(rows):
        if row.image_id == following.image_id:
            places = f"{row.image.uri} and {following.image.uri}"
            raise DataError(f"{data}: two slices have the image_id {row.image_id!r}: {places}; rename one file")
    completed, group_notes = complete_groups(
        [row.group for row in rows], [row.origin for row in rows], [row.image.purpose for row in rows]
    )
    catalog = Catalog(data, _table(rows, completed))
    findings = [
        *note_lost_levels([(row.image_id, row.content, row.reading) for row in rows]),
        *note_misfits([(row.image_id, row.content, row.reading) for row in rows]),
        *find_differences(_labelled(rows)),
    ]
    notes += [*group_notes, *_notes_of_unreadable(catalog), *(str(duplicates) for duplicates in catalog.duplicates())]
    return replace(catalog, notes=tuple(notes), findings=tuple(findings))


def _table(rows: Sequence["_Row"], groups: Sequence[str]) -> pa.Table:
    """Returns the table of a catalog."""
    of_slices = [*zip(rows, groups, strict=True)]
    parts = (of_slices[start : start + _PART] for start in range(0, len(of_slices), _PART))
    tables = (pa.Table.from_pylist([_record(*of_slice) for of_slice in part], schema=SCHEMA) for part in parts)
    table = pa.concat_tables([SCHEMA.empty_table(), *tables]).combine_chunks()
    column = SCHEMA.get_field_index("duplicate_of")
    return table.set_column(column, SCHEMA.field(column), pa.array(first_of_same(table), pa.string()))


def _record(row: "_Row", group: str) -> dict[str, object]:
    return {
        "image_id": row.image_id,
        "frame": row.frame,
        **{name: getattr(row.image, name) for name in ("name", "uri", "bytes", "mtime", "ctime")},
        **row.image.purpose._asdict(),
        **row.content._asdict(),
        "group": group,
        "content": content_hash(row.content, row.frame, row.reading),
        "reading": row.reading.name,
        "rule": row.reading.rule,
        "status": "unreadable" if row.reading.error else row.content.status,
        "error": row.reading.error or row.content.error,
        "duplicate_of": "",
    }


class _Row(NamedTuple):
    """A slice, before it is in the table."""

    image_id: str
    frame: int
    image: Image
    content: Content
    reading: Reading
    group: str
    origin: Origin


def _labelled(rows: Sequence[_Row]) -> list[Labelled]:
    """Returns the readable slices that are known to be used or not used."""
    return [
        Labelled(row.image.purpose, row.content, row.reading, Source(row.image.uri, row.frame, row.reading.rule))
        for row in rows
        if row.reading.name and row.image.purpose.role in ("used", "not_used")
    ]


def _slices_of(data: str, image: Image, content: Content, reading: Reading, group: str) -> list[_Row]:
    """Returns the slices of a file: one, or one for each frame, with the frame's number in the id."""
    if content.frames < 2 or content.status != "ok":
        return [_Row(image.image_id, 0, image, content, reading, group, Origin(content.patient, content.series, ""))]
    origin = Origin(content.patient, content.series, path_below(data, image))
    return [
        _Row(image.image_id + frame_ending(frame), frame, image, content, reading, group, origin)
        for frame in range(1, content.frames + 1)
    ]


def _sixteen_bit_of(previous: pa.Table | None) -> str:
    """Returns what an earlier catalog took numbers of 16 bits for, else "auto"."""
    return ((previous.schema.metadata if previous is not None else None) or {}).get(_SIXTEEN_BIT, b"auto").decode()


def update_catalog(
    data: str,
    work: str,
    *,
    allow_outside: bool = False,
    sixteen_bit: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Catalog:
    """Reads the catalog of DATA, with WORK/catalog.parquet as the previous one, and writes it there.

    The list of images is read from DATA each time, so that files outside DATA that an earlier run was allowed to read
    are refused without allow_outside. Raises the errors of read_catalog and write_catalog.
    """
    catalog = read_catalog(
        data, read_previous(work), allow_outside=allow_outside, sixteen_bit=sixteen_bit, progress=progress
    )
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


def _notes_of_unreadable(catalog: Catalog) -> list[str]:
    rows = catalog.select(status="unreadable").table.to_pylist()
    return [f"{len(rows)} unreadable images, such as {rows[0]['image_id']}: {rows[0]['error']}"] if rows else []
