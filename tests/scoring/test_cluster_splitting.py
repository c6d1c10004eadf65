"""Counting generators by what the known ones look like."""

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

# two generators that are close, two that are far from all others: the mean silhouette sees three clusters
CLEAR = BisectionSilhouettes(0.6, 0.6)
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
    """The first Ward split whose smaller half is no outlier, by scipy's tree and scikit-learn's silhouette."""
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
def test_own_silhouette_equals_the_plain_one(seed):
    x, _ = blobs(np.zeros((1, 4)), each=50, seed=seed)
    assert generator_silhouettes(ClusteringSpace(x, "cpu")).root == pytest.approx(plain_own_silhouette(x), abs=1e-5)


def test_close_generators_are_told_apart_where_the_silhouette_leaves_them_together():
    x, truth = blobs(CENTRES)
    assert cluster(x, Clustering(), "auto").k == 3
    own = [generator_silhouettes(ClusteringSpace(x[truth == name], "cpu")) for name in np.unique(truth)]
    found = bisect_clusters(find_bisections(ClusteringSpace(x, "cpu")), bisection_limits(own))
    assert adjusted_rand_score(truth, found.labels) == 1
    assert found.worst_accepted > bisection_limits(own).root >= found.best_rejected


def test_one_generator_is_one_cluster():
    known, names = blobs(CENTRES)
    own = [generator_silhouettes(ClusteringSpace(known[names == name], "cpu")) for name in np.unique(names)]
    alone, _ = blobs(np.zeros((1, 2)), each=100, seed=9)
    found = bisect_clusters(find_bisections(ClusteringSpace(alone, "cpu")), bisection_limits(own))
    assert found.labels.max() == 0
    assert found.worst_accepted == 0


def test_outliers_stay_with_the_generator_they_are_nearest_to():
    x, truth = blobs(CENTRES[:3])
    strays = np.array([[400, 0], [0, -300]], np.float32)
    found = bisect_clusters(find_bisections(ClusteringSpace(np.concatenate([x, strays]), "cpu")), CLEAR)
    assert found.labels.max() == 2
    assert adjusted_rand_score(truth, found.labels[:-2]) == 1


def test_clusters_are_numbered_by_falling_size():
    x = np.concatenate([blobs(CENTRES[2:3], each=20)[0], blobs(CENTRES[:1], each=50)[0]])
    assert np.array_equal(
        bisect_clusters(find_bisections(ClusteringSpace(x, "cpu")), CLEAR).labels, [1] * 20 + [0] * 50
    )


def test_the_rule_is_tried_on_a_generator_it_has_not_seen():
    x, names = blobs(CENTRES)
    found = score(x, names)
    assert found.ari > 0.9
    assert found.margin > 0
    assert adjusted_rand_score(names, found.worst_labels) > 0.9
    # one generator that falls in two is split when it is the one not seen
    x = np.where((names == "0")[:, None] & (np.arange(len(x)) % 2 == 0)[:, None], x + np.array([0, 30]), x).astype(
        np.float32
    )
    assert score(x, names).ari < found.ari


def test_more_generators_than_all_subsets_can_be_tried_of():
    centres = np.random.default_rng(1).normal(size=(12, 6)) * 40
    found = score(blobs(centres, each=20)[0], np.repeat(np.arange(12), 20).astype(str))
    assert found.ari > 0.9


def test_a_single_known_generator_is_refused():
    x, names = blobs(CENTRES[:1])
    with pytest.raises(UsageError, match="got 1 known generators"):
        score(x, names)


def test_identical_slices_do_not_split():
    assert (
        bisect_clusters(find_bisections(ClusteringSpace(np.zeros((30, 3), np.float32), "cpu")), CLEAR).labels.max() == 0
    )
