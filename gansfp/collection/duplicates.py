"""Which images are the same, byte for byte, and how bad that is: a slice on both sides of a question gives it away."""

from collections import defaultdict
from collections.abc import Iterable
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

SHOWN = 3


@dataclass(frozen=True)
class Duplicates:
    """One kind of finding. ids: for each shared content one image of either side; within one class, first and copy."""

    kind: str  # of KINDS
    ids: tuple[tuple[str, str], ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.ids)

    def __str__(self) -> str:
        pairs = ", ".join(f"{one} = {other}" for one, other in self.ids[:SHOWN])
        return f"byte-identical images, {self.kind}: {self.count} ({pairs}{', ...' if self.count > SHOWN else ''})"


def find_duplicates(table: pa.Table) -> list[Duplicates]:
    """The findings in a catalog's table (n rows), the worst kind first. Images that cannot be read are left out."""
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in KINDS}
    for parts in _same(table):
        for ids in parts.values():
            pairs[WITHIN] += ((ids[0], copy) for copy in ids[1:])
        for (one, ids), (other, others) in combinations(parts.items(), 2):
            pairs[_kind(one, other)].append((ids[0], others[0]))  # not each with each: empty slices come by thousands
    return [Duplicates(kind, tuple(found)) for kind, found in pairs.items() if found]


def first_of_same(table: pa.Table) -> list[str]:
    """For each row the image_id of the first row with the same bytes, "" where it is the first (or cannot be read)."""
    first: dict[str, str] = {}
    found = []
    columns = (table[name].to_pylist() for name in ("image_id", "sha256", "status"))
    for image_id, sha256, status in zip(*columns, strict=True):
        earlier = first.setdefault(sha256, image_id) if status == "ok" else image_id
        found.append("" if earlier == image_id else earlier)
    return found


def _same(table: pa.Table) -> Iterable[dict[Purpose, list[str]]]:
    """For each content that is there more than once: the ids that have it, by what they are there for."""
    by_content: dict[str, list[tuple[str, Purpose]]] = defaultdict(list)
    names = ("image_id", "sha256", "status", *Purpose._fields)
    for image_id, sha256, status, *part in zip(*(table[name].to_pylist() for name in names), strict=True):
        if status == "ok":
            by_content[sha256].append((image_id, Purpose(*part)))
    for images in by_content.values():
        if len(images) > 1:
            parts: dict[Purpose, list[str]] = defaultdict(list)
            for image_id, part_of_it in images:
                parts[part_of_it].append(image_id)
            yield parts


def _kind(one: Purpose, other: Purpose) -> str:
    """How two different parts that share an image go together."""
    made = [part.task == "attribution" or part.role == "generated" for part in (one, other)]
    if made[0] != made[1]:
        return GENERATED_REAL
    if (one.task, one.set) != (other.task, other.set):
        return ELSEWHERE
    if made[0]:
        return GENERATORS if one.split == other.split else TRAIN_TEST
    return USED_NOT_USED if {one.role, other.role} == {"used", "not_used"} else LABELLED_UNKNOWN
