"""Reads DATA/groups.csv, which names the group (patient or volume) of each image."""

import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence

from gansfp import store
from gansfp.collection.layout import Image
from gansfp.errors import DataError


def read_groups(data: str, images: Sequence[Image]) -> tuple[list[str], list[str]]:
    """Returns the group of each image, from DATA's table and from DATA/groups.csv ("" for none), and notes.

    An id of groups.csv is an image_id, a file name without ending (it then fits every image of that name), or a path
    below DATA without ending. Raises DataError for an image with two groups, and where no id fits an image.
    """
    groups = [image.group for image in images]
    uri = store.join(data, "groups.csv")
    if not store.exists(uri):
        return groups, []
    group_of_id = _read_file(uri)
    rows_of_id = _find_images(data, images, group_of_id)
    for image_id, rows in rows_of_id.items():
        group = group_of_id[image_id]
        for row in rows:
            if groups[row] not in ("", group):
                raise DataError(f"{uri}: {images[row].uri} has two groups, {groups[row]!r} and {group!r}, expected one")
            groups[row] = group
    return groups, _notes(uri, rows_of_id)


def _read_file(uri: str) -> dict[str, str]:
    """Returns {id: group}. Raises DataError for an id with two groups."""
    columns = store.read_csv(uri, ("image_id", "group"))
    group_of_id: dict[str, str] = {}
    for image_id, group in zip(columns["image_id"], columns["group"], strict=True):
        first = group_of_id.setdefault(image_id, group)
        if first != group:
            raise DataError(f"{uri}: {image_id!r} has two groups, {first!r} and {group!r}, expected one")
    return group_of_id


def _find_images(data: str, images: Sequence[Image], ids: Mapping[str, str]) -> dict[str, list[int]]:
    """Returns, for each id of groups.csv, the rows of the images that it fits."""
    row_of_id = {image.image_id: row for row, image in enumerate(images)}
    rows_of_name: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        rows_of_name[image.name].append(row)
    if any(image_id not in row_of_id and image_id not in rows_of_name for image_id in ids):
        # A path is accepted also for an image whose image_id is its name. Paths are made only if an id needs them.
        row_of_id = {path_below(data, image): row for row, image in enumerate(images)} | row_of_id
    return {
        image_id: [row_of_id[image_id]] if image_id in row_of_id else rows_of_name.get(image_id, []) for image_id in ids
    }


def path_below(data: str, image: Image) -> str:
    """Returns the image's path below DATA, without ending."""
    path, base = store.open_store(image.uri)[1], store.open_store(data)[1]
    return posixpath.splitext(path.removeprefix(base).lstrip("/"))[0]


def _notes(uri: str, rows_of_id: Mapping[str, Sequence[int]]) -> list[str]:
    """Returns notes about ids that fit several images or none. Raises DataError where no id fits an image."""
    unmatched = [image_id for image_id, rows in rows_of_id.items() if not rows]
    ambiguous = [image_id for image_id, rows in rows_of_id.items() if len(rows) > 1]
    if unmatched and len(unmatched) == len(rows_of_id):
        # Without groups, the slices would be resampled one by one, and every interval would be too narrow.
        raise DataError(
            f"{uri}: none of its {len(unmatched)} ids fits an image, such as {unmatched[0]!r}; "
            "expected file names without ending, or paths below the data folder without ending"
        )
    notes = []
    if ambiguous:
        notes.append(
            f"groups.csv: {len(ambiguous)} names fit several images each, all get the group, such as {ambiguous[0]}"
        )
    if unmatched:
        notes.append(f"groups.csv: {len(unmatched)} ids fit no image, such as {unmatched[0]}")
    return notes
