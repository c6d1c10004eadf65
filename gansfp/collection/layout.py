"""Finds the images of DATA and says what each is there for, by its folder or by a table in DATA.

The folder layout. Every folder is optional, but DATA must have one of them; a class folder may have sub-folders:

    membership/<set>/train/{generated,used,not_used}/     or real_used, real_not_used
    membership/<set>/test/{generated,unknown}/            or real_unknown
    attribution/train/<generator>/
    attribution/test/                                     or below it unknown/, generated_unknown/

These folders may also lie in a folder of DATA. Without them, the folders of a challenge are read as they were unpacked,
see official.py.
"""

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from pyarrow import fs

from gansfp import store
from gansfp.collection.class_images import images_in, recognise_in_classes
from gansfp.collection.image import Image, Purpose
from gansfp.collection.listing import Entry, is_image_name, list_below, recognise_images, sub_folders
from gansfp.collection.names import fits_csv, is_utf8, key, shown
from gansfp.collection.official import (
    DEEPEST,
    ClassFolder,
    class_folder_of,
    places_of_identification,
    purposes_of,
)
from gansfp.collection.table import find_table, images_of_table
from gansfp.errors import DataError
from gansfp.images.slices import ENDINGS

EXPECTED = (
    "membership/<set>/train/{generated,used,not_used}, membership/<set>/test/{generated,unknown}, "
    "attribution/train/<generator>, attribution/test, or a table catalog.parquet or catalog.csv; or the folders of a "
    "challenge beside each other, such as generated_1, real_used_1, real_not_used_1, or generated_1, real_unknown_1"
)

_TASKS = ("membership", "attribution")
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
_DEPTH = 4  # folders from a task's folder to the deepest class folder
_UNREPORTED = ("truth.csv", "groups.csv")  # files that belong into the layout and that no note mentions
_SHOWN = 5  # folders that a message names
_OPENED = 1000  # files without a known ending that are opened to say what DATA holds


class ClassCount(NamedTuple):
    """A class folder of DATA, or the rows of one purpose in its table; what it was taken for; its files."""

    folder: str
    purpose: Purpose
    files: int


def find_images(data: str, allow_outside: bool = False) -> tuple[list[Image], list[str]]:
    """Returns every image of DATA, sorted by image_id, and notes about files that were ignored.

    Symbolic links in folders are followed, wherever they lead: whoever put DATA together made them. A note reports
    links that leave DATA, and links that would read a folder twice. A table may come from somebody else: its uris are
    taken literally, `..` included, and must stay below DATA.

    Raises DataError where DATA is missing or has no images, where a class folder has no images, where two images have
    the same id, where a name is not UTF-8, where it is not clear what a folder is, where a table lacks a column, has
    an unknown value or (unless `allow_outside`) a uri outside DATA, and where a test slice has a name that a CSV file
    cannot hold.
    """
    _check_folder(data)
    table = find_table(data)
    try:
        images, notes = images_of_table(table, data, allow_outside) if table else _images_of_folders(data)
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({store.one_line(error)})") from error
    if not images:
        raise DataError(f"no images found in {table or data}, expected {EXPECTED}, with {' '.join(ENDINGS)}")
    if not allow_outside:
        notes += _notes_of_links(data, images)
    images.sort(key=lambda image: image.image_id)
    _check_ids(data, images)
    return images, notes


def describe_layout(images: Sequence[Image]) -> list[ClassCount]:
    """Returns what each class folder was taken for, sorted by folder."""
    counts = Counter((image.folder, image.purpose) for image in images)
    return [ClassCount(folder, purpose, count) for (folder, purpose), count in sorted(counts.items())]


def collection_folder(data: str) -> str:
    """Returns the folder with the folders `membership` or `attribution`: DATA, or the one below it that has them.

    It is DATA where no folder has them, and where DATA has a table. Raises DataError where several folders have them,
    and where a folder cannot be listed.
    """
    if find_table(data):
        return data
    try:
        return _find_collection(data)
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({store.one_line(error)})") from error


