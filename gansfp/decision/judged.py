"""The slices of a set that figures and verdicts are about: test slices with truth, else the labelled ones.

Test slices of patients who have labelled slices are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gansfp.decision.blind import units_of
from gansfp.decision.decide import Decision, rows_to_combine
from gansfp.decision.pool import Pool
from gansfp.decision.search_result import ScoredRows, SetIds
from gansfp.decision.stacking import nested_for
from gansfp.labels import NOT_USED, UNKNOWN, USED


@dataclass(frozen=True, eq=False)
class DecidedSet:
    """One set as the search left it, and what was decided.

    labels, folds, groups: (n,) of the real slices, as in ids; learns: (c,) bool, by rows of scores.
    """

    ids: SetIds
    rows: ScoredRows
    labels: np.ndarray
    folds: np.ndarray
    groups: np.ndarray
    learns: np.ndarray
    decided: Decision


@dataclass(frozen=True, eq=False)
class Judged:
    """The slices that a verdict rests on, and what is known of the others.

    rows: (k,) rows of the set's real slices; truth, score: (k,); groups, labels: (n,) of all real slices, labels -1
    where unknown; combined: (n,) the score of all; refit: yields the score (k,) for each of other
    labellings (b, k), where the score was fitted to these labels, else None; folds: (k,) of that fit.
    """

    rows: np.ndarray
    truth: np.ndarray
    score: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    combined: np.ndarray
    refit: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None
    folds: np.ndarray | None = None

    @property
    def patients(self) -> tuple[int, int]:
        """How many used and not-used patients are judged; one who has slices of both labels counts twice."""
        labels = units_of(self.groups[self.rows], self.truth).labels
        return int((labels == USED).sum()), int((labels == NOT_USED).sum())


def is_of_labelled_patient(of_set: DecidedSet, groups: np.ndarray) -> np.ndarray:
    """Whether slices with these groups (m,) are of a patient who has labelled slices: (m,) bool.

    The fit that scores such a test slice has seen its patient. The score then shows what the patient looks like, so
    its label is no independent test.
    """
    return (groups != "") & np.isin(groups, of_set.groups[of_set.labels != UNKNOWN])


def judged_by_truth(of_set: DecidedSet, truth: Mapping[str, int]) -> Judged:
    """The readable test slices of patients without labelled slices. truth: by id, 1 or 0."""
    rows = np.flatnonzero((of_set.labels == UNKNOWN) & ~is_of_labelled_patient(of_set, of_set.groups))
    of_rows = np.array([truth[of_set.ids.real[row]] for row in rows], dtype=np.int64)
    score = of_set.decided.combined.score
    return Judged(rows, of_rows, score[rows], of_set.groups, of_set.labels, score)


def judged_by_others(of_set: DecidedSet, combination: str | None) -> Judged:
    """The labelled slices, each judged by a fit to the other folds."""
    labelled, score = of_set.labels != UNKNOWN, of_set.decided.combined.score
    rows = np.flatnonzero(labelled)
    scores = of_set.rows.scores[rows_to_combine(of_set.learns)]
    pool = Pool(scores, of_set.folds)

    def refit(labelings: np.ndarray) -> Iterator[np.ndarray]:
        everything = np.tile(of_set.labels, (len(labelings), 1))
        everything[:, rows] = labelings
        for nested in nested_for(pool, everything, combination):
            yield nested.out_of_fold()[rows]

    return Judged(
        rows, of_set.labels[rows], score[rows], of_set.groups, of_set.labels, score, refit, of_set.folds[rows]
    )
