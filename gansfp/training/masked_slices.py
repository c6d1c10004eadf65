"""Slices with lung masks: two folders of files under the same names, for training and for validation."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np

from gansfp import store
from gansfp.errors import DataError, UsageError
from gansfp.images.slices import MAX_BYTES, decode

READERS = 8  # threads that read files: stores answer slowly, but many at once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskedSlices:
    """Files of slices and of their lung masks. volumes: what a split must not part; digest: of the files' contents."""

    images: tuple[str, ...]
    masks: tuple[str, ...]
    volumes: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> MaskedSlices:
        """Some of them, in that order."""
        images, masks, volumes = (
            tuple(column[row] for row in rows) for column in (self.images, self.masks, self.volumes)
        )
        return MaskedSlices(images, masks, volumes, self.digest)


def pair_folders(images: str, masks: str) -> MaskedSlices:
    """The slices of a folder (a path or a URI) and their masks, which another folder has under the same names.

    A mask is black, and white (255 or 1) where lung is. The volume of a slice is its group in groups.csv
    (image_id,group) among the images, where that is, else the part of its name before `_z`, else its name. All are read
    once: slices that cannot be read are left out, with a warning.

    Raises UsageError where the two are one folder, DataError where names do not match, a mask is none, a table lacks a
    slice, all masks are empty, nothing is there.
    """
    if store.absolute(images) == store.absolute(masks):
        raise UsageError(f"--masks: got {masks!r}, which is --images, expected another folder")
    found = [{_name(uri): uri for uri in store.list_files(folder)} for folder in (images, masks)]
    found[0].pop("groups.csv", None)
    for option, folder, files in zip(("--images", "--masks"), (images, masks), found, strict=True):
        if not files:
            raise DataError(f"{option}: got {folder!r}, which has no files, expected a folder of slices")
    odd = sorted(found[0].keys() ^ found[1].keys())
    if odd:
        raise DataError(
            f"--masks: got {len(odd)} names that only one of {images!r} and {masks!r} has, such as "
            f"{', '.join(odd[:3])}; expected a mask of the same name for every slice"
        )
    volumes = _volumes(images, sorted(found[0]))
    with ThreadPoolExecutor(READERS) as readers:
        pairs = [[files[name] for name in volumes] for files in found]
        looks = dict(zip(volumes, readers.map(_look, *pairs), strict=True))
    bad = [f"{name}: {look}" for name, look in looks.items() if isinstance(look, str)]
    if bad:
        log.warning("%d of %d slices cannot be read: left out, such as %s", len(bad), len(looks), bad[0])
    if len(bad) == len(looks):
        raise DataError(f"--images: got {images!r}, of which nothing can be read, such as {bad[0]}")
    good = {name: look for name, look in looks.items() if not isinstance(look, str)}
    if not any(area for _, area in good.values()):
        raise DataError(f"--masks: got {masks!r}, whose masks are all empty, expected some with lungs")
    told = [[name, volumes[name], digest] for name, (digest, _) in good.items()]
    return MaskedSlices(
        tuple(found[0][name] for name in good),
        tuple(found[1][name] for name in good),
        tuple(volumes[name] for name in good),
        hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16],
    )


def _name(uri: str) -> str:
    """A file's name, without what is above it."""
    return unquote(uri.partition("?")[0].rpartition("/")[2]) if store.is_remote(uri) else os.path.basename(uri)


def _volumes(images: str, names: Sequence[str]) -> dict[str, str]:
    """The volume of each slice. Raises DataError for a table that lacks one."""
    stems = {name: name.rpartition(".")[0] or name for name in names}
    table = store.join(images, "groups.csv")
    if not store.exists(table):
        return {name: stem.rpartition("_z")[0] or stem for name, stem in stems.items()}
    columns = store.read_csv(table, ("image_id", "group"))
    groups = dict(zip(columns["image_id"], columns["group"], strict=True))
    for name, stem in stems.items():
        if not groups.get(stem):
            raise DataError(f"{table}: has no group for {stem!r}, expected one for every slice beside it ({name})")
    return {name: groups[stem] for name, stem in stems.items()}


def _look(image: str, mask: str) -> tuple[str, int] | str:
    """The digest of a slice and its mask, and how many pixels of lung it has; or why they cannot be read."""
    try:
        contents = [store.read_bytes(uri, MAX_BYTES) for uri in (image, mask)]
    except OSError as error:
        return store.one_line(error)
    pair = _decode(contents[0], contents[1], image, mask)
    if isinstance(pair, str):
        return pair
    return hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in contents)).hexdigest(), int(pair[1].sum())


def _decode(image: bytes, mask: bytes, image_uri: str, mask_uri: str) -> tuple[np.ndarray, np.ndarray] | str:
    """(256, 256) uint8 and (256, 256) bool, or why not. Raises DataError for a mask that is a picture."""
    seen, drawn = decode(image, image_uri), decode(mask, mask_uri)
    if seen.pixels is None or drawn.pixels is None:
        return seen.error or drawn.error
    levels = np.unique(drawn.pixels).tolist()
    # One of another size was resized, by which its outline has become grey.
    if drawn.status == "ok" and levels not in ([0], [1], [255], [0, 1], [0, 255]):
        raise DataError(
            f"{mask_uri}: got a mask of {len(levels)} grey levels, such as {levels[len(levels) // 2]}, expected 0, and "
            "255 (or 1) where lung is"
        )
    return seen.pixels, drawn.pixels > levels[-1] / 2


def read_pair(image: str, mask: str) -> tuple[np.ndarray, np.ndarray]:
    """A slice and its lungs, (256, 256) uint8 and (256, 256) bool. Raises DataError where they are gone."""
    try:
        pair = _decode(store.read_bytes(image, MAX_BYTES), store.read_bytes(mask, MAX_BYTES), image, mask)
    except OSError as error:
        pair = store.one_line(error)
    if isinstance(pair, str):
        raise DataError(f"{image}: cannot be read any more ({pair})")
    return pair
