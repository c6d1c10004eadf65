"""Decision rules of the published systems, on arrays: embeddings in, used or not used, or clusters, out.

`decide` and `attribute` run what a recipe asks on embeddings; the rules that stand on a classifier's probabilities or
on an autoencoder's errors take those numbers. What a paper leaves open is as its recipe says (recipes.py). Labels are
1 used, 0 not used, -1 unknown; wherever nothing speaks for either class, a slice is not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.published.recipe import Recipe
from gansfp.scoring import attribution
from gansfp.scoring.attribution import Clustering, Result
from gansfp.scoring.clustering_space import Space
from gansfp.scoring.dendrograms import cluster_centres, dendrogram_centres
from gansfp.scoring.distances import MAX_MEMORY, pairwise

RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"min": lambda far: far.min(1), "avg": lambda far: far.mean(1)}


@dataclass(frozen=True, eq=False)
class Decision:
    """What a rule says of real slices. prediction: (n,) int64, 1 used, 0 not used, of every slice given, labelled ones
    too; score: (n,) float64, higher is more likely used, or None where a rule has none; told: what the record should
    say of this run, such as a smaller k where there were too few slices."""

    prediction: np.ndarray
    score: np.ndarray | None
    told: dict[str, Any] = field(default_factory=dict)


def decide(
    recipe: Recipe,
    real: np.ndarray,
    labels: np.ndarray,
    generated: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
    limit: int = MAX_MEMORY,
) -> Decision:
    """What a membership recipe that stands on embeddings says of one set.

    real: (n, d) float32, all real slices of the set; labels: (n,) 1 used, 0 not used, -1 unknown; generated: (g, d)
    float32, which "cluster_distance" alone looks at. limit: bytes for what grows by the square of a number of slices.
    Raises UsageError for embeddings that are not finite, where a class that is learnt from has no slice, and for a
    method that does not stand on embeddings.
    """
    given = [real] if generated is None else [real, generated]
    if not all(np.isfinite(x).all() for x in given):
        raise UsageError(f"system {recipe.name}: got embeddings that are not finite, expected numbers")
    if recipe.method == "two_means":
        return two_means(real, labels, seed, device)
    if recipe.method == "kmeans_per_class":
        return kmeans_per_class(real, labels, recipe.k, recipe.metric, seed, device)
    if recipe.method != "cluster_distance":
        raise UsageError(f"system {recipe.name}: got method {recipe.method!r}, which does not decide on embeddings")
    if generated is None:
        raise UsageError(f"system {recipe.name}: got no generated slices, expected two or more")
    far, told = cluster_distance(
        generated, real, recipe.k, recipe.rule, recipe.linkage, recipe.metric, seed, device, limit
    )
    prediction = np.zeros(len(real), np.int64)
    for rows in (labels == UNKNOWN, labels != UNKNOWN):
        prediction[rows] = median_split(far[rows])
    return Decision(prediction, -far, told)


def attribute(
    recipe: Recipe,
    x: np.ndarray,
    k: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    limit: int = MAX_MEMORY,
) -> Result:
    """Clusters that an attribution recipe finds in x (n, d) float32, alone; k: another number than the recipe's.

    PCA is fitted to x. Raises UsageError for embeddings that are not finite, for a k above the number of slices, and
    for a mixture whose covariances cannot be had.
    """
    if not np.isfinite(x).all():
        raise UsageError(f"system {recipe.name}: got embeddings that are not finite, expected numbers")
    of_method = {"hierarchical": ("linkage", "metric"), "gmm": ("init", "covariance")}.get(recipe.method, ())
    clustering = Clustering(
        recipe.method,
        components=recipe.pca,
        standardise=recipe.standardise,
        seed=seed,
        **{name: getattr(recipe, name) for name in of_method},
    )
    return attribution.cluster(x, clustering, k or recipe.k, device=device, limit=limit)


def two_means(real: np.ndarray, labels: np.ndarray, seed: int = 0, device: str = "cpu") -> Decision:
    """Two k-means clusters of the real slices, each what most of its labelled slices are (KDE-med-lab 2024).

    Labelled and unknown slices are clustered together, as there is no other way to know what a cluster of unknown ones
    is; a cluster with as many used as not used slices, or without labelled ones, is not used. The score, where the
    clusters differ, is the difference of the distances to the two centres. real: (n, d) float32, labels: (n,).
    """
    _members(labels)
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
    """The class of the nearest of k k-means centres of the used and k of the not used slices (Biomedical Imaging Goa
    2024); used only where strictly nearer.

    A class with fewer than k slices has as many centres as slices, which `told` says. The score is the distance to the
    nearest not used centre minus that to the nearest used one. real: (n, d) float32, labels: (n,).
    """
    nearest: dict[int, np.ndarray] = {}
    told: dict[str, int] = {}
    for name, label, members in zip(("used", "not_used"), (USED, NOT_USED), _members(labels), strict=True):
        found = min(k, len(members))
        centres = _kmeans(real[members], found, seed)[1]
        nearest[label] = pairwise(real, centres, metric, device).min(1).astype(np.float64)
        told |= {f"k_{name}": found} if found < k else {}
    score = nearest[NOT_USED] - nearest[USED]
    return Decision((score > 0).astype(np.int64), score, told)


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
) -> tuple[np.ndarray, dict[str, Any]]:
    """Distance of real slices to the centroids of k hierarchical clusters of the generated ones (AI Multimedia Lab
    2024), and what the record should say of it.

    generated: (g, d) float32, real: (n, d) float32; rule: "min", to the nearest of the centroids, or "avg", the mean
    over all. Returns (n,) float64. Fewer generated slices than k are as many clusters; above `limit` bytes the
    clustering is an approximation (prepared.py).
    """
    if rule not in RULES:
        raise UsageError(f"rule: got {rule!r}, expected one of {list(RULES)}")
    if len(generated) < 2:
        raise UsageError(f"clusters: got {len(generated)} generated slices, expected at least 2")
    space = Space(generated, device, limit, seed)
    found = min(k, len(space.leaves))
    tree = space.tree(linkage, metric)
    centres, columns = dendrogram_centres(space.leaves, tree, [found], space.weights)
    to_centres = pairwise(real, centres[columns[found]], metric, device).astype(np.float64)
    return RULES[rule](to_centres), space.approximation | ({"k": found} if found < k else {})


def median_split(far: np.ndarray) -> np.ndarray:
    """(n,) int64: 1 for the half of the slices that is nearest, exactly n // 2 of them, of equals the first ones.

    What AI Multimedia Lab 2024 must have done: each of their F1 values is a multiple of 1/2000, as it is when 2,000 of
    4,000 slices are called used. far: (n,) distances.
    """
    called = np.zeros(len(far), np.int64)
    called[np.argsort(far, kind="stable")[: len(far) // 2]] = 1
    return called


def nearest_mean_error(errors: np.ndarray, labels: np.ndarray) -> Decision:
    """Used where the reconstruction error is strictly nearer to the labelled used slices' mean than to the others'
    (AI Multimedia Lab 2024, run 7). errors: (n,), labels: (n,); the score is the difference of the two."""
    errors = np.asarray(errors, np.float64)
    to_used, to_unused = (np.abs(errors - errors[members].mean()) for members in _members(labels))
    return Decision((to_used < to_unused).astype(np.int64), to_unused - to_used)


def most_similar_mean(to_used: np.ndarray, to_not_used: np.ndarray) -> Decision:
    """Used where the error image is strictly more like the mean error image of the used slices (AI Multimedia Lab 2024,
    run 8). to_used, to_not_used: (n,) SSIM to either mean; the score is their difference."""
    score = np.asarray(to_used, np.float64) - np.asarray(to_not_used, np.float64)
    return Decision((score > 0).astype(np.int64), score)


def classifier_decision(probabilities: np.ndarray, classes: Sequence[str], target: str) -> Decision:
    """Used where a classifier of two classes gives more than half to the class that `target` names.

    probabilities: (n, 2); classes: the names of its columns; target: of the recipe's training, "used", or "generated",
    where what looks generated is taken for used (KDE Lab 2024). The score is that probability.
    Raises UsageError for other classes.
    """
    if len(classes) != 2 or target not in classes or probabilities.shape[1:] != (2,):
        raise UsageError(
            f"classifier: got classes {list(classes)} and probabilities {probabilities.shape}, expected {target!r} "
            "and another class, a column each"
        )
    score = np.asarray(probabilities[:, list(classes).index(target)], np.float64)
    return Decision((score > 0.5).astype(np.int64), score)


def _members(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows labelled used and those labelled not used. Raises UsageError where there are none."""
    used, unused = np.flatnonzero(labels == USED), np.flatnonzero(labels == NOT_USED)
    if not len(used) or not len(unused):
        raise UsageError(f"got {len(used)} slices labelled used and {len(unused)} not used, expected some of both")
    return used, unused


def _kmeans(x: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and centres (at most k, d) of k-means with 10 starts; fewer different slices are fewer clusters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, n_init=10, random_state=seed).fit(x.astype(np.float64)).labels_
    labels = np.unique(found, return_inverse=True)[1]
    return labels, cluster_centres(x, labels)
