"""Membership scores: how likely each real slice trained the generator of these synthetic ones; higher, more likely.

Scores are computed in one embedding of one set. What is shared (distances, dendrograms, principal components) is
computed once, the cheap inner values (k, rule, number of neighbours) are swept. A score that learns from the labelled
slices is cross-fitted: a labelled slice is scored from the labels of the other folds only, an unknown one from all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from gansfp import distances
from gansfp.errors import UsageError

USED, NOT_USED, UNKNOWN = 1, 0, -1
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
            ("linkage", self.linkages, (*distances.LINKAGES, "kmeans")),
        ):
            for value in values:
                if value not in known:
                    raise UsageError(f"{name}: got {value!r}, expected one of {list(known)}")
        for name, numbers in (("k", self.ks), ("k", self.class_ks), ("neighbours", self.neighbours), ("span", self.spans)):
            for number in numbers:
                if number < 1:
                    raise UsageError(f"{name}: got {number}, expected at least 1")


@dataclass(frozen=True, eq=False)
class MembershipSet:
    """One set in one embedding.

    generated: (g, d) float32; real: (n, d) float32; labels: (n,) 1 used, 0 not used, -1 unknown; groups: (n,) what
    belongs to one patient; folds: (n,) fold of each labelled slice, -1 for unknown ones.
    """

    generated: np.ndarray
    real: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    metric: str = "euclidean"
    device: str = "cpu"
    seed: int = 0
    codes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        for label, name in ((USED, "used"), (NOT_USED, "not used")):
            if not (self.labels == label).any():
                raise UsageError(f"membership: got no labelled slice that is {name}, expected both classes")
        if len(self.generated) < 2:
            raise UsageError(f"membership: got {len(self.generated)} generated slices, expected at least 2")
        object.__setattr__(self, "codes", np.unique(self.groups, return_inverse=True)[1])

    @cached_property
    def to_generated(self) -> np.ndarray:
        """(n, g) float32 distances of the real to the generated slices."""
        return distances.pairwise(self.real, self.generated, self.metric, self.device)

    @cached_property
    def to_real(self) -> np.ndarray:
        """(n, n) float32 distances between real slices, infinite within a group.

        Neighbouring slices of one patient are alike whatever was trained on: compared with each other they would look
        like evidence.
        """
        found = distances.self_distances(self.real, self.metric, self.device)
        found[self.codes[:, None] == self.codes[None, :]] = np.inf
        return found

    @cached_property
    def among_generated(self) -> np.ndarray:
        """(g, g) float32 distances between generated slices."""
        return distances.self_distances(self.generated, self.metric, self.device)

    def cross_fitted(self, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """(n,) scores: `score(rows, labelled)` of each fold's rows from the labelled rows outside it, unknown from all."""
        found = np.empty(len(self.labels))
        for fold in np.unique(self.folds):
            rows = np.flatnonzero(self.folds == fold)
            found[rows] = score(rows, np.flatnonzero((self.labels != UNKNOWN) & (self.folds != fold)))
        return found


def nearest(distance: np.ndarray, m: int) -> np.ndarray:
    """Mean of the m smallest entries of each row, infinite ones left out. distance: (n, c); returns (n,).

    A row without any finite entry gives the largest finite distance there is.
    """
    m = min(m, distance.shape[1])
    smallest = np.partition(distance, m - 1, axis=1)[:, :m].astype(np.float64)
    finite = np.isfinite(smallest)
    mean = np.where(finite, smallest, 0).sum(1) / np.maximum(finite.sum(1), 1)
    everywhere = distance[np.isfinite(distance)]
    return np.where(finite.any(1), mean, everywhere.max() if len(everywhere) else 1.0)


