"""Labelled slices as the examples of a network: they are read, masked and augmented one by one, and split by group.

An example is a decoded slice, with its lung mask where the view needs one. The device turns both into a view at the
network's input size, in the same way as for embedding (gansfp/embedding/embedder.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, groupby

import numpy as np
from PIL import Image

from gansfp import store
from gansfp.errors import DataError
from gansfp.images.augmentation import Augmentation
from gansfp.images.image_file import MAX_SIDE
from gansfp.images.lungs import get_mask
from gansfp.images.slices import MAX_BYTES, SIDE, Source, load_all
from gansfp.training.learner import Example

BLOCK = 64  # slices that are read together
READERS = 8  # threads that read files: a store answers slowly, but answers many requests at once
CACHED_BYTES = 1 << 28  # of pixels that stay in memory: 4096 slices; the other slices are read in every epoch

Masker = Callable[[np.ndarray], np.ndarray]  # (n, 256, 256) uint8 -> (n, 256, 256) bool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledSlices:
    """Files and their classes, as plain data that can be sent to other processes.

    sources: where the slices are. labels: indices into `classes`, or -1 for all slices where the classes are not known.
    groups: the train/test split keeps the slices of a group together. sha256: hashes of the slices, as Catalog.hashes
    has them. side: pixels per side. With a side other than 256 the files are pictures (super-resolved slices), which
    have no lung masks.
    Raises DataError where the columns differ in length or a label has no class.
    """

    sources: tuple[Source, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]
    sha256: tuple[str, ...]
    classes: tuple[str, ...] = ()
    side: int = SIDE

    def __post_init__(self) -> None:
        lengths = [len(self.sources), len(self.labels), len(self.groups), len(self.sha256)]
        if len(set(lengths)) != 1:
            raise DataError(
                f"labelled slices: got {lengths} sources, labels, groups and hashes, expected equal numbers"
            )
        if not all(-1 <= label < len(self.classes) for label in self.labels):
            raise DataError(f"labelled slices: got labels {set(self.labels)}, expected 0 to {len(self.classes) - 1}")

    @classmethod
    def unlabelled(
        cls, sources: Sequence[Source], groups: Sequence[str], sha256: Sequence[str], side: int = SIDE
    ) -> LabelledSlices:
        """Makes slices whose classes are not known: every label is -1, and there are no classes."""
        return cls(tuple(sources), (-1,) * len(sources), tuple(groups), tuple(sha256), side=side)

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: Sequence[int] | np.ndarray) -> LabelledSlices:
        """Returns the slices of these rows, in the order of the rows."""
        columns = [[column[int(row)] for row in rows] for column in (self.groups, self.sha256)]
        groups, sha256 = map(tuple, columns)
        sources = tuple(self.sources[int(row)] for row in rows)
        labels = tuple(self.labels[int(row)] for row in rows)
        return replace(self, sources=sources, labels=labels, groups=groups, sha256=sha256)

    def relabelled(self, labels: Sequence[int], classes: tuple[str, ...]) -> LabelledSlices:
        """Returns the same slices with other labels and classes."""
        return replace(self, labels=tuple(int(label) for label in labels), classes=classes)

    def counts(self) -> dict[str, int]:
        """Returns the number of slices of each class."""
        return {name: self.labels.count(label) for label, name in enumerate(self.classes)}

    def digest(self) -> str:
        """Returns a hash of the slices, their classes and groups: 16 hexadecimal digits.

        It does not depend on where the files are.
        """
        content = [self.sha256, self.labels, self.groups, self.classes, self.side]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Block:
    """Some slices that were read together.

    rows: the rows of LabelledSlices that could be read. pixels: of these rows, (n, side, side) uint8. errors: one line
    for each slice that could not be read.
    """

    rows: list[int]
    pixels: np.ndarray
    errors: list[str]


def read_slice(slices: LabelledSlices, row: int) -> np.ndarray | str:
    """Returns the pixels, (side, side) uint8, or the reason why the slice cannot be read."""
    return next(_read_slices(slices, [row]))


def _read_slices(slices: LabelledSlices, rows: Sequence[int]) -> Iterator[np.ndarray | str]:
    """Returns what read_slice returns, for several rows. A file is read once for its slices that follow each other."""
    sources = [slices.sources[row] for row in rows]
    if slices.side == SIDE:
        return (slice_.error if slice_.pixels is None else slice_.pixels for slice_ in load_all(sources))
    return (_picture(source.uri, slices.side) for source in sources)


def _picture(uri: str, side: int) -> np.ndarray | str:
    """Reads a PNG of any size as (side, side) uint8; returns the reason where that fails.

    A picture of another size is resized as a whole.
    """
    try:
        image = Image.open(io.BytesIO(store.read_bytes(uri, MAX_BYTES)), formats=["PNG"])
        if max(image.size) > MAX_SIDE:
            return f"got {image.width}x{image.height} pixels, expected at most {MAX_SIDE}x{MAX_SIDE}"
        grey = image.convert("L")
        return np.array(grey if grey.size == (side, side) else grey.resize((side, side), Image.Resampling.BICUBIC))
    except Exception as error:  # decoders raise errors of many kinds for a bad file
        return store.one_line(error)


def read_blocks(slices: LabelledSlices, block: int = BLOCK) -> Iterator[Block]:
    """Yields all slices in their order, `block` at a time, and reads the next block while the caller computes."""
    starts = range(0, len(slices), block)

    def read(start: int) -> Block:
        rows = range(start, min(start + block, len(slices)))
        pixels: dict[int, np.ndarray] = {}
        errors: list[str] = []
        by_file = [list(of_file) for _, of_file in groupby(rows, lambda row: slices.sources[row].uri)]
        contents = chain.from_iterable(readers.map(lambda of_file: list(_read_slices(slices, of_file)), by_file))
        for row, content in zip(rows, contents, strict=True):
            if isinstance(content, str):
                errors.append(f"{slices.sources[row].uri}: {content}")
            else:
                pixels[row] = content
        empty = np.zeros((0, slices.side, slices.side), np.uint8)
        return Block(list(pixels), np.stack(list(pixels.values())) if pixels else empty, errors)

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
    """Returns the lung mask of that name, for many slices, on the CPU. Raises UsageError for other names."""
    mask = get_mask(name)
    return lambda pixels: np.stack([mask(slice_) for slice_ in pixels])


class SliceExamples:
    """Slices as the training loop's Examples.

    An item is {"pixels": (side, side) uint8, "label": int}, with "mask": (side, side) bool where there is a masker.

    Args:
        slices: The constructor reads all of them once. It leaves out those that cannot be read, with a warning, and
            computes the masks of the others.
        masker: None where the view needs no lungs. The masks stay in memory, 8 kB per slice.
        augmentation: It changes every picture, in a new way in each epoch. With copies it changes only the pictures of
            the copied class.
        copies: How many pictures are made of a slice of the class `copied` (KDE Lab 2024: 50 of a real slice).
        seed: Of the augmentation.
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
        self._masks: dict[int, np.ndarray] = {}  # packed into bits
        self._rows: list[int] = []
        cached_slices = CACHED_BYTES // slices.side**2
        errors: list[str] = []
        for block in read_blocks(slices):
            errors += block.errors
            masks = masker(block.pixels) if masker and block.rows else None
            for index, row in enumerate(block.rows):
                self._rows += [row] * (copies if slices.labels[row] == self.copied else 1)
                if len(self._pixels) < cached_slices:
                    self._pixels[row] = block.pixels[index]
                if masks is not None:
                    self._masks[row] = np.packbits(masks[index])
        if errors:
            log.warning("left out %d of %d slices that cannot be read, such as %s", len(errors), len(slices), errors[0])

    def __len__(self) -> int:
        return len(self._rows)

    def item(self, index: int, epoch: int) -> Example:
        """Returns one example. Raises DataError for a file that could be read before and now cannot be read."""
        row = self._rows[index]
        pixels: np.ndarray | str | None = self._pixels.get(row)
        if pixels is None:
            pixels = read_slice(self.slices, row)
        if isinstance(pixels, str):
            raise DataError(f"{self.slices.sources[row].uri}: could be read before and now cannot be read ({pixels})")
        label = self.slices.labels[row]
        images = {"pixels": pixels}
        if self._masks:
            bits = np.unpackbits(self._masks[row], count=pixels.size)
            images["mask"] = bits.reshape(pixels.shape).astype(bool)
        if self.augmentation and self.copied in (None, label):
            change = self.augmentation.draw(self.seed, epoch, index)
            images = {name: change.apply(image) for name, image in images.items()}
        return {"label": label, **images}


