"""Reads the table of DATA, catalog.csv or catalog.parquet, which names each image and says what it is there for."""

import os
import posixpath
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.types as pt
from pyarrow import fs

from gansfp import store
from gansfp.collection.image import Image, Purpose
from gansfp.collection.names import shown
from gansfp.errors import DataError
from gansfp.images.slices import without_ending

ROLES = {
    ("membership", "train"): ("generated", "used", "not_used"),
    ("membership", "test"): ("generated", "unknown"),
    ("attribution", "train"): ("generated",),
    ("attribution", "test"): ("unknown",),
}
NEEDED = ("image_id", "uri", "task", "split", "role")  # columns of a table; also `set` if it has membership rows

_COLUMNS = ("image_id", "uri", "task", "set", "split", "role", "generator", "group")
_OPTIONAL_NAMES = ("set", "generator", "group")
# How pandas, R, databases and spreadsheets write a missing value as text, in lower case; #NV is German.
_NO_NAME = ("nan", "-nan", "na", "n/a", "<na>", "none", "null", "#n/a", "#na", "#nv", "#ref!", "#value!", "#name?")


def find_table(data: str) -> str | None:
    """Returns the uri of DATA's table, or None. Raises DataError where there are two."""
    tables = [uri for name in ("catalog.parquet", "catalog.csv") if store.exists(uri := store.join(data, name))]
    if len(tables) > 1:
        raise DataError(f"{data}: holds both catalog.parquet and catalog.csv, expected one of them; remove the other")
    return tables[0] if tables else None


def images_of_table(table: str, data: str, allow_outside: bool) -> tuple[list[Image], list[str]]:
    """Returns the images that a table names, and notes.

    Raises DataError for a table that cannot be read, for a missing or repeated column, and for a bad row.
    """
    columns, notes = _read_table(table)
    images: list[Image] = []
    ignored_generators = 0
    for image_id, value, task, set_, split, role, generator, group in zip(*columns.values(), strict=True):
        purpose = Purpose(task, set_, split, role, generator)
        _check_row(table, image_id, value, purpose)
        if (task, split) != ("attribution", "train"):
            # The generator of a test slice is the answer that the audit has to find.
            ignored_generators += bool(generator) and task == "attribution"
            purpose = purpose._replace(generator="")
        uri = _locate(table, data, value, allow_outside)
        name = without_ending(posixpath.basename(store.open_store(uri)[1]))
        images.append(Image(image_id, name, uri, purpose, group, -1, 0, folder=posixpath.basename(table)))
    if ignored_generators:
        notes.append(f"{table}: ignored the generators of {ignored_generators} test slices")
    images = _with_file_info(images)
    odd = [value for image, value in zip(images, columns["uri"], strict=True) if image.bytes < 0 and "\\" in value]
    if odd:
        notes.append(f"{table}: {len(odd)} uris have \\ between folders, expected /, such as {shown(odd[0])}")
    return images, notes


def plain_names(values: Sequence[str]) -> list[str]:
    """Returns the values of a column of names as they were before pandas made them numbers.

    NaN, and other words for a missing value, are no name. If all names are whole numbers with `.0`, as in 12.0, they
    lose it: pandas writes numbers so where a name is missing, and another table may have 12.
    """
    names = ["" if _is_no_name(value) else value for value in values]
    if all(re.fullmatch(r"-?\d+\.0", name) for name in names if name):
        return [name.removesuffix(".0") for name in names]
    return names


def notes_of_no_group(table: str, values: Sequence[str]) -> list[str]:
    """Returns a note if a table has words, such as NA, that are taken for no group. values: of its column `group`."""
    words = [value for value in values if _is_no_name(value)]
    return [f"{table}: {len(words)} groups, such as {words[0]!r}, were taken for no group"] if words else []


def _is_no_name(value: str) -> bool:
    return value.casefold() in _NO_NAME


