"""What the known generators are good for: choosing a clustering by them, and naming clusters after them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gansfp.errors import UsageError
from gansfp.scoring.attribution import Clustering, best_k, results
from gansfp.scoring.clustering_space import ClusteringSpace
from gansfp.scoring.distances import nearest
from gansfp.statistics.metrics import partition_metrics

NEW = "new"  # in place of a name: no known generator is near


@dataclass(frozen=True)
class KnownScore:
    """How well a clustering finds known generators again: mean adjusted Rand indices over subsets of them.

    auto: with the number of clusters chosen by silhouette, given: with the true number, k_right: the share of subsets
    in which the chosen number is the true one.
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
    """Try clusterings where the truth is known: on the training slices of two or more known generators at a time.

    A subset of the generators asks what the test slices ask, how many there are and who made what, with another answer
    each time. space: n slices, prepared as the clusterings say; generators: (n,) str. All subsets of 2 or more, or
    `subsets` different ones of them, always with the whole. z-scores, PCA and distances are computed once, on all
    slices; a subset takes its part of them. A clustering that fails has its error for a score. Raises UsageError for
    fewer than two generators.
    """
    names, codes = np.unique(generators, return_inverse=True)
    ks = list(k_range)
    tried = _subsets(len(names), subsets, seed)
    scores: dict[Clustering, list[tuple[float, float, bool]]] = {c: [] for c in clusterings}
    outcome: dict[Clustering, KnownScore | UsageError] = {}
    for mask in tried:
        rows = np.flatnonzero(mask[codes])
        part, truth = space if mask.all() else space.subset(rows), codes[rows]
        true_k = int(mask.sum())
        possible = [k for k in ks if 2 <= k < len(rows)]
        if not possible:
            raise UsageError(f"clusters: got {len(rows)} slices of {true_k} generators, too few to choose k from {ks}")
        for clustering in (c for c in clusterings if c not in outcome):
            try:
                found = {r.k: r for r in results(part, clustering, sorted({*possible, true_k}))}
            except UsageError as error:
                outcome[clustering] = error
                continue
            chosen = best_k({k: found[k].silhouettes[k] for k in possible})
            auto, given = (partition_metrics(truth, found[k].labels)["ari"] for k in (chosen, true_k))
            scores[clustering].append((auto, given, chosen == true_k))
    for clustering in (c for c in clusterings if c not in outcome):
        auto, given, right = (float(value) for value in np.mean(scores[clustering], axis=0))
        outcome[clustering] = KnownScore(clustering, auto, given, right, len(tried))
    return outcome


@dataclass(frozen=True)
class ClusterName:
    """The known generator that a cluster resembles, or "new"; new where `distance` is above `limit`."""

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
    """Name each cluster after the known generator whose training slices are nearest to most of its slices.

    It is "new" if the median distance of its slices to that generator's nearest slice lies above the `quantile` of the
    distances of that generator's own slices to their nearest among themselves: half of the cluster is then further
    away than all but few of the generator's own. Two clusters may get one name; a generator with a single slice has no
    spread and names only its copies. labels: (n,), x: (n, d), x_train: (m, d) of the same embedding, generators: (m,)
    str.
    """
    names, codes = np.unique(generators, return_inverse=True)
    # distance of every slice to the nearest training slice of every generator (n, g)
    near = np.stack([nearest(x, x_train[codes == g], 1, device=device)[0][:, 0] for g in range(len(names))], axis=1)
    out = []
    for c in np.unique(labels):
        rows = near[labels == c]
        g = int(np.bincount(rows.argmin(1), minlength=len(names)).argmax())
        distance, limit = float(np.median(rows[:, g])), _own_spread(x_train[codes == g], quantile, device)
        name = str(names[g])
        out.append(ClusterName(int(c), name if distance <= limit else NEW, name, distance, limit))
    return out


def _subsets(count: int, most: int, seed: int) -> list[np.ndarray]:
    """Different subsets of 2 or more of `count` things, at most `most`, the whole first: masks (count,) bool."""
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
    """That quantile of the distances of slices (m, d) to their nearest among themselves; 0 for a single one."""
    if len(x) < 2:
        return 0.0
    to_two = nearest(x, x, 2, device=device)[0]  # the first is the slice itself, or its copy
    return float(np.quantile(to_two[:, 1], quantile))
