"""Which images DATA has and what each is there for, from the folder it lies in or from a table of DATA's own.

The folder layout, every part optional, but not all; a class may have sub-folders:

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

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")
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
NEEDED = ("image_id", "uri", "task", "split", "role")  # of a table; and `set` where it has membership rows

_ORDER = ("image_id", "uri", "task", "set", "split", "role", "generator", "group")
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
_SILENT = ("truth.csv",)  # belongs there and is not for us


class Part(NamedTuple):
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
    part: Part
    group: str
    bytes: int  # -1: there is no such file
    mtime: int  # nanoseconds, 0 where the store does not say


def find_images(data: str, allow_outside: bool = False) -> tuple[list[Image], list[str]]:
    """Every image of DATA, sorted by image_id, and notes about what was passed by.

    Symbolic links are followed, wherever they lead: they were made by whoever makes up DATA, and where they leave it a
    note says so. A table may come from elsewhere; its uris are taken literally, `..` and all, and must stay below DATA.

    Raises DataError: DATA missing, no images, a class folder without images, an id twice, a table with a missing
    column, an unknown value, or a uri outside DATA (unless `allow_outside`), a test slice whose name no CSV can hold.
    """
    _check_folder(data)
    tables = [uri for name in ("catalog.parquet", "catalog.csv") if store.exists(uri := store.join(data, name))]
    if len(tables) > 1:
        raise DataError(f"{data}: holds both catalog.parquet and catalog.csv, expected one of them")
    try:
        images, notes = _from_table(tables[0], data, allow_outside) if tables else _from_folders(data)
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({store.one_line(error)})") from error
    if not images:
        raise DataError(
            f"no images found in {tables[0] if tables else data}, expected {EXPECTED}, with {' '.join(ENDINGS)}"
        )
    if not allow_outside:
        notes += _leading_out(data, images)
    images.sort(key=lambda image: image.image_id)
    for one, other in pairwise(images):
        if one.image_id == other.image_id:
            raise DataError(f"{data}: the image_id {one.image_id!r} is there twice: {one.uri} and {other.uri}")
    for image in images:
        if image.part.role == "unknown" and set(",\r\n") & set(image.image_id + image.name):
            raise DataError(f"{image.uri!r}: a comma or line break in its name has no place in results; rename it")
    return images, notes


def _leading_out(data: str, images: Sequence[Image]) -> list[str]:
    """A note where images of a local DATA are elsewhere, because they or their folders are symbolic links."""
    if store.is_remote(data):
        return []
    base = os.path.join(os.path.realpath(store.absolute(data)), "")
    real = {folder: os.path.realpath(folder) for folder in {os.path.dirname(image.uri) for image in images}}
    out: list[str] = []
    for image in images:
        folder = real[os.path.dirname(image.uri)]
        path = os.path.realpath(image.uri) if os.path.islink(image.uri) else os.path.join(folder, "")
        if image.bytes >= 0 and not path.startswith(base):  # what is not there has its own line
            out.append(image.uri)
    return [f"symbolic links lead out of {data} to {len(out)} images, such as {min(out)}"] if out else []


def _check_folder(data: str) -> None:
    home, path = store.open_store(data)
    try:
        kind = home.get_file_info(path).type
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({store.one_line(error)})") from error
    if kind != fs.FileType.Directory:
        raise DataError(f"{data}: the data folder is {'not there' if kind == fs.FileType.NotFound else 'not a folder'}")


def _from_folders(data: str) -> tuple[list[Image], list[str]]:
    home, base = store.open_store(data)
    found: list[tuple[str, Part, fs.FileInfo]] = []  # path below DATA, what it is, size and time
    classes: dict[str, int] = {}  # class folder below DATA -> images in it
    ignored: list[str] = []
    strays: list[str] = []
    for task in ("membership", "attribution"):
        for info in _walk(home, f"{base.rstrip('/')}/{task}"):
            relative = info.path[len(base) :].lstrip("/")
            parts = relative.split("/")
            if any(part.startswith(".") for part in parts):
                continue
            if info.type == fs.FileType.Directory:
                part, depth = _part_of(parts)
                if part and depth == len(parts):
                    classes.setdefault(relative, 0)
            elif not relative.lower().endswith(ENDINGS):
                if parts[-1] not in _SILENT:
                    ignored.append(relative)
            else:
                part, depth = _part_of(parts[:-1])
                if part:
                    folder = "/".join(parts[:depth])
                    classes[folder] = classes.get(folder, 0) + 1
                    found.append((relative, part, info))
                else:
                    strays.append(relative)
    for folder, count in sorted(classes.items()):
        if not count:
            raise DataError(f"no images in {store.join(data, folder)}, expected files ending in {' '.join(ENDINGS)}")
    notes = _passed_by(ignored, "files that are no images") + _passed_by(strays, "images outside the layout")
    return _name(data, found), notes


def _walk(home: fs.FileSystem, folder: str) -> Iterator[fs.FileInfo]:
    """All below a folder; what is named like an image and cannot be read is shown as a file, so that it gets a row."""
    infos = home.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    parents = {posixpath.dirname(info.path) for info in infos}
    for info in infos:
        empty_folder = info.type == fs.FileType.Directory and info.path not in parents
        yield fs.FileInfo(info.path) if empty_folder and info.path.lower().endswith(ENDINGS) else info
    if isinstance(home, fs.LocalFileSystem):  # pyarrow passes links by that lead nowhere
        for parent, _, names in os.walk(folder):
            for path in (os.path.join(parent, name) for name in names):
                if os.path.islink(path) and not os.path.exists(path):
                    yield fs.FileInfo(path)


def _part_of(folders: Sequence[str]) -> tuple[Part | None, int]:
    """What lies in a folder is there for, and how many of `folders` lead to its class; (None, 0) outside the layout."""
    match folders:
        case ["membership", name, "train" | "test" as split, folder, *_] if folder in _FOLDERS[split]:
            return Part("membership", name, split, _FOLDERS[split][folder], ""), 4
        case ["attribution", "train", generator, *_]:
            return Part("attribution", "", "train", "generated", generator), 3
        case ["attribution", "test", *_]:
            return Part("attribution", "", "test", "unknown", ""), 2
    return None, 0


def _name(data: str, found: Sequence[tuple[str, Part, fs.FileInfo]]) -> list[Image]:
    """image_id is the file's name without ending; where names collide, the path below DATA without ending."""
    names = [posixpath.splitext(posixpath.basename(relative))[0] for relative, _, _ in found]
    counts = Counter(names)
    return [
        Image(
            name if counts[name] == 1 else posixpath.splitext(relative)[0],
            name,
            store.join(data, relative),
            part,
            "",
            -1 if info.size is None else info.size,
            info.mtime_ns or 0,
        )
        for name, (relative, part, info) in zip(names, found, strict=True)
    ]


