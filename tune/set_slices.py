"""The slices of one membership set, by rows of the task's images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.scoring.membership import Sweep
from gansfp.scoring.projections import pca

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

    def with_axes(self, generated: np.ndarray, real: np.ndarray) -> EmbeddedSet:
        """The set with its principal components, as a trial has it. generated: (g, d), real: (n, d): its vectors."""
        axes = pca(np.concatenate([generated, real]), USUAL_SHARE, at_least=max(Sweep().whitened))
        return EmbeddedSet(generated, real, self.labels, self.groups, self.folds, axes=axes)
