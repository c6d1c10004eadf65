"""Slices prepared for clustering, with what clusterings share, computed once: distances, dendrograms, silhouettes.

Distances and dendrograms of n slices take memory that grows by n^2. Up to `limit` bytes they are exact. Above the
limit, hierarchical clustering joins the centres of a mini-batch k-means (Sculley 2010) instead of the slices. There are
as many centres as the limit allows, at most MOST_CENTRES, each weighs as much as its slices, and a slice gets the label
of its centre. So Ward's dendrogram continues from the clusters of the k-means; average, complete and single linkage use
the distance of two centres in place of the distances of their slices. Silhouettes are then means over a random sample
of the slices, not over centres, because centres lie closer together than slices do.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from functools import cached_property
from math import isqrt

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from gansfp.rows import Rows
from gansfp.scoring.dendrograms import cluster_centres, cuts, dendrogram
from gansfp.scoring.distances import MAX_MEMORY, self_distances
from gansfp.scoring.projections import coordinates

_METRICS_HELD = 2  # metrics whose distances are in memory at the same time
_PASSES = 3  # of the mini-batch k-means over all slices: centres need not be exact
MOST_CENTRES = 2000  # more take longer and change no cut into tens of clusters

_log = logging.getLogger(__name__)


def exact_bytes(n: int) -> int:
    """Returns what n slices take at most: float32 distances of two metrics, and two float64 copies of half a distance
    matrix for a dendrogram."""
    return n * n * (4 * _METRICS_HELD + 8)


def exact_within(limit: int) -> int:
    """Returns how many slices can be clustered exactly within `limit` bytes."""
    return isqrt(limit // exact_bytes(1))


def centres_within(limit: int) -> int:
    """Returns how many centres represent the slices when there are more than `exact_within(limit)`. Memory then holds
    distances of centres, and distances of equally many sampled slices."""
    return min(MOST_CENTRES, isqrt(limit // (exact_bytes(1) + 4 * _METRICS_HELD)))


class ClusteringSpace:
    """n prepared slices. x: (n, d) float32; limit: bytes for all that grows by n^2, beside x; leading: (n, c) float32,
    the leading principal components of x where k-means reads these, or None.

    leaf: (n,) the leaf of the dendrograms that represents a slice: the slice itself, or its centre; leaves: (m, d)
    float32; weights: (m,) slices of each leaf, or None where every leaf is a slice; silhouette_sample: (s,) rows of the
    slices over which silhouettes are computed.
    """

    def __init__(
        self,
        x: Rows,
        device: str = "cpu",
        limit: int = MAX_MEMORY,
        seed: int = 0,
        leading: np.ndarray | None = None,
    ) -> None:
        self.x, self.device, self.limit, self.seed, self.leading = x, device, limit, seed, leading
        self.exact = len(x) <= exact_within(limit)
        self._distances: dict[tuple[str, bool], np.ndarray] = {}
        self._trees: dict[tuple[str, str], np.ndarray] = {}
        # labels (n,) and silhouette by clustering and number of clusters, see attribution.results
        self.clustered: dict[tuple[Hashable, int], tuple[np.ndarray, float]] = {}
        self._parent: tuple[ClusteringSpace, np.ndarray] | None = None
        if self.exact:
            _log.debug("%d slices: up to %.2f GB for distances and dendrograms", len(x), exact_bytes(len(x)) / 1e9)
        else:
            _log.info(
                "%s slices would take %.2f GB for distances and dendrograms, above the limit of %.2f GB: %s centres "
                "stand for them",
                f"{len(x):,}",
                exact_bytes(len(x)) / 1e9,
                limit / 1e9,
                f"{centres_within(limit):,}",
            )

    def subset(self, rows: np.ndarray) -> ClusteringSpace:
        """Returns the space of some rows, with the same limit again. It takes distances from this space where these
        are exact."""
        leading = None if self.leading is None else self.leading[rows]
        subset = ClusteringSpace(self.x[rows], self.device, self.limit, self.seed, leading)
        if self.exact:
            subset._parent = self, rows
        return subset

    @cached_property
    def leaf(self) -> np.ndarray:
        if self.exact:
            return np.arange(len(self.x))
        count = centres_within(self.limit)
        model = MiniBatchKMeans(
            count,
            init="random",
            n_init=1,
            batch_size=max(1024, count),
            max_iter=_PASSES,
            reassignment_ratio=0,
            random_state=self.seed,
        )
        return np.unique(model.fit(self.coordinates).labels_, return_inverse=True)[
            1
        ]  # a centre may have lost its last slice

    @cached_property
    def leaves(self) -> Rows:
        return self.x if self.exact else cluster_centres(self.x, self.leaf)

    @cached_property
    def weights(self) -> np.ndarray | None:
        return None if self.exact else np.bincount(self.leaf)

    @cached_property
    def silhouette_sample(self) -> np.ndarray:
        if self.exact:
            return np.arange(len(self.x))
        return np.sort(np.random.default_rng(self.seed).permutation(len(self.x))[: centres_within(self.limit)])

    @cached_property
    def coordinates(self) -> np.ndarray:
        """The slices in the coordinates that k-means reads, (n, ...)."""
        return coordinates(self.x, self.device) if self.leading is None else self.leading

    @property
    def approximation(self) -> dict[str, int]:
        """For the record: how many centres and sampled slices represent the slices; empty where all is exact."""
        return {} if self.exact else {"centres": len(self.leaves), "sample": len(self.silhouette_sample)}

    def tree(self, linkage: str, metric: str) -> np.ndarray:
        """Returns the dendrogram of the leaves, Z (m-1, 4)."""
        if (linkage, metric) not in self._trees:
            self._trees[linkage, metric] = dendrogram(self._cached(metric, False), linkage, metric, self.weights)
        return self._trees[linkage, metric]

    def cuts(self, linkage: str, metric: str, ks: Sequence[int]) -> dict[int, np.ndarray]:
        """Returns labels (n,) of all slices for every k. Raises UsageError for a k above the number of leaves."""
        return {k: labels[self.leaf] for k, labels in cuts(self.tree(linkage, metric), ks).items()}

    def distances(self, metric: str) -> np.ndarray:
        """Returns the distances among the silhouette sample: (s, s) float32."""
        return self._cached(metric, True)

    def silhouettes(self, metric: str, labelings: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the mean silhouette over the sample for each labelling (n,) of all slices: (r,) float64."""
        return silhouettes(self.distances(metric), [labels[self.silhouette_sample] for labels in labelings])

    def _cached(self, metric: str, of_sample: bool) -> np.ndarray:
        """Returns the distances among the silhouette sample, or among the leaves. Drops the oldest above the limit."""
        key = metric, of_sample or self.exact
        if key not in self._distances:
            while len(self._distances) >= _METRICS_HELD * (1 if self.exact else 2):
                del self._distances[next(iter(self._distances))]
            if self._parent:
                parent, rows = self._parent
                self._distances[key] = parent.distances(metric)[np.ix_(rows, rows)]
            else:
                vectors = self.x[self.silhouette_sample] if key[1] and not self.exact else self.leaves
                self._distances[key] = self_distances(vectors, metric, self.device)
        return self._distances[key]


