"""Who made each synthetic slice: clusterings of embeddings, one cluster a generator, and how many there are.

Unsupervised on purpose: the number of generators is unknown, and some of them have never been seen. What the known ones
are good for is in known.py.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from gansfp.distances import LINKAGES, METRICS, cuts, dendrogram, pca, self_distances, standardise
from gansfp.errors import UsageError

INITS = ("kmeans", "k-means++", "random", "random_from_data")
COVARIANCES = ("full", "diag", "tied", "spherical")
_COVARIANCE_BYTES = 2 << 30  # more than this, and a mixture is refused


@dataclass(frozen=True)
class Clustering:
    """One way to cluster, all of it; checked when made (UsageError).

    linkage and metric matter to "hierarchical" only, covariance and init to "gmm" only; elsewhere they keep their
    defaults, so that one clustering has one description. components: principal components before clustering, 0 for
    none, a whole number, or the share of variance kept, in (0, 1). standardise: z-scores before that.
    """

    method: str = "hierarchical"
    linkage: str = "ward"
    metric: str = "euclidean"
    covariance: str = "full"
    init: str = "kmeans"
    components: int | float = 0
    standardise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        known: tuple[tuple[str, str, Iterable[str]], ...] = (
            ("method", self.method, METHODS),
            ("linkage", self.linkage, LINKAGES),
            ("metric", self.metric, METRICS),
            ("covariance", self.covariance, COVARIANCES),
            ("init", self.init, INITS),
        )
        for name, value, choices in known:
            if value not in choices:
                raise UsageError(f"clustering {name}: got {value!r}, expected one of {list(choices)}")
        for method, names in (("hierarchical", ("linkage", "metric")), ("gmm", ("covariance", "init"))):
            for name in names:
                if self.method != method and getattr(self, name) != getattr(Clustering, name):
                    raise UsageError(
                        f"clustering {name}: got {getattr(self, name)!r} for {self.method!r}, which has none"
                    )
        if self.linkage == "ward" and self.metric != "euclidean":
            raise UsageError(f"linkage 'ward' needs the metric 'euclidean', got {self.metric!r}")
        whole = isinstance(self.components, int)
        if not (self.components >= 0 if whole else 0 < self.components < 1):
            raise UsageError(f"components: got {self.components!r}, expected 0, a whole number, or a share below 1")


@dataclass(frozen=True, eq=False)
class Result:
    """labels: (n,) int64 in 0..k-1, clusters numbered by falling size, then by first member.

    silhouettes: the mean silhouette (Rousseeuw 1987) by k, of every k that was looked at; nan where it is not defined
    (one cluster, or as many as slices).
    """

    clustering: Clustering
    labels: np.ndarray
    k: int
    silhouettes: dict[int, float] = field(default_factory=dict)


def cluster(
    x: np.ndarray, clustering: Clustering, k: int | str, k_range: Iterable[int] = range(2, 13), device: str = "cpu"
) -> Result:
    """Cluster x (n, d) float32 into k clusters; with k "auto" into that k of k_range whose mean silhouette is largest.

    The smallest k wins a tie. The silhouette judges all methods alike, Gaussian mixtures too, on the distances that
    were clustered (euclidean but for "hierarchical"); it cannot say that there is but one generator. Raises UsageError
    for a k above the number of slices, and where no k of the range is below it.
    """
    if k != "auto":
        return next(cluster_many(x, [clustering], [int(k)], device))
    ks = [i for i in k_range if 2 <= i < len(x)]
    if not ks:
        raise UsageError(f"clusters: got {len(x)} slices, too few to choose their number from {list(k_range)}")
    by_k = {r.k: r for r in cluster_many(x, [clustering], ks, device)}
    looked_at = {i: by_k[i].silhouettes[i] for i in ks}
    return replace(by_k[best_k(looked_at)], silhouettes=looked_at)


def best_k(silhouettes: dict[int, float]) -> int:
    """The number of clusters with the largest mean silhouette, the smallest of equals; undefined ones lose."""
    return max(sorted(silhouettes), key=lambda k: (np.nan_to_num(silhouettes[k], nan=-np.inf), -k))


def cluster_many(
    x: np.ndarray, clusterings: Sequence[Clustering], ks: Iterable[int], device: str = "cpu"
) -> Iterator[Result]:
    """Every clustering of x (n, d) float32 at every k: one Result each, with the silhouette of its k.

    What clusterings share is computed once: z-scores and PCA, the distances of each metric, the dendrogram of each
    linkage. So results come in order of the preparation (as it first appears), not of the clusterings. The distances
    of one preparation are held at a time: 4 * n^2 bytes for each metric.
    """
    ks = sorted(set(ks))
    for space, sharing in spaces(x, clusterings, device):
        for clustering in sharing:
            yield from results(space, clustering, ks)


def spaces(
    x: np.ndarray, clusterings: Iterable[Clustering], device: str = "cpu"
) -> Iterator[tuple["Space", list[Clustering]]]:
    """Each way that some of the clusterings prepare x (n, d) float32, done once, with those that share it."""
    sharing: dict[tuple[bool, int | float], list[Clustering]] = {}
    for clustering in clusterings:
        sharing.setdefault((clustering.standardise, clustering.components), []).append(clustering)
    for (scaled, components), those in sharing.items():
        yield Space(prepare(x, scaled, components, device), device), those


def results(space: "Space", clustering: Clustering, ks: Sequence[int]) -> Iterator[Result]:
    """One Result for every k, of slices that are prepared already. Raises UsageError for a k above their number."""
    n = len(space.x)
    for k in ks:
        if not 1 <= k <= n:
            raise UsageError(f"clusters: got k={k} for {n} slices, expected 1 to {n}")
    labelings = METHODS[clustering.method](space, clustering, ks)
    values = silhouettes(space.distances(clustering.metric), [labelings[k] for k in ks])
    for k, value in zip(ks, values.tolist(), strict=True):
        yield Result(clustering, by_size(labelings[k]), k, {k: value})


def prepare(x: np.ndarray, scaled: bool, components: int | float, device: str = "cpu") -> np.ndarray:
    """What is clustered: x (n, d) float32 after z-scores, if scaled, and PCA, unless components is 0.

    Both are fitted to x itself, so that nothing but the slices at hand decides.
    """
    x = standardise(x, x) if scaled else np.asarray(x, dtype=np.float32)
    return pca(x, components, device).transform(x, device) if components else x


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


def by_size(labels: np.ndarray) -> np.ndarray:
    """The same clusters numbered from 0 by falling size, then by first member: (n,) int64."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(first))
    return rank[inverse]


