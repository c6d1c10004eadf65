"""Dendrograms and cuts against scipy and scikit-learn; weighted dendrograms against those of duplicates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from gansfp.errors import UsageError
from gansfp.scoring.dendrograms import LINKAGES, cluster_centres, cuts, dendrogram, dendrogram_centres
from gansfp.scoring.distances import self_distances


def sample(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def cut(tree, k):
    """The labels of a single cut."""
    return cuts(tree, [k])[k]


@pytest.mark.parametrize(
    ("linkage", "metric"),
    [("ward", "euclidean"), ("average", "cosine"), ("complete", "manhattan"), ("single", "euclidean")],
)
def test_cuts_equal_sklearn_and_scipy(linkage, metric):
    x = sample(90, 6, 3)
    tree = dendrogram(self_distances(x, metric), linkage, metric)
    got = cuts(tree, [1, 2, 5, 17, 90])
    for k, labels in got.items():
        assert labels.dtype == np.int64
        assert sorted(set(labels.tolist())) == list(range(k))
        _, first = np.unique(labels, return_index=True)
        assert np.all(np.diff(first) > 0), "clusters are numbered by their first member"
        expected = AgglomerativeClustering(n_clusters=k, linkage=linkage, metric=metric).fit_predict(x)
        assert adjusted_rand_score(labels, expected) == 1
        assert adjusted_rand_score(labels, fcluster(tree, k, "maxclust")) == 1
        assert np.array_equal(labels, cut(tree, k))


def test_cut_of_tied_slices_still_has_exactly_k_clusters():
    x = np.repeat(sample(2, 3), 5, axis=0)
    tree = dendrogram(self_distances(x), "ward")
    assert [cut(tree, k).max() + 1 for k in (2, 3, 7)] == [2, 3, 7]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 3)), min_size=2, max_size=20),
    st.sampled_from(LINKAGES),
    st.booleans(),
)
@settings(deadline=None)
def test_cuts_have_exactly_k_clusters_and_are_nested(points, linkage, weighted):
    """On points of a small grid, so that many points and many distances are equal."""
    x = np.array([point[:2] for point in points], np.float32)
    weights = np.array([point[2] for point in points]) if weighted else None
    labels = cuts(dendrogram(self_distances(x), linkage, weights=weights), range(1, len(x) + 1))
    for k in range(1, len(x) + 1):
        assert sorted(set(labels[k].tolist())) == list(range(k))
        if k > 1:
            pairs = set(zip(labels[k].tolist(), labels[k - 1].tolist(), strict=True))
            assert len(pairs) == k, "each cluster lies in one cluster of the coarser cut"


def test_centres_of_all_cuts_equal_the_means():
    x = sample(60, 9, 5)
    tree = dendrogram(self_distances(x), "average")
    ks = [40, 1, 7, 8, 2, 60]
    centres, rows = dendrogram_centres(x, tree, ks)
    assert sorted(rows) == sorted(ks)
    assert len(centres) < 2 * 60
    for k in ks:
        labels = cut(tree, k)
        expected = np.stack([x[labels == c].mean(0) for c in range(k)])
        np.testing.assert_allclose(centres[rows[k]], expected, atol=1e-5)
        np.testing.assert_allclose(cluster_centres(x, labels), expected, atol=1e-5)


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("seed", range(4))
def test_weights_are_duplicates(linkage, seed):
    rng = np.random.default_rng(seed)
    x, weights = sample(40, 5, seed), rng.integers(1, 6, 40)
    tree = dendrogram(self_distances(x), linkage, weights=weights)
    member = rng.permutation(np.repeat(np.arange(40), weights))
    plain = scipy_linkage(x[member].astype(np.float64), linkage)
    np.testing.assert_allclose(tree[:, 2], plain[-39:, 2], rtol=1e-5)
    for k in (1, 2, 3, 7, 20, 40):
        assert adjusted_rand_score(cut(tree, k)[member], fcluster(plain, k, "maxclust")) == 1
    if linkage in ("ward", "average"):
        assert sorted(tree[:, 3].tolist()) == sorted(plain[-39:, 3].tolist())
        centres, rows = dendrogram_centres(x, tree, [3], weights)
        expected = np.stack([x[member][cut(tree, 3)[member] == c].mean(0) for c in range(3)])
        np.testing.assert_allclose(centres[rows[3]], expected, atol=1e-5)


def test_equal_weights_are_scipys_dendrogram_ties_and_all():
    x = np.repeat(sample(12, 3), 3, axis=0).round(1)
    for linkage in ("ward", "average"):
        heights = [dendrogram(self_distances(x), linkage, weights=w)[:, 2] for w in (None, np.full(36, 1))]
        np.testing.assert_allclose(*heights, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: dendrogram(self_distances(x), "median"), "got 'median', expected one of"),
        (
            lambda x: dendrogram(self_distances(x, "cosine"), "ward", "cosine"),
            "needs the metric 'euclidean', got 'cosine'",
        ),
        (lambda x: dendrogram(self_distances(x[:1])), "got 1 slices, expected at least 2"),
        (lambda x: cut(dendrogram(self_distances(x)), 7), "got k=7 for 6 slices"),
        (lambda x: cut(dendrogram(self_distances(x)), 0), "got k=0 for 6 slices"),
    ],
)
def test_bad_usage_is_one_line_with_the_value(call, message):
    with pytest.raises(UsageError, match=message):
        call(sample(6, 3))
