"""Finds the images of DATA and says what each is there for, by its folder or by a table in DATA.

The folder layout. Every folder is optional, but DATA must have one of them; a class folder may have sub-folders:

    membership/<set>/train/{generated,used,not_used}/     or real_used, real_not_used
    membership/<set>/test/{generated,unknown}/            or real_unknown
    attribution/train/<generator>/
    attribution/test/                                     or below it unknown/, generated_unknown/
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from gansfp import store
from gansfp.errors import DataError
from gansfp.images.slices import ENDINGS

EXPECTED = (
    "membership/<set>/train/{generated,used,not_used}, membership/<set>/test/{generated,unknown}, "
    "attribution/train/<generator>, attribution/test, or a table catalog.parquet or catalog.csv"
)
ROLES = {
    ("membership", "train"): ("generated", "used", "not_used"),
    ("membership", "test"): ("generated", "unknown"),
    ("attribution", "train"): ("generated",),
    ("attribution", "test"): ("unknown",),
}
NEEDED = ("image_id", "uri", "task", "split", "role")  # columns of a table; also `set` if it has membership rows

_COLUMNS = ("image_id", "uri", "task", "set", "split", "role", "generator", "group")
_FOLDERS = {  # split -> folder -> role
    "train": {
        "generated": "generated",
        "used": "used",
        "not_used": "not_used",
        "real_used": "used",
        "real_not_used": "not_used",
    },
    "test": {"generated": "generated", "unknown": "unknown", "real_unknown": "unknown"},
}
_UNREPORTED = ("truth.csv",)  # files that belong into the layout and that no note mentions


class Purpose(NamedTuple):
    """What an image is there for."""

    task: str  # "membership" or "attribution"
    set: str  # "" for attribution
    split: str  # "train" or "test"
    role: str  # "generated", "used", "not_used" or "unknown"
    generator: str  # of attribution's training slices, else ""


class Image(NamedTuple):
    """One image file of DATA, not yet opened."""

    image_id: str
    name: str
    uri: str
    purpose: Purpose
    group: str
    bytes: int  # -1: there is no such file
    mtime: int  # nanoseconds, 0 where the store does not tell


class _Listed(NamedTuple):
    """An image file in a folder of the layout, before it has an image_id."""

    path: str  # below DATA
    purpose: Purpose
    info: fs.FileInfo


def find_images(data: str, allow_outside: bool = False) -> tuple[list[Image], list[str]]:
    """Returns every image of DATA, sorted by image_id, and notes about files that were ignored.

    Symbolic links in folders are followed, wherever they lead: whoever put DATA together made them. A note reports
    links that leave DATA. A table may come from somebody else: its uris are taken literally, `..` included, and must
    stay below DATA.

    Raises DataError where DATA is missing or has no images, where a class folder has no images, where two images have
    the same id, where a table lacks a column, has an unknown value or (unless `allow_outside`) a uri outside DATA, and
    where a test slice has a name that a CSV file cannot hold.
    """
    _check_folder(data)
    tables = [uri for name in ("catalog.parquet", "catalog.csv") if store.exists(uri := store.join(data, name))]
    if len(tables) > 1:
        raise DataError(f"{data}: holds both catalog.parquet and catalog.csv, expected one of them; remove the other")
    try:
        images, notes = _from_table(tables[0], data, allow_outside) if tables else _from_folders(data)
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({store.one_line(error)})") from error
    if not images:
        raise DataError(
            f"no images found in {tables[0] if tables else data}, expected {EXPECTED}, with {' '.join(ENDINGS)}"
        )
    if not allow_outside:
        notes += _notes_of_links(data, images)
    images.sort(key=lambda image: image.image_id)
    for image, following in pairwise(images):
        if image.image_id == following.image_id:
            raise DataError(f"{data}: two images have the image_id {image.image_id!r}: {image.uri} and {following.uri}")
    for image in images:
        if image.purpose.role == "unknown" and set(",\r\n") & set(image.image_id + image.name):
            raise DataError(
                f"got {image.uri!r}, expected a name without comma or line break, which results cannot hold; rename it"
            )
    return images, notes


def _notes_of_links(data: str, images: Sequence[Image]) -> list[str]:
    """Returns a note if symbolic links (the images or their folders) lead out of a local DATA."""
    if store.is_remote(data):
        return []
    base = os.path.join(os.path.realpath(store.absolute(data)), "")
    real_folders = {folder: os.path.realpath(folder) for folder in {os.path.dirname(image.uri) for image in images}}
    outside: list[str] = []
    for image in images:
        folder = real_folders[os.path.dirname(image.uri)]
        path = os.path.realpath(image.uri) if os.path.islink(image.uri) else os.path.join(folder, "")
        if image.bytes >= 0 and not path.startswith(base):  # a file that is missing becomes an unreadable row instead
            outside.append(image.uri)
    return [f"symbolic links lead out of {data} to {len(outside)} images, such as {min(outside)}"] if outside else []


def _check_folder(data: str) -> None:
    """Raises DataError unless DATA is a folder."""
    file_system, path = store.open_store(data)
    try:
        kind = file_system.get_file_info(path).type
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({store.one_line(error)})") from error
    if kind == fs.FileType.NotFound:
        raise DataError(f"{data}: the data folder does not exist")
    if kind != fs.FileType.Directory:
        raise DataError(f"{data}: the data folder is not a folder")


def _from_folders(data: str) -> tuple[list[Image], list[str]]:
    """Returns the images in the folders of the layout, and notes. Raises DataError for an empty class folder."""
    file_system, base = store.open_store(data)
    listed: list[_Listed] = []
    class_sizes: dict[str, int] = {}  # class folder below DATA -> images in it
    other_files: list[str] = []
    outside_layout: list[str] = []
    for task in ("membership", "attribution"):
        for info in _walk(file_system, f"{base.rstrip('/')}/{task}"):
            path = info.path[len(base) :].lstrip("/")
            names = path.split("/")
            if any(name.startswith(".") for name in names):
                continue
            if info.type == fs.FileType.Directory:
                purpose, depth = _purpose_of(names)
                if purpose and depth == len(names):
                    class_sizes.setdefault(path, 0)
            elif not path.lower().endswith(ENDINGS):
                if names[-1] not in _UNREPORTED:
                    other_files.append(path)
            else:
                purpose, depth = _purpose_of(names[:-1])
                if purpose:
                    folder = "/".join(names[:depth])
                    class_sizes[folder] = class_sizes.get(folder, 0) + 1
                    listed.append(_Listed(path, purpose, info))
                else:
                    outside_layout.append(path)
    for folder, size in sorted(class_sizes.items()):
        if not size:
            raise DataError(f"no images in {store.join(data, folder)}, expected files ending in {' '.join(ENDINGS)}")
    notes = _note_ignored(other_files, "files that are not images")
    notes += _note_ignored(outside_layout, "images outside the layout")
    return _named(data, listed), notes


def _walk(file_system: fs.FileSystem, folder: str) -> Iterator[fs.FileInfo]:
    """Yields all files and folders below a folder.

    A broken link, and an empty folder with a name like an image, are yielded as files, so that they become unreadable
    rows of the catalog instead of missing without notice.
    """
    infos = file_system.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    parents = {posixpath.dirname(info.path) for info in infos}
    for info in infos:
        empty_folder = info.type == fs.FileType.Directory and info.path not in parents
        yield fs.FileInfo(info.path) if empty_folder and info.path.lower().endswith(ENDINGS) else info
    if isinstance(file_system, fs.LocalFileSystem):  # pyarrow's listing leaves out broken links
        for parent, _, names in os.walk(folder):
            for path in (os.path.join(parent, name) for name in names):
                if os.path.islink(path) and not os.path.exists(path):
                    yield fs.FileInfo(path)


def _purpose_of(folders: Sequence[str]) -> tuple[Purpose | None, int]:
    """Returns what the images in a folder are there for, and how many of `folders` name their class; (None, 0) outside
    the layout."""
    match folders:
        case ["membership", name, "train" | "test" as split, folder, *_] if folder in _FOLDERS[split]:
            return Purpose("membership", name, split, _FOLDERS[split][folder], ""), 4
        case ["attribution", "train", generator, *_]:
            return Purpose("attribution", "", "train", "generated", generator), 3
        case ["attribution", "test", *_]:
            return Purpose("attribution", "", "test", "unknown", ""), 2
    return None, 0


def _named(data: str, listed: Sequence[_Listed]) -> list[Image]:
    """Gives each file its image_id: the file's name without ending, or, where several files have that name, the path
    below DATA without ending."""
    names = [posixpath.splitext(posixpath.basename(file.path))[0] for file in listed]
    counts = Counter(names)
    return [
        Image(
            name if counts[name] == 1 else posixpath.splitext(path)[0],
            name,
            store.join(data, path),
            purpose,
            "",
            -1 if info.size is None else info.size,
            info.mtime_ns or 0,
        )
        for name, (path, purpose, info) in zip(names, listed, strict=True)
    ]


def _note_ignored(paths: Sequence[str], kind: str) -> list[str]:
    return [f"ignored {len(paths)} {kind}, such as {min(paths)}"] if paths else []


def _from_table(table: str, data: str, allow_outside: bool) -> tuple[list[Image], list[str]]:
    """Returns the images that a table names, and notes. Raises DataError for a bad row."""
    columns = _read_table(table)
    images: list[Image] = []
    ignored_generators = 0
    for image_id, value, task, set_, split, role, generator, group in zip(*columns.values(), strict=True):
        purpose = Purpose(task, set_, split, role, generator)
        _check_row(table, image_id, purpose)
        if (task, split) != ("attribution", "train"):
            # The generator of a test slice is the answer that the audit has to find.
            ignored_generators += bool(generator) and task == "attribution"
            purpose = purpose._replace(generator="")
        uri = _locate(table, data, value, allow_outside)
        name = posixpath.splitext(posixpath.basename(store.open_store(uri)[1]))[0]
        images.append(Image(image_id, name, uri, purpose, group, -1, 0))
    notes = [f"{table}: ignored the generators of {ignored_generators} test slices"] if ignored_generators else []
    return _with_file_info(images), notes


def _read_table(table: str) -> dict[str, list[str]]:
    """Returns the columns of _COLUMNS as strings; an optional column that the table lacks is empty."""
    columns: dict[str, list[str]]
    if table.partition("?")[0].endswith(".csv"):
        columns = store.read_csv(table, NEEDED)
    else:
        try:
            rows = store.read_parquet(table)
            columns = {
                name: rows[name].cast(pa.string()).fill_null("").to_pylist()
                for name in rows.column_names
                if name in _COLUMNS
            }
        except (OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"{table}: cannot be read as a Parquet table ({store.one_line(error)})") from error
    needed = [*NEEDED, "set"] if "membership" in columns.get("task", ()) else NEEDED
    for name in needed:
        if name not in columns:
            raise DataError(f"{table}: has no column {name!r}, got {', '.join(columns) or 'none of the columns'}")
    count = len(columns["image_id"])
    return {name: columns.get(name, [""] * count) for name in _COLUMNS}


def _check_row(table: str, image_id: str, purpose: Purpose) -> None:
    """Raises DataError for a value that has no place in the layout."""

    def expect(column: str, value: str, expected: Sequence[str]) -> None:
        if value not in expected:
            raise DataError(f"{table}: {image_id!r} has {column} {value!r}, expected one of {', '.join(expected)}")

    if not image_id:
        raise DataError(f"{table}: a row has no image_id, expected one in every row")
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
    """Returns the images with size and time; asks each store once."""
    stores: dict[int, tuple[fs.FileSystem, list[int], list[str]]] = {}
    for index, image in enumerate(images):
        file_system, path = store.open_store(image.uri)
        _, indices, paths = stores.setdefault(id(file_system), (file_system, [], []))
        indices.append(index)
        paths.append(path)
    complete = list(images)
    for file_system, indices, paths in stores.values():
        for index, info in zip(indices, file_system.get_file_info(paths), strict=True):
            size = -1 if info.size is None else info.size
            complete[index] = complete[index]._replace(bytes=size, mtime=info.mtime_ns or 0)
    return complete
