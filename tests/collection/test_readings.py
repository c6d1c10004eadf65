"""gansfp.collection.readings: one rule for the 16-bit files of a class, and what differs between used and not used."""

import json

import numpy as np
import pytest

from gansfp.collection.contents import Content
from gansfp.collection.layout import Purpose
from gansfp.collection.readings import (
    choose_readings,
    content_hash,
    count_readings,
    note_lost_levels,
    note_misfits,
)
from gansfp.images.grey_levels import evidence
from gansfp.images.image_file import GREY, HU, UNKNOWN, Numbers

USED = Purpose("membership", "a", "train", "used", "")
NOT_USED = Purpose("membership", "a", "train", "not_used", "")
GAN = Purpose("attribution", "", "train", "generated", "gan")
RNG = np.random.default_rng(0)
CHEST = RNG.choice([-1000, -850, 40, 60, 300], (64, 64)) + RNG.integers(-20, 20, (64, 64))  # HU


def sixteen(values, **fields):
    """The content of a PNG file of 16 bits."""
    said = evidence([Numbers(np.asarray(values), UNKNOWN)])
    return Content("ab", "PNG", "I;16", 16, 64, 64, 1, scale=UNKNOWN, numbers=json.dumps(said), **fields)


def grey(**fields):
    return Content(
        "cd", **{"format": "PNG", "mode": "L", "bits": 8, "width": 64, "height": 64, "frames": 1} | fields
    )._replace(scale=GREY)


def test_a_class_has_one_rule():
    full = RNG.integers(0, 65536, (5, 64, 64))
    dark = RNG.integers(0, 200, (64, 64))  # by itself it looks like 8 bits in 16
    files = [*map(sixteen, full), sixteen(dark)]
    readings, notes = choose_readings([USED] * 6, files)
    assert {reading.name for reading in readings} == {"PNG 16-bit full"}
    assert notes == ["16 bits: the 6 files of membership/a/train/used are read as full (likely: up to 65535)"]
    readings, notes = choose_readings([USED] * 5 + [NOT_USED], files)
    assert [reading.rule for reading in readings] == ["full"] * 5 + ["low"]
    assert len(notes) == 2


@pytest.mark.parametrize(("offset", "rule"), [(0, "hu"), (1024, "hu+1024"), (32768, "hu+32768")])
def test_hu_are_recognised(offset, rule):
    readings, notes = choose_readings([USED] * 3, [sixteen(CHEST + offset)] * 3)
    assert {reading.rule for reading in readings} == {rule}
    assert notes == [
        f"16 bits: the 3 files of membership/a/train/used are read as {rule} "
        f"(3 of 3 files have air and soft tissue where {rule} puts them)"
    ]


def test_what_is_not_sure_is_not_read_unless_the_user_says_what_it_is():
    twelve = sixteen(RNG.integers(0, 4096, (64, 64)))
    readings, notes = choose_readings([GAN], [twelve])
    assert (readings[0].name, readings[0].rule) == ("", "")
    assert "numbers from 1 to 4094 of unknown meaning" in readings[0].error
    assert "--sixteen-bit" in readings[0].error
    assert "attribution/train/gan are not read (not sure" in notes[0]
    readings, notes = choose_readings([GAN], [twelve], "hu+1024")
    assert (readings[0].name, readings[0].rule, readings[0].error) == ("PNG 16-bit hu+1024", "hu+1024", "")
    assert notes == ["16 bits: the 1 files of attribution/train/gan are read as hu+1024 (by --sixteen-bit)"]


def test_dicom_that_does_not_say_what_its_numbers_are():
    content = sixteen(CHEST + 1024, unknown_because="CT numbers without RescaleIntercept")._replace(format="DICOM")
    readings, notes = choose_readings([USED], [content])
    assert readings[0].error == (
        "CT numbers without RescaleIntercept; say what the numbers are with --sixteen-bit (they look like hu+1024)"
    )
    assert notes == []  # the notes on unreadable images say so
    assert choose_readings([USED], [content], "hu+1024")[0][0].name == "DICOM 16-bit hu+1024"
    units = content._replace(scale=HU, unknown_because="")
    assert choose_readings([USED], [units], "low")[0][0].name == "DICOM HU"


def test_the_hash_of_the_content_changes_with_the_reading():
    readings, _ = choose_readings([USED], [grey()])
    assert content_hash(grey(), 0, readings[0]) == "cd"  # embeddings of earlier versions stay valid
    hashes = {
        content_hash(content, frame, choose_readings([USED], [content], option)[0][0])
        for content in (grey(), grey(turned=True), sixteen(CHEST + 1024), grey(format="DICOM"))
        for frame in (0, 1, 2)
        for option in ("auto", "low")
    }
    assert len(hashes) == 3 + 3 + 6 + 3  # a rule changes nothing for 8 bits
    assert content_hash(Content(""), 0, readings[0]) == ""


def test_lost_levels_are_noted():
    wide = sixteen(RNG.integers(0, 4096, (64, 64)))
    readings, _ = choose_readings([USED] * 2, [wide, sixteen(np.full((4, 4), 7))], "full")
    assert note_lost_levels(list(zip(["x", "blank"], [wide, sixteen(np.full((4, 4), 7))], readings, strict=True))) == [
        "1 slices keep fewer than 32 grey levels of more, such as x"
    ]
    bone = Content("ef", "DICOM", scale=HU, numbers=json.dumps([200, 2000, [], [], False, False]))
    chest = bone._replace(numbers=json.dumps([-1024, 2000, [], [], False, False]))
    readings, _ = choose_readings([USED] * 2, [bone, chest])
    assert note_lost_levels(list(zip(["bone", "chest"], [bone, chest], readings, strict=True))) == [
        "1 slices keep fewer than 32 grey levels of more, such as bone"
    ]


def test_table_of_readings():
    lines = count_readings(["DICOM HU"] * 4 + ["", "PNG grey"], list("abcdef"))
    assert [str(line) for line in lines] == [
        "DICOM HU: 4 slices (a, b, c, ...)",
        "PNG grey: 1 slices (f)",
        "not read: 1 slices (e)",
    ]


def test_slices_that_do_not_fit_the_rule_of_their_class_are_named():
    files = [*[sixteen(CHEST + 1024)] * 10, sixteen(RNG.integers(0, 65536, (64, 64)))]
    readings, _ = choose_readings([USED] * 11, files)
    assert {reading.rule for reading in readings} == {"hu+1024"}
    ids = [str(number) for number in range(11)]
    assert note_misfits(list(zip(ids, files, readings, strict=True))) == [
        "1 slices do not fit the rule of their class, such as 10"
    ]
    assert note_misfits(list(zip(ids[:10], files[:10], readings[:10], strict=True))) == []
