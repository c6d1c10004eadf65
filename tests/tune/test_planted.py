"""tune.planted: copies of whole patients' slices with partners of other patients, and distances as plain code finds."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from gansfp.embedding.embedder import Embedder
from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.scoring.projections import pca
from gansfp.simulation.phantom import phantoms
from tune import planted
from tune.planted import Plant, make_copies, measure, panel

PAIR = ("highpass-w15-32", "full")
PLANT = Plant(0.5, 0)


@pytest.fixture(scope="module")
def real():
    return phantoms(14, 2, 0)


def copies_of(real, rows=None, plant=PLANT, unreadable=()):
    pixels, patients = real
    rows = np.arange(4, len(pixels)) if rows is None else rows
    return make_copies(rows, patients[rows], lambda row: None if row in unreadable else pixels[row], [PAIR], plant)


def test_partners_are_of_other_patients_and_a_seed_gives_the_same(real):
    copies, again = copies_of(real), copies_of(real)
    assert copies.rows.tolist() == list(range(4, len(real[0])))
    assert (real[1][copies.rows] != real[1][copies.partners]).all()
    assert set(copies.partners.tolist()) <= set(copies.rows.tolist())
    assert np.array_equal(copies.vectors[PAIR], again.vectors[PAIR])
    other = copies_of(real, plant=Plant(0.5, 1))
    assert not np.array_equal(copies.vectors[PAIR], other.vectors[PAIR])


def test_a_copy_lies_nearest_to_its_slice_and_less_near_the_more_is_blended(real):
    own = Embedder([PAIR], {})(real[0], np.zeros(real[0].shape, bool))[PAIR]
    nearest, apart = [], []
    for blend in (0.0, 0.5, 1.0):
        copies = copies_of(real, plant=Plant(blend, 0))
        distances = cdist(own[copies.rows], copies.vectors[PAIR])
        of_partner = cdist(own[copies.partners], copies.vectors[PAIR])
        nearest.append(np.mean(distances.argmin(0) == np.arange(len(copies.rows))))
        apart.append(np.mean(np.diag(distances) - np.diag(of_partner)))
    assert nearest[0] > 0.8
    assert apart[0] < apart[1] < apart[2]


def test_whole_patients_up_to_the_most_slices(real, monkeypatch):
    monkeypatch.setattr(planted, "MOST", 18)
    monkeypatch.setattr(planted, "FEWEST_PATIENTS", 4)
    copies = copies_of(real, np.arange(len(real[0])))
    patients, counts = np.unique(real[1][copies.rows], return_counts=True)
    assert (len(patients), set(counts.tolist())) == (9, {2})


def test_of_a_large_patient_some_slices(real, monkeypatch):
    monkeypatch.setattr(planted, "MOST", 36)
    patients = np.repeat([f"p{number:02d}" for number in range(12)], [6, *[2] * 11])
    copies = make_copies(np.arange(28), patients, lambda row: real[0][row], [PAIR], PLANT)
    assert np.unique(patients[copies.rows], return_counts=True)[1].tolist() == [3, *[2] * 11]


def test_too_few_patients_or_no_embedding_is_none(real):
    assert copies_of(real, np.arange(22)) is None  # 11 patients
    assert copies_of(real, np.arange(24), unreadable=(14, 15)) is None
    assert len(copies_of(real, np.arange(26), unreadable=(0, 1)).rows) == 24
    assert make_copies(np.arange(28), real[1], lambda row: real[0][row], [], PLANT) is None


def test_the_panel_is_of_whole_slices_and_needs_no_weights():
    pairs = [("lbp", "full"), PAIR, ("highpass-w15-64", "lungs"), ("mobilenetv2_100", "full"), ("residual", "full")]
    assert panel(pairs) == [PAIR, ("residual", "full")]


def test_distances_are_those_of_plain_code(real):
    pixels, patients = real
    vectors = Embedder([PAIR], {})(pixels, np.zeros(pixels.shape, bool))[PAIR].astype(np.float32)
    generated = vectors[:10] + np.random.default_rng(0).normal(0, 1, (10, vectors.shape[1])).astype(np.float32)
    labels = np.where(np.arange(len(pixels)) < 4, 1, 0)
    axes = pca(np.concatenate([generated, vectors]), 0.95, at_least=20)
    data = EmbeddedSet(generated, vectors, labels, patients, np.arange(len(pixels)) % 2, axes=axes)
    copies = copies_of(real)
    plain, white = measure(data, copies, PAIR, (12,))
    assert (plain.logarithm, white.logarithm) == (True, False)

    scale = np.sqrt(axes.variance_ratio[:12])
    whiten = [axes.leading(12).transform(x) / scale for x in (vectors, generated, copies.vectors[PAIR])]
    for space, (of_real, of_generated, of_copies), metric in (
        (plain, (vectors, generated, copies.vectors[PAIR]), "euclidean"),
        (white, whiten, "cosine"),
    ):
        own = of_real[copies.rows]
        to_real = cdist(own, of_real, metric)
        to_real[patients[copies.rows][:, None] == patients] = np.inf
        np.testing.assert_allclose(space.near_generated, np.sort(cdist(own, of_generated, metric))[:, :5], atol=1e-4)
        np.testing.assert_allclose(space.near_real, np.sort(to_real)[:, :5], atol=1e-4)
        np.testing.assert_allclose(space.to_copies, cdist(own, of_copies, metric), atol=1e-4)
