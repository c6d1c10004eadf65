"""Scores of clusterings on known generators, and names of clusters after them."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from gansfp.errors import UsageError
from gansfp.scoring import attribution
from gansfp.scoring.attribution import Clustering, cluster
from gansfp.scoring.clustering_space import ClusteringSpace
from gansfp.scoring.known_generators import NEW, _subsets, name_clusters, score_on_known
from gansfp.scoring.projections import standardise

CENTRES = np.random.default_rng(0).normal(size=(5, 10)) * 6


def slices(generator, n, seed):
    return (CENTRES[generator] + np.random.default_rng([generator, seed]).normal(size=(n, 10))).astype(np.float32)


def training(generators=(0, 1, 2), n=15):
    x = np.concatenate([slices(g, n, seed=1) for g in generators])
    return x, np.repeat([f"generator {g}" for g in generators], n)


def test_scores_equal_clustering_every_subset_by_itself():
    x, generators = training()
    clusterings = [Clustering(), Clustering(linkage="average", metric="cosine"), Clustering("kmeans", seed=4)]
    got = score_on_known(ClusteringSpace(x + 3), generators, clusterings, k_range=range(2, 6))
    names = np.unique(generators)
    for clustering in clusterings:
        auto, given, right = [], [], []
        for chosen in (names, names[1:], names[[0, 2]], names[:2]):
            rows = np.isin(generators, chosen)
            by_silhouette = cluster(x[rows] + 3, clustering, "auto", range(2, 6))
            auto.append(adjusted_rand_score(generators[rows], by_silhouette.labels))
            right.append(by_silhouette.k == len(chosen))
            labels = cluster(x[rows] + 3, clustering, len(chosen)).labels
            given.append(adjusted_rand_score(generators[rows], labels))
        score = got[clustering]
        assert score.subsets == 4
        assert (score.auto, score.given) == pytest.approx((np.mean(auto), np.mean(given)))
        assert score.k_right == np.mean(right)


def test_a_clustering_that_finds_generators_scores_above_one_that_does_not():
    x, generators = training()
    x[:, 0] += 30 * np.random.default_rng(1).normal(size=len(x))  # unrelated to the generator
    clustering = Clustering()
    plain, scaled = (
        score_on_known(ClusteringSpace(p), generators, [clustering])[clustering] for p in (x, standardise(x, x))
    )
    assert scaled.auto > 0.9 > 0.6 > plain.auto


def test_the_score_of_a_clustering_that_fails_is_its_error_and_the_others_are_scored(monkeypatch):
    def broken(space, clustering, ks):
        raise UsageError("too wide")

    monkeypatch.setitem(attribution.METHODS, "gmm", broken)
    x, generators = training()
    got = score_on_known(ClusteringSpace(x), generators, [Clustering("gmm"), Clustering()])
    assert str(got[Clustering("gmm")]) == "too wide"
    assert got[Clustering()].given == 1


def test_subsets_differ_have_two_or_more_generators_and_begin_with_all():
    assert sorted(tuple(s) for s in _subsets(3, 20, 0)) == [
        (False, True, True),
        (True, False, True),
        (True, True, False),
        (True, True, True),
    ]
    many = _subsets(9, 20, 0)
    assert many[0].all()
    assert len({tuple(s) for s in many}) == 20
    assert min(s.sum() for s in many) >= 2
    assert [s.tolist() for s in many] == [s.tolist() for s in _subsets(9, 20, 0)]
    with pytest.raises(UsageError, match="got 1 known generators"):
        _subsets(1, 20, 0)


def test_clusters_get_the_name_of_their_generator_or_new():
    x_train, generators = training((0, 1, 2), n=40)
    test = [slices(g, 30, seed=2) for g in (2, 4, 0)]
    labels = np.repeat([0, 1, 2], 30)
    got = name_clusters(labels, np.concatenate(test), x_train, generators)
    assert [c.generator for c in got] == ["generator 2", NEW, "generator 0"]
    for c in got:
        known = x_train[generators == c.nearest]
        gaps = np.linalg.norm(test[c.cluster][:, None] - known, axis=2).min(1)
        own = np.linalg.norm(known[:, None] - known, axis=2) + np.diag([np.inf] * 40)
        assert c.distance == pytest.approx(np.median(gaps), rel=1e-5)
        assert c.limit == pytest.approx(np.quantile(own.min(1), 0.95), rel=1e-5)


def test_the_majority_names_and_a_single_slice_names_only_its_copies():
    x_train, generators = training((0, 1), n=20)
    mixed = np.concatenate([slices(0, 7, seed=2), slices(1, 3, seed=2)])
    assert name_clusters(np.zeros(10, int), mixed, x_train, generators)[0].generator == "generator 0"
    single = slices(3, 1, seed=1)
    x_train, generators = np.concatenate([x_train, single]), np.append(generators, "single")
    labels, x = np.array([0, 1]), np.concatenate([single, single + 0.5])
    assert [c.generator for c in name_clusters(labels, x, x_train, generators)] == ["single", NEW]
