"""Distances and projections against scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from gansfp.errors import UsageError
from gansfp.scoring import distances
from gansfp.scoring.distances import (
    METRICS,
    fitted_rows,
    nearest,
    pairwise,
    pca,
    self_distances,
    standardise,
)

SCIPY_NAMES = {"euclidean": "euclidean", "manhattan": "cityblock", "cosine": "cosine"}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def sample(n, d, seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("block", [7, 1024])
def test_pairwise_equals_scipy(metric, block, device):
    x, y = sample(40, 33, 0, offset=5), sample(23, 33, 1, offset=5)
    got = pairwise(x, y, metric, device=device, block=block)
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


def test_cosine_of_a_zero_vector_is_one():
    x = sample(3, 5)
    x[1] = 0
    got = pairwise(x, x, "cosine")
    assert np.all(got[1] == 1)
    assert np.all(got[:, 1] == 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "d"), [(60, 20), (20, 60), (30, 30)])
@pytest.mark.parametrize("components", [1, 7, 0.9, 0.95])
def test_pca_equals_sklearn_up_to_sign(n, d, components, device):
    x = sample(n, d, offset=3) * np.linspace(0.1, 5, d, dtype=np.float32)
    expected = PCA(components, svd_solver="full").fit(x.astype(float))
    got = pca(x, components, device=device)
    assert got.components.shape == expected.components_.shape
    np.testing.assert_allclose(got.variance_ratio, expected.explained_variance_ratio_, rtol=1e-5)
    signs = np.sign((got.components * expected.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(got.components, signs * expected.components_, atol=1e-5)
    np.testing.assert_allclose(got.transform(x, block=11), expected.transform(x) * signs.T, atol=1e-3)
    largest = got.components[np.arange(len(got.components)), np.abs(got.components).argmax(1)]
    assert np.all(largest > 0)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 5000), (5000, 8)])
def test_pca_of_duplicates_is_finite(n, d):
    x = np.repeat(sample(3, d), -(-n // 3), axis=0)[:n]
    got = pca(x, min(n - 1, d))
    assert np.isfinite(got.components).all()
    np.testing.assert_allclose(got.variance_ratio[:2].sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("components", [0, -1, 20, 0.0, 1.0, 1.5])
def test_pca_refuses_what_the_data_cannot_give(components):
    with pytest.raises(UsageError, match=f"got {components!r} for 20 slices"):
        pca(sample(20, 30), components)


def test_standardise_leaves_constant_columns_at_zero():
    reference = sample(50, 4, offset=2)
    reference[:, 2] = 0.1
    x = sample(5, 4)
    got = standardise(x, reference)
    assert not got[:, 2].any()
    for column in (0, 1, 3):
        expected = (x[:, column] - reference[:, column].mean()) / reference[:, column].std()
        np.testing.assert_allclose(got[:, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [1, 4, 99])
def test_nearest_equals_sorting_all(most, monkeypatch):
    x, y = sample(17, 5), sample(11, 5, 1)
    y[3] = y[7]
    plain = pairwise(x, y)
    monkeypatch.setattr(distances, "PAIRS", 40)
    apart, rows = nearest(x, y, most)
    assert apart.shape == rows.shape == (17, min(most, 11))
    np.testing.assert_allclose(apart, np.sort(plain, axis=1)[:, :most], rtol=1e-6)
    assert np.array_equal(rows, np.argsort(plain, axis=1, kind="stable")[:, :most])


@pytest.mark.parametrize(("n", "d"), [(400, 30), (30, 400), (200, 200)])
def test_components_within_a_limit_are_those_of_a_part(n, d):
    limit = 32 * 100**2
    x = sample(n, d) * np.linspace(5, 0.1, d, dtype=np.float32)
    used = fitted_rows(n, d, limit)
    got = pca(x, 3, limit=limit, seed=1)
    if min(n, d) <= 100:
        assert used == n
        np.testing.assert_array_equal(got.components, pca(x, 3).components)
    else:
        assert used == 100
        chosen = np.sort(np.random.default_rng(1).permutation(n)[:100])
        np.testing.assert_array_equal(got.components, pca(x[chosen], 3).components)


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
