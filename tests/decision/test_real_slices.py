"""decision.real_slices and blind: what real slices show by themselves is written, read, and joined with the files."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from gansfp.collection.catalog import read_catalog
from gansfp.decision.blind import MEASURED, collect_facts
from gansfp.decision.real_slices import read_real_slices, write_real_slices
from gansfp.embedding.measures import FILES, MEASURES

PAIR = ("highpass-w15-32", "full")


def test_numbers_are_written_and_read_by_set_and_embedding(tmp_path):
    folder, rng = str(tmp_path), np.random.default_rng(0)
    of_pairs = {
        pair: {"a": rng.random((4, d), np.float32), "b": rng.random((7, d), np.float32)}
        for pair, d in ((PAIR, 5), (MEASURED, 12))
    }
    assert read_real_slices(folder) is None
    write_real_slices(folder, of_pairs, "digest")
    assert read_real_slices(folder, "another") is None
    found = read_real_slices(folder, "digest")
    assert {name: set(of_set) for name, of_set in found.items()} == {"a": {PAIR, MEASURED}, "b": {PAIR, MEASURED}}
    for pair, of_sets in of_pairs.items():
        for name, values in of_sets.items():
            assert np.array_equal(found[name][pair], values)
    assert pq.read_table(tmp_path / "real.parquet").num_rows == 22


@pytest.fixture(scope="module")
def images(challenge):
    return read_catalog(str(challenge)).select(task="membership")


def test_facts_are_measurements_and_what_files_tell(images):
    real = images.ids[[5, 3, 9, 1]].tolist()
    own = {MEASURED: np.random.default_rng(0).random((4, len(MEASURES)), np.float32), PAIR: np.ones((4, 2), np.float32)}
    facts = collect_facts(own, real, images)
    assert list(facts.pictures) == [PAIR]
    assert facts.measured.shape == (4, len(facts.measures))
    assert [measure.name for measure in facts.measures[: len(MEASURES)]] == [measure.name for measure in MEASURES]
    of_files = {m.name: column for m, column in zip(facts.measures, facts.measured.T, strict=True) if m.kind == FILES}
    sizes = dict(zip(images.ids.tolist(), images.column("bytes"), strict=True))
    assert of_files["size of the file"] == pytest.approx(np.log1p([sizes[image_id] for image_id in real]))
    # The rest is the same in all files, and tells nothing.
    assert set(of_files) == {"size of the file", "edges of 8x8 blocks"}


def test_without_measurements_the_files_are_left(images):
    facts = collect_facts({PAIR: np.ones((2, 2), np.float32)}, images.ids[:2].tolist(), images)
    assert {measure.kind for measure in facts.measures} <= {FILES}
