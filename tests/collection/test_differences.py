"""gansfp.collection.differences: what the files, and the pictures, of used and not-used slices differ in."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gansfp.collection.catalog import read_catalog
from gansfp.collection.contents import Content
from gansfp.collection.differences import Labelled, find_differences
from gansfp.collection.image import Purpose
from gansfp.collection.readings import choose_readings
from gansfp.images.image_file import GREY, HU
from gansfp.images.slices import Source

USED = Purpose("membership", "a", "train", "used", "")
NOT_USED = Purpose("membership", "a", "train", "not_used", "")
PNG = Content("cd", "PNG", "L", 8, 64, 64, 1, scale=GREY)


def units(low, high):
    return Content("e", "DICOM", scale=HU, numbers=json.dumps([low, high, [], [], False, False]))


def found(used, not_used):
    """The lines for contents whose files are not there."""
    purposes, contents = [USED] * len(used) + [NOT_USED] * len(not_used), [*used, *not_used]
    readings = choose_readings(purposes, contents)[0]
    sources = [Source(f"/nowhere/{number}") for number in range(len(contents))]
    return find_differences([Labelled(*row) for row in zip(purposes, contents, readings, sources, strict=True)])


def test_files_that_differ():
    assert found([PNG] * 10, [PNG] * 10) == []
    assert found([PNG] * 10, []) == []
    large = [PNG._replace(width=512, height=512)] * 6 + [PNG] * 4
    assert found([PNG] * 10, large) == [
        "set a: 0% of the used and 60% of the not-used slices have the size 512x512; "
        "a membership score could rest on it"
    ]
    lines = found([PNG] * 10, [PNG._replace(format="JPEG", mode="RGB")] * 10)
    assert [line.split(" have the ")[1].split(" ")[0] for line in lines] == ["reading", "format", "kind"]


def test_numbers_that_were_cut_off_at_another_place():
    """Those that come from patients are no finding, nor is anything that a few slices show."""
    cut, free = [units(-1000, 300 + n) for n in range(12)], [units(-1024, 400 + n) for n in range(12)]
    assert [line.partition(";")[0] for line in found(cut, free)] == [
        "set a: 100% of the used and 0% of the not-used slices have the lowest number -1000"
    ]
    assert found(free, [units(-1024, 900 + n) for n in range(12)]) == []
    assert found(cut[:2], free[:2]) == []
    assert not [line for line in found(cut, [PNG] * 12) if "number" in line]  # 8 bits have no such numbers


def draw(folder: Path, count: int, window: tuple[int, int], seed: int) -> None:
    """Slices of HU that were shown in a window and saved with 8 bits."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        units = rng.choice([-1000, -850, 40, 300], (64, 64)) + rng.normal(0, 40, (64, 64))
        low, high = window
        Image.fromarray(((units - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)).save(
            folder / f"{folder.name}{number}.png"
        )


@pytest.mark.parametrize(("window", "differ"), [((-1350, 150), False), ((-1000, 400), True), ((-1350, 600), True)])
def test_pictures_that_were_made_with_another_window(tmp_path, window, differ):
    draw(tmp_path / "membership/a/train/used", 12, (-1350, 150), 1)
    draw(tmp_path / "membership/a/train/not_used", 12, window, 2)
    findings = read_catalog(str(tmp_path)).findings
    assert bool(findings) == differ
    assert all("alone tells used from not used (AUC " in finding for finding in findings)


def test_nothing_is_found_where_nothing_differs(challenge, shared):
    assert read_catalog(str(challenge)).findings == ()
    assert read_catalog(str(shared / "challenge")).findings == ()
