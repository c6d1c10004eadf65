"""Clusterings against scikit-learn, up to the numbers of clusters."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from gansfp.errors import UsageError
from gansfp.scoring import attribution, clustering_space
from gansfp.scoring.attribution import (
    COVARIANCES,
    INITS,
    Clustering,
    best_k,
    by_size,
    cluster,
    cluster_many,
    prepare,
)
from gansfp.scoring.clustering_space import silhouettes
from gansfp.scoring.distances import self_distances


def blobs(seed=0, sizes=(30, 20, 14, 9), d=8, gap=6.0):
    """Slices of one generator for each size, shuffled: x, generators."""
    rng = np.random.default_rng(seed)
    generators = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = rng.normal(size=(len(sizes), d)) * gap
    return (centres[generators] + rng.normal(size=(len(generators), d))).astype(np.float32), generators


@pytest.mark.parametrize(
    "clustering",
    [
        Clustering(),
        Clustering(linkage="average", metric="cosine"),
        Clustering(linkage="complete", metric="manhattan", standardise=True, components=3),
        Clustering(linkage="single", components=0.9),
        Clustering("kmeans", components=0.95, seed=3),
        Clustering("gmm", components=4, seed=1),
    ],
    ids=lambda c: f"{c.method}-{c.linkage}-{c.components}",
)
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_labels_equal_sklearn(clustering, k):
    x, _ = blobs(2, gap=2.0)
    got = cluster(x, clustering, k)
    z = StandardScaler().fit_transform(x.astype(float)) if clustering.standardise else x.astype(float)
    z = PCA(clustering.components, svd_solver="full").fit_transform(z) if clustering.components else z
    model = {
        "hierarchical": AgglomerativeClustering(k, linkage=clustering.linkage, metric=clustering.metric),
        "kmeans": KMeans(k, n_init=10, random_state=clustering.seed),
        "gmm": GaussianMixture(k, random_state=clustering.seed),
    }[clustering.method]
    assert adjusted_rand_score(model.fit_predict(z), got.labels) == pytest.approx(1)
    assert got.labels.dtype == np.int64
    if k > 1:
        metric = {"manhattan": "cityblock"}.get(clustering.metric, clustering.metric)
        assert got.silhouettes[k] == pytest.approx(silhouette_score(z, got.labels, metric=metric), abs=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("init", INITS)
def test_every_mixture_equals_sklearn(init, covariance):
    x, _ = blobs(4, d=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = GaussianMixture(3, covariance_type=covariance, init_params=init, random_state=2).fit_predict(
            x.astype(float)
        )
    got = cluster(x, Clustering("gmm", init=init, covariance=covariance, seed=2), 3)
    assert adjusted_rand_score(expected, got.labels) == 1


@pytest.mark.parametrize("method", ["hierarchical", "kmeans", "gmm"])
def test_auto_finds_the_number_of_generators(method):
    x, generators = blobs(1)
    got = cluster(x, Clustering(method, components=3), "auto")
    assert got.k == 4
    assert adjusted_rand_score(generators, got.labels) == 1
    assert sorted(got.silhouettes) == list(range(2, 13))
    assert max(got.silhouettes, key=lambda k: got.silhouettes[k]) == 4
    assert np.array_equal(got.labels, cluster(x, Clustering(method, components=3), 4).labels)


def test_auto_tries_only_numbers_of_clusters_below_the_number_of_slices():
    x, _ = blobs(0, sizes=(3, 2))
    assert sorted(cluster(x, Clustering(), "auto").silhouettes) == [2, 3, 4]
    with pytest.raises(UsageError, match="got 2 slices, too few"):
        cluster(x[:2], Clustering(), "auto")


def test_best_k_is_the_smallest_of_equals_and_never_undefined():
    assert best_k({5: 0.4, 3: 0.4, 2: 0.1}) == 3
    assert best_k({2: float("nan"), 7: -0.5}) == 7


def test_silhouettes_equal_sklearn_also_with_single_slices_and_duplicates():
    x, generators = blobs(3, sizes=(12, 9, 5))
    x[1] = x[0]
    x[5:8] = x[4]
    rng = np.random.default_rng(0)
    with_single = generators.copy()
    with_single[7] = 9
    labelings = [generators, with_single, rng.integers(0, 5, 26), rng.integers(0, 25, 26) * 3]
    got = silhouettes(self_distances(x), labelings)
    expected = [silhouette_score(x.astype(float), labels) for labels in labelings]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.isnan(silhouettes(self_distances(x), [np.zeros(26, int), np.arange(26)])).all()
    assert silhouettes(np.zeros((4, 4), np.float32), [np.array([0, 0, 1, 1])])[0] == 0


def test_clusters_are_numbered_by_size_then_first_member():
    assert by_size(np.array([7, 3, 3, 5, 5, 3, 1, 7])).tolist() == [1, 0, 0, 2, 2, 0, 3, 1]


def test_many_equals_one_by_one_and_shares_the_work(monkeypatch):
    x, _ = blobs(5)
    clusterings = [
        Clustering(linkage=linkage, metric=metric, components=components)
        for components in (0, 0.9)
        for linkage, metric in (("ward", "euclidean"), ("average", "euclidean"), ("average", "cosine"))
    ]
    clusterings.insert(2, Clustering("kmeans"))
    counts = {"self_distances": 0, "dendrogram": 0, "pca": 0}

    def counted(module, name):
        plain = getattr(module, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return plain(*args, **kwargs)

        return call

    for module, name in ((clustering_space, "self_distances"), (clustering_space, "dendrogram"), (attribution, "pca")):
        monkeypatch.setattr(module, name, counted(module, name))
    many = {(r.clustering, r.k): r for r in cluster_many(x, clusterings, [2, 5, 3, 5])}
    assert counts == {"self_distances": 4, "dendrogram": 6, "pca": 1}
    assert set(many) == {(c, k) for c in clusterings for k in (2, 3, 5)}
    for (clustering, k), result in many.items():
        alone = cluster(x, clustering, k)
        assert np.array_equal(alone.labels, result.labels)
        assert alone.silhouettes == pytest.approx(result.silhouettes, abs=1e-12)


def test_the_same_seed_gives_the_same_clusters():
    x, _ = blobs(6, gap=0.5)
    for method in ("kmeans", "gmm"):
        first, again = (cluster(x, Clustering(method, components=3, seed=5), 5).labels for _ in range(2))
        assert np.array_equal(first, again)


def test_prepare_scales_then_projects():
    x, _ = blobs(7)
    x[:, 0] *= 1000
    np.testing.assert_array_equal(prepare(x, False, 0), x)
    assert prepare(x, False, 0.9).shape[1] == 1, "one column has almost all variance"
    assert prepare(x, True, 0.9).shape[1] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dbscan"}, "method: got 'dbscan', expected one of .'hierarchical', 'kmeans', 'gmm'"),
        ({"linkage": "median"}, "linkage: got 'median'"),
        ({"metric": "l2"}, "metric: got 'l2'"),
        ({"metric": "cosine"}, "'ward' needs the metric 'euclidean', got 'cosine'"),
        ({"method": "gmm", "covariance": "round"}, "covariance: got 'round'"),
        ({"method": "gmm", "init": "zeros"}, "init: got 'zeros'"),
        ({"method": "kmeans", "linkage": "average"}, "linkage: got 'average' for 'kmeans', which has none"),
        ({"covariance": "diag"}, "covariance: got 'diag' for 'hierarchical', which has none"),
        ({"components": -1}, "components: got -1"),
        ({"components": 1.0}, "components: got 1.0"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Clustering(**arguments)


def test_data_that_do_not_fit_a_clustering_are_refused():
    x, _ = blobs(0, sizes=(4, 3))
    with pytest.raises(UsageError, match="got k=8 for 7 slices"):
        cluster(x, Clustering("kmeans"), 8)
    with pytest.raises(UsageError, match="got 30 for 7 slices"):
        cluster(x, Clustering(components=30), 2)
    with pytest.raises(UsageError, match=r"k=4 takes 12.8 GB; ask for fewer components"):
        cluster(np.zeros((7, 20000), np.float32), Clustering("gmm"), 4)
