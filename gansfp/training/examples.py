"""Labelled slices as a network's examples: read, masked and augmented one by one, split by group.

An example is a slice as it was decoded, and its lungs where the view asks for them: what becomes of them, a view at the
network's input size, is made on the device in the same way as for embedding (gansfp/embedding/embedder.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from gansfp import store
from gansfp.errors import DataError
from gansfp.images.augmentation import Augmentation
from gansfp.images.lungs import get_mask
from gansfp.images.slices import MAX_BYTES, MAX_SIDE, SIDE, decode

BLOCK = 64  # slices that are read together
READERS = 8  # threads that read them: stores answer slowly, but many at once
KEPT_BYTES = 1 << 28  # of pixels that stay in memory from the first look: 4096 slices; the others are read every time

Masker = Callable[[np.ndarray], np.ndarray]  # (n, 256, 256) uint8 -> (n, 256, 256) bool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledSlices:
    """Files and the classes they belong to; as plain data, to be sent to other processes.

    labels: indices into `classes`, or -1 for all where nobody knows; groups: what a split must not part; sha256: of the
    files. side: pixels a side; other than 256 the files are pictures (super-resolved slices), which have no lungs.
    Raises DataError where the columns are not of one length or a label has no class.
    """

    uris: tuple[str, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    sha256: tuple[str, ...]
    classes: tuple[str, ...] = ()
    side: int = SIDE

    def __post_init__(self) -> None:
        lengths = [len(self.uris), len(self.labels), len(self.groups), len(self.sha256)]
        if len(set(lengths)) != 1:
            raise DataError(f"labelled slices: got {lengths} uris, labels, groups and hashes, expected as many of each")
        if not all(-1 <= label < len(self.classes) for label in self.labels):
            raise DataError(f"labelled slices: got labels {set(self.labels)}, expected 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.uris)

    def take(self, rows: Sequence[int] | np.ndarray) -> LabelledSlices:
        """Some of the slices, in that order."""
        picked = [[column[int(row)] for row in rows] for column in (self.uris, self.groups, self.sha256)]
        uris, groups, sha256 = map(tuple, picked)
        labels = tuple(self.labels[int(row)] for row in rows)
        return replace(self, uris=uris, labels=labels, groups=groups, sha256=sha256)

    def relabelled(self, labels: Sequence[int], classes: tuple[str, ...]) -> LabelledSlices:
        """The same slices in other classes."""
        return replace(self, labels=tuple(int(label) for label in labels), classes=classes)

    def counts(self) -> dict[str, int]:
        """The number of slices of each class."""
        return {name: self.labels.count(label) for label, name in enumerate(self.classes)}

    def digest(self) -> str:
        """What identifies the slices, their classes and groups, wherever the files lie: 16 hexadecimal digits."""
        told = [self.sha256, self.labels, self.groups, self.classes, self.side]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Block:
    """Some slices as they were read. rows: of LabelledSlices, those that could be read; pixels: (n, side, side) uint8;
    errors: one line for each of the others."""

    rows: list[int]
    pixels: np.ndarray
    errors: list[str]


def read_slice(slices: LabelledSlices, row: int) -> np.ndarray | str:
    """(side, side) uint8, or why it cannot be had."""
    uri = slices.uris[row]
    try:
        data = store.read_bytes(uri, MAX_BYTES)
    except OSError as error:
        return store.one_line(error)
    if slices.side != SIDE:
        return _picture(data, slices.side)
    slice_ = decode(data, uri)
    return slice_.error if slice_.pixels is None else slice_.pixels


def _picture(data: bytes, side: int) -> np.ndarray | str:
    """A PNG of any size as (side, side) uint8, resized as a whole where it must be; or why that cannot be."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if max(image.size) > MAX_SIDE:
            return f"{image.width}x{image.height} pixels, at most {MAX_SIDE}x{MAX_SIDE} are read"
        grey = image.convert("L")
        return np.array(grey if grey.size == (side, side) else grey.resize((side, side), Image.Resampling.BICUBIC))
    except Exception as error:  # decoders raise anything at all on a bad file
        return store.one_line(error)


