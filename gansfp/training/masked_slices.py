"""Slices with lung masks: two folders whose files have the same names, to train and validate the lung U-Net."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np

from gansfp import store
from gansfp.errors import DataError, UsageError
from gansfp.images.slices import MAX_BYTES, decode

READERS = 8  # threads that read files: a store answers slowly, but answers many requests at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedSlices:
    """Files of slices and of their lung masks.

    volumes: the train/test split keeps the slices of a volume together. digest: of the contents of all files.
    """

    images: tuple[str, ...]
    masks: tuple[str, ...]
    volumes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> MaskedSlices:
        """Returns the slices of these rows, in the order of the rows."""
        images, masks, volumes = (
            tuple(column[row] for row in rows) for column in (self.images, self.masks, self.volumes)
        )
        return MaskedSlices(images, masks, volumes, self.digest)


def pair_folders(images: str, masks: str) -> MaskedSlices:
    """Reads the slices of one folder (a path or a URI) and the masks of another, whose files have the same names.

    A mask is black, and white (255 or 1) where lung is. The volume of a slice is its group in groups.csv
    (image_id,group) in the image folder. Without that table it is the part of the slice's name before `_z`, or else the
    whole name. All files are read once. Slices that cannot be read are left out, with a warning.

    Raises UsageError where both folders are the same, DataError where names do not match, a file is not a mask, the
    table lacks a slice, all masks are empty, or a folder has no files.
    """
    image_files, mask_files = _files_by_name(images, masks)
    volumes = _volumes(images, sorted(image_files))
    pairs = _read_all(images, {name: (image_files[name], mask_files[name]) for name in volumes})
    if not any(pair.lung_pixels for pair in pairs.values()):
        raise DataError(f"--masks: got {masks!r}, where all masks are empty, expected some with lungs")
    content = [[name, volumes[name], pair.digest] for name, pair in pairs.items()]
    return MaskedSlices(
        tuple(image_files[name] for name in pairs),
        tuple(mask_files[name] for name in pairs),
        tuple(volumes[name] for name in pairs),
        hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
    )


def _files_by_name(images: str, masks: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the URIs of the images and of the masks by file name. Raises as pair_folders where the names differ."""
    if store.absolute(images) == store.absolute(masks):
        raise UsageError(f"--masks: got {masks!r}, which is --images, expected another folder")
    image_files, mask_files = ({_name(uri): uri for uri in store.list_files(folder)} for folder in (images, masks))
    image_files.pop("groups.csv", None)
    for option, folder, files in (("--images", images, image_files), ("--masks", masks, mask_files)):
        if not files:
            raise DataError(f"{option}: got {folder!r}, which has no files, expected a folder of slices")
    unpaired = sorted(image_files.keys() ^ mask_files.keys())
    if unpaired:
        raise DataError(
            f"--masks: got {len(unpaired)} names that only one of {images!r} and {masks!r} has, such as "
            f"{', '.join(unpaired[:3])}; expected a mask of the same name for every slice"
        )
    return image_files, mask_files


@dataclass(frozen=True)
class _Pair:
    """A slice and its mask that can be read. digest: of both files; lung_pixels: how many pixels of lung there are."""

    digest: str
    lung_pixels: int


def _read_all(images: str, uris: Mapping[str, tuple[str, str]]) -> dict[str, _Pair]:
    """Reads all slices with their masks, by name; leaves out those that cannot be read, with a warning.

    uris: of the image and of the mask. Raises DataError where nothing can be read.
    """
    with ThreadPoolExecutor(READERS) as readers:
        contents = dict(zip(uris, readers.map(lambda pair: _inspect(*pair), uris.values()), strict=True))
    errors = [f"{name}: {content}" for name, content in contents.items() if isinstance(content, str)]
    if len(errors) == len(contents):
        raise DataError(f"--images: got {images!r}, where no slice can be read, such as {errors[0]}")
    if errors:
        log.warning("left out %d of %d slices that cannot be read, such as %s", len(errors), len(contents), errors[0])
    return {name: content for name, content in contents.items() if not isinstance(content, str)}


def _name(uri: str) -> str:
    """Returns a file's name without its folders."""
    return unquote(uri.partition("?")[0].rpartition("/")[2]) if store.is_remote(uri) else os.path.basename(uri)


def _volumes(images: str, names: Sequence[str]) -> dict[str, str]:
    """Returns the volume of each slice, by name. Raises DataError where groups.csv lacks a slice."""
    stems = {name: name.rpartition(".")[0] or name for name in names}
    table = store.join(images, "groups.csv")
    if not store.exists(table):
        return {name: stem.rpartition("_z")[0] or stem for name, stem in stems.items()}
    columns = store.read_csv(table, ("image_id", "group"))
    groups = dict(zip(columns["image_id"], columns["group"], strict=True))
    for name, stem in stems.items():
        if not groups.get(stem):
            raise DataError(f"{table}: has no group for {stem!r}, expected one for every slice of its folder ({name})")
    return {name: groups[stem] for name, stem in stems.items()}


def _inspect(image: str, mask: str) -> _Pair | str:
    """Reads a slice and its mask; returns the reason where they cannot be read."""
    try:
        files = [store.read_bytes(uri, MAX_BYTES) for uri in (image, mask)]
    except OSError as error:
        return store.one_line(error)
    decoded = _decode(files[0], files[1], image, mask)
    if isinstance(decoded, str):
        return decoded
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in files)).hexdigest()
    return _Pair(digest, int(decoded[1].sum()))


def _decode(image: bytes, mask: bytes, image_uri: str, mask_uri: str) -> tuple[np.ndarray, np.ndarray] | str:
    """Decodes a slice, (256, 256) uint8, and its mask, (256, 256) bool; returns the reason where that fails.

    Raises DataError for a mask with other grey levels than black and white.
    """
    decoded_image, decoded_mask = decode(image, image_uri), decode(mask, mask_uri)
    if decoded_image.pixels is None or decoded_mask.pixels is None:
        return decoded_image.error or decoded_mask.error
    levels = np.unique(decoded_mask.pixels).tolist()
    # A mask of another size was resized (status is not "ok"), which made its outline grey.
    if decoded_mask.status == "ok" and levels not in ([0], [1], [255], [0, 1], [0, 255]):
        raise DataError(
            f"{mask_uri}: got a mask of {len(levels)} grey levels, such as {levels[len(levels) // 2]}, expected 0, and "
            "255 (or 1) where lung is"
        )
    return decoded_image.pixels, decoded_mask.pixels > levels[-1] / 2


def read_pair(image: str, mask: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a slice, (256, 256) uint8, and its mask, (256, 256) bool.

    Raises DataError where they could be read before and now cannot be read.
    """
    try:
        pair = _decode(store.read_bytes(image, MAX_BYTES), store.read_bytes(mask, MAX_BYTES), image, mask)
    except OSError as error:
        pair = store.one_line(error)
    if isinstance(pair, str):
        raise DataError(f"{image}: could be read before and now cannot be read ({pair})")
    return pair