def _clusters(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Distance to the nearest (`min`) or the mean over all (`avg`) centres of clusters of the generated slices.

    Published by AI Multimedia Lab 2024.
    """
    ks = [k for k in sweep.ks if k <= len(data.generated)]
    for linkage in sweep.linkages:
        if not ks or (linkage == "ward" and data.metric != "euclidean"):
            continue
        if linkage == "kmeans":
            fits = [KMeans(k, n_init=1, random_state=data.seed).fit(data.generated).cluster_centers_ for k in ks]
            centres = np.concatenate(fits)
            columns = {k: np.arange(end - k, end) for k, end in zip(ks, np.cumsum(ks), strict=True)}
        else:
            tree = distances.dendrogram(data.among_generated, linkage, data.metric)
            centres, columns = distances.dendrogram_centres(data.generated, tree, ks)
        to_centres = distances.pairwise(data.real, centres, data.metric, data.device)
        for k in ks:
            to_these = to_centres[:, columns[k]]
            yield {"linkage": linkage, "k": k, "rule": "min"}, -to_these.min(1)
            yield {"linkage": linkage, "k": k, "rule": "avg"}, -to_these.mean(1)


def _kmeans_per_class(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Nearest k-means centre of the used or of the not used slices, manhattan; a score of 0, a tie, is not used.

    Published by Biomedical Imaging Goa 2024; it never looks at the generated slices.
    """

    def score(rows: np.ndarray, labelled: np.ndarray, k: int) -> np.ndarray:
        to_class = []
        for label in (NOT_USED, USED):
            members = data.real[labelled[data.labels[labelled] == label]]
            centres = KMeans(k, n_init=1, random_state=data.seed).fit(members).cluster_centers_
            to_class.append(distances.pairwise(data.real[rows], centres, "manhattan", data.device).min(1))
        return to_class[0] - to_class[1]

    smallest = min(
        int(((data.labels == label) & (data.folds != fold)).sum())
        for label in (NOT_USED, USED)
        for fold in np.unique(data.folds)
    )
    for k in (k for k in sweep.class_ks if k <= smallest):
        yield {"k": k, "rule": "nearest"}, data.cross_fitted(lambda rows, labelled, k=k: score(rows, labelled, k))


def _two_means(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Two k-means clusters of the real slices, the one with the larger share of used slices among the labelled is used.

    Published by KDE-med-lab 2024, who do not say how clusters were named. The score is the difference of the distances
    to the two centres.
    """
    model = KMeans(2, n_init=10, random_state=data.seed).fit(data.real)
    to_centres = distances.pairwise(data.real, model.cluster_centers_.astype(np.float32), data.metric, data.device)
    toward_second = to_centres[:, 0].astype(np.float64) - to_centres[:, 1]

    def score(rows: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        used = data.labels[labelled] == USED
        second = model.labels_[labelled] == 1
        share_second, share_first = used[second].mean() if second.any() else 0.0, used[~second].mean() if (~second).any() else 0.0
        return toward_second[rows] * (1.0 if share_second >= share_first else -1.0)

    yield {"k": 2}, data.cross_fitted(score)


def _nearest(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Distance to the m nearest generated slices: alone (GAN-Leaks, Chen et al. 2020), and calibrated by the distance to
    the m nearest real slices of other patients, as a difference of logarithms.

    `reference` says which real slices: the labelled not used ones (GAN-Leaks calibrated), or all real ones, which needs
    no labels and has more of them.
    """
    for m in sweep.neighbours:
        close = np.log(nearest(data.to_generated, m) + TINY)
        yield {"neighbours": m, "reference": "none"}, -close
        yield {"neighbours": m, "reference": "real"}, np.log(nearest(data.to_real, m) + TINY) - close

        def calibrated(rows: np.ndarray, labelled: np.ndarray, m: int = m, close: np.ndarray = close) -> np.ndarray:
            reference = labelled[data.labels[labelled] == NOT_USED]
            return np.log(nearest(data.to_real[np.ix_(rows, reference)], m) + TINY) - close[rows]

        yield {"neighbours": m, "reference": "not_used"}, data.cross_fitted(calibrated)


def _contrast(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Mean similarity to the m nearest generated slices minus that to the m nearest labelled not used ones, the
    similarity being the negative distance (a two-sample form of DOMIAS, van Breugel et al. 2023)."""
    for m in sweep.neighbours:
        close = nearest(data.to_generated, m)

        def score(rows: np.ndarray, labelled: np.ndarray, m: int = m, close: np.ndarray = close) -> np.ndarray:
            reference = labelled[data.labels[labelled] == NOT_USED]
            return nearest(data.to_real[np.ix_(rows, reference)], m) - close[rows]

        yield {"neighbours": m}, data.cross_fitted(score)


def _reverse(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Reverse retrieval (VCMI 2023): a slice is used if it is the nearest real slice of some generated one.

    The score is its margin: the largest, over generated slices, logarithm of the distance of the nearest real slice of
    another patient over its own distance. It is above 0 exactly for the slices that the rule calls used.
    """
    distance = data.to_generated.T.astype(np.float64)  # (g, n)
    first = distance.argmin(1)
    other_group = data.codes[None, :] != data.codes[first][:, None]
    runner_up = np.where(other_group, distance, np.inf).min(1)
    rival = np.where(other_group, distance.min(1)[:, None], runner_up[:, None])
    if not np.isfinite(rival).all():  # every real slice is of one patient: nobody to be nearer than
        rival = np.where(np.isfinite(rival), rival, distance)
    yield {}, (np.log(rival + TINY) - np.log(distance + TINY)).max(0)


def _span(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """The share of a slice that lies outside the leading principal components of the generated slices.

    What a generator learnt by heart it can draw: used slices lie closer to the span of its pictures. Score: minus the
    logarithm of |x - projection of x|^2 / |x - mean|^2.
    """
    most = min(len(data.generated) - 1, data.generated.shape[1])
    wanted = [c for c in sweep.spans if c < most]
    if not wanted:
        return
    basis = distances.pca(data.generated, max(wanted), data.device)
    whole = np.square(data.real.astype(np.float64) - basis.mean).sum(1)
    inside = np.cumsum(np.square(basis.transform(data.real, data.device).astype(np.float64)), axis=1)
    for c in wanted:
        outside = np.maximum(whole - inside[:, c - 1], 0)
        yield {"span": c}, -np.log((outside + TINY) / (whole + TINY))


METHODS: dict[str, Callable[[MembershipSet, Sweep], Iterator[Scored]]] = {
    "clusters": _clusters,
    "kmeans_per_class": _kmeans_per_class,
    "two_means": _two_means,
    "nearest": _nearest,
    "contrast": _contrast,
    "reverse": _reverse,
    "span": _span,
}


def scores(data: MembershipSet, sweep: Sweep) -> Iterator[Scored]:
    """Every score of the sweep: (its parameters, (n,) float64 scores of all real slices), in a fixed order."""
    for method in sweep.methods:
        for parameters, found in METHODS[method](data, sweep):
            yield {"method": method, **parameters}, np.asarray(found, np.float64)


def check_ks(ks: Sequence[int], slices: int) -> None:
    """Raises UsageError for a number of clusters above the number of slices to cluster."""
    if max(ks, default=0) > slices:
        raise UsageError(f"k: got {max(ks)}, expected at most the number of slices to cluster, {slices}")
