"""Distances, dendrograms and silhouettes that clusterings share: exact ones, and approximations within a limit."""

import logging
import tracemalloc

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score, silhouette_score

from gansfp.scoring.attribution import Clustering, cluster, cluster_many
from gansfp.scoring.cluster_splitting import (
    bisect_clusters,
    bisection_limits,
    find_bisections,
    generator_silhouettes,
    score_bisections,
)
from gansfp.scoring.clustering_space import ClusteringSpace, centres_within, exact_bytes, exact_within

LIMIT = exact_bytes(100)  # 600 slices are above it
CENTRES = 12 * np.random.default_rng(7).normal(size=(4, 8))


def blobs(each=150, seed=0, centres=CENTRES):
    """Slices of one generator for each centre, in turn: x, generators."""
    generators = np.tile(np.arange(len(centres)), each)
    noise = np.random.default_rng(seed).normal(size=(len(generators), centres.shape[1]))
    return (centres[generators] + noise).astype(np.float32), generators


def test_the_limit_is_observed():
    assert exact_within(LIMIT) == 100
    assert exact_bytes(exact_within(LIMIT)) <= LIMIT < exact_bytes(exact_within(LIMIT) + 1)
    x, _ = blobs()
    assert ClusteringSpace(x[:100], limit=LIMIT).exact
    assert ClusteringSpace(x[:100], limit=LIMIT).approximation == {}
    space = ClusteringSpace(x, limit=LIMIT)
    assert not space.exact
    assert len(space.leaves) <= centres_within(LIMIT) == len(space.silhouette_sample) < 100
    assert space.approximation == {"centres": len(space.leaves), "sample": len(space.silhouette_sample)}


def test_the_log_says_how_much_memory_exact_distances_would_take(caplog):
    caplog.set_level(logging.INFO)
    ClusteringSpace(np.zeros((50_000, 1), np.float32))
    assert "50,000 slices would take 40.00 GB" in caplog.text
    assert "above the limit of 0.25 GB: 2,000 centres stand for them" in caplog.text


def test_a_leaf_is_the_mean_of_its_slices():
    x, _ = blobs()
    space = ClusteringSpace(x, limit=LIMIT)
    assert space.weights.sum() == len(x)
    for leaf in range(len(space.leaves)):
        members = x[space.leaf == leaf]
        assert len(members) == space.weights[leaf]
        np.testing.assert_allclose(space.leaves[leaf], members.mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("linkage", "metric"),
    [
        ("ward", "euclidean"),
        ("average", "euclidean"),
        ("complete", "manhattan"),
        ("single", "euclidean"),
        ("average", "cosine"),
    ],
)
def test_an_approximation_finds_well_separated_generators(linkage, metric):
    x, generators = blobs()
    clustering = Clustering(linkage=linkage, metric=metric)
    exact, approximate = (cluster(x, clustering, "auto", range(2, 8), limit=limit) for limit in (10**9, LIMIT))
    assert exact.k == approximate.k == 4
    assert adjusted_rand_score(generators, approximate.labels) == 1
    assert np.array_equal(exact.labels, approximate.labels)
    assert approximate.silhouettes[4] == pytest.approx(exact.silhouettes[4], abs=0.05)


def test_wards_tree_continues_from_the_centres():
    """It equals scipy's tree of copies of the centres, one for each slice; a slice gets the label of its centre."""
    x, _ = blobs(each=100, centres=CENTRES / 6)
    space = ClusteringSpace(x, limit=LIMIT)
    plain = scipy_linkage(space.leaves[space.leaf].astype(np.float64), "ward")
    for k, labels in space.cuts("ward", "euclidean", [2, 3, 5, 9]).items():
        assert adjusted_rand_score(labels, fcluster(plain, k, "maxclust")) == 1


@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "cosine"])
def test_silhouettes_are_of_a_sample_of_the_slices(metric):
    x, generators = blobs(centres=CENTRES / 8)
    space = ClusteringSpace(x, limit=LIMIT)
    apart = cdist(
        x[space.silhouette_sample], x[space.silhouette_sample], {"manhattan": "cityblock"}.get(metric, metric)
    )
    expected = silhouette_score(apart, generators[space.silhouette_sample], metric="precomputed")
    assert space.silhouettes(metric, [generators])[0] == pytest.approx(expected, abs=1e-4)


def test_no_more_metrics_are_in_memory_than_exact_bytes_counts():
    for limit in (10**9, LIMIT):
        space = ClusteringSpace(blobs()[0], limit=limit)
        for metric in ("euclidean", "cosine", "manhattan", "euclidean"):
            space.tree("average", metric)
            space.distances(metric)
        assert sum(matrix.nbytes for matrix in space._distances.values()) <= exact_bytes(len(space.leaves))


@pytest.mark.parametrize("limit", [LIMIT, exact_bytes(160)])  # a single generator is above the limit too, or below it
def test_bisections_within_a_limit_find_the_same_generators_as_exact_ones(limit):
    known, names = blobs(seed=1)
    x, generators = blobs(centres=np.concatenate([CENTRES, CENTRES[:1] + 5]))
    got = []
    for bytes_ in (10**9, limit):
        space = ClusteringSpace(known, limit=bytes_)
        own = [generator_silhouettes(space.subset(np.flatnonzero(names == name))) for name in range(4)]
        labels = bisect_clusters(find_bisections(ClusteringSpace(x, limit=bytes_)), bisection_limits(own)).labels
        assert adjusted_rand_score(generators, labels) == 1
        got.append(score_bisections(space, names.astype(str), own))
    assert got[0].ari == got[1].ari == 1
    assert got[1].margin == pytest.approx(got[0].margin, abs=0.1)


def test_the_seed_determines_the_centres():
    x, _ = blobs(centres=CENTRES / 12)
    first, again, other = (ClusteringSpace(x, limit=LIMIT, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.leaf, again.leaf)
    assert not np.array_equal(first.leaf, other.leaf)


def test_memory_stays_within_the_limit():
    """20,000 slices, whose float32 distances would take 1.6 GB, take 20 MB, apart from what grows with n."""
    x = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    limit = 20_000_000
    hierarchical = [Clustering(linkage=linkage) for linkage in ("ward", "average", "complete", "single")]
    tracemalloc.start()
    try:
        results = list(cluster_many(x, [*hierarchical, Clustering("kmeans")], [2, 5], limit=limit))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(results) == 10
    assert all(len(result.labels) == len(x) for result in results)
    assert peak < limit + 6 * x.nbytes
