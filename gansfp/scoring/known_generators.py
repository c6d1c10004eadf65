"""Uses the known generators: scores clusterings on their training slices, and names clusters after them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gansfp.errors import UsageError
from gansfp.scoring.attribution import Clustering, best_k, results
from gansfp.scoring.clustering_space import ClusteringSpace
from gansfp.scoring.distances import nearest
from gansfp.statistics.metrics import partition_metrics

NEW = "new"  # the name of a cluster that resembles no known generator


@dataclass(frozen=True)
class KnownScore:
    """How well a clustering finds known generators again: mean adjusted Rand indices over subsets of the generators.

    auto: with the number of clusters chosen by silhouette; given: with the true number; k_right: the share of subsets
    for which the chosen number is the true number; subsets: how many subsets were tried.
    """

    clustering: Clustering
    auto: float
    given: float
    k_right: float
    subsets: int


def score_on_known(
    space: ClusteringSpace,
    generators: np.ndarray,
    clusterings: Sequence[Clustering],
    k_range: Iterable[int] = range(2, 13),
    subsets: int = 20,
    seed: int = 0,
) -> dict[Clustering, KnownScore | UsageError]:
    """Tries clusterings on the training slices of two or more known generators at a time, where the truth is known.

    Each subset of the generators poses the problem of the test slices, with another answer: how many generators there
    are, and which of them made each slice. space: n slices, prepared as the clusterings say; generators: (n,) str. The
    subsets are all those of 2 or more generators, or `subsets` different ones, and always include all generators.
    z-scores, PCA and distances are computed once, on all slices; a subset uses its part of them. The score of a
    clustering that fails is its error. Raises UsageError for fewer than two generators.
    """
    names, codes = np.unique(generators, return_inverse=True)
    ks = list(k_range)
    masks = _subsets(len(names), subsets, seed)
    scores: dict[Clustering, list[tuple[float, float, bool]]] = {c: [] for c in clusterings}
    outcome: dict[Clustering, KnownScore | UsageError] = {}
    for mask in masks:
        rows = np.flatnonzero(mask[codes])
        subset, truth = space if mask.all() else space.subset(rows), codes[rows]
        true_k = int(mask.sum())
        possible = [k for k in ks if 2 <= k < len(rows)]
        if not possible:
            raise UsageError(f"clusters: got {len(rows)} slices of {true_k} generators, too few to choose k from {ks}")
        for clustering in (c for c in clusterings if c not in outcome):
            try:
                by_k = {r.k: r for r in results(subset, clustering, sorted({*possible, true_k}))}
            except UsageError as error:
                outcome[clustering] = error
                continue
            chosen = best_k({k: by_k[k].silhouettes[k] for k in possible})
            auto, given = (partition_metrics(truth, by_k[k].labels)["ari"] for k in (chosen, true_k))
            scores[clustering].append((auto, given, chosen == true_k))
    for clustering in (c for c in clusterings if c not in outcome):
        auto, given, right = (float(value) for value in np.mean(scores[clustering], axis=0))
        outcome[clustering] = KnownScore(clustering, auto, given, right, len(masks))
    return outcome


@dataclass(frozen=True)
class ClusterName:
    """The name of a cluster.

    generator: the known generator that it resembles, or "new" if `distance` is above `limit`; nearest: the nearest
    known generator in any case; distance, limit: see name_clusters.
    """

    cluster: int
    generator: str
    nearest: str
    distance: float
    limit: float


def name_clusters(
    labels: np.ndarray,
    x: np.ndarray,
    x_train: np.ndarray,
    generators: np.ndarray,
    quantile: float = 0.95,
    device: str = "cpu",
) -> list[ClusterName]:
    """Names each cluster after the known generator whose training slices are nearest to most of its slices.

    distance: the median distance from a slice of the cluster to the nearest training slice of that generator. limit:
    the `quantile` of the distances from a training slice of that generator to the nearest other one. The cluster is
    "new" if the distance is above the limit: half of its slices are then further away than almost all slices of the
    generator are from each other. Two clusters may get the same name. A generator with a single slice has the limit 0,
    so it names only copies of that slice. labels: (n,), x: (n, d), x_train: (m, d) of the same embedding, generators:
    (m,) str.
    """
    names, codes = np.unique(generators, return_inverse=True)
    # the distance of every slice to the nearest training slice of every generator: (n, g)
    to_generators = np.stack(
        [nearest(x, x_train[codes == g], 1, device=device)[0][:, 0] for g in range(len(names))], axis=1
    )
    cluster_names = []
    for c in np.unique(labels):
        of_cluster = to_generators[labels == c]
        g = int(np.bincount(of_cluster.argmin(1), minlength=len(names)).argmax())
        distance, limit = float(np.median(of_cluster[:, g])), _own_spread(x_train[codes == g], quantile, device)
        name = str(names[g])
        cluster_names.append(ClusterName(int(c), name if distance <= limit else NEW, name, distance, limit))
    return cluster_names


def _subsets(count: int, most: int, seed: int) -> list[np.ndarray]:
    """Returns masks (count,) bool of different subsets of 2 or more generators, at most `most`; the first holds all."""
    if count < 2:
        raise UsageError(f"got {count} known generators, and choosing a clustering needs at least 2")
    rng = np.random.default_rng(seed)
    total = 2**count - count - 1
    codes = [2**count - 1]
    if total <= most:
        codes += [c for c in range(2**count - 2, 0, -1) if c.bit_count() > 1]
    while len(codes) < min(most, total):
        code = sum(1 << int(i) for i in np.flatnonzero(rng.random(count) < 0.5))
        if code.bit_count() > 1 and code not in codes:
            codes.append(code)
    return [np.array([code >> i & 1 for i in range(count)], dtype=bool) for code in codes]


def _own_spread(x: np.ndarray, quantile: float, device: str) -> float:
    """Returns that quantile of the distances of slices (m, d) to the nearest other slice; 0 for a single slice."""
    if len(x) < 2:
        return 0.0
    to_two = nearest(x, x, 2, device=device)[0]  # the first is the slice itself, or its copy
    return float(np.quantile(to_two[:, 1], quantile))
