"""Makes the images of class folders: gives each its id, and refuses folders and names that cannot be right."""

import posixpath
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from gansfp import store
from gansfp.collection.image import Image, Purpose
from gansfp.collection.listing import ClassOf, Entry, is_image_name, recognise_images
from gansfp.collection.names import is_utf8, key, shown
from gansfp.errors import DataError
from gansfp.images.slices import ENDINGS, without_ending


def recognise_in_classes(root: str, entries: Sequence[Entry], class_of: ClassOf) -> set[str]:
    """Returns the paths of the images in class folders. Files elsewhere are not opened."""
    return recognise_images(root, [entry for entry in entries if class_of(entry.path.split("/")[:-1])])


def images_in(
    data: str,
    root: str,
    entries: Sequence[Entry],
    images: Collection[str],
    purposes: Mapping[str, Purpose],
    class_of: ClassOf,
) -> tuple[list[Image], list[str]]:
    """Returns the images in class folders, and notes about other files.

    root: DATA, or the folder below it to which all paths are relative. images: what recognise_in_classes returns.
    purposes: of the class folders. Raises DataError for a class folder without images, and for images with names that
    are not UTF-8.
    """
    files = [entry for entry in entries if not entry.is_folder]
    folders = [class_of(entry.path.split("/")[:-1]) or "" for entry in files]
    in_class = [(entry, folder) for entry, folder in zip(files, folders, strict=True) if folder in purposes]
    outside = {e.path for e, f in zip(files, folders, strict=True) if f not in purposes and is_image_name(e.path)}
    odd = sorted(entry.path for entry, _ in in_class if entry.path in images and not is_utf8(entry.path))
    if odd:
        raise DataError(
            f"{data}: {len(odd)} images have names that are not UTF-8, such as {shown(odd[0])}; rename them"
        )
    empty = purposes.keys() - {folder for entry, folder in in_class if entry.path in images}
    if empty:
        place = shown(store.join(root, min(empty)))
        raise DataError(f"no images in {place}, expected files ending in {' '.join(ENDINGS)}")
    other = {entry.path for entry in files} - set(images) - outside
    notes = _note_ignored(other, "files that are not images") + _note_ignored(outside, "images outside the layout")
    listed = [(entry, folder, purposes[folder]) for entry, folder in in_class if entry.path in images]
    return _named(data, root, listed), notes


def _named(data: str, root: str, listed: Sequence[tuple[Entry, str, Purpose]]) -> list[Image]:
    """Gives each file its image_id: the file's name without ending, or, where several files have that name, the path
    below `root` without ending."""
    above = root.partition("?")[0].removeprefix(data.partition("?")[0]).lstrip("/")
    names = [without_ending(posixpath.basename(entry.path)) for entry, _, _ in listed]
    counts = Counter(map(key, names))
    return [
        Image(
            name if counts[key(name)] == 1 else without_ending(entry.path),
            name,
            store.join(root, entry.path),
            purpose,
            "",
            entry.bytes,
            entry.mtime,
            entry.ctime,
            posixpath.join(above, folder),
        )
        for name, (entry, folder, purpose) in zip(names, listed, strict=True)
    ]


def _note_ignored(paths: Collection[str], kind: str) -> list[str]:
    return [f"ignored {len(paths)} {kind}, such as {shown(min(paths))}"] if paths else []
