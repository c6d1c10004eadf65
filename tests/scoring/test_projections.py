"""Principal components, coordinates and z-scores against scikit-learn and plain numpy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from gansfp.errors import UsageError
from gansfp.scoring import projections
from gansfp.scoring.projections import coordinates, fitted_rows, pca, standardise

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def sample(n, d, seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + offset).astype(np.float32)


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


@pytest.mark.parametrize(("n", "d"), [(400, 30), (30, 400), (200, 200)])
def test_components_of_many_long_vectors_lie_in_the_span_of_a_part(n, d, monkeypatch):
    monkeypatch.setattr(projections, "MOST_FITTED", 100)
    x = sample(n, d) * np.linspace(5, 0.1, d, dtype=np.float32)
    used = fitted_rows(n, d)
    got = pca(x, 1e-9, seed=1, at_least=3)
    if min(n, d) <= 100:
        assert used == n
        np.testing.assert_array_equal(got.components, pca(x, 3, seed=2).components)
    else:
        assert used == 100
        chosen = x[np.sort(np.random.default_rng(1).permutation(n)[:100])].astype(float)
        span = np.linalg.svd(chosen - chosen.mean(0), full_matrices=False)[2][:99]
        centred = x.astype(float) - x.mean(0)
        within = centred @ span.T
        _, strengths, axes = np.linalg.svd(within, full_matrices=False)
        similarity = np.abs((axes[:3] @ span) @ got.components.T)
        np.testing.assert_allclose(similarity, np.eye(3), atol=1e-3)
        shares = strengths[:3] ** 2 / np.square(centred).sum()
        np.testing.assert_allclose(got.variance_ratio, shares, rtol=1e-4)


def test_a_number_of_components_of_many_long_vectors_is_nearly_the_best(monkeypatch):
    x = sample(400, 200) * np.geomspace(5, 1e-4, 200, dtype=np.float32)
    exact = pca(x, 4)
    monkeypatch.setattr(projections, "MOST_FITTED", 100)
    monkeypatch.setattr(projections, "MOST_MEASURED", 300)
    got = pca(x, 4)
    assert (got.components.shape, got.fitted_to) == ((4, 200), 100)
    np.testing.assert_allclose(got.components @ got.components.T, np.eye(4), atol=1e-4)
    assert got.variance_ratio.sum() > 0.9 * exact.variance_ratio.sum()


@pytest.mark.parametrize("most_fitted", [2048, 500])
def test_components_of_slices_that_repeat_are_orthogonal_and_end_at_the_rank(most_fitted, monkeypatch):
    monkeypatch.setattr(projections, "MOST_FITTED", most_fitted)
    rng = np.random.default_rng(0)
    distinct = sample(40, 1200, offset=3) / np.sqrt(1 + np.arange(1200, dtype=np.float32))
    x = distinct[rng.integers(0, len(distinct), 1100)]
    got = pca(x, 100)
    assert got.fitted_to == min(most_fitted, len(x))
    assert got.rank == 39
    products = got.components.astype(float) @ got.components.T
    np.testing.assert_allclose(products, np.diag(np.arange(100) < 39), atol=1e-5)
    exact = PCA(39, svd_solver="full").fit(x.astype(float))
    np.testing.assert_allclose(got.variance_ratio[:39], exact.explained_variance_ratio_, rtol=1e-4)
    np.testing.assert_allclose(got.variance_ratio[39:], 0, atol=1e-6)
    inside = np.square(got.transform(x[:5])).sum(1)
    np.testing.assert_allclose(inside, np.square(exact.transform(x[:5])).sum(1), rtol=1e-3)


@pytest.mark.parametrize("components", [3, 0.5, 0.8])
def test_the_leading_components_are_those_of_a_smaller_fit(components):
    x = sample(80, 30) * np.linspace(5, 0.1, 30, dtype=np.float32)
    whole, part = pca(x, 0.9, at_least=20), pca(x, components)
    assert len(whole.components) >= 20
    assert len(pca(x, 5, at_least=500).components) == 30
    leading = whole.leading(components)
    np.testing.assert_array_equal(leading.components, part.components)
    np.testing.assert_array_equal(leading.variance_ratio, part.variance_ratio)
    assert leading.fitted_to == part.fitted_to == 80


@pytest.mark.parametrize(("n", "d"), [(40, 60), (60, 40)])
def test_coordinates_keep_distances(n, d):
    x = sample(n, d, offset=2)
    got = coordinates(x)
    assert got.shape == ((n, n - 1) if n <= d else (n, d))
    np.testing.assert_allclose(cdist(got, got), cdist(x.astype(float), x.astype(float)), atol=1e-5)