def split_by_group(
    labels: Sequence[int], groups: Sequence[str], share: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits slices into rows to train on and rows to validate with; returns both, sorted, (n,) int64.

    Groups stay whole, and about `share` of every class is validated with. The groups come in random order. A group is
    taken for validation if that brings the classes nearer to their shares. A class of two groups or more is on both
    sides. A class of a single group is trained on. Where a group holds slices of several classes, both can be
    impossible at once; then the rule for the last of these classes counts.
    """
    classes, label_of = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
    names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    counts = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(counts, (group_of, label_of), 1)
    target = share * counts.sum(0)
    held_out = np.zeros(len(names), bool)
    held_counts = np.zeros(len(classes), np.int64)
    order = np.random.default_rng(seed).permutation(len(names))
    for group in order:
        counts_with_group = held_counts + counts[group]
        if np.abs(counts_with_group - target).sum() < np.abs(held_counts - target).sum():
            held_out[group], held_counts = True, counts_with_group
    for label in range(len(classes)):
        groups_of_class = [group for group in order if counts[group, label]]
        smallest = min(groups_of_class, key=lambda group: counts[group].sum())
        if len(groups_of_class) > 1 and not held_out[groups_of_class].any():
            held_out[smallest] = True
        elif held_out[groups_of_class].all():
            held_out[smallest] = False
    valid = held_out[group_of]
    return np.flatnonzero(~valid), np.flatnonzero(valid)