def _passed_by(paths: Sequence[str], what: str) -> list[str]:
    return [f"{len(paths)} {what} ignored, such as {min(paths)}"] if paths else []


def _from_table(table: str, data: str, allow_outside: bool) -> tuple[list[Image], list[str]]:
    columns = _read_table(table)
    images: list[Image] = []
    dropped = 0
    for image_id, value, task, set_, split, role, generator, group in zip(*columns.values(), strict=True):
        part = Part(task, set_, split, role, generator)
        _check_row(table, image_id, part)
        if (task, split) != ("attribution", "train"):
            dropped += bool(generator) and task == "attribution"  # it would be the answer to a test slice
            part = part._replace(generator="")
        uri = _locate(table, data, value, allow_outside)
        name = posixpath.splitext(posixpath.basename(store.open_store(uri)[1]))[0]
        images.append(Image(image_id, name, uri, part, group, -1, 0))
    notes = [f"{table}: the generators given for {dropped} test slices are not used"] if dropped else []
    return _look_up(images), notes


def _read_table(table: str) -> dict[str, list[str]]:
    """Every column of _ORDER as strings, those that are not there and not needed empty."""
    columns: dict[str, list[str]]
    if table.partition("?")[0].endswith(".csv"):
        columns = store.read_csv(table, NEEDED)
    else:
        try:
            rows = store.read_parquet(table)
            known = [name for name in rows.column_names if name in _ORDER]
            columns = {name: rows[name].cast(pa.string()).fill_null("").to_pylist() for name in known}
        except (OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"{table}: cannot be read as a Parquet table ({store.one_line(error)})") from error
    needed = [*NEEDED, "set"] if "membership" in columns.get("task", ()) else NEEDED
    for name in needed:
        if name not in columns:
            raise DataError(f"{table}: no column {name!r}, of those we know it has {', '.join(columns) or 'none'}")
    count = len(columns["image_id"])
    return {name: columns.get(name, [""] * count) for name in _ORDER}


def _check_row(table: str, image_id: str, part: Part) -> None:
    """Raises DataError for a value that the layout has no place for."""

    def expect(column: str, value: str, expected: Sequence[str]) -> None:
        if value not in expected:
            raise DataError(f"{table}: {image_id!r} has {column} {value!r}, expected one of {', '.join(expected)}")

    if not image_id:
        raise DataError(f"{table}: a row has no image_id")
    expect("task", part.task, ("membership", "attribution"))
    expect("split", part.split, ("train", "test"))
    expect("role", part.role, ROLES[part.task, part.split])
    if part.task == "membership" and not part.set:
        raise DataError(f"{table}: {image_id!r} is of the membership task and has no set")
    if "/" in part.set:  # it becomes part of the names of files in WORK
        raise DataError(f"{table}: {image_id!r} has set {part.set!r}, expected a name without /")
    if part.task == "attribution" and part.split == "train" and not part.generator:
        raise DataError(f"{table}: {image_id!r} is a training slice of attribution and has no generator")


def _locate(table: str, data: str, value: str, allow_outside: bool) -> str:
    """The uri of a table's row, absolute; relative ones are below DATA. Raises DataError where it leads out of DATA."""
    uri = store.absolute(value) if value.startswith(("/", "file:")) or "://" in value else store.join(data, value)
    home, base = store.open_store(data)
    there, path = store.open_store(uri)
    if not allow_outside and not (there is home and posixpath.normpath(path).startswith(base.rstrip("/") + "/")):
        raise DataError(f"{table}: the uri {value!r} leads out of {data}, expected files below it (or --allow-outside)")
    return uri


def _look_up(images: Sequence[Image]) -> list[Image]:
    """The images with size and time, asked for store by store."""
    stores: dict[int, tuple[fs.FileSystem, list[int], list[str]]] = {}
    for index, image in enumerate(images):
        home, path = store.open_store(image.uri)
        _, indices, paths = stores.setdefault(id(home), (home, [], []))
        indices.append(index)
        paths.append(path)
    looked_up = list(images)
    for home, indices, paths in stores.values():
        for index, info in zip(indices, home.get_file_info(paths), strict=True):
            size = -1 if info.size is None else info.size
            looked_up[index] = looked_up[index]._replace(bytes=size, mtime=info.mtime_ns or 0)
    return looked_up
