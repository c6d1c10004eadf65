"""Finds byte-identical images and says how bad they are.

An image with two purposes, such as used and unknown, reveals the answer or makes the results wrong.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pyarrow as pa

from gansfp.collection.layout import Purpose

USED_NOT_USED = "used / not used"
GENERATORS = "two generators"
LABELLED_UNKNOWN = "used or not used / unknown"
GENERATED_REAL = "generated / real"
TRAIN_TEST = "generated, train / test"
ELSEWHERE = "different sets or tasks"
WITHIN = "within one class"
KINDS = (USED_NOT_USED, GENERATORS, LABELLED_UNKNOWN, GENERATED_REAL, TRAIN_TEST, ELSEWHERE, WITHIN)  # the worst first

SHOWN = 3  # pairs that the text of a finding names


@dataclass(frozen=True)
class Duplicates:
    """The byte-identical images of one kind.

    ids: for each shared content, one image of each of the two purposes; within one class, the first image and a copy.
    """

    kind: str  # of KINDS
    ids: tuple[tuple[str, str], ...]

    @property
    def count(self) -> int:
        """The number of pairs."""
        return len(self.ids)

    def __str__(self) -> str:
        pairs = ", ".join(f"{first} = {second}" for first, second in self.ids[:SHOWN])
        return f"byte-identical images, {self.kind}: {self.count} ({pairs}{', ...' if self.count > SHOWN else ''})"


def find_duplicates(table: pa.Table) -> list[Duplicates]:
    """Returns the kinds of duplicates in a catalog's table, the worst kind first. Unreadable images are left out."""
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for ids_of_purpose in _shared_contents(table):
        for ids in ids_of_purpose.values():
            pairs[WITHIN] += ((ids[0], copy) for copy in ids[1:])
        for (first, first_ids), (second, second_ids) in combinations(ids_of_purpose.items(), 2):
            # One pair for a content, not all pairs: a collection may hold thousands of identical empty slices.
            pairs[_kind(first, second)].append((first_ids[0], second_ids[0]))
    return [Duplicates(kind, tuple(ids)) for kind, ids in pairs.items() if ids]


def first_of_same(table: pa.Table) -> list[str]:
    """Returns, for each row, the image_id of the first row with the same bytes, "" for that row and unreadable ones."""
    first_of_content: dict[tuple[str, int], str] = {}
    firsts = []
    columns = (table[name].to_pylist() for name in ("image_id", "sha256", "frame", "status"))
    for image_id, sha256, frame, status in zip(*columns, strict=True):
        first = first_of_content.setdefault((sha256, frame), image_id) if status == "ok" else image_id
        firsts.append("" if first == image_id else first)
    return firsts


def _shared_contents(table: pa.Table) -> Iterator[dict[Purpose, list[str]]]:
    """Yields, for each content that several images have, their ids by purpose."""
    by_content: dict[tuple[str, int], list[tuple[str, Purpose]]] = defaultdict(list)
    names = ("image_id", "sha256", "frame", "status", *Purpose._fields)
    for image_id, sha256, frame, status, *purpose in zip(*(table[name].to_pylist() for name in names), strict=True):
        if status == "ok":
            by_content[sha256, frame].append((image_id, Purpose(*purpose)))
    for images in by_content.values():
        if len(images) > 1:
            ids_of_purpose: dict[Purpose, list[str]] = defaultdict(list)
            for image_id, purpose_of_image in images:
                ids_of_purpose[purpose_of_image].append(image_id)
            yield ids_of_purpose


def _kind(first: Purpose, second: Purpose) -> str:
    """Returns the kind of a duplicate between two different purposes."""
    first_generated, second_generated = (
        purpose.task == "attribution" or purpose.role == "generated" for purpose in (first, second)
    )
    if first_generated != second_generated:
        return GENERATED_REAL
    if (first.task, first.set) != (second.task, second.set):
        return ELSEWHERE
    if first_generated:
        return GENERATORS if first.split == second.split else TRAIN_TEST
    return USED_NOT_USED if {first.role, second.role} == {"used", "not_used"} else LABELLED_UNKNOWN
