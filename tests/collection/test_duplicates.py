"""gansfp.collection.duplicates: against looking at every pair of images."""

import itertools
import random

import pyarrow as pa

from gansfp.collection.duplicates import KINDS, find_duplicates, first_of_same
from gansfp.collection.layout import Purpose

PARTS = {
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
EXPECTED = {  # by name, as a reader of the issue would sort them
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
    columns = [dict(image_id=i, sha256=c, status=s, **PARTS[p]._asdict()) for i, c, p, s in rows]
    return pa.Table.from_pylist(columns)


def test_every_pair_of_classes():
    assert set(EXPECTED) | {"different sets or tasks", "within one class"} == set(KINDS)
    for one, other in itertools.permutations(PARTS, 2):
        found = find_duplicates(images([("x", "c", one, "ok"), ("y", "c", other, "ok"), ("z", "d", other, "ok")]))
        kinds = [kind for kind, pairs in EXPECTED.items() if (one, other) in pairs or (other, one) in pairs]
        assert [finding.kind for finding in found] == (kinds or ["different sets or tasks"])
        assert found[0].ids == (("x", "y"),)


def test_within_a_class_comes_last_and_a_sound_catalog_has_none():
    rows = [("1", "c", "used", "ok"), ("2", "c", "used", "ok"), ("3", "c", "used", "ok"), ("4", "c", "not_used", "ok")]
    first, last = find_duplicates(images(rows))
    assert (first.kind, first.count, first.ids) == ("used / not used", 1, (("1", "4"),))
    assert (last.kind, last.count, last.ids) == ("within one class", 2, (("1", "2"), ("1", "3")))
    assert str(first) == "byte-identical images, used / not used: 1 (1 = 4)"
    assert find_duplicates(images([("1", "a", "used", "ok"), ("2", "b", "not_used", "ok")])) == []


def test_what_cannot_be_read_is_no_duplicate():
    rows = [("1", "", "used", "unreadable"), ("2", "", "not_used", "unreadable")]
    assert find_duplicates(images(rows)) == []
    assert first_of_same(images(rows)) == ["", ""]


def test_random_catalogs_against_every_pair():
    rng = random.Random(0)
    for _ in range(20):
        rows = [(f"i{n:03d}", rng.choice("abcdefgh"), rng.choice(list(PARTS)), "ok") for n in range(40)]
        shared = {kind: set() for kind in KINDS}
        copies = 0
        for index, (_, content, part, _) in enumerate(rows):
            copies += any((content, part) == row[1:3] for row in rows[:index])
            for _, content2, part2, _ in rows[:index]:
                if content == content2 and part != part2:
                    pair = tuple(sorted((part, part2)))
                    kinds = [kind for kind, pairs in EXPECTED.items() if pair in pairs or pair[::-1] in pairs]
                    shared[kinds[0] if kinds else "different sets or tasks"].add((content, pair))
        expected = {kind: len(found) for kind, found in shared.items()} | {"within one class": copies}
        found = find_duplicates(images(rows))
        assert {finding.kind: finding.count for finding in found} == {k: n for k, n in expected.items() if n}
        assert [finding.kind for finding in found] == [kind for kind in KINDS if expected[kind]]
        first = first_of_same(images(rows))
        for index, (image_id, content, _, _) in enumerate(rows):
            earlier = next(row[0] for row in rows[: index + 1] if row[1] == content)
            assert first[index] == ("" if earlier == image_id else earlier)
