"""Attribution: clusters embeddings of synthetic slices, so that each cluster holds the slices of one generator.

Clustering is unsupervised, because the number of generators is unknown and no training slices exist for some of them.
known_generators.py uses the known generators to choose a clustering and to name clusters.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from gansfp.errors import UsageError
from gansfp.scoring.clustering_space import ClusteringSpace
from gansfp.scoring.dendrograms import LINKAGES
from gansfp.scoring.distances import MAX_MEMORY, METRICS
from gansfp.scoring.projections import pca, standardise

INITS = ("kmeans", "k-means++", "random", "random_from_data")
COVARIANCES = ("full", "diag", "tied", "spherical")
SETTINGS: dict[str, tuple[str, ...]] = {  # the fields of Clustering that only this method uses
    "hierarchical": ("linkage", "metric"),
    "kmeans": (),
    "gmm": ("covariance", "init"),
}
_COVARIANCE_BYTES = 2 << 30  # a mixture that needs more is refused


@dataclass(frozen=True)
class Clustering:
    """A complete description of one way to cluster. Raises UsageError for values that do not fit.

    linkage and metric belong to "hierarchical" only, covariance and init to "gmm" only; with another method they must
    keep their defaults, so that one clustering has one description. components: principal components before
    clustering: 0 for none, a whole number, or the share of variance to keep, in (0, 1). standardise: whether z-scores
    are computed before that.
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
        choices_of: tuple[tuple[str, str, Iterable[str]], ...] = (
            ("method", self.method, METHODS),
            ("linkage", self.linkage, LINKAGES),
            ("metric", self.metric, METRICS),
            ("covariance", self.covariance, COVARIANCES),
            ("init", self.init, INITS),
        )
        for name, value, choices in choices_of:
            if value not in choices:
                raise UsageError(f"clustering {name}: got {value!r}, expected one of {list(choices)}")
        for method, names in SETTINGS.items():
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
    """Clusters of slices.

    labels: (n,) int64 in 0..k-1, clusters numbered by falling size, then by first member. silhouettes: the mean
    silhouette (Rousseeuw 1987) of every k that was tried; nan where it is undefined (one cluster, or as many clusters
    as slices).
    """

    clustering: Clustering
    labels: np.ndarray
    k: int
    silhouettes: dict[int, float] = field(default_factory=dict)


def cluster(
    x: np.ndarray,
    clustering: Clustering,
    k: int | str,
    k_range: Iterable[int] = range(2, 13),
    device: str = "cpu",
    limit: int = MAX_MEMORY,
) -> Result:
    """Clusters x (n, d) float32 into k clusters; with k "auto" into the k of k_range with the largest mean silhouette.

    The smallest k wins a tie. The silhouette judges all methods, Gaussian mixtures too, on the distances that were
    clustered: the clustering's metric for "hierarchical", else euclidean. It cannot find that there is a single
    generator. Above `limit` bytes the result is an approximation (clustering_space.py). Raises UsageError for a k
    above the number of slices, and where no k of the range is below that number.
    """
    if k != "auto":
        return next(cluster_many(x, [clustering], [int(k)], device, limit))
    ks = [i for i in k_range if 2 <= i < len(x)]
    if not ks:
        raise UsageError(f"clusters: got {len(x)} slices, too few to choose their number from {list(k_range)}")
    by_k = {r.k: r for r in cluster_many(x, [clustering], ks, device, limit)}
    silhouettes = {i: by_k[i].silhouettes[i] for i in ks}
    return replace(by_k[best_k(silhouettes)], silhouettes=silhouettes)


def best_k(silhouettes: dict[int, float]) -> int:
    """Returns the number of clusters with the largest mean silhouette, the smallest of equals; undefined ones lose."""
    return max(sorted(silhouettes), key=lambda k: (np.nan_to_num(silhouettes[k], nan=-np.inf), -k))


def cluster_many(
    x: np.ndarray,
    clusterings: Sequence[Clustering],
    ks: Iterable[int],
    device: str = "cpu",
    limit: int = MAX_MEMORY,
) -> Iterator[Result]:
    """Yields every clustering of x (n, d) float32 at every k: one Result each, with the silhouette of its k.

    z-scores and PCA, the distances of each metric and the dendrogram of each linkage are computed once for all
    clusterings that share them. So results come in order of the preparation (as it first appears), not of the
    clusterings. Memory that grows by n^2 takes at most `limit` bytes, for one preparation at a time
    (clustering_space.py).
    """
    ks = sorted(set(ks))
    for space, sharing in spaces(x, clusterings, device, limit):
        for clustering in sharing:
            yield from results(space, clustering, ks)


