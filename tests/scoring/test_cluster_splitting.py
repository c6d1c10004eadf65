"""Estimates of the number of generators from a dendrogram and the known generators."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from sklearn.metrics import adjusted_rand_score, silhouette_score

from gansfp.errors import UsageError
from gansfp.scoring.attribution import Clustering, cluster
from gansfp.scoring.cluster_splitting import (
    BisectionScore,
    BisectionSilhouettes,
    bisect_clusters,
    bisection_limits,
    find_bisections,
    generator_silhouettes,
    score_bisections,
)
from gansfp.scoring.clustering_space import ClusteringSpace

# two generators that are close, and two that are far from all others: the mean silhouette prefers three clusters
LIMITS = BisectionSilhouettes(0.6, 0.6)
CENTRES = np.array([[0, 0], [7, 0], [60, 0], [0, 80]], float)


def blobs(centres: np.ndarray, each: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.concatenate([centre + rng.normal(size=(each, centres.shape[1])) for centre in centres])
    return x.astype(np.float32), np.repeat(np.arange(len(centres)), each).astype(str)


def score(x: np.ndarray, names: np.ndarray) -> BisectionScore:
    known = ClusteringSpace(x)
    own = [generator_silhouettes(known.subset(np.flatnonzero(names == name))) for name in np.unique(names)]
    return score_bisections(known, names, own)


def plain_own_silhouette(x: np.ndarray) -> float:
    """The silhouette of the first bisection whose smaller child is not an outlier, by scipy and scikit-learn."""
    members = {i: [i] for i in range(len(x))}
    tree = linkage(x.astype(np.float64), "ward")
    for step, (a, b) in enumerate(tree[:, :2].astype(int)):
        members[len(x) + step] = members[a] + members[b]
    node = 2 * len(x) - 2
    while node >= len(x):
        a, b = tree[node - len(x), :2].astype(int)
        small, large = sorted((a, b), key=lambda child: len(members[child]))
        if len(members[small]) >= 8:
            rows = members[a] + members[b]
            return float(silhouette_score(x[rows], [0] * len(members[a]) + [1] * len(members[b])))
        node = large
    return 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_silhouette_of_a_generator_equals_the_plain_one(seed):
    x, _ = blobs(np.zeros((1, 4)), each=50, seed=seed)
    assert generator_silhouettes(ClusteringSpace(x, "cpu")).root == pytest.approx(plain_own_silhouette(x), abs=1e-5)


def test_close_generators_are_separated_where_the_mean_silhouette_joins_them():
    x, truth = blobs(CENTRES)
    assert cluster(x, Clustering(), "auto").k == 3
    own = [generator_silhouettes(ClusteringSpace(x[truth == name], "cpu")) for name in np.unique(truth)]
    got = bisect_clusters(find_bisections(ClusteringSpace(x, "cpu")), bisection_limits(own))
    assert adjusted_rand_score(truth, got.labels) == 1
    assert got.worst_accepted > bisection_limits(own).root >= got.best_rejected


def test_one_generator_is_one_cluster():
    known, names = blobs(CENTRES)
    own = [generator_silhouettes(ClusteringSpace(known[names == name], "cpu")) for name in np.unique(names)]
    single, _ = blobs(np.zeros((1, 2)), each=100, seed=9)
    got = bisect_clusters(find_bisections(ClusteringSpace(single, "cpu")), bisection_limits(own))
    assert got.labels.max() == 0
    assert got.worst_accepted == 0


def test_outliers_stay_with_the_generator_they_are_nearest_to():
    x, truth = blobs(CENTRES[:3])
    outliers = np.array([[400, 0], [0, -300]], np.float32)
    got = bisect_clusters(find_bisections(ClusteringSpace(np.concatenate([x, outliers]), "cpu")), LIMITS)
    assert got.labels.max() == 2
    assert adjusted_rand_score(truth, got.labels[:-2]) == 1


@pytest.mark.parametrize("shift", [0, 6.6, 7])
def test_a_few_outliers_change_nothing_else(shift):
    """The root that bisects off outliers has no silhouette. Then that of the other child counts, which is near here to
    the silhouettes of single generators."""
    rng = np.random.default_rng(0)

    def generator(at: float) -> np.ndarray:
        x = rng.normal(size=(200, 20))
        return np.column_stack([2 * x[:, 0], x[:, 1] + at, x[:, 2:]]).astype(np.float32)

    own = [generator_silhouettes(ClusteringSpace(generator(at), "cpu")) for at in (0, 8)]
    limits = bisection_limits(own)
    x = np.concatenate([generator(0), generator(shift)])
    outliers = 15 + rng.normal(size=(3, 20)).astype(np.float32)
    plain, among_outliers = (
        bisect_clusters(find_bisections(ClusteringSpace(slices, "cpu")), limits)
        for slices in (x, np.concatenate([x, outliers]))
    )
    assert plain.labels.max() == (1 if shift else 0)
    np.testing.assert_array_equal(among_outliers.labels[:-3], plain.labels)
    assert among_outliers.worst_accepted == pytest.approx(plain.worst_accepted, abs=1e-3)
    assert among_outliers.best_rejected == pytest.approx(plain.best_rejected, abs=1e-3)


def test_clusters_are_numbered_by_falling_size():
    x = np.concatenate([blobs(CENTRES[2:3], each=20)[0], blobs(CENTRES[:1], each=50)[0]])
    assert np.array_equal(
        bisect_clusters(find_bisections(ClusteringSpace(x, "cpu")), LIMITS).labels, [1] * 20 + [0] * 50
    )


def test_bisections_are_scored_on_a_held_out_generator():
    x, names = blobs(CENTRES)
    got = score(x, names)
    assert got.ari > 0.9
    assert got.margin > 0
    assert adjusted_rand_score(names, got.worst_labels) > 0.9
    # a generator of two parts is bisected when it is held out
    x = np.where((names == "0")[:, None] & (np.arange(len(x)) % 2 == 0)[:, None], x + np.array([0, 30]), x).astype(
        np.float32
    )
    assert score(x, names).ari < got.ari


def test_of_many_generators_a_part_of_the_subsets_is_tried():
    centres = np.random.default_rng(1).normal(size=(12, 6)) * 40
    got = score(blobs(centres, each=20)[0], np.repeat(np.arange(12), 20).astype(str))
    assert got.ari > 0.9


def test_a_single_known_generator_is_refused():
    x, names = blobs(CENTRES[:1])
    with pytest.raises(UsageError, match="got 1 known generators"):
        score(x, names)


def test_identical_slices_are_one_cluster():
    assert (
        bisect_clusters(find_bisections(ClusteringSpace(np.zeros((30, 3), np.float32), "cpu")), LIMITS).labels.max()
        == 0
    )
