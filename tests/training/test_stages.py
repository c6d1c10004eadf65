"""Training stages of classifiers: targets of a catalog, folders of classes, files of stages and their errors."""

import json
import logging

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gansfp.collection.catalog import Catalog, read_catalog
from gansfp.errors import DataError, UsageError
from gansfp.training.loop import Settings
from gansfp.training.stages import (
    PUBLISHED_STAGES,
    Stage,
    find_stages,
    labelled,
    labelled_folders,
    read_stages,
)


@pytest.fixture(scope="module")
def catalog(challenge):
    return read_catalog(str(challenge))


def write(tmp_path, stages):
    place = tmp_path / "stages.json"
    place.write_text(stages if isinstance(stages, str) else json.dumps(stages))
    return str(place)


@pytest.mark.parametrize(
    ("target", "classes", "counts"),
    [
        ("used", ("not_used", "used"), (16, 16)),
        ("generated", ("real", "generated"), (32, 60)),
        ("generator", ("eigen", "warp"), (12, 12)),
    ],
)
def test_targets(catalog, target, classes, counts):
    slices = labelled(catalog, target, "warp")
    assert slices.classes == classes
    assert tuple(slices.counts().values()) == counts
    rows = {row["uri"]: row for row in catalog.table.to_pylist()}
    for (uri, *_), label, group, sha256 in zip(
        slices.sources, slices.labels, slices.groups, slices.sha256, strict=True
    ):
        row = rows[uri]
        assert row["split"] == "train"
        name = row["generator"] or {"used": "real", "not_used": "real"}.get(row["role"], row["role"])
        assert classes[label] == (row["role"] if target == "used" else name)
        assert group == (row["group"] or row["image_id"])
        assert sha256 == row["sha256"]


def test_unknown_slices_have_no_labels(catalog):
    slices = labelled(catalog, "unknown", "warp")
    assert set(slices.labels) == {-1}
    assert slices.classes == ()
    unknown = catalog.select(task="membership", set="warp", split="test", role="unknown")
    assert set(slices.sources) == set(unknown.sources())


def without(catalog, role):
    return Catalog(catalog.data, catalog.table.filter(pa.array(catalog.column("role") != role)))


def test_a_single_class_is_refused(catalog):
    with pytest.raises(DataError, match=r"target 'used': got only \['not_used'\] in set 'warp', expected two classes"):
        labelled(without(catalog, "used"), "used", "warp")
    with pytest.raises(DataError, match="target 'used': got no slices of set 'nowhere'"):
        labelled(catalog, "used", "nowhere")
    with pytest.raises(UsageError, match="target: got 'fake', expected one of"):
        labelled(catalog, "fake", "warp")
    slices = labelled(catalog, "used", "warp")
    with pytest.raises(DataError, match=r"training stage 'one': got slices of \['used'\], expected two classes"):
        Stage("one", slices.take(np.flatnonzero(slices.labels)))


def test_unreadable_files_are_left_out(catalog):
    table = catalog.table.to_pydict()
    row = next(i for i, uri in enumerate(table["uri"]) if "warp/train/used" in uri)
    table["status"][row] = "unreadable"
    slices = labelled(Catalog(catalog.data, pa.table(table, schema=catalog.table.schema)), "used", "warp")
    assert tuple(slices.counts().values()) == (16, 15)


@pytest.fixture
def folders(tmp_path):
    """Two classes, one of them with a sub-folder, and two files that belong to no class."""
    base = tmp_path / "casia"
    for number, name in enumerate(("authentic/a.png", "authentic/more/b.png", "tampered/a.jpg", "tampered/c.PNG")):
        place = base / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 60, 3), 50 * number, np.uint8)).save(place)
    (base / "tampered" / "list.txt").write_text("not an image")
    (base / "stray.png").write_bytes((base / "authentic" / "a.png").read_bytes())
    return base


def test_folders(folders):
    slices = labelled_folders(str(folders))
    assert slices.classes == ("authentic", "tampered")
    names = [source.uri[len(str(folders)) + 1 :] for source in slices.sources]
    assert names == ["authentic/a.png", "authentic/more/b.png", "tampered/a.jpg", "tampered/c.PNG"]
    assert slices.labels == (0, 0, 1, 1)
    assert len(set(slices.groups)) == len(set(slices.sha256)) == 4
    with pytest.raises(DataError, match=r"more: got classes \[\], expected two or more sub-folders"):
        labelled_folders(str(folders / "authentic" / "more"))