def spaces(
    x: np.ndarray, clusterings: Iterable[Clustering], device: str = "cpu", limit: int = MAX_MEMORY
) -> Iterator[tuple[ClusteringSpace, list[Clustering]]]:
    """Yields x (n, d) float32 prepared in each way that the clusterings ask for, with the clusterings that share it."""
    sharing: dict[tuple[bool, int | float], list[Clustering]] = {}
    for clustering in clusterings:
        sharing.setdefault((clustering.standardise, clustering.components), []).append(clustering)
    for (scaled, components), sharers in sharing.items():
        yield ClusteringSpace(prepare(x, scaled, components, device), device, limit, sharers[0].seed), sharers


def results(space: ClusteringSpace, clustering: Clustering, ks: Sequence[int]) -> Iterator[Result]:
    """Yields one Result for every k, of prepared slices; the space remembers them. Raises UsageError for a k above the
    number of slices."""
    n = len(space.x)
    for k in ks:
        if not 1 <= k <= n:
            raise UsageError(f"clusters: got k={k} for {n} slices, expected 1 to {n}")
    missing = [k for k in ks if (clustering, k) not in space.clustered]
    if missing:
        labelings = METHODS[clustering.method](space, clustering, missing)
        values = space.silhouettes(clustering.metric, [labelings[k] for k in missing])
        for k, value in zip(missing, values.tolist(), strict=True):
            space.clustered[clustering, k] = by_size(labelings[k]), value
    for k in ks:
        labels, silhouette = space.clustered[clustering, k]
        yield Result(clustering, labels, k, {k: silhouette})


def prepare(x: np.ndarray, scaled: bool, components: int | float, device: str = "cpu") -> np.ndarray:
    """Returns what is clustered: x (n, d) float32 after z-scores, if scaled, and PCA, unless components is 0.

    Both are fitted to x itself, so that the result depends on these slices only.
    """
    x = standardise(x, x) if scaled else np.asarray(x, dtype=np.float32)
    return pca(x, components, device).transform(x, device) if components else x


def by_size(labels: np.ndarray) -> np.ndarray:
    """Returns the same clusters, numbered from 0 by falling size, then by first member: (n,) int64."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(first))
    return rank[inverse]


def _hierarchical(space: ClusteringSpace, clustering: Clustering, ks: Sequence[int]) -> dict[int, np.ndarray]:
    return space.cuts(clustering.linkage, clustering.metric, ks)


def _kmeans(space: ClusteringSpace, clustering: Clustering, ks: Sequence[int]) -> dict[int, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct slices than clusters
        return {k: KMeans(k, n_init=10, random_state=clustering.seed).fit_predict(space.coordinates) for k in ks}


def _gmm(space: ClusteringSpace, clustering: Clustering, ks: Sequence[int]) -> dict[int, np.ndarray]:
    x = space.x[:].astype(np.float64)  # in float32 covariances are often singular
    size = 8 * x.shape[1] ** 2 * max(ks) if clustering.covariance == "full" else 8 * x.shape[1] ** 2
    if clustering.covariance in ("full", "tied") and size > _COVARIANCE_BYTES:
        raise UsageError(
            f"gmm with covariance {clustering.covariance!r} of {x.shape[1]} numbers and k={max(ks)} takes "
            f"{size / 1e9:.1f} GB; ask for fewer components, or for covariance 'diag' or 'spherical'"
        )
    labelings = {}
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
                warnings.simplefilter("ignore", ConvergenceWarning)  # the silhouette judges the result
                labelings[k] = mixture.fit_predict(x)
        except ValueError as error:
            raise UsageError(
                f"gmm with covariance {clustering.covariance!r} and k={k} failed on {x.shape} numbers ({error}); "
                "ask for fewer components or another covariance"
            ) from error
    return labelings


METHODS: dict[str, Callable[[ClusteringSpace, Clustering, Sequence[int]], dict[int, np.ndarray]]] = {
    "hierarchical": _hierarchical,
    "kmeans": _kmeans,
    "gmm": _gmm,
}
