"""One membership set in one embedding, with what its scores share: distances to the nearest slices, coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.rows import Rows, parts
from gansfp.scoring import distances
from gansfp.scoring.clustering_space import ClusteringSpace
from gansfp.scoring.projections import Projection, coordinates
from gansfp.statistics.resampling import group_codes

TINY = 1e-12  # added before every logarithm, because a copy has distance 0


@dataclass(frozen=True, eq=False)
class EmbeddedSet:
    """One membership set in one embedding.

    generated: (g, d) float32; real: (n, d) float32; labels: (n,) 1 used, 0 not used, -1 unknown; groups: (n,) equal for
    slices of one patient; folds: (n,) fold of each labelled slice, -1 for unknown slices. limit: bytes for what grows
    by the square of the number of generated slices; distances to real slices are computed in strips, and only the
    nearest are kept. leading: (g + n, c) float32, all slices along their leading principal components, the generated
    ones first: k-means of many slices reads these (Cohen et al. 2015); None where it reads all numbers. axes: the
    principal components of all slices; None where the vectors are along them already.
    """

    generated: Rows
    real: Rows
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray
    metric: str = "euclidean"
    device: str = "cpu"
    seed: int = 0
    limit: int = distances.MAX_MEMORY
    leading: np.ndarray | None = None
    axes: Projection | None = None
    codes: np.ndarray = field(init=False)
    _near: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.generated) < 2:
            raise UsageError(f"membership: got {len(self.generated)} generated slices, expected at least 2")
        # A sum of numbers that are not all finite is not finite, and needs no array as large as theirs.
        sums = [x[part].sum(dtype=np.float64) for x in (self.generated, self.real) for part in parts(x)]
        if not np.isfinite(sums).all():
            raise UsageError(
                "membership: got embeddings that are not finite, expected numbers (--precision float32 may help)"
            )
        if not np.array_equal(self.folds < 0, self.labels == UNKNOWN):
            raise UsageError(
                "membership: got folds that do not fit the labels, expected -1 for unknown slices and only for them"
            )
        if self.smallest_training_class < 1:
            raise UsageError(
                "membership: got too few labelled slices, expected used and not used slices outside of every fold"
            )
        object.__setattr__(self, "codes", group_codes(self.groups, len(self.real)))

    @cached_property
    def smallest_training_class(self) -> int:
        """The smallest number of labelled slices of one class outside of a fold, from which its scores can learn."""
        outside = [
            (self.labels == label) & (self.folds != fold) for label in (USED, NOT_USED) for fold in set(self.folds)
        ]
        return min(int(rows.sum()) for rows in outside)

    def generated_space(self) -> ClusteringSpace:
        """Returns the generated slices, prepared for clustering. It is not kept: one kind of score needs it, and the
        others would have its distances in memory beside their own."""
        return ClusteringSpace(self.generated, self.device, self.limit, self.seed, self._leading_generated)

    def to_generated(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distances to the `count` nearest generated slices, rising, (n, count) float32, and the margin
        (n,) of each real slice.

        The margin is the largest value, over all generated slices, of this difference: the logarithm of the distance
        between the generated slice and its nearest real slice of another patient, minus the logarithm of the distance
        between the generated and the real slice.
        """
        return self._once("generated", count, self._to_generated)

    def to_real(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distances to the `count` nearest real slices, and to the `count` nearest that are labelled not
        used and belong to another fold: each (n, count) float32, rising, infinite where there are fewer.

        Slices of the same group are left out. Neighbouring slices of one patient are alike, whatever the generator was
        trained on; compared with each other they would look like evidence.
        """
        return self._once("real", count, self._to_real)

    def _once(
        self, name: str, count: int, compute: Callable[[int], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        if (name, count) not in self._near:
            self._near[name, count] = compute(count)
        return self._near[name, count]

    def _to_generated(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        near = np.full((len(self.real), 0), np.inf, np.float32)
        margin = np.zeros(len(self.real), np.float32)
        for _, strip in distances.distance_strips(self.generated, self.real, self.metric, self.device):
            margin = np.maximum(margin, _largest_ratios(strip, self.codes))
            near = distances.smallest(np.concatenate([near, strip.T], axis=1), count)
        return near, np.log(margin.astype(np.float64))

    def _to_real(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        to_any, to_not_used = (np.full((len(self.real), count), np.inf, np.float32) for _ in range(2))
        reference = self.labels == NOT_USED
        for part, strip in distances.distance_strips(self.real, self.real, self.metric, self.device):
            strip[self.codes[part, None] == self.codes] = np.inf
            near = distances.smallest(strip, count)
            to_any[part, : near.shape[1]] = near
            strip = strip[:, reference]
            strip[self.folds[part, None] == self.folds[reference]] = np.inf
            near = distances.smallest(strip, count)
            to_not_used[part, : near.shape[1]] = near
        return to_any, to_not_used

    def whitened(self, components: int) -> EmbeddedSet:
        """Returns the set along its first principal components, each at variance 1, compared by cosines.

        Raises UsageError where the set has no axes.
        """
        generated, real = (self.whiten(x, components) for x in (self.generated, self.real))
        return replace(self, generated=generated, real=real, metric="cosine", leading=None, axes=None)

    def whiten(self, vectors: Rows, components: int) -> np.ndarray:
        """Returns vectors (m, d) of this embedding along the set's first principal components, each at variance 1:
        (m, components) float32. Raises UsageError where the set has no axes."""
        if self.axes is None:
            raise UsageError("whitened: got vectors without principal components, expected their axes")
        axes = self.axes.leading(components)
        return axes.transform(vectors, self.device) / np.sqrt(axes.variance_ratio).astype(np.float32)

    @property
    def _leading_generated(self) -> np.ndarray | None:
        return None if self.leading is None else self.leading[: len(self.generated)]

    @cached_property
    def generated_coordinates(self) -> np.ndarray:
        """The generated slices in the coordinates that k-means reads, (g, ...)."""
        leading = self._leading_generated
        return coordinates(self.generated, self.device) if leading is None else leading

    @cached_property
    def real_coordinates(self) -> np.ndarray:
        """The real slices in the coordinates that k-means reads, (n, ...)."""
        return coordinates(self.real, self.device) if self.leading is None else self.leading[len(self.generated) :]

    def cross_fitted(self, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns the scores (n,) of a score that learns: `score(rows, labelled)` computes those of the rows of one
        fold from the labelled rows of the other folds."""
        scores_of_rows = np.empty(len(self.labels))
        for fold in np.unique(self.folds):
            rows = np.flatnonzero(self.folds == fold)
            scores_of_rows[rows] = score(rows, np.flatnonzero((self.labels != UNKNOWN) & (self.folds != fold)))
        return scores_of_rows


def _largest_ratios(distance: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the exponentials of the margins of to_generated over some generated slices, (n,) float32.

    distance: (g, n) float32; codes: (n,) groups.
    """
    first = distance.argmin(1)
    same_group = codes[None, :] == codes[first][:, None]
    runner_up = np.where(same_group, np.float32(np.inf), distance).min(1)
    # where all real slices are of one patient there is no other patient to compare with, so every margin is 0
    alone = ~np.isfinite(runner_up)
    tiny = np.float32(TINY)
    rival = np.where(same_group, runner_up[:, None], distance.min(1)[:, None]) + tiny
    rival[alone] = distance[alone] + tiny
    return (rival / (distance + tiny)).max(0)
