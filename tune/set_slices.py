"""The slices of one membership set, by rows of the task's images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gansfp.embedding.shards import StoredEmbedding
from gansfp.rows import Rows, between
from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.scoring.membership import Sweep
from gansfp.scoring.projections import pca
from tune.problem import Vectors

USUAL_SHARE = 0.95  # of the variance: trials that keep no more share the principal components of a set


@dataclass(frozen=True, eq=False)
class SetSlices:
    """One membership set, by rows of the task's images.

    generated: (g,) rows; real: (n,) rows, the unknown slices last; labels, groups, folds: (n,) of the real slices;
    folds: -1 for unknown slices.
    """

    name: str
    generated: np.ndarray
    real: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """(g + n,) rows of all slices, the generated ones first."""
        return np.concatenate([self.generated, self.real])

    def vectors(self, of_all: Vectors) -> Rows:
        """The vectors (g + n, d) of `rows`. of_all: of the task's images; from shards they are copied to a file."""
        return of_all.on_disk(self.rows) if isinstance(of_all, StoredEmbedding) else of_all[self.rows]

    def divided(self, both: Rows) -> tuple[Rows, Rows]:
        """The generated (g, d) and the real slices (n, d) of the vectors of `rows`."""
        count = len(self.generated)
        return between(both, 0, count), between(both, count, len(both))

    def with_axes(self, both: Rows) -> EmbeddedSet:
        """The set with its principal components, as a trial has it. both: the vectors (g + n, d) of `rows`."""
        axes = pca(both, USUAL_SHARE, at_least=max(Sweep().whitened))
        return EmbeddedSet(*self.divided(both), self.labels, self.groups, self.folds, axes=axes)
