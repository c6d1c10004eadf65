"""Distances and nearest neighbours against scipy, and the second look in float64."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from gansfp.errors import UsageError
from gansfp.scoring import distances
from gansfp.scoring.distances import METRICS, distance_strips, nearest, pairwise, self_distances

SCIPY_NAMES = {"euclidean": "euclidean", "manhattan": "cityblock", "cosine": "cosine"}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def sample(n, d, seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("pairs", [7 * 23, 1 << 22])
def test_pairwise_equals_scipy(metric, pairs, device, monkeypatch):
    monkeypatch.setattr(distances, "PAIRS", pairs)
    x, y = sample(40, 33, 0, offset=5), sample(23, 33, 1, offset=5)
    got = pairwise(x, y, metric, device=device)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, cdist(x.astype(float), y.astype(float), SCIPY_NAMES[metric]), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_self_distances_are_symmetric_with_zero_diagonal_and_equal_pairwise(metric):
    x = sample(37, 12)
    got = self_distances(x, metric, block=10)
    assert np.array_equal(got, got.T)
    assert not got.diagonal().any()
    np.testing.assert_allclose(got, cdist(x.astype(float), x.astype(float), SCIPY_NAMES[metric]), rtol=2e-6, atol=1e-6)


def test_near_duplicates_far_from_the_origin_keep_their_distance():
    # |x| is about 10^5 times the distance: a float32 product would return noise of the order of 30 here
    x = sample(10, 1000, offset=100)
    y = x.copy()
    y[:, 0] += 0.25
    np.testing.assert_allclose(pairwise(x, y).diagonal(), 0.25, rtol=1e-3)
    assert pairwise(x, x).diagonal().max() < 1e-6 * np.linalg.norm(x[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("copies", [2, 60])  # near pairs: few, looked at one by one, or so many that all are computed
@pytest.mark.parametrize("apart", [0.0, 1e-5, 1e-3, 0.1])
def test_near_pairs_get_a_second_look(apart, copies, metric, device):
    x, y = sample(64, 500, 0, offset=3), sample(64, 500, 1, offset=3)
    x[:copies] = y[:copies] + apart * sample(copies, 500, 2)
    expected = cdist(x.astype(float), y.astype(float), SCIPY_NAMES[metric])
    got = pairwise(x, y, metric, device=device)
    # in float32 without a second look, euclidean distances of copies come out as about 0.01 here
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=1e-9)


def test_strips_are_the_rows_of_pairwise(monkeypatch):
    x, y = sample(20, 6), sample(11, 6, 1)
    whole = pairwise(x, y)
    monkeypatch.setattr(distances, "PAIRS", 33)
    parts = list(distance_strips(x, y))
    assert [(part.start, part.stop) for part, _ in parts] == [(i, min(i + 3, 20)) for i in range(0, 20, 3)]
    np.testing.assert_allclose(np.concatenate([strip for _, strip in parts]), whole, rtol=1e-5)


def test_cosine_of_a_zero_vector_is_one():
    x = sample(3, 5)
    x[1] = 0
    got = pairwise(x, x, "cosine")
    assert np.all(got[1] == 1)
    assert np.all(got[:, 1] == 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("most", [1, 4, 99])
def test_nearest_equals_sorting_all(most, device, monkeypatch):
    x, y = sample(17, 5), sample(31, 5, 1)
    y[3] = y[7]
    plain = cdist(x.astype(float), y.astype(float))
    monkeypatch.setattr(distances, "PAIRS", 40)
    apart, rows = nearest(x, y, most, device)
    assert apart.shape == rows.shape == (17, min(most, 31))
    np.testing.assert_allclose(apart, np.sort(plain, axis=1)[:, :most], rtol=1e-6)
    assert np.array_equal(rows, np.argsort(plain, axis=1, kind="stable")[:, :most])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: pairwise(x, x, "hamming"), "got 'hamming', expected one of"),
        (lambda x: pairwise(x, x[:, :2]), r"shapes \(6, 3\) and \(6, 2\)"),
    ],
)
def test_bad_usage_is_one_line_with_the_value(call, message):
    with pytest.raises(UsageError, match=message):
        call(sample(6, 3))
