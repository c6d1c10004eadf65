"""Prepared slices and what clustering them shares, computed once: distances, dendrograms, silhouettes, within a limit.

Distances and dendrograms of n slices take memory by n^2. Up to `limit` bytes they are exact. Above it, hierarchical
clustering joins the centres of a mini-batch k-means (Sculley 2010), as many as the limit allows, each weighing as much
as the slices it stands for, and a slice gets its centre's label. So Ward's tree is the one that goes on from the
partition into centres; average, complete and single linkage take the distance of two centres for that of any of their
slices. Silhouettes are then means over a random sample of the slices, not of centres, which lie closer than slices do.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from math import isqrt
from typing import Any

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from gansfp.scoring.dendrograms import cluster_centres, cuts, dendrogram
from gansfp.scoring.distances import MAX_MEMORY, coordinates, self_distances

_HELD = 2  # metrics whose distances are held at the same time
_PASSES = 3  # over all slices by the mini-batch k-means: the centres only have to be near

_log = logging.getLogger(__name__)


def exact_bytes(n: int) -> int:
    """What n slices take at most: float32 distances of two metrics, and two float64 copies of half a dendrogram's."""
    return n * n * (4 * _HELD + 8)


def exact_within(limit: int) -> int:
    """How many slices can be clustered exactly within `limit` bytes."""
    return isqrt(limit // exact_bytes(1))


def centres_within(limit: int) -> int:
    """How many centres stand for more slices than that: there are distances of centres, and of as many slices."""
    return isqrt(limit // (exact_bytes(1) + 4 * _HELD))


class Space:
    """n prepared slices. x: (n, d) float32; limit: bytes for all that grows by n^2, beside x.

    leaf: (n,) which leaf of the dendrograms a slice is: itself, or its centre; leaves: (m, d) float32; weights: (m,)
    slices to each leaf, or None where every leaf is a slice; judges: (s,) the slices that silhouettes are of.
    """

    def __init__(self, x: np.ndarray, device: str = "cpu", limit: int = MAX_MEMORY, seed: int = 0) -> None:
        self.x, self.device, self.limit, self.seed = x, device, limit, seed
        self.exact = len(x) <= exact_within(limit)
        self._distances: dict[tuple[str, bool], np.ndarray] = {}
        self._trees: dict[tuple[str, str], np.ndarray] = {}
        self._whole: tuple[Space, np.ndarray] | None = None
        self.found: dict[Any, Any] = {}  # results by clustering and number of clusters, see attribution.results
        if self.exact:
            _log.debug("%d slices: up to %.2f GB for distances and dendrograms", len(x), exact_bytes(len(x)) / 1e9)
        else:
            _log.info(
                "%s slices would take %.1f GB for distances and dendrograms, above the limit of %.1f GB: %s centres "
                "stand for them",
                f"{len(x):,}",
                exact_bytes(len(x)) / 1e9,
                limit / 1e9,
                f"{centres_within(limit):,}",
            )

    def part(self, rows: np.ndarray) -> Space:
        """The same for some of the rows, within as much memory again; distances are taken from these where they are."""
        part = Space(self.x[rows], self.device, self.limit, self.seed)
        if self.exact:
            part._whole = self, rows
        return part

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
        return np.unique(model.fit(self.x).labels_, return_inverse=True)[1]  # a centre may have lost its last slice

    @cached_property
    def leaves(self) -> np.ndarray:
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
    def places(self) -> np.ndarray:
        """Where k-means looks at the slices, (n, ...) float64, which it takes fastest."""
        return coordinates(self.x, self.device)

    @property
    def approximation(self) -> dict[str, int]:
        """What stands for the slices, for the record; nothing where all is exact."""
        return {} if self.exact else {"centres": len(self.leaves), "sample": len(self.silhouette_sample)}

    def tree(self, linkage: str, metric: str) -> np.ndarray:
        """The dendrogram of the leaves."""
        if (linkage, metric) not in self._trees:
            self._trees[linkage, metric] = dendrogram(self._apart(metric, False), linkage, metric, self.weights)
        return self._trees[linkage, metric]

    def cuts(self, linkage: str, metric: str, ks: Sequence[int]) -> dict[int, np.ndarray]:
        """Labels (n,) of all slices from that dendrogram cut into every k. UsageError for a k above the leaves."""
        return {k: labels[self.leaf] for k, labels in cuts(self.tree(linkage, metric), ks).items()}

    def distances(self, metric: str) -> np.ndarray:
        """(s, s) float32 distances between the judges."""
        return self._apart(metric, True)

    def silhouettes(self, metric: str, labelings: Sequence[np.ndarray]) -> np.ndarray:
        """Mean silhouette over the judges of each labelling (n,) of all slices: (r,) float64."""
        return silhouettes(self.distances(metric), [labels[self.silhouette_sample] for labels in labelings])

    def _apart(self, metric: str, judged: bool) -> np.ndarray:
        key = metric, judged or self.exact
        if key not in self._distances:
            while len(self._distances) >= _HELD * (1 if self.exact else 2):
                del self._distances[next(iter(self._distances))]
            if self._whole:
                space, rows = self._whole
                self._distances[key] = space.distances(metric)[np.ix_(rows, rows)]
            else:
                rows_of = self.x[self.silhouette_sample] if key[1] and not self.exact else self.leaves
                self._distances[key] = self_distances(rows_of, metric, self.device)
        return self._distances[key]


def silhouettes(distances: np.ndarray, labelings: Sequence[np.ndarray]) -> np.ndarray:
    """Mean silhouette of each labelling, (r,) float64, from one product; nan for one cluster or as many as slices.

    distances: (n, n) float32 symmetric, labelings: r times (n,) int. Equal to sklearn.metrics.silhouette_score.
    """
    n = len(distances)
    codes = [np.unique(labels, return_inverse=True)[1] for labels in labelings]
    sizes = [np.bincount(c) for c in codes]
    indicators = np.concatenate([np.eye(len(size))[c] for c, size in zip(codes, sizes, strict=True)], axis=1)
    # in float64, a strip at a time: the choice of k must not hang on what else is summed in the same product
    sums = np.concatenate([distances[i : i + 1024].astype(np.float64) @ indicators for i in range(0, n, 1024)])
    parts = np.split(sums, np.cumsum([len(size) for size in sizes])[:-1], axis=1)
    out = np.full(len(codes), np.nan)
    each = np.arange(n)
    for i, (c, size, total) in enumerate(zip(codes, sizes, parts, strict=True)):
        if 2 <= len(size) < n:
            inside = total[each, c] / np.maximum(size[c] - 1, 1)
            means = total / size
            means[each, c] = np.inf
            outside = means.min(1)
            larger = np.maximum(inside, outside)
            # a slice alone in its cluster counts 0, and so does one on top of both clusters
            value = np.where((size[c] > 1) & (larger > 0), (outside - inside) / np.where(larger > 0, larger, 1), 0)
            out[i] = value.mean()
    return out
