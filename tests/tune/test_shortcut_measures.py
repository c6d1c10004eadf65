"""tune.variety and tune.traces: a generator that repeats itself, slices of both labels, files that give it away."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import adjusted_rand_score

from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.simulation.phantom import phantoms
from tune.set_slices import SetSlices
from tune.traces import Known, traces_of
from tune.variety import shortcuts_of

WARD = {"backbone": "residual", "view": "full", "components": 0, "standardise": False, "method": "hierarchical"}


def of_set(labels, groups):
    n = len(labels)
    return SetSlices("a", np.arange(n, n + 40), np.arange(n), labels, groups, np.where(labels == UNKNOWN, -1, 0))


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(100, 30)).astype(np.float32)


LABELS = np.array([USED] * 20 + [NOT_USED] * 20 + [UNKNOWN] * 20)


def shortcuts(vectors, groups=None):
    """Of a set of 60 real slices and 40 generated ones."""
    groups = np.arange(60).astype(str) if groups is None else groups
    return shortcuts_of(of_set(LABELS, groups), vectors[60:], vectors[:60])


def test_nothing_is_notable_where_nothing_is_wrong(vectors):
    found = shortcuts(vectors)
    assert [s.notable for s in found] == [False] * 4
    assert found[0].figure == pytest.approx(found[0].usual, rel=0.1)
    assert [s.figure for s in found[1:]] == [0, 0, 0]


def test_a_generator_that_repeats_itself_is_notable(vectors):
    vectors[60:] = vectors[60:64].repeat(10, axis=0) + 0.01 * vectors[60:]
    kinds, repeated, *_ = shortcuts(vectors)
    assert kinds.notable
    assert kinds.figure < 5 < kinds.usual
    assert (repeated.notable, repeated.figure, repeated.usual) == (True, 1.0, 0.0)


def test_slices_and_patients_of_both_labels_are_counted(vectors):
    vectors[20:23] = vectors[:3] + 0.01
    groups = np.arange(60).astype(str)
    groups[[10, 30]] = "both"
    *_, same, mixed = shortcuts(vectors, groups)
    assert (same.figure, same.notable) == (3, True)
    assert (mixed.figure, mixed.notable) == (1, True)


def test_a_single_patient_has_no_shortcuts(vectors):
    assert shortcuts(vectors, np.array(["one"] * 60)) == []


@pytest.fixture(scope="module")
def pixels():
    return phantoms(24, 1, 3)[0]


def traces(pixels, sizes, generators, choices=WARD):
    return traces_of(Known(sizes, pixels, generators), {**choices, "linkage": "ward", "metric": "euclidean"})


def test_the_size_of_files_gives_generators_away(pixels):
    generators = np.repeat(["a", "b"], 12)
    sizes = np.where(generators == "a", 30_000, 60_000) + np.arange(24)
    size, levels, comb, equal = traces(pixels, sizes, generators)
    assert (size.figure, size.notable, size.usual) == (1.0, True, 0.0)
    assert all(abs(other.figure) < 0.5 for other in (levels, comb, equal))


def test_brightness_and_combs_give_generators_away_until_slices_are_made_equal(pixels):
    generators, rng = np.repeat(["a", "b"], 12), np.random.default_rng(0)
    changed = pixels.copy()
    changed[12:] = np.clip(np.rint(pixels[12:] * 1.4), 0, 255)
    size, levels, comb, _ = traces(changed, rng.integers(1, 9, 24), generators)
    assert comb.figure > 0.8
    assert comb.notable
    assert abs(size.figure) < 0.3
    assert levels.figure > 0.2


def test_what_is_left_after_equal_histograms_is_beside_what_was_before(pixels):
    generators = np.repeat(["a", "b"], 12)
    smooth = pixels.copy()
    smooth[12:] = ndimage.gaussian_filter(pixels[12:], (0, 1, 1))
    equal = traces(smooth, np.ones(24), generators)[-1]
    assert equal.usual == 1.0  # a generator's smoothness is no trace of its files
    assert equal.figure > 0.8
    assert not equal.notable
    assert equal.beside == "before that"


def test_a_trace_alone_is_what_k_means_of_it_finds(pixels):
    generators = np.repeat(["a", "b"], 12)
    sizes = np.where(np.arange(24) % 3 == 0, 1000, 90_000)
    assert traces(pixels, sizes, generators)[0].figure == pytest.approx(adjusted_rand_score(generators, sizes))
