"""Reads DATA/groups.csv, which names the group (patient or volume) of each image."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from gansfp import store
from gansfp.collection.image import Image
from gansfp.collection.layout import collection_folder
from gansfp.collection.names import key, likely_reason, without_frame
from gansfp.collection.table import notes_of_no_group, plain_names
from gansfp.errors import DataError
from gansfp.images.slices import without_ending


def read_groups(data: str, images: Sequence[Image]) -> tuple[list[str], list[str]]:
    """Returns the group of each image, from DATA's table and from DATA/groups.csv ("" for none), and notes.

    An id of groups.csv is an image_id, a file name without ending (it then fits every image of that name), or a path
    below DATA without ending. The ids of the slices of one file (name#0001) all stand for the file: its slices are one
    group. Raises DataError for an image with two groups, and where no id fits an image.
    """
    groups = [image.group for image in images]
    uri = store.join(data, "groups.csv")
    if not store.exists(uri):
        uri = store.join(collection_folder(data), "groups.csv")
        if not store.exists(uri):
            return groups, _notes_of_left(images[0].folder, images, groups, False) if any(groups) else []
    group_of_id, notes = _read_file(uri)
    rows_of_id = _find_images(data, images, group_of_id)
    for given, rows in rows_of_id.items():
        group = group_of_id[given]
        for row in rows:
            if groups[row] not in ("", group):
                raise DataError(f"{uri}: {images[row].uri} has two groups, {groups[row]!r} and {group!r}, expected one")
            groups[row] = group
    return groups, notes + _notes(data, uri, images, groups, rows_of_id)


def _read_file(uri: str) -> tuple[dict[str, str], list[str]]:
    """Returns {id: group}, and notes. Raises DataError for an id with two groups."""
    columns = store.read_csv(uri, ("image_id", "group"))
    group_of_key: dict[str, str] = {}
    group_of_id: dict[str, str] = {}
    for given, group in zip(columns["image_id"], plain_names(columns["group"]), strict=True):
        first = group_of_key.setdefault(key(given), group)
        if first != group:
            raise DataError(f"{uri}: {given!r} has two groups, {first!r} and {group!r}, expected one")
        group_of_id[given] = group
    return group_of_id, notes_of_no_group("groups.csv", columns["group"])


def _find_images(data: str, images: Sequence[Image], ids: Mapping[str, str]) -> dict[str, list[int]]:
    """Returns, for each id of groups.csv, the rows of the images that it fits."""
    row_of_key = {key(image.image_id): row for row, image in enumerate(images)}
    rows_of_name: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        rows_of_name[key(image.name)].append(row)

    def find(name: str) -> list[int]:
        return [row_of_key[name]] if name in row_of_key else rows_of_name.get(name, [])

    def find_all() -> dict[str, list[int]]:
        return {given: find(key(given)) or find(without_frame(key(given))) for given in ids}

    found = find_all()
    if not all(found.values()):
        # A path is accepted also for an image whose image_id is its name. Paths are made only if an id needs them.
        row_of_key = {key(path_below(data, image)): row for row, image in enumerate(images)} | row_of_key
        found = find_all()
    return found


def path_below(data: str, image: Image) -> str:
    """Returns the image's path below DATA, without ending."""
    return uri_below(data, image.uri)


def uri_below(data: str, uri: str) -> str:
    """Returns a file's path below DATA, without ending."""
    path, base = store.open_store(uri)[1], store.open_store(data)[1]
    return without_ending(path.removeprefix(base).lstrip("/"))


def _notes(
    data: str, uri: str, images: Sequence[Image], groups: Sequence[str], rows_of_id: Mapping[str, Sequence[int]]
) -> list[str]:
    """Returns notes about ids that fit several images or none. Raises DataError where no id fits an image."""
    unmatched = [given for given, rows in rows_of_id.items() if not rows]
    ambiguous = [given for given, rows in rows_of_id.items() if len(rows) > 1]
    known = [name for image in images for name in (image.name, path_below(data, image))] if unmatched else []
    reason = likely_reason(unmatched, known)
    if unmatched and len(unmatched) == len(rows_of_id):
        # Without groups, the slices would be resampled one by one, and every interval would be too narrow.
        raise DataError(
            f"{uri}: none of its {len(unmatched)} ids fits an image, such as {unmatched[0]!r}; "
            f"{reason or 'expected file names without ending, or paths below the data folder without ending'}"
        )
    notes = []
    if ambiguous:
        notes.append(
            f"groups.csv: {len(ambiguous)} names fit several images each, all get the group, such as {ambiguous[0]}"
        )
    if unmatched:
        notes.append(f"groups.csv: {len(unmatched)} ids fit no image, such as {unmatched[0]}")
        if reason:
            notes[-1] += f" ({reason})"
    return notes + _notes_of_left("groups.csv", images, groups, bool(unmatched))


def _notes_of_left(table: str, images: Sequence[Image], groups: Sequence[str], all_images: bool) -> list[str]:
    """Returns a note about images without a group: of all images, or of the real ones of membership."""
    # Generated slices have no patient; real ones without a group look like patients of their own.
    counted = [
        (image.image_id, group)
        for image, group in zip(images, groups, strict=True)
        if all_images or image.purpose.is_real
    ]
    left = [image_id for image_id, group in counted if not group]
    if not left:
        return []
    kind = "images" if all_images else "real images"
    return [f"{table}: {len(left)} of {len(counted)} {kind} are left without a group, such as {left[0]}"]