def silhouettes(distances: np.ndarray, labelings: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean silhouette of each labelling, (r,) float64, from one matrix product; nan for a single cluster,
    and for as many clusters as slices.

    distances: (n, n) float32 symmetric, labelings: r times (n,) int. Equal to sklearn.metrics.silhouette_score.
    """
    n = len(distances)
    codes = [np.unique(labels, return_inverse=True)[1] for labels in labelings]
    sizes = [np.bincount(c) for c in codes]
    indicators = np.concatenate([np.eye(len(size))[c] for c, size in zip(codes, sizes, strict=True)], axis=1)
    # in float64, a strip at a time: the choice of k must not depend on what else is summed in the same product
    sums = np.concatenate([distances[i : i + 1024].astype(np.float64) @ indicators for i in range(0, n, 1024)])
    parts = np.split(sums, np.cumsum([len(size) for size in sizes])[:-1], axis=1)
    means_of_labelings = np.full(len(codes), np.nan)
    rows = np.arange(n)
    for i, (c, size, to_cluster) in enumerate(zip(codes, sizes, parts, strict=True)):
        if 2 <= len(size) < n:
            inside = to_cluster[rows, c] / np.maximum(size[c] - 1, 1)
            means = to_cluster / size
            means[rows, c] = np.inf
            outside = means.min(1)
            larger = np.maximum(inside, outside)
            # 0 for a slice that is alone in its cluster, and for one at distance 0 from both clusters
            value = np.where((size[c] > 1) & (larger > 0), (outside - inside) / np.where(larger > 0, larger, 1), 0)
            means_of_labelings[i] = value.mean()
    return means_of_labelings