def _find_collection(data: str) -> str:
    names = sub_folders(data)
    if set(_TASKS) & set(names):
        return data
    level = names
    for _ in range(DEEPEST):
        level = [folder for folder in level if not _is_class(posixpath.basename(folder))]
        found = {_real(data, folder): folder for folder in level if _has_layout(store.join(data, folder))}
        if len(found) > 1:
            first, second, *_ = sorted(map(shown, found.values()))
            raise DataError(f"{data}: found two collections, {first} and {second}, expected one; name it with --data")
        if found:
            return store.join(data, *found.values())
        level = [f"{folder}/{name}" for folder in level for name in sub_folders(store.join(data, folder))]
    return data


def _is_class(name: str) -> bool:
    return class_folder_of([name]) is not None


def _real(data: str, folder: str) -> str:
    """Returns a folder's place without symbolic links."""
    place = store.join(data, folder)
    return place if store.is_remote(place) else os.path.realpath(place)


def _has_layout(folder: str) -> bool:
    """Returns True for a folder with the outer folders of the layout."""
    splits = {"train", "test"}
    names = sub_folders(folder)
    if "attribution" in names and splits & set(sub_folders(store.join(folder, "attribution"))):
        return True
    sets = store.join(folder, "membership")
    return "membership" in names and any(
        splits & set(sub_folders(store.join(sets, name))) for name in sub_folders(sets)
    )


def _check_folder(data: str) -> None:
    """Raises DataError unless DATA is a folder."""
    if not is_utf8(data):
        raise DataError(f"{shown(data)}: the path is not UTF-8, expected another name; rename the folder")
    file_system, path = store.open_store(data)
    try:
        kind = file_system.get_file_info(path).type
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({store.one_line(error)})") from error
    if kind == fs.FileType.NotFound:
        raise DataError(f"{data}: the data folder does not exist")
    if kind != fs.FileType.Directory:
        raise DataError(f"{data}: the data folder is not a folder")


def _check_ids(data: str, images: Sequence[Image]) -> None:
    """Raises DataError where two images have the same id, and where a CSV file cannot hold the id of a test slice."""
    first_of_id: dict[str, Image] = {}
    for image in images:
        first = first_of_id.setdefault(key(image.image_id), image)
        if first is not image:
            same = first.image_id == image.image_id
            ids = f"the image_id {image.image_id!r}" if same else f"ids that look the same, {image.image_id!a}"
            raise DataError(f"{data}: two images have {ids}: {first.uri} and {image.uri}; rename one")
        if image.purpose.role == "unknown" and not fits_csv(image.image_id + image.name):
            raise DataError(
                f"got {image.uri!r}, expected a name without comma or line break, quotation mark or control character, "
                "which results cannot hold; rename it"
            )


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


def _images_of_folders(data: str) -> tuple[list[Image], list[str]]:
    """Returns the images in folders, and notes. Raises DataError for folders that are not understood, and OSError."""
    root = collection_folder(data)
    listings = [list_below(root, task, _layout_class) for task in _TASKS]
    entries = _reported(entry for listing in listings for entry in listing.entries)
    purposes: dict[str, Purpose] = {}
    for entry in entries:
        names = entry.path.split("/")
        purpose, depth = _purpose_of(names if entry.is_folder else names[:-1])
        if purpose:
            purposes["/".join(names[:depth])] = purpose
    if not purposes:
        return _images_of_challenge(data)
    notes = [note for listing in listings for note in listing.notes]
    challenge = [name for name in sub_folders(root) if _is_class(name)]
    if challenge:
        notes.append(f"ignored {len(challenge)} folders beside those of the layout, such as {shown(challenge[0])}")
    found = recognise_in_classes(root, entries, _layout_class)
    images, more_notes = images_in(data, root, entries, found, purposes, _layout_class)
    return images, notes + more_notes + _notes_of_same_sets(root, purposes)


def _notes_of_same_sets(root: str, purposes: Mapping[str, Purpose]) -> list[str]:
    """Returns notes about sets of membership that have the same folders, by a symbolic link."""
    folders: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for folder, purpose in purposes.items():
        if purpose.task == "membership":
            folders[purpose.set].add((_real(root, folder), purpose.role))
    sets: dict[frozenset[tuple[str, str]], list[str]] = defaultdict(list)
    for name in sorted(folders):
        sets[frozenset(folders[name])].append(name)
    return [
        f"the sets {', '.join(map(shown, names))} are the same folder, by a symbolic link; remove it if it is a mistake"
        for names in sets.values()
        if len(names) > 1
    ]