class Space:
    """One prepared matrix, and what is computed from it once: distances of each metric, dendrogram of each linkage."""

    def __init__(self, x: np.ndarray, device: str) -> None:
        self.x, self.device = x, device
        self._distances: dict[str, np.ndarray] = {}
        self._trees: dict[tuple[str, str], np.ndarray] = {}
        self._whole: tuple[Space, np.ndarray] | None = None

    def part(self, rows: np.ndarray) -> "Space":
        """The same for some of the rows, with distances taken from these."""
        part = Space(self.x[rows], self.device)
        part._whole = self, rows
        return part

    def distances(self, metric: str) -> np.ndarray:
        if metric not in self._distances:
            if self._whole:
                space, rows = self._whole
                self._distances[metric] = space.distances(metric)[np.ix_(rows, rows)]
            else:
                self._distances[metric] = self_distances(self.x, metric, self.device)
        return self._distances[metric]

    def tree(self, linkage: str, metric: str) -> np.ndarray:
        if (linkage, metric) not in self._trees:
            self._trees[linkage, metric] = dendrogram(self.distances(metric), linkage, metric)
        return self._trees[linkage, metric]


def _hierarchical(space: Space, clustering: Clustering, ks: Sequence[int]) -> dict[int, np.ndarray]:
    return cuts(space.tree(clustering.linkage, clustering.metric), ks)


def _kmeans(space: Space, clustering: Clustering, ks: Sequence[int]) -> dict[int, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different slices than clusters: fewer clusters
        return {k: KMeans(k, n_init=10, random_state=clustering.seed).fit_predict(space.x) for k in ks}


def _gmm(space: Space, clustering: Clustering, ks: Sequence[int]) -> dict[int, np.ndarray]:
    x = space.x.astype(np.float64)  # covariances of float32 are too easily singular
    size = 8 * x.shape[1] ** 2 * max(ks) if clustering.covariance == "full" else 8 * x.shape[1] ** 2
    if clustering.covariance in ("full", "tied") and size > _COVARIANCE_BYTES:
        raise UsageError(
            f"gmm with covariance {clustering.covariance!r} of {x.shape[1]} numbers and k={max(ks)} takes "
            f"{size / 1e9:.1f} GB; ask for fewer components, or covariance 'diag' or 'spherical'"
        )
    out = {}
    for k in ks:
        mixture = GaussianMixture(
            k,
            covariance_type=clustering.covariance,
            init_params=clustering.init,
            reg_covar=1e-6,
            random_state=clustering.seed,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the silhouette judges what has come out
                out[k] = mixture.fit_predict(x)
        except ValueError as error:
            raise UsageError(
                f"gmm with covariance {clustering.covariance!r} and k={k} failed on {x.shape} numbers ({error}); "
                "ask for fewer components or another covariance"
            ) from error
    return out


METHODS: dict[str, Callable[[Space, Clustering, Sequence[int]], dict[int, np.ndarray]]] = {
    "hierarchical": _hierarchical,
    "kmeans": _kmeans,
    "gmm": _gmm,
}
