"""Membership scores: how likely a generator was trained on each real slice; a higher score means more likely.

A "used" slice is a member of the generator's training set, a "not used" slice is a non-member. Scores are computed in
one embedding of one set. Distances, dendrograms and principal components are computed once; the cheap parameters (k,
rule, number of neighbours) are swept. A score that learns from the labelled slices is cross-fitted: a labelled slice
is scored from the labels of the other folds only, an unknown slice from all labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, USED
from gansfp.rows import Rows
from gansfp.scoring import distances
from gansfp.scoring.dendrograms import LINKAGES, cluster_centres, dendrogram_centres
from gansfp.scoring.embedded_set import TINY, EmbeddedSet
from gansfp.scoring.projections import pca

Parameters = dict[str, str | int | float | bool]  # of one score, as the configuration of a trial holds them
Scored = tuple[Parameters, np.ndarray]  # and the scores (n,) of all real slices


@dataclass(frozen=True)
class Sweep:
    """The parameters that are swept. Raises UsageError for a value that no score takes."""

    methods: tuple[str, ...] = field(default_factory=lambda: tuple(METHODS))
    ks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    linkages: tuple[str, ...] = ("ward", "average", "complete", "kmeans")
    class_ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    neighbours: tuple[int, ...] = (1, 5)
    spans: tuple[int, ...] = (20, 60, 150, 300)
    whitened: tuple[int, ...] = (100, 300)

    def __post_init__(self) -> None:
        for name, values, choices in (
            ("method", self.methods, tuple(METHODS)),
            ("linkage", self.linkages, (*LINKAGES, "kmeans")),
        ):
            for value in values:
                if value not in choices:
                    raise UsageError(f"{name}: got {value!r}, expected one of {list(choices)}")
        for name, numbers in (
            ("k", self.ks),
            ("k", self.class_ks),
            ("neighbours", self.neighbours),
            ("span", self.spans),
            ("whitened", self.whitened),
        ):
            for number in numbers:
                if number < 1:
                    raise UsageError(f"{name}: got {number}, expected at least 1")


def _kmeans(x: Rows, coordinates: np.ndarray, k: int, seed: int, starts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels (n,) and centres (at most k, d) of k-means on x (n, d), computed in other coordinates of x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # duplicates give fewer clusters than k
        labels = KMeans(k, n_init=starts, random_state=seed).fit(coordinates).labels_
    labels = np.unique(labels, return_inverse=True)[1]
    return labels, cluster_centres(x, labels)


def mean_nearest(distance: np.ndarray, m: int) -> np.ndarray:
    """Returns the mean of the finite ones of the first m entries of each row, (n,) float64. distance: (n, c), rising.

    A row without a finite entry gets the largest finite distance of all rows, or 1 if there is none.
    """
    first = distance[:, :m].astype(np.float64)
    finite = np.isfinite(first)
    mean = np.where(finite, first, 0).sum(1) / np.maximum(finite.sum(1), 1)
    all_finite = distance[np.isfinite(distance)]
    return np.where(finite.any(1), mean, all_finite.max() if len(all_finite) else 1.0)


def _clusters(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """Minus the distance to the nearest centre of clusters of the generated slices (`min`), or the mean distance to all
    centres (`avg`). Published by AI Multimedia Lab 2024."""
    space = data.generated_space()
    for linkage in sweep.linkages:
        ks = [k for k in sweep.ks if k <= len(data.generated if linkage == "kmeans" else space.leaves)]
        if not ks or (linkage == "ward" and data.metric != "euclidean"):
            continue
        approximation: dict[str, int] = {}
        if linkage == "kmeans":
            centres_of_k = [_kmeans(data.generated, data.generated_coordinates, k, data.seed)[1] for k in ks]
            ends = np.cumsum([len(of_k) for of_k in centres_of_k])
            centres = np.concatenate(centres_of_k)
            columns = {k: np.arange(end - len(c), end) for k, c, end in zip(ks, centres_of_k, ends, strict=True)}
        else:
            approximation = space.approximation
            tree = space.tree(linkage, data.metric)
            centres, columns = dendrogram_centres(space.leaves, tree, ks, space.weights)
        to_centres = distances.pairwise(data.real, centres, data.metric, data.device)
        for k in ks:
            of_k = to_centres[:, columns[k]]
            yield {"linkage": linkage, "k": k, "rule": "min", **approximation}, -of_k.min(1)
            yield {"linkage": linkage, "k": k, "rule": "avg", **approximation}, -of_k.mean(1)


def _kmeans_per_class(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """The manhattan distance to the nearest k-means centre of not used slices, minus that of used slices.

    Published by Biomedical Imaging Goa 2024, where a tie (a score of 0) means not used. It ignores generated slices.
    """
    if data.metric != "euclidean":
        return  # it has its own metric, so the trial with the euclidean metric computes the same

    def score(rows: np.ndarray, labelled: np.ndarray, k: int) -> np.ndarray:
        to_class = []
        for label in (NOT_USED, USED):
            of_class = labelled[data.labels[labelled] == label]
            centres = _kmeans(data.real[of_class], data.real_coordinates[of_class], k, data.seed)[1]
            to_class.append(distances.pairwise(data.real[rows], centres, "manhattan", data.device).min(1))
        return to_class[0] - to_class[1]

    for k in (k for k in sweep.class_ks if k <= data.smallest_training_class):
        yield {"k": k, "rule": "nearest", "metric": "manhattan"}, data.cross_fitted(partial(score, k=k))


def _two_means(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """Two k-means clusters of the real slices; the cluster with the larger share of used labelled slices is "used".

    Published by KDE-med-lab 2024, which does not say how the clusters were named. The score is the distance to the
    centre of the other cluster minus the distance to the centre of the "used" cluster.
    """
    clusters, centres = _kmeans(data.real, data.real_coordinates, 2, data.seed, starts=10)
    to_centres = distances.pairwise(data.real, centres, data.metric, data.device).astype(np.float64)
    toward_second = to_centres[:, 0] - to_centres[:, -1]  # 0 where all slices are equal

    def score(rows: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        used, second = data.labels[labelled] == USED, clusters[labelled] == 1
        shares = [used[part].mean() if part.any() else 0.0 for part in (~second, second)]
        return toward_second[rows] * (1 if shares[1] >= shares[0] else -1)

    yield {"k": 2}, data.cross_fitted(score)


def _nearest(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """Minus the logarithm of the mean distance to the m nearest generated slices (GAN-Leaks, Chen et al. 2020). With a
    reference, the logarithm of the mean distance to the m nearest real slices of other patients is added.

    `reference` "not_used": the labelled slices that were not used (GAN-Leaks calibrated); "real": all real slices,
    which are more and need no labels; "none": no reference.
    """
    to_generated, _ = data.to_generated(max(sweep.neighbours))
    to_any, to_not_used = data.to_real(max(sweep.neighbours))
    for m in sweep.neighbours:
        log_distance = np.log(mean_nearest(to_generated, m) + TINY)
        yield {"neighbours": m, "reference": "none"}, -log_distance
        yield {"neighbours": m, "reference": "real"}, np.log(mean_nearest(to_any, m) + TINY) - log_distance
        yield {"neighbours": m, "reference": "not_used"}, np.log(mean_nearest(to_not_used, m) + TINY) - log_distance


def _contrast(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """The mean similarity to the m nearest generated slices minus that to the m nearest labelled not used slices.

    Similarity is the negative distance (a two-sample form of DOMIAS, van Breugel et al. 2023).
    """
    to_generated, _ = data.to_generated(max(sweep.neighbours))
    _, to_not_used = data.to_real(max(sweep.neighbours))
    for m in sweep.neighbours:
        yield {"neighbours": m}, mean_nearest(to_not_used, m) - mean_nearest(to_generated, m)


def _reverse(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """Reverse retrieval (VCMI 2023): a slice is used if it is the nearest real slice of some generated slice.

    The score of a slice is its largest margin over all generated slices: the logarithm of the distance between the
    generated slice and its nearest real slice of another patient, minus the logarithm of its distance to the slice. It
    is above 0 exactly for slices that are nearer to some generated slice than all slices of other patients are; two
    slices that are equally near have 0.
    """
    yield {}, data.to_generated(max(sweep.neighbours))[1]


def _span(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """Minus the logarithm of the share of a slice outside the leading principal components of the generated slices.

    A generator can draw what it has memorised, so used slices lie closer to the span of its images. The share is
    |x - projection of x|^2 / |x - mean|^2.
    """
    if data.metric != "euclidean":
        return  # the span does not depend on the metric, so the trial with the euclidean metric computes the same
    spans = [c for c in sweep.spans if c < min(len(data.generated) - 1, data.generated.shape[1])]
    if not spans:
        return
    axes = pca(data.generated, max(spans), data.device, data.seed)
    scores_of_span = {c: np.empty(len(data.real)) for c in spans}
    for part in distances.strips(*data.real.shape):
        real = data.real[part]
        whole = np.square(real.astype(np.float64) - axes.mean).sum(1)
        coordinates = axes.leading(axes.rank).transform(real, data.device).astype(np.float64)
        inside = np.cumsum(np.pad(np.square(coordinates), ((0, 0), (1, 0))), axis=1)
        for c in spans:
            outside = np.maximum(whole - inside[:, min(c, axes.rank)], 0)
            scores_of_span[c][part] = -np.log((outside + TINY) / (whole + TINY))
    for c in spans:
        yield {"span": c}, scores_of_span[c]


def _whitened(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """Mean cosine to the m nearest generated slices in whitened principal components. With the reference "real", that
    to the m nearest real slices of other patients is subtracted.

    The strongest components show what all slices share, such as the outline of the body, and hide in plain distances
    what one slice has alone. Whitening gives each component the same weight (Jegou and Chum 2012). The components are
    those of generated and real slices together, and need no labels.
    """
    if data.axes is None or not data.axes.rank:
        return  # another trial of the embedding computes these scores, or all slices are equal
    for c in dict.fromkeys(min(c, data.axes.rank) for c in sweep.whitened):
        white = data.whitened(c)
        to_generated, _ = white.to_generated(max(sweep.neighbours))
        to_any, _ = white.to_real(max(sweep.neighbours))
        for m in sweep.neighbours:
            near = mean_nearest(to_generated, m)
            yield {"whitened": c, "neighbours": m, "reference": "none"}, -near
            yield {"whitened": c, "neighbours": m, "reference": "real"}, mean_nearest(to_any, m) - near


@dataclass(frozen=True)
class Method:
    """A family of membership scores.

    scores: yields the parameters and scores of each value that the sweep asks for. learns: whether the scores with
    these parameters learn from labels.
    """

    scores: Callable[[EmbeddedSet, Sweep], Iterator[Scored]]
    learns: Callable[[Mapping[str, object]], bool] = lambda parameters: False


METHODS: dict[str, Method] = {
    "clusters": Method(_clusters),
    "kmeans_per_class": Method(_kmeans_per_class, learns=lambda parameters: True),
    "two_means": Method(_two_means, learns=lambda parameters: True),
    "nearest": Method(_nearest, learns=lambda parameters: parameters["reference"] == "not_used"),
    "contrast": Method(_contrast, learns=lambda parameters: True),
    "reverse": Method(_reverse),
    "span": Method(_span),
    "whitened": Method(_whitened),
}


def learns_from_labels(configuration: Mapping[str, object]) -> bool:
    """Returns whether the scores of a configuration use labels, so that permuted labels would change them."""
    return METHODS[str(configuration["method"])].learns(configuration)


def scores(data: EmbeddedSet, sweep: Sweep) -> Iterator[Scored]:
    """Yields every score of the sweep in a fixed order: its parameters, and (n,) float64 of all real slices."""
    for method in sweep.methods:
        for parameters, of_slices in METHODS[method].scores(data, sweep):
            yield {"method": method, **parameters}, np.asarray(of_slices, np.float64)


def check_ks(ks: Sequence[int], slices: int) -> None:
    """Checks numbers of clusters. Raises UsageError for a number of clusters above the number of slices to cluster."""
    if max(ks, default=0) > slices:
        raise UsageError(f"k: got {max(ks)}, expected at most the number of slices to cluster, {slices}")