def read_blocks(slices: LabelledSlices, block: int = BLOCK) -> Iterator[Block]:
    """All slices in their order, `block` at a time; the next ones are read while the caller computes."""
    starts = range(0, len(slices), block)

    def read(start: int) -> Block:
        rows = range(start, min(start + block, len(slices)))
        found = list(readers.map(lambda row: read_slice(slices, row), rows))
        good = [row for row, pixels in zip(rows, found, strict=True) if not isinstance(pixels, str)]
        pixels = [one for one in found if not isinstance(one, str)]
        errors = [f"{slices.uris[r]}: {e}" for r, e in zip(rows, found, strict=True) if isinstance(e, str)]
        shape = (0, slices.side, slices.side)
        return Block(good, np.stack(pixels) if pixels else np.zeros(shape, np.uint8), errors)

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as ahead:
        waiting = None
        for start in starts:
            following = ahead.submit(read, start)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()


def masker_of(name: str) -> Masker:
    """The lung mask of that name for many slices, on the CPU. Raises UsageError for another name."""
    mask = get_mask(name)
    return lambda pixels: np.stack([mask(one) for one in pixels])


class SliceExamples:
    """Slices as gansfp.training.loop.Examples: items {"pixels": (side, side) uint8, "label": int}, and "mask" (side, side)
    bool where a masker is given.

    Args:
        slices: all of them are read once, to leave out those that cannot be, with a warning, and to mask them.
        masker: None where the view needs no lungs. Masks stay in memory, 8 kB a slice.
        augmentation: changes every picture, anew in each epoch; with copies, those of the copied class alone.
        copies: how many pictures a slice of the class `copied` becomes (KDE Lab 2024: 50 of a real one).
        seed: of the augmentation.
    """

    def __init__(
        self,
        slices: LabelledSlices,
        masker: Masker | None = None,
        augmentation: Augmentation | None = None,
        copies: int = 1,
        copied: int = -1,
        seed: int = 0,
    ) -> None:
        self.slices, self.augmentation, self.seed = slices, augmentation, seed
        self.copied = copied if copies > 1 else None
        self._pixels: dict[int, np.ndarray] = {}
        self._masks: dict[int, np.ndarray] = {}  # as bits
        self._rows: list[int] = []
        room = KEPT_BYTES // slices.side**2
        errors: list[str] = []
        for block in read_blocks(slices):
            errors += block.errors
            masks = masker(block.pixels) if masker and block.rows else None
            for index, row in enumerate(block.rows):
                self._rows += [row] * (copies if slices.labels[row] == self.copied else 1)
                if len(self._pixels) < room:
                    self._pixels[row] = block.pixels[index]
                if masks is not None:
                    self._masks[row] = np.packbits(masks[index])
        if errors:
            log.warning("%d of %d slices cannot be read: left out, such as %s", len(errors), len(slices), errors[0])

    def __len__(self) -> int:
        return len(self._rows)

    def item(self, index: int, epoch: int) -> dict[str, Any]:
        """One example. Raises DataError for a file that cannot be read any more."""
        row = self._rows[index]
        pixels: np.ndarray | str | None = self._pixels.get(row)
        if pixels is None:
            pixels = read_slice(self.slices, row)
        if isinstance(pixels, str):
            raise DataError(f"{self.slices.uris[row]}: cannot be read any more ({pixels})")
        label = self.slices.labels[row]
        found: dict[str, Any] = {"pixels": pixels, "label": label}
        if self._masks:
            bits = np.unpackbits(self._masks[row], count=pixels.size)
            found["mask"] = bits.reshape(pixels.shape).astype(bool)
        if self.augmentation and self.copied in (None, label):
            change = self.augmentation.draw(self.seed, epoch, index)
            found |= {name: change.apply(found[name]) for name in ("pixels", "mask") if name in found}
        return found


def split_by_group(
    labels: Sequence[int], groups: Sequence[str], share: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate with: whole groups, about `share` of every class in the latter.

    Groups are taken in random order, each where it brings the classes nearer to their shares. A class of two groups or
    more is on both sides; one of a single group is to be trained on. Returns two sorted (n,) int64.
    """
    classes, label_of = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    counts = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(counts, (group_of, label_of), 1)
    wanted = share * counts.sum(0)
    taken = np.zeros(len(names), bool)
    held = np.zeros(len(classes), np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    for group in order:
        after = held + counts[group]
        if np.abs(after - wanted).sum() < np.abs(held - wanted).sum():
            taken[group], held = True, after
    for label in range(len(classes)):
        having = [group for group in order if counts[group, label]]
        smallest = min(having, key=lambda group: counts[group].sum())
        if len(having) > 1 and not taken[having].any():
            taken[smallest] = True
        elif taken[having].all():
            taken[smallest] = False
    valid = taken[group_of]
    return np.flatnonzero(~valid), np.flatnonzero(valid)