def test_a_file_of_stages(tmp_path, catalog, folders, caplog):
    stages = [
        {"name": "natural", "data": str(folders), "target": "folders", "epochs": 3, "optimiser": "adam", "rate": 1e-4},
        {"name": "set", "data": "clean", "batch": 8, "patience": 0},
        {"name": "first", "data": "#1"},
        {"name": "third", "data": "#3"},
        {"name": "gone", "data": str(tmp_path / "gone"), "target": "folders"},
        {"name": "none", "data": ""},
        {"name": "asked", "data": "warp", "target": "unknown", "labels": "pseudo"},
        {"name": "unasked", "data": "warp", "target": "unknown", "labels": "none"},
    ]
    with caplog.at_level(logging.WARNING):
        training_stages = find_stages(read_stages(write(tmp_path, stages)), catalog)
    assert [stage.name for stage in training_stages] == [stage["name"] for stage in stages]
    assert training_stages[0].settings == Settings("adam", 1e-4, 256, 3, 10)
    assert training_stages[1].settings == Settings("sgd", 1e-3, 8, 50, 0)
    assert training_stages[2].examples == labelled(catalog, "used", "clean")
    assert {stage.name: stage.skipped for stage in training_stages if stage.skipped} == {
        "third": "there is no set '#3', only clean, warp",
        "gone": f"{tmp_path / 'gone'} does not exist",
        "none": "no data is named",
        "unasked": "its labels are 'none'",
    }
    assert caplog.text.count("is skipped:") == 4
    assert training_stages[6].examples == labelled(catalog, "unknown", "warp")


def test_published_stages(catalog):
    two = find_stages(read_stages("kde-med-2024"), catalog)
    assert [stage.examples for stage in two] == [labelled(catalog, "used", name) for name in ("clean", "warp")]
    assert {stage.settings for stage in two} == {Settings("sgd", 0.001, 256, 50, 10)}
    four = find_stages(read_stages("kde-lab-2023"), catalog)
    assert [bool(stage.skipped) for stage in four] == [True, True, False, True]
    assert {stage.settings for stage in four} == {Settings("sgd", 0.001, 256, 200, 10)}
    (one,) = find_stages(read_stages("kde-lab-2024"), catalog)
    assert (one.settings.optimiser, one.settings.rate, one.examples.classes[0]) == ("adam", 1e-4, "real")
    (generators,) = find_stages(read_stages("kde-med-2024-attribution"), catalog)
    assert generators.examples == labelled(catalog, "generator")
    assert len(PUBLISHED_STAGES) == 4


def test_a_published_transfer_is_a_file_to_start_from(tmp_path):
    text = PUBLISHED_STAGES["kde-lab-2023"]
    assert read_stages(write(tmp_path, text)) == read_stages("kde-lab-2023")


GOOD = {"name": "a", "data": "warp"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([GOOD | {"epoch": 3}], "stage 1: got key 'epoch', expected one of name, data, target, labels, epochs"),
        ([GOOD, {"name": "b"}], "stage 2: no key 'data', expected name, data"),
        ([GOOD | {"epochs": "3"}], "stage 1: epochs: got '3', expected a whole number"),
        ([GOOD | {"epochs": True}], "stage 1: epochs: got True, expected a whole number"),
        ([GOOD | {"epochs": 0}], r"stage 1 \('a'\): epochs: got 0, expected a whole number of at least 1"),
        ([GOOD | {"rate": None}], "stage 1: rate: got None, expected a number"),
        ([GOOD | {"rate": 2}], r"stage 1 \('a'\): learning rate: got 2"),
        ([GOOD | {"optimiser": "lion"}], r"stage 1 \('a'\): optimiser: got 'lion', expected one of"),
        ([GOOD | {"data": 1}], "stage 1: data: got 1, expected text"),
        ([GOOD | {"target": "fake"}], r"stage 1 \('a'\): target: got 'fake', expected one of used, generated"),
        ([GOOD | {"labels": "soft"}], r"stage 1 \('a'\): labels: got 'soft', expected one of supervised, pseudo"),
        ([GOOD | {"target": "unknown"}], "labels: got 'supervised' for target 'unknown', expected pseudo or none"),
        ([GOOD | {"target": "generator"}], "data: got 'warp', expected 'attribution' for target 'generator'"),
        ([GOOD | {"labels": "pseudo"}], "stage 1: labels: got 'pseudo', expected a stage before it"),
        ([3], "stage 1: got '3', expected an object"),
        ([], "expected a list of training stages"),
        ({"name": "a"}, "expected a list of training stages"),
        ("not json", "not JSON"),
    ],
)
def test_an_error_in_a_file_is_one_line(tmp_path, stages, message):
    place = write(tmp_path, stages)
    with pytest.raises(UsageError, match=message) as caught:
        read_stages(place)
    assert str(caught.value).startswith(place)
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_exist():
    with pytest.raises(UsageError, match=r"'/nowhere/s\.json', which cannot be read .* or one of kde-med-2024"):
        read_stages("/nowhere/s.json")
