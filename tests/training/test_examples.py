"""Labelled slices: reading, masks, copies and augmentation of examples, split by group; against plain references."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gansfp.errors import DataError
from gansfp.images.augmentation import Augmentation
from gansfp.images.lungs import threshold_mask
from gansfp.images.slices import Source
from gansfp.simulation.phantom import phantoms
from gansfp.training import examples
from gansfp.training.examples import LabelledSlices, SliceExamples, masker_of, read_blocks, split_by_group


@pytest.fixture(scope="module")
def pixels():
    """(8, 256, 256) uint8."""
    return phantoms(4, 2, seed=1)[0]


@pytest.fixture
def slices(tmp_path, pixels):
    """Eight files, of two classes and four groups."""
    uris = []
    for row, slice_ in enumerate(pixels):
        Image.fromarray(slice_).save(tmp_path / f"{row}.png")
        uris.append(str(tmp_path / f"{row}.png"))
    labels, groups = tuple(row % 2 for row in range(8)), tuple(f"p{row // 2}" for row in range(8))
    return LabelledSlices(
        tuple(map(Source, uris)), labels, groups, tuple(f"h{row}" for row in range(8)), ("real", "generated")
    )


def test_items_are_slices_masks_and_labels(slices, pixels):
    slice_examples = SliceExamples(slices, masker_of("threshold"))
    assert len(slice_examples) == 8
    for row in range(8):
        item = slice_examples.item(row, 1)
        np.testing.assert_array_equal(item["pixels"], pixels[row])
        np.testing.assert_array_equal(item["mask"], threshold_mask(pixels[row]))
        assert item["label"] == row % 2
    assert set(SliceExamples(slices).item(0, 1)) == {"pixels", "label"}


def test_slices_that_do_not_stay_in_memory_are_read_again(slices, pixels, monkeypatch):
    monkeypatch.setattr(examples, "CACHED_BYTES", 3 * 256**2)
    slice_examples = SliceExamples(slices)
    assert len(slice_examples._pixels) == 3
    for row in range(8):
        np.testing.assert_array_equal(slice_examples.item(row, 1)["pixels"], pixels[row])


def test_bad_files_are_left_out_with_a_warning(slices, tmp_path, caplog):
    (tmp_path / "2.png").write_bytes(b"not an image")
    (tmp_path / "5.png").unlink()
    with caplog.at_level(logging.WARNING):
        slice_examples = SliceExamples(slices)
    assert "left out 2 of 8 slices that cannot be read" in caplog.text
    assert "2.png" in caplog.text
    assert [slice_examples.item(index, 0)["label"] for index in range(len(slice_examples))] == [0, 1, 1, 0, 0, 1]
    blocks = list(read_blocks(slices, 3))
    assert [block.rows for block in blocks] == [[0, 1], [3, 4], [6, 7]]
    assert [len(block.errors) for block in blocks] == [1, 1, 0]


def test_a_file_that_disappears_is_an_error_of_one_line(slices, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "CACHED_BYTES", 0)
    slice_examples = SliceExamples(slices)
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: could be read before and now cannot be read"):
        slice_examples.item(0, 1)


def test_copies_of_one_class_are_augmented_and_the_others_are_not(slices, pixels):
    augmentation = Augmentation()
    slice_examples = SliceExamples(slices, masker_of("threshold"), augmentation, copies=50, copied=0, seed=4)
    assert len(slice_examples) == 4 * 50 + 4
    labels = [row % 2 for row in slice_examples._rows]
    copied = [index for index, label in enumerate(labels) if label == 0]
    assert len({slice_examples.item(index, 2)["pixels"].tobytes() for index in copied}) == 200
    index = labels.index(1)
    np.testing.assert_array_equal(slice_examples.item(index, 2)["pixels"], pixels[1])
    change = augmentation.draw(4, 2, 0)
    np.testing.assert_array_equal(slice_examples.item(0, 2)["pixels"], change.apply(pixels[0]))
    np.testing.assert_array_equal(slice_examples.item(0, 2)["mask"], change.apply(threshold_mask(pixels[0])))


def test_without_copies_all_classes_are_augmented_anew_in_each_epoch(slices, pixels):
    slice_examples = SliceExamples(slices, None, Augmentation())
    again = SliceExamples(slices, None, Augmentation())
    for index in range(8):
        first, second = (slice_examples.item(index, epoch)["pixels"] for epoch in (1, 2))
        assert not np.array_equal(first, second)
        assert not np.array_equal(first, pixels[index])
        np.testing.assert_array_equal(again.item(index, 2)["pixels"], second)


def test_pictures_of_another_side(tmp_path):
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (96, 96), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "a.png")
    Image.fromarray(large[:48, :48]).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    uris = tuple(str(tmp_path / f"{name}.png") for name in "abc")
    slice_examples = SliceExamples(LabelledSlices(tuple(map(Source, uris)), (0, 1, 1), uris, uris, ("x", "y"), side=96))
    assert len(slice_examples) == 2
    np.testing.assert_array_equal(slice_examples.item(0, 0)["pixels"], large)
    expected = np.array(Image.fromarray(large[:48, :48]).resize((96, 96), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(slice_examples.item(1, 0)["pixels"], expected)


def test_slices_without_labels():
    slices = LabelledSlices.unlabelled([Source("a"), Source("b")], ["g", "h"], ["1", "2"], 896)
    assert slices == LabelledSlices((Source("a"), Source("b")), (-1, -1), ("g", "h"), ("1", "2"), (), 896)
    assert LabelledSlices.unlabelled([], [], []).side == 256


def test_columns_that_do_not_fit():
    with pytest.raises(DataError, match=r"got \[1, 2, 1, 1\]"):
        LabelledSlices((Source("a"),), (0, 1), ("g",), ("h",), ("x", "y"))
    with pytest.raises(DataError, match=r"got labels \{2\}, expected 0 to 1"):
        LabelledSlices((Source("a"),), (2,), ("g",), ("h",), ("x", "y"))


def test_digest_follows_content_labels_and_groups_and_not_the_place(slices):
    moved = LabelledSlices(tuple(Source(f"/b{source.uri}") for source in slices.sources), *[*vars(slices).values()][1:])
    assert moved.digest() == slices.digest()
    others = [slices.take(range(7)), slices.relabelled([0] * 8, slices.classes), slices.take([1, 0, *range(2, 8)])]
    assert len({other.digest() for other in (*others, slices)}) == 4
    assert slices.counts() == {"real": 4, "generated": 4}


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_groups_whole_and_classes_in_proportion(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 40, 300)
    labels = (groups % 3 == 0).astype(int) if seed % 2 else rng.integers(0, 3, 300)
    train, valid = split_by_group(labels, groups.astype(str), share=0.2, seed=seed)
    assert sorted([*train, *valid]) == list(range(300))
    assert not set(groups[train]) & set(groups[valid])
    for label in np.unique(labels):
        assert 0.1 < np.mean(labels[valid] == label) / np.mean(labels == label) < 2
        assert 0.1 < np.mean(np.isin(np.flatnonzero(labels == label), valid)) < 0.3
    again = split_by_group(labels, groups.astype(str), share=0.2, seed=seed)
    np.testing.assert_array_equal(train, again[0])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40), st.floats(0.05, 0.95))
@settings(max_examples=100, deadline=None)
def test_split_of_any_labels_and_groups(slices, share):
    """Each slice is on one side, groups stay whole, and a class that is one whole group is trained on."""
    labels, groups = (np.array(values) for values in zip(*slices, strict=True))
    train, valid = split_by_group(labels, groups.astype(str), share)
    assert sorted([*train, *valid]) == list(range(len(slices)))
    assert not set(groups[train]) & set(groups[valid])
    for label in set(labels.tolist()):
        of_class = np.flatnonzero(labels == label)
        of_groups = np.flatnonzero(np.isin(groups, groups[of_class]))
        if len(set(groups[of_class].tolist())) == 1 and len(of_groups) == len(of_class):
            assert set(of_class) <= set(train)


def test_split_of_few_groups():
    train, valid = split_by_group([0, 0, 1, 1], ["a", "b", "c", "d"])
    assert {0, 1} == {row // 2 for row in train} == {row // 2 for row in valid}
    train, valid = split_by_group([0, 0, 1, 1], ["a", "a", "c", "d"])  # a class of one group is trained on
    assert {0, 1} <= set(train)
    assert len(valid) == 1
    train, valid = split_by_group([0, 1], ["a", "a"])
    assert (len(train), len(valid)) == (2, 0)
