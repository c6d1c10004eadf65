"""Membership scores: how likely each real slice trained the generator of these synthetic ones; higher, more likely.

Scores are computed in one embedding of one set. What is shared (distances, dendrograms, principal components) is
computed once, the cheap inner values (k, rule, number of neighbours) are swept. A score that learns from the labelled
slices is cross-fitted: a labelled slice is scored from the labels of the other folds only, an unknown one from all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring import distances
from gansfp.scoring.clustering_space import Space
from gansfp.scoring.dendrograms import LINKAGES, cluster_centres, dendrogram_centres
from gansfp.statistics.resampling import group_codes

TINY = 1e-12  # under every logarithm: a copy has distance 0

Scored = tuple[dict[str, Any], np.ndarray]


@dataclass(frozen=True)
class Sweep:
    """The inner values that are swept. Raises UsageError for a value that no score takes."""

    methods: tuple[str, ...] = ("clusters", "kmeans_per_class", "two_means", "nearest", "contrast", "reverse", "span")
    ks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    linkages: tuple[str, ...] = ("ward", "average", "complete", "kmeans")
    class_ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    neighbours: tuple[int, ...] = (1, 5)
    spans: tuple[int, ...] = (20, 60, 150, 300)

    def __post_init__(self) -> None:
        for name, values, known in (
            ("method", self.methods, tuple(METHODS)),
            ("linkage", self.linkages, (*LINKAGES, "kmeans")),
        ):
            for value in values:
                if value not in known:
                    raise UsageError(f"{name}: got {value!r}, expected one of {list(known)}")
        for name, numbers in (
            ("k", self.ks),
            ("k", self.class_ks),
            ("neighbours", self.neighbours),
            ("span", self.spans),
        ):
            for number in numbers:
                if number < 1:
                    raise UsageError(f"{name}: got {number}, expected at least 1")


@dataclass(frozen=True, eq=False)
class MembershipSet:
    """One set in one embedding.

    generated: (g, d) float32; real: (n, d) float32; labels: (n,) 1 used, 0 not used, -1 unknown; groups: (n,) what
    belongs to one patient; folds: (n,) fold of each labelled slice, -1 for unknown ones. limit: bytes for what grows by
    the square of the generated slices; distances to the real ones are looked at in strips, and only the nearest kept.
    """

    generated: np.ndarray
    real: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    metric: str = "euclidean"
    device: str = "cpu"
    seed: int = 0
    limit: int = distances.MAX_MEMORY
    codes: np.ndarray = field(init=False)
    _near: dict[tuple[str, int], Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.generated) < 2:
            raise UsageError(f"membership: got {len(self.generated)} generated slices, expected at least 2")
        if not (np.isfinite(self.generated).all() and np.isfinite(self.real).all()):
            raise UsageError(
                "membership: got embeddings that are not finite, expected numbers (--precision float32 may help)"
            )
        if not np.array_equal(self.folds < 0, self.labels == UNKNOWN):
            raise UsageError("membership: got folds that do not fit the labels, expected -1 for the unknown alone")
        if self.fewest < 1:
            raise UsageError("membership: expected used and not used slices outside of every fold")
        object.__setattr__(self, "codes", group_codes(self.groups, len(self.real)))

    @cached_property
    def fewest(self) -> int:
        """The fewest slices of a class that a fold's scores can learn from."""
        learnt = [
            (self.labels == label) & (self.folds != fold) for label in (USED, NOT_USED) for fold in set(self.folds)
        ]
        return min(int(rows.sum()) for rows in learnt)

    @cached_property
    def among_generated(self) -> Space:
        """The generated slices, to be clustered."""
        return Space(self.generated, self.device, self.limit, self.seed)

    def to_generated(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances to the `most` nearest generated slices (n, most) float32, and the margin (n,) of _reverse."""
        return self._once("generated", most, self._to_generated)

    def to_real(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances to the `most` nearest real slices, and to the `most` nearest that are labelled not used and not of
        the same fold: each (n, most) float32, infinite where there are fewer.

        Slices of the same group are left out: neighbouring slices of one patient are alike whatever was trained on, and
        compared with each other they would look like evidence.
        """
        return self._once("real", most, self._to_real)

    def _once(self, name: str, most: int, compute: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Any:
        if (name, most) not in self._near:
            self._near[name, most] = compute(most)
        return self._near[name, most]

    def _to_generated(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        near, margin = np.full((len(self.real), 0), np.inf, np.float32), np.full(len(self.real), -np.inf)
        for part in distances.strips(len(self.generated), len(self.real)):
            distance = distances.pairwise(self.generated[part], self.real, self.metric, self.device)
            near = distances.smallest(np.concatenate([near, distance.T], axis=1), most)
            margin = np.maximum(margin, _margins(distance, self.codes))
        return near, margin

    def _to_real(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        every, unused = (np.full((len(self.real), most), np.inf, np.float32) for _ in range(2))
        for part in distances.strips(len(self.real), len(self.real)):
            distance = distances.pairwise(self.real[part], self.real, self.metric, self.device)
            distance[self.codes[part, None] == self.codes] = np.inf
            found = distances.smallest(distance, most)
            every[part, : found.shape[1]] = found
            distance[:, self.labels != NOT_USED] = np.inf
            distance[self.folds[part, None] == self.folds] = np.inf
            found = distances.smallest(distance, most)
            unused[part, : found.shape[1]] = found
        return every, unused

    @cached_property
    def generated_places(self) -> np.ndarray:
        """Where k-means looks at the generated slices, (g, ...) float64, which it takes fastest."""
        return distances.coordinates(self.generated, self.device)

    @cached_property
    def real_places(self) -> np.ndarray:
        """Where k-means looks at the real slices, (n, ...) float64."""
        return distances.coordinates(self.real, self.device)

    def cross_fitted(self, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """(n,) scores: `score(rows, labelled)` of each fold's rows from the labelled rows outside it."""
        found = np.empty(len(self.labels))
        for fold in np.unique(self.folds):
            rows = np.flatnonzero(self.folds == fold)
            found[rows] = score(rows, np.flatnonzero((self.labels != UNKNOWN) & (self.folds != fold)))
        return found


def _kmeans(x: np.ndarray, places: np.ndarray, k: int, seed: int, starts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and centres (at most k, d) of k-means on x (n, d), which is looked at in the coordinates `places`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # duplicates give fewer clusters than k
        found = KMeans(k, n_init=starts, random_state=seed).fit(places).labels_
    labels = np.unique(found, return_inverse=True)[1]
    return labels, cluster_centres(x, labels)


def nearest(distance: np.ndarray, m: int) -> np.ndarray:
    """Mean of the first m entries of each row, infinite ones left out. distance: (n, c), rising; returns (n,) float64.

    A row without any finite entry gives the largest finite distance there is.
    """
    first = distance[:, :m].astype(np.float64)
    finite = np.isfinite(first)
    mean = np.where(finite, first, 0).sum(1) / np.maximum(finite.sum(1), 1)
    everywhere = distance[np.isfinite(distance)]
    return np.where(finite.any(1), mean, everywhere.max() if len(everywhere) else 1.0)


def _clusters(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Distance to the nearest (`min`) or the mean over all (`avg`) centres of clusters of the generated slices.

    Published by AI Multimedia Lab 2024.
    """
    space = data.among_generated
    for linkage in sweep.linkages:
        ks = [k for k in sweep.ks if k <= len(data.generated if linkage == "kmeans" else space.leaves)]
        if not ks or (linkage == "ward" and data.metric != "euclidean"):
            continue
        told = {} if linkage == "kmeans" else space.approximation
        if linkage == "kmeans":
            found = [_kmeans(data.generated, data.generated_places, k, data.seed)[1] for k in ks]
            ends = np.cumsum([len(each) for each in found])
            centres = np.concatenate(found)
            columns = {k: np.arange(e - len(f), e) for k, f, e in zip(ks, found, ends, strict=True)}
        else:
            tree = space.tree(linkage, data.metric)
            centres, columns = dendrogram_centres(space.leaves, tree, ks, space.weights)
        to_centres = distances.pairwise(data.real, centres, data.metric, data.device)
        for k in ks:
            to_these = to_centres[:, columns[k]]
            yield {"linkage": linkage, "k": k, "rule": "min", **told}, -to_these.min(1)
            yield {"linkage": linkage, "k": k, "rule": "avg", **told}, -to_these.mean(1)


def _kmeans_per_class(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Nearest k-means centre of the used or of the not used slices, manhattan; a score of 0, a tie, is not used.

    Published by Biomedical Imaging Goa 2024; it never looks at the generated slices.
    """

    if data.metric != "euclidean":
        return  # it has metrics of its own: it is the same in the euclidean trial

    def score(rows: np.ndarray, labelled: np.ndarray, k: int) -> np.ndarray:
        to_class = []
        for label in (NOT_USED, USED):
            members = labelled[data.labels[labelled] == label]
            centres = _kmeans(data.real[members], data.real_places[members], k, data.seed)[1]
            to_class.append(distances.pairwise(data.real[rows], centres, "manhattan", data.device).min(1))
        return to_class[0] - to_class[1]

    for k in (k for k in sweep.class_ks if k <= data.fewest):
        yield {"k": k, "rule": "nearest", "metric": "manhattan"}, data.cross_fitted(partial(score, k=k))


def _two_means(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Two k-means clusters of the real slices, the one with the larger share of used slices among the labelled is used.

    Published by KDE-med-lab 2024, who do not say how clusters were named. The score is the difference of the distances
    to the two centres.
    """
    clusters, centres = _kmeans(data.real, data.real_places, 2, data.seed, starts=10)
    to_centres = distances.pairwise(data.real, centres, data.metric, data.device).astype(np.float64)
    toward_second = to_centres[:, 0] - to_centres[:, -1]  # 0 where all slices are the same

    def score(rows: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        used, second = data.labels[labelled] == USED, clusters[labelled] == 1
        shares = [used[part].mean() if part.any() else 0.0 for part in (~second, second)]
        return toward_second[rows] * (1 if shares[1] >= shares[0] else -1)

    yield {"k": 2}, data.cross_fitted(score)


def _nearest(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """How near the m nearest generated slices are: alone (GAN-Leaks, Chen et al. 2020), or against the m nearest real
    slices of other patients, as a difference of logarithms of mean distances.

    `reference` says which real slices: the labelled not used ones (GAN-Leaks calibrated), or all real ones, which needs
    no labels and has more of them.
    """
    close, (every, unused) = data.to_generated(max(sweep.neighbours))[0], data.to_real(max(sweep.neighbours))
    for m in sweep.neighbours:
        log_close = np.log(nearest(close, m) + TINY)
        yield {"neighbours": m, "reference": "none"}, -log_close
        yield {"neighbours": m, "reference": "real"}, np.log(nearest(every, m) + TINY) - log_close
        yield {"neighbours": m, "reference": "not_used"}, np.log(nearest(unused, m) + TINY) - log_close


def _contrast(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Mean similarity to the m nearest generated slices minus that to the m nearest labelled not used ones, the
    similarity being the negative distance (a two-sample form of DOMIAS, van Breugel et al. 2023)."""
    close, unused = data.to_generated(max(sweep.neighbours))[0], data.to_real(max(sweep.neighbours))[1]
    for m in sweep.neighbours:
        yield {"neighbours": m}, nearest(unused, m) - nearest(close, m)


def _reverse(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Reverse retrieval (VCMI 2023): a slice is used if it is the nearest real slice of some generated one.

    The score is its margin: the largest, over generated slices, logarithm of the distance of the nearest real slice of
    another patient over its own distance. It is above 0 exactly for the slices that are nearer to some generated slice
    than every slice of another patient; two that are equally near have 0.
    """
    yield {}, data.to_generated(max(sweep.neighbours))[1]


def _margins(distance: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The margins (n,) of _reverse, over some generated slices. distance: (g, n), codes: (n,) groups as numbers."""
    distance = distance.astype(np.float64)
    first = distance.argmin(1)
    other_group = codes[None, :] != codes[first][:, None]
    runner_up = np.where(other_group, distance, np.inf).min(1)
    rival = np.where(other_group, distance.min(1)[:, None], runner_up[:, None])
    # every real slice is of one patient: nobody to be nearer than
    rival = np.where(np.isfinite(rival), rival, distance)
    return (np.log(rival + TINY) - np.log(distance + TINY)).max(0)


def _span(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """The share of a slice that lies outside the leading principal components of the generated slices.

    What a generator learnt by heart it can draw: used slices lie closer to the span of its pictures. Score: minus the
    logarithm of |x - projection of x|^2 / |x - mean|^2.
    """
    if data.metric != "euclidean":
        return  # the span does not depend on the metric: it is the same in the euclidean trial
    spans = [c for c in sweep.spans if c < min(len(data.generated) - 1, data.generated.shape[1])]
    if not spans:
        return
    axes = distances.pca(data.generated, max(spans), data.device, data.limit, data.seed)
    found = {c: np.empty(len(data.real)) for c in spans}
    for part in distances.strips(*data.real.shape):
        real = data.real[part]
        whole = np.square(real.astype(np.float64) - axes.mean).sum(1)
        inside = np.cumsum(np.square(axes.transform(real, data.device).astype(np.float64)), axis=1)
        for c in spans:
            outside = np.maximum(whole - inside[:, c - 1], 0)
            found[c][part] = -np.log((outside + TINY) / (whole + TINY))
    for c in spans:
        yield {"span": c}, found[c]


METHODS: dict[str, Callable[[MembershipSet, Sweep], Iterator[Scored]]] = {
    "clusters": _clusters,
    "kmeans_per_class": _kmeans_per_class,
    "two_means": _two_means,
    "nearest": _nearest,
    "contrast": _contrast,
    "reverse": _reverse,
    "span": _span,
}
LEARNERS = ("kmeans_per_class", "two_means", "contrast")


def learns_from_labels(parameters: Mapping[str, Any]) -> bool:
    """Whether a configuration's scores look at labels, so that permuting labels would change them."""
    return parameters["method"] in LEARNERS or parameters.get("reference") == "not_used"


def scores(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Every score of the sweep: (its parameters, (n,) float64 scores of all real slices), in a fixed order."""
    for method in sweep.methods:
        for parameters, found in METHODS[method](data, sweep):
            yield {"method": method, **parameters}, np.asarray(found, np.float64)


def check_ks(ks: Sequence[int], slices: int) -> None:
    """Raises UsageError for a number of clusters above the number of slices to cluster."""
    if max(ks, default=0) > slices:
        raise UsageError(f"k: got {max(ks)}, expected at most the number of slices to cluster, {slices}")