def _read_table(table: str) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the columns of _COLUMNS as strings, and notes; an optional column that the table lacks is empty."""
    is_csv = table.partition("?")[0].endswith(".csv")
    columns = store.read_csv(table, NEEDED) if is_csv else _read_parquet(table)
    needed = [*NEEDED, "set"] if "membership" in columns.get("task", ()) else NEEDED
    for name in needed:
        if name not in columns:
            raise DataError(f"{table}: has no column {name!r}, got {', '.join(columns) or 'none of the columns'}")
    count = len(columns["image_id"])
    notes = notes_of_no_group(table, columns.get("group", ()))
    columns |= {name: plain_names(columns[name]) for name in _OPTIONAL_NAMES if name in columns}
    return {name: columns.get(name, [""] * count) for name in _COLUMNS}, notes


def _read_parquet(table: str) -> dict[str, list[str]]:
    """Returns the columns of _COLUMNS that a Parquet file has, as strings."""
    try:
        rows = store.read_parquet(table)
        names = [name for name in rows.column_names if name in _COLUMNS]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise DataError(f"{table}: has the column {repeated!r} twice, expected it once; remove one")
        return {name: _as_text(rows[name]) for name in names}
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{table}: cannot be read as a Parquet table ({store.one_line(error)})") from error


def _as_text(column: pa.ChunkedArray) -> list[str]:
    """Returns a column's values as strings, "" where there is none; 12.0 becomes "12"."""
    if pt.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pt.is_floating(column.type):
        return column.cast(pa.string()).fill_null("").to_pylist()
    values = column.cast(pa.float64()).to_pylist()
    return ["" if x is None or x != x else str(int(x)) if x.is_integer() else str(x) for x in values]


def _check_row(table: str, image_id: str, uri: str, purpose: Purpose) -> None:
    """Raises DataError for a value that has no place in the layout."""

    def expect(column: str, value: str, expected: Sequence[str]) -> None:
        if value not in expected:
            raise DataError(f"{table}: {image_id!r} has {column} {value!r}, expected one of {', '.join(expected)}")

    if not image_id:
        raise DataError(f"{table}: a row has no image_id, expected one in every row")
    if not uri:
        raise DataError(f"{table}: {image_id!r} has no uri, expected the place of its file")
    expect("task", purpose.task, ("membership", "attribution"))
    expect("split", purpose.split, ("train", "test"))
    expect("role", purpose.role, ROLES[purpose.task, purpose.split])
    if purpose.task == "membership" and not purpose.set:
        raise DataError(f"{table}: {image_id!r} belongs to the membership task and has no set, expected its name")
    if "/" in purpose.set:  # the set becomes part of the names of files in WORK
        raise DataError(f"{table}: {image_id!r} has set {purpose.set!r}, expected a name without /")
    if purpose.task == "attribution" and purpose.split == "train" and not purpose.generator:
        raise DataError(f"{table}: {image_id!r} is a training slice of attribution, expected its generator")


def _locate(table: str, data: str, value: str, allow_outside: bool) -> str:
    """Returns the absolute uri of a table's row; a relative one is below DATA. Raises DataError if it leaves DATA."""
    if "\0" in value:  # file systems end a path there
        raise DataError(f"{table}: the uri {value!r} has a zero byte in it, expected the path of a file")
    uri = store.absolute(value) if value.startswith(("/", "file:")) or "://" in value else store.join(data, value)
    data_store, base = store.open_store(data)
    uri_store, path = store.open_store(uri)
    inside = uri_store is data_store and posixpath.normpath(path).startswith(base.rstrip("/") + "/")
    if not (allow_outside or inside):
        raise DataError(
            f"{table}: the uri {value!r} leads out of {data}, expected a file below it (or --allow-outside)"
        )
    return uri


def _with_file_info(images: Sequence[Image]) -> list[Image]:
    """Returns the images with size and times; asks each store once."""
    stores: dict[int, tuple[fs.FileSystem, list[int], list[str]]] = {}
    for index, image in enumerate(images):
        file_system, path = store.open_store(image.uri)
        _, indices, paths = stores.setdefault(id(file_system), (file_system, [], []))
        indices.append(index)
        paths.append(path)
    complete = list(images)
    for file_system, indices, paths in stores.values():
        is_local = isinstance(file_system, fs.LocalFileSystem)
        for index, info in zip(indices, file_system.get_file_info(paths), strict=True):
            size = -1 if info.size is None else info.size
            ctime = os.stat(info.path).st_ctime_ns if is_local and info.is_file else 0
            complete[index] = complete[index]._replace(bytes=size, mtime=info.mtime_ns or 0, ctime=ctime)
    return complete