def _reported(entries: Iterable[Entry]) -> list[Entry]:
    """Returns the files and folders without those tables that are read elsewhere."""
    return [entry for entry in entries if posixpath.basename(entry.path) not in _UNREPORTED]


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


def _layout_class(folders: Sequence[str]) -> str | None:
    """Returns the class folder of the layout, see listing.ClassOf."""
    purpose, depth = _purpose_of(folders)
    return "/".join(folders[:depth]) if purpose else None if len(folders) < _DEPTH else ""


def _challenge_class(folders: Sequence[str]) -> str | None:
    """Returns the class folder of a challenge, see listing.ClassOf."""
    found = class_folder_of(folders)
    return found.folder if found else None if len(folders) <= DEEPEST else ""


def _images_of_challenge(data: str) -> tuple[list[Image], list[str]]:
    """Returns the images in the folders of a challenge, and notes. Raises DataError for other images, and OSError."""
    entries, notes = list_below(data, class_of=_challenge_class)
    entries = _reported(entries)
    found = recognise_in_classes(data, entries, _challenge_class)
    classes = _challenge_classes(entries, found)
    paths = [entry.path for entry in entries if is_image_name(entry.path)]
    other_places = places_of_identification(classes, paths)
    purposes = purposes_of([found for found in classes if found.place not in other_places])
    other_task = (
        f"{store.join(data, min(other_places, default=''))}: its folders real and generated are task 2 of 2025 (from "
        "which real images was a slice generated), which gansfp does not do yet"
    )
    if not purposes and other_places:
        raise DataError(f"{other_task}, expected those of task 1, such as generated, real_used and real_not_used")
    if not purposes:
        raise _not_understood(data, entries)
    if other_places:
        notes.append(f"{other_task}; ignored")
        unread = tuple(posixpath.join(folder, "") for folders in other_places.values() for folder in folders)
        entries = [entry for entry in entries if not posixpath.join(entry.path, "").startswith(unread)]
    taken = [f"{folder} for set {p.set}, {p.split}, {p.role}" for folder, p in sorted(purposes.items())]
    notes.append(f"{data}: took the folders of a challenge: {_some(taken, '; ')}")
    images, more_notes = images_in(data, data, entries, found, purposes, _challenge_class)
    return images, notes + more_notes


def _challenge_classes(entries: Sequence[Entry], images: Collection[str]) -> set[ClassFolder]:
    """Returns the class folders of a challenge. images: those in them.

    A class folder without images is one too, but for a folder that only holds other class folders.
    """

    def classes_of(folders: Iterable[str]) -> set[ClassFolder]:
        return {found for folder in folders if (found := class_folder_of(folder.split("/")))}

    all_classes = classes_of(entry.path for entry in entries if entry.is_folder)
    around = {posixpath.dirname(found.folder) for found in all_classes}
    with_images = classes_of(posixpath.dirname(path) for path in images)
    return with_images | {found for found in all_classes if found.folder not in around}


def _not_understood(data: str, entries: Sequence[Entry]) -> DataError:
    """Returns the error that shows what was found in DATA, and what is expected."""
    files = [entry for entry in entries if not entry.is_folder]
    images = [entry.path for entry in files if is_image_name(entry.path)]
    images = images or sorted(recognise_images(data, files[:_OPENED]))
    if not images:
        return DataError(f"no images found in {data}, expected {EXPECTED}, with {' '.join(ENDINGS)}")
    folders = sorted({posixpath.dirname(path) for path in images} - {""})
    where = f"the folders {_some(folders, ', ')}" if folders else "no folders"
    example = shown(min(images))
    return DataError(f"{data}: found {where} with {len(images)} images, such as {example}; expected {EXPECTED}")


def _some(texts: Sequence[str], separator: str) -> str:
    """Returns the first texts, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return separator.join(map(shown, texts[:_SHOWN])) + more
