"""gansfp.collection.duplicates against a look at every pair of images."""

import itertools
import random

import pyarrow as pa
import pytest

from gansfp.collection.duplicates import KINDS, find_duplicates, first_of_same
from gansfp.collection.layout import Purpose

PURPOSES = {
    "used": Purpose("membership", "a", "train", "used", ""),
    "not_used": Purpose("membership", "a", "train", "not_used", ""),
    "unknown": Purpose("membership", "a", "test", "unknown", ""),
    "generated": Purpose("membership", "a", "train", "generated", ""),
    "generated test": Purpose("membership", "a", "test", "generated", ""),
    "other used": Purpose("membership", "b", "train", "used", ""),
    "other generated": Purpose("membership", "b", "train", "generated", ""),
    "gan": Purpose("attribution", "", "train", "generated", "gan"),
    "vae": Purpose("attribution", "", "train", "generated", "vae"),
    "attribution test": Purpose("attribution", "", "test", "unknown", ""),
}
EXPECTED = {  # kind -> pairs of names in PURPOSES, written by hand
    "used / not used": [("used", "not_used")],
    "two generators": [("gan", "vae")],
    "used or not used / unknown": [("used", "unknown"), ("not_used", "unknown")],
    "generated / real": [
        (made, real)
        for made in ("generated", "generated test", "other generated", "gan", "vae", "attribution test")
        for real in ("used", "not_used", "unknown", "other used")
    ],
    "generated, train / test": [
        ("generated", "generated test"),
        ("gan", "attribution test"),
        ("vae", "attribution test"),
    ],
}


def images(rows):
    """A table of (image_id, content, part name, status)."""
    columns = [dict(image_id=i, sha256=c, frame=0, status=s, **PURPOSES[p]._asdict()) for i, c, p, s in rows]
    return pa.Table.from_pylist(columns)


def kind_of(first, second):
    """The kind of a duplicate between two of PURPOSES, looked up in EXPECTED."""
    kinds = [kind for kind, pairs in EXPECTED.items() if (first, second) in pairs or (second, first) in pairs]
    assert len(kinds) <= 1
    return kinds[0] if kinds else "different sets or tasks"


def test_every_pair_of_classes():
    assert set(EXPECTED) | {"different sets or tasks", "within one class"} == set(KINDS)
    for first, second in itertools.permutations(PURPOSES, 2):
        rows = [("x", "c", first, "ok"), ("y", "c", second, "ok"), ("z", "d", second, "ok")]
        (duplicates,) = find_duplicates(images(rows))
        assert duplicates.kind == kind_of(first, second)
        assert duplicates.ids == (("x", "y"),)


def test_duplicates_within_a_class_come_last_and_different_images_are_none():
    rows = [("1", "c", "used", "ok"), ("2", "c", "used", "ok"), ("3", "c", "used", "ok"), ("4", "c", "not_used", "ok")]
    first, last = find_duplicates(images(rows))
    assert (first.kind, first.count, first.ids) == ("used / not used", 1, (("1", "4"),))
    assert (last.kind, last.count, last.ids) == ("within one class", 2, (("1", "2"), ("1", "3")))
    assert str(first) == "byte-identical images, used / not used: 1 (1 = 4)"
    assert find_duplicates(images([("1", "a", "used", "ok"), ("2", "b", "not_used", "ok")])) == []


def test_unreadable_images_are_not_duplicates():
    rows = [("1", "", "used", "unreadable"), ("2", "", "not_used", "unreadable")]
    assert find_duplicates(images(rows)) == []
    assert first_of_same(images(rows)) == ["", ""]


def counts_by_every_pair(rows):
    """The number of duplicates by kind, from a look at every pair of rows: a slow, plain reference."""
    shared = {kind: set() for kind in KINDS}
    copies = set()
    for (_, first_content, first, _), (second_id, second_content, second, _) in itertools.combinations(rows, 2):
        if first_content == second_content and first == second:
            copies.add(second_id)
        elif first_content == second_content:
            shared[kind_of(first, second)].add((first_content, frozenset((first, second))))
    return {kind: len(contents) for kind, contents in shared.items()} | {"within one class": len(copies)}


@pytest.mark.parametrize("seed", range(20))
def test_random_catalogs_against_every_pair(seed):
    rng = random.Random(seed)
    rows = [(f"i{n:03d}", rng.choice("abcdefgh"), rng.choice(list(PURPOSES)), "ok") for n in range(40)]
    expected = counts_by_every_pair(rows)
    counts = {duplicates.kind: duplicates.count for duplicates in find_duplicates(images(rows))}
    assert counts == {kind: count for kind, count in expected.items() if count}
    assert list(counts) == [kind for kind in KINDS if expected[kind]]
    firsts = first_of_same(images(rows))
    for index, (image_id, content, _, _) in enumerate(rows):
        first = next(row[0] for row in rows[: index + 1] if row[1] == content)
        assert firsts[index] == ("" if first == image_id else first)
