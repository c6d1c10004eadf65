"""Decision rules of the published systems, on arrays: from embeddings to used or not used, or to clusters.

`decide` and `attribute` apply a recipe to embeddings. The rules for the probabilities of a classifier or the errors of
an autoencoder take those numbers. Where a paper leaves something open, the recipe says what is assumed (recipes.py).
Labels are 1 used, 0 not used, -1 unknown. Where neither class is more likely, a slice is called not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.published.recipe import Recipe
from gansfp.scoring import attribution
from gansfp.scoring.attribution import Clustering, Result
from gansfp.scoring.clustering_space import ClusteringSpace
from gansfp.scoring.dendrograms import cluster_centres, dendrogram_centres
from gansfp.scoring.distances import MAX_MEMORY, pairwise

# (n, k) distances to clusters -> (n,) distances
RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "min": lambda to_clusters: to_clusters.min(1),
    "avg": lambda to_clusters: to_clusters.mean(1),
}


@dataclass(frozen=True, eq=False)
class Decision:
    """The decision of a rule about real slices.

    prediction: (n,) int64, 1 used, 0 not used, for all slices, labelled ones too. score: (n,) float64, a higher score
    means more likely used; None where a rule has no score. details: facts of this run that belong into the record,
    such as a smaller k where there were too few slices.
    """

    prediction: np.ndarray
    score: np.ndarray | None
    details: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SetEmbeddings:
    """The embeddings of one membership set.

    real: (n, d) float32, all real slices; labels: (n,) 1 used, 0 not used, -1 unknown; generated: (g, d) float32, used
    only by "cluster_distance". limit: bytes for arrays that grow with the square of the number of slices.
    """

    real: np.ndarray
    labels: np.ndarray
    generated: np.ndarray | None = None
    seed: int = 0
    device: str = "cpu"
    limit: int = MAX_MEMORY


def decide(
    recipe: Recipe,
    real: np.ndarray,
    labels: np.ndarray,
    generated: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
    limit: int = MAX_MEMORY,
) -> Decision:
    """Applies a membership recipe that decides by embeddings to one set. The arguments are those of SetEmbeddings.

    Raises UsageError for embeddings that are not finite, where a class has no labelled slice to learn from, and for a
    method that does not decide by embeddings.
    """
    embeddings = [real] if generated is None else [real, generated]
    _check_finite(recipe, *embeddings)
    if recipe.method not in EMBEDDING_METHODS:
        raise UsageError(
            f"system {recipe.name}: got method {recipe.method!r}, expected one of {list(EMBEDDING_METHODS)}"
        )
    return EMBEDDING_METHODS[recipe.method](recipe, SetEmbeddings(real, labels, generated, seed, device, limit))


def _two_means(recipe: Recipe, data: SetEmbeddings) -> Decision:
    return two_means(data.real, data.labels, data.seed, data.device)


def _kmeans_per_class(recipe: Recipe, data: SetEmbeddings) -> Decision:
    return kmeans_per_class(data.real, data.labels, recipe.k, recipe.metric, data.seed, data.device)


def _cluster_distance(recipe: Recipe, data: SetEmbeddings) -> Decision:
    """Calls the nearest half of the unknown slices used, and by itself the nearest half of the labelled ones."""
    if data.generated is None:
        raise UsageError(f"system {recipe.name}: got no generated slices, expected two or more")
    distances, details = cluster_distance(
        data.generated,
        data.real,
        recipe.k,
        recipe.rule,
        recipe.linkage,
        recipe.metric,
        data.seed,
        data.device,
        data.limit,
    )
    prediction = np.zeros(len(data.real), np.int64)
    for rows in (data.labels == UNKNOWN, data.labels != UNKNOWN):
        prediction[rows] = median_split(distances[rows])
    return Decision(prediction, -distances, details)


EMBEDDING_METHODS: dict[str, Callable[[Recipe, SetEmbeddings], Decision]] = {
    "two_means": _two_means,
    "kmeans_per_class": _kmeans_per_class,
    "cluster_distance": _cluster_distance,
}


def attribute(
    recipe: Recipe,
    x: np.ndarray,
    k: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    limit: int = MAX_MEMORY,
) -> Result:
    """Clusters the slices x (n, d) float32 by an attribution recipe. k: the number of clusters, if not the recipe's.

    PCA is fitted to x. Raises UsageError for embeddings that are not finite, for a k above the number of slices, and
    for a mixture whose covariances cannot be computed.
    """
    _check_finite(recipe, x)
    clustering = Clustering(
        recipe.method,
        components=recipe.pca,
        standardise=recipe.standardise,
        seed=seed,
        **{name: getattr(recipe, name) for name in attribution.SETTINGS[recipe.method]},
    )
    return attribution.cluster(x, clustering, k or recipe.k, device=device, limit=limit)


def two_means(real: np.ndarray, labels: np.ndarray, seed: int = 0, device: str = "cpu") -> Decision:
    """Makes two k-means clusters of the real slices; each gets the label of most of its labelled slices (KDE-med-lab
    2024).

    Labelled and unknown slices are clustered together, because only labelled slices can give a cluster its label. A
    cluster is not used if it has as many used as not used slices, or no labelled ones. If the labels of the clusters
    differ, the score is the difference of the distances to the two centres. real: (n, d) float32, labels: (n,).
    """
    _rows_by_class(labels)
    clusters, centres = _kmeans(real, 2, seed)
    used = np.bincount(clusters[labels == USED], minlength=2) > np.bincount(clusters[labels == NOT_USED], minlength=2)
    score = None
    if used[0] != used[1]:
        to_centres = pairwise(real, centres, device=device).astype(np.float64)
        score = (to_centres[:, 0] - to_centres[:, -1]) * (1 if used[1] else -1)
    return Decision(used[clusters].astype(np.int64), score)


def kmeans_per_class(
    real: np.ndarray,
    labels: np.ndarray,
    k: int,
    metric: str = "manhattan",
    seed: int = 0,
    device: str = "cpu",
) -> Decision:
    """Gives each slice the class of its nearest centre, among k k-means centres of the used and k of the not used
    slices (Biomedical Imaging Goa 2024). A slice is used only if a used centre is strictly nearer.

    A class with fewer than k slices has as many centres as slices; `details` says so. The score is the distance to the
    nearest not used centre minus the distance to the nearest used one. real: (n, d) float32, labels: (n,).
    """
    nearest: dict[int, np.ndarray] = {}
    details: dict[str, int] = {}
    for name, label, rows in zip(("used", "not_used"), (USED, NOT_USED), _rows_by_class(labels), strict=True):
        class_k = min(k, len(rows))
        centres = _kmeans(real[rows], class_k, seed)[1]
        nearest[label] = pairwise(real, centres, metric, device).min(1).astype(np.float64)
        details |= {f"k_{name}": class_k} if class_k < k else {}
    score = nearest[NOT_USED] - nearest[USED]
    return Decision((score > 0).astype(np.int64), score, details)


def cluster_distance(
    generated: np.ndarray,
    real: np.ndarray,
    k: int,
    rule: str,
    linkage: str = "ward",
    metric: str = "euclidean",
    seed: int = 0,
    device: str = "cpu",
    limit: int = MAX_MEMORY,
) -> tuple[np.ndarray, dict[str, int]]:
    """Computes the distance of real slices to the centroids of k hierarchical clusters of the generated slices (AI
    Multimedia Lab 2024).

    generated: (g, d) float32, real: (n, d) float32; rule: "min", the distance to the nearest centroid, or "avg", the
    mean distance to all. If there are fewer than k generated slices, each is a cluster. Above `limit` bytes the
    clustering is an approximation (clustering_space.py). Returns the distances, (n,) float64, and the details of a
    Decision.
    """
    if rule not in RULES:
        raise UsageError(f"rule: got {rule!r}, expected one of {list(RULES)}")
    if len(generated) < 2:
        raise UsageError(f"clusters: got {len(generated)} generated slices, expected at least 2")
    space = ClusteringSpace(generated, device, limit, seed)
    possible_k = min(k, len(space.leaves))
    tree = space.tree(linkage, metric)
    centres, columns = dendrogram_centres(space.leaves, tree, [possible_k], space.weights)
    to_centres = pairwise(real, centres[columns[possible_k]], metric, device).astype(np.float64)
    return RULES[rule](to_centres), space.approximation | ({"k": possible_k} if possible_k < k else {})


def median_split(distances: np.ndarray) -> np.ndarray:
    """Returns (n,) int64: 1 for the nearest half of the slices, exactly n // 2 of them; among equals, for the first.

    AI Multimedia Lab 2024 must have used this rule: each of their F1 values is a multiple of 1/2000, and F1 is a
    multiple of 1/2000 when 2,000 of 4,000 slices are called used. distances: (n,).
    """
    prediction = np.zeros(len(distances), np.int64)
    prediction[np.argsort(distances, kind="stable")[: len(distances) // 2]] = 1
    return prediction


def nearest_mean_error(errors: np.ndarray, labels: np.ndarray) -> Decision:
    """Calls a slice used if its reconstruction error is strictly nearer to the mean error of the labelled used slices
    than to that of the labelled not used ones (AI Multimedia Lab 2024, run 7).

    errors: (n,), labels: (n,). The score is the difference of the two distances.
    """
    errors = np.asarray(errors, np.float64)
    to_used, to_not_used = (np.abs(errors - errors[rows].mean()) for rows in _rows_by_class(labels))
    return Decision((to_used < to_not_used).astype(np.int64), to_not_used - to_used)


def most_similar_mean(to_used: np.ndarray, to_not_used: np.ndarray) -> Decision:
    """Calls a slice used if its error image is strictly more similar to the mean error image of the used slices than to
    that of the not used ones (AI Multimedia Lab 2024, run 8).

    to_used, to_not_used: (n,) SSIM to the two mean images. The score is their difference.
    """
    score = np.asarray(to_used, np.float64) - np.asarray(to_not_used, np.float64)
    return Decision((score > 0).astype(np.int64), score)


def classifier_decision(probabilities: np.ndarray, classes: Sequence[str], target: str) -> Decision:
    """Calls a slice used if a classifier of two classes gives the class `target` a probability of more than one half.

    probabilities: (n, 2); classes: the names of its columns; target: the target of the recipe's training: "used", or
    "generated", where a slice that looks generated is called used (KDE Lab 2024). The score is that probability.
    Raises UsageError for other classes.
    """
    if len(classes) != 2 or target not in classes or probabilities.shape[1:] != (2,):
        raise UsageError(
            f"classifier: got classes {list(classes)} and probabilities {probabilities.shape}, expected {target!r} "
            "and another class, with one column for each"
        )
    score = np.asarray(probabilities[:, list(classes).index(target)], np.float64)
    return Decision((score > 0.5).astype(np.int64), score)


def _check_finite(recipe: Recipe, *embeddings: np.ndarray) -> None:
    if not all(np.isfinite(x).all() for x in embeddings):
        raise UsageError(f"system {recipe.name}: got embeddings that are not finite, expected finite numbers")


def _rows_by_class(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows labelled used and those labelled not used. Raises UsageError if one of them is empty."""
    used, not_used = np.flatnonzero(labels == USED), np.flatnonzero(labels == NOT_USED)
    if not len(used) or not len(not_used):
        raise UsageError(f"got {len(used)} slices labelled used and {len(not_used)} not used, expected some of both")
    return used, not_used


def _kmeans(x: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels (n,) and the centres (at most k, d) of k-means with 10 starts.

    If x has fewer than k different rows, there are fewer clusters.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(k, n_init=10, random_state=seed).fit(x.astype(np.float64)).labels_
    labels = np.unique(clusters, return_inverse=True)[1]  # renumbered without the empty clusters
    return labels, cluster_centres(x, labels)
