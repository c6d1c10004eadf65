"""Does a score tell two classes apart beyond what the units show by themselves? Propensities and a conditional test.

A unit is a patient, or whatever keeps its label as a whole. Where units of the two classes differ by themselves
(another scanner, another table), a score looks like evidence against permuted labels, though it only sees the
difference. So labels are exchanged between units according to their propensities: the probability of the label given
what the unit shows by itself (Rosenbaum and Rubin 1983).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from gansfp.errors import UsageError
from gansfp.statistics.logistic import logistic

STRENGTH = 1.0  # inverse regularisation of each block's regression, as scikit-learn's C, on columns of unit variance
FURTHEST = 1e-3  # propensities are kept this far from 0 and 1
STEPS = 50  # rounds of exchanges between a drawn labelling and the observed one
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of the ridge regression of a score


def propensities(blocks: Sequence[np.ndarray], labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Returns the probability (n,) of label 1 for each unit, by fits to the units of the other folds.

    blocks: each (n, d) float64, columns standardised: features of one kind; labels: (n,) 0/1; folds: (n,), each with
    both classes. Raises UsageError for fewer than 3 folds.

    Each block has a ridge logistic regression; a second regression with coefficients that are not negative combines
    them. It is fitted to predictions for units that the first did not see (stacked generalisation, Wolpert 1992). So a
    block that predicts nothing changes little, and labels that do not depend on the features have propensities near
    their share.
    """
    kinds = np.unique(folds)
    if len(kinds) < 3:  # a fit to the folds beside two of them
        raise UsageError(f"got {len(kinds)} folds, expected 3 or more: it takes 3 patients of each class")
    score = np.empty(len(labels))
    for fold in kinds:
        others = folds != fold
        inner = np.column_stack([_held_out(block[others], labels[others], folds[others]) for block in blocks])
        weights, intercept = _combination(inner, labels[others])
        outer = [_predicted(block[others], labels[others], block[~others]) for block in blocks]
        score[~others] = np.column_stack(outer) @ weights + intercept
    return np.clip(expit(score), FURTHEST, 1 - FURTHEST)


def _held_out(block: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Log odds (n,) of each unit by a regression on the other folds."""
    score = np.empty(len(labels))
    for fold in np.unique(folds):
        others = folds != fold
        score[~others] = _predicted(block[others], labels[others], block[~others])
    return score


def _predicted(block: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    coefficients, intercept = logistic(block, labels == 1, STRENGTH)
    return wanted @ coefficients + intercept


def _combination(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients (m,), none negative, and intercept of a logistic regression on scores (n, m)."""
    sign = np.where(labels == 1, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scores @ parameters[:-1] + parameters[-1])
        pull = -sign * expit(-margin) / len(sign)
        penalty = np.append(parameters[:-1], 0.0) / len(sign)
        value = np.logaddexp(0, -margin).mean() + penalty @ parameters / 2
        return float(value), np.append(scores.T @ pull, pull.sum()) + penalty

    share = np.clip(labels.mean(), FURTHEST, 1 - FURTHEST)
    start = np.append(np.zeros(scores.shape[1]), logit(share))
    bounds = [(0.0, None)] * scores.shape[1] + [(None, None)]
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return fitted[:-1], float(fitted[-1])


def conditional_labels(
    labels: np.ndarray, propensity: np.ndarray, strata: np.ndarray, count: int, seed: int
) -> np.ndarray:
    """Draws labellings that are as likely as the observed one where labels follow from the propensities alone.

    labels: (n,) 0/1; propensity: (n,) in (0, 1); strata: (n,), labels are exchanged within a stratum only, so that each
    keeps its number of each label. Returns (count, n) int8. With equal propensities they are plain permutations.

    The conditional permutation test of Berrett, Wang, Barber and Samworth (2020): pairs of units are drawn at random,
    and the labels of a pair are exchanged with the probability that the propensities give. Going STEPS rounds back from
    the observed labels, then as many forward for each labelling, makes the observed and the drawn labellings
    exchangeable, so the test is exact for the right propensities.
    """
    rng = np.random.default_rng(seed)
    odds = logit(propensity)
    rounds = [_pairs(strata, rng) for _ in range(STEPS)]
    drawn = labels[None].astype(np.int8)
    for pairs in reversed(rounds):
        _exchange(drawn, odds, pairs, rng)
    drawn = np.repeat(drawn, count, axis=0)
    for pairs in rounds:
        _exchange(drawn, odds, pairs, rng)
    return drawn


def _pairs(strata: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of units of the same stratum: two arrays of rows."""
    first, second = [], []
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        half = len(rows) // 2
        first.append(rows[:half])
        second.append(rows[half : 2 * half])
    return np.concatenate(first), np.concatenate(second)


def _exchange(
    labels: np.ndarray, odds: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    """Exchanges the labels of pairs in place. labels: (count, n) 0/1; odds: (n,) log odds; pairs: two arrays of
    rows."""
    first, second = pairs
    one, other = labels[:, first], labels[:, second]
    gains = expit(odds[first] - odds[second])  # that the first of a pair is the used one
    chances = rng.random(one.shape, dtype=np.float32)
    exchanged = (one != other) & (chances < np.where(one, 1 - gains, gains))
    labels[:, first] = one ^ exchanged
    labels[:, second] = other ^ exchanged


class Unexplained:
    """Gives of scores of units what their features do not explain, by ridge regression on all columns of the blocks.

    blocks, folds: as for propensities. Each unit is predicted by a fit to the other folds. The penalty is the one of
    PENALTIES that predicts `score` (n,) best.
    """

    def __init__(self, blocks: Sequence[np.ndarray], folds: np.ndarray, score: np.ndarray) -> None:
        # Each block has the same weight, however many columns it has.
        self._columns = np.column_stack([block / np.sqrt(block.shape[1]) for block in blocks])
        self._folds = folds
        self._factors_of_fold = {fold: self._factors(fold) for fold in np.unique(folds).tolist()}
        self._penalty = min(PENALTIES, key=lambda penalty: float(np.square(self._rest(score, penalty)).sum()))

    def _factors(self, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What predicts the fold's units from the others' scores x: left @ ((right @ x) / (values + penalty)).

        Returns left (fold, k), values (k,) and right (k, others); k is the smaller number of other units and columns.
        The product of left and right is never formed: it would take (fold, others) numbers. One decomposition serves
        all penalties: of the units' products where there are fewer units than columns, else of the columns' products.
        """
        inside, others = self._columns[self._folds == fold], self._columns[self._folds != fold]
        with threadpool_limits(1, user_api="blas"):  # small matrices: threads would wait for each other
            if len(others) < others.shape[1]:
                values, vectors = np.linalg.eigh(others @ others.T)
                return inside @ others.T @ vectors, values, vectors.T
            values, vectors = np.linalg.eigh(others.T @ others)
            return inside @ vectors, values, vectors.T @ others.T

    def _rest(self, scores: np.ndarray, penalty: float) -> np.ndarray:
        rest = np.empty(scores.shape)
        for fold, (left, values, right) in self._factors_of_fold.items():
            inside = self._folds == fold
            others = scores[..., ~inside]
            mean = others.mean(-1, keepdims=True)
            predicted = ((others - mean) @ right.T / (values + penalty)) @ left.T
            rest[..., inside] = scores[..., inside] - mean - predicted
        return rest

    def of(self, scores: np.ndarray) -> np.ndarray:
        """The residuals of scores, (n,) or (m, n)."""
        return self._rest(scores, self._penalty)
