"""Propensities and the conditional test against scikit-learn, enumeration and plain loops; validity by simulation."""

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression, Ridge

from gansfp.errors import UsageError
from gansfp.statistics.conditional import PENALTIES, STRENGTH, Unexplained, conditional_labels, propensities
from gansfp.statistics.resampling import stratified_group_folds


def units(n, shift, seed):
    """Labels and two blocks of features, of which the first differs by `shift` between the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    first = rng.standard_normal((n, 3))
    first[:, 0] += shift * labels
    blocks = [first, rng.standard_normal((n, 5))]
    return labels, [(block - block.mean(0)) / block.std(0) for block in blocks]


def log_odds_by_scikit_learn(block, labels, wanted):
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", tol=1e-10).fit(block, labels)
    return model.decision_function(wanted)


def plain_propensities(blocks, labels, folds):
    odds = np.zeros(len(labels))
    for fold in sorted(set(folds)):
        others = folds != fold
        inner, inner_folds = np.zeros((others.sum(), len(blocks))), folds[others]
        for column, block in enumerate(blocks):
            for held_out in sorted(set(inner_folds)):
                rest = inner_folds != held_out
                inner[~rest, column] = log_odds_by_scikit_learn(
                    block[others][rest], labels[others][rest], block[others][~rest]
                )
        # Projected gradient steps: no coefficient becomes negative.
        weights, intercept, target = np.zeros(len(blocks)), 0.0, labels[others]
        for _ in range(20_000):
            error = expit(inner @ weights + intercept) - target
            gradient = (inner.T @ error + weights) / len(target)
            weights, intercept = np.maximum(weights - 0.2 * gradient, 0), intercept - 0.2 * error.mean()
        outer = [log_odds_by_scikit_learn(block[others], labels[others], block[~others]) for block in blocks]
        odds[~others] = np.column_stack(outer) @ weights + intercept
    return expit(odds)


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_propensities_equal_a_plain_computation(shift):
    labels, blocks = units(60, shift, seed=1)
    folds = stratified_group_folds(labels, None, 3, 0)
    expected = plain_propensities(blocks, labels, folds)
    np.testing.assert_allclose(propensities(blocks, labels, folds), expected, atol=2e-3)


def test_two_folds_leave_no_fit_within_a_fit():
    labels, blocks = units(20, 0.0, seed=1)
    with pytest.raises(UsageError, match="got 2 folds, expected 3 or more"):
        propensities(blocks, labels, np.arange(20) % 2)


def test_propensities_tell_labels_apart_where_features_do_and_stay_near_their_share_elsewhere():
    labels, blocks = units(400, 3.0, seed=2)
    found = propensities(blocks, labels, stratified_group_folds(labels, None, 5, 0))
    assert found[labels == 1].mean() > 0.75 > 0.25 > found[labels == 0].mean()
    labels, blocks = units(400, 0.0, seed=3)
    found = propensities(blocks, labels, stratified_group_folds(labels, None, 5, 0))
    assert np.abs(found - 0.5).max() < 0.15


def test_drawn_labellings_have_the_probabilities_that_enumeration_gives():
    propensity = np.array([0.9, 0.7, 0.5, 0.4, 0.2, 0.1])
    labels = np.array([0, 1, 0, 1, 0, 1])
    weights = {}
    for ones in combinations(range(6), 3):
        of_unit = [p if unit in ones else 1 - p for unit, p in enumerate(propensity)]
        weights[ones] = float(np.prod(of_unit))
    drawn = conditional_labels(labels, propensity, np.zeros(6), 20_000, seed=0)
    for ones, weight in weights.items():
        expected = np.isin(np.arange(6), ones)
        found = (drawn == expected).all(1).mean()
        assert found == pytest.approx(weight / sum(weights.values()), abs=0.015)


def test_labels_stay_within_their_stratum_and_the_seed_decides():
    rng = np.random.default_rng(4)
    strata, labels = np.repeat([0, 1, 2], 7), rng.integers(2, size=21)
    propensity = rng.uniform(0.2, 0.8, 21)
    drawn = conditional_labels(labels, propensity, strata, 50, seed=5)
    for stratum in range(3):
        assert (drawn[:, strata == stratum].sum(1) == labels[strata == stratum].sum()).all()
    np.testing.assert_array_equal(drawn, conditional_labels(labels, propensity, strata, 50, seed=5))
    assert (drawn != conditional_labels(labels, propensity, strata, 50, seed=6)).any()
    assert len(np.unique(drawn, axis=0)) > 20


def test_certain_propensities_leave_nothing_to_exchange():
    labels = np.array([1, 1, 1, 0, 0, 0])
    drawn = conditional_labels(labels, np.where(labels == 1, 1 - 1e-6, 1e-6), np.zeros(6), 100, seed=0)
    assert (drawn == labels).all()


@pytest.mark.parametrize("score_follows", [0, 1])
def test_what_is_not_explained_equals_ridge_regressions_by_scikit_learn(score_follows):
    labels, blocks = units(50, 1.0, seed=6)
    folds = stratified_group_folds(labels, None, 4, 0)
    rng = np.random.default_rng(7)
    score = blocks[0] @ [1.0, -1.0, 0.5] * score_follows + rng.standard_normal(50)
    columns = np.column_stack([block / np.sqrt(block.shape[1]) for block in blocks])
    candidates = []
    for penalty in PENALTIES:
        rest = np.zeros(50)
        for fold in range(4):
            others = folds != fold
            mean = score[others].mean()
            model = Ridge(alpha=penalty, fit_intercept=False).fit(columns[others], score[others] - mean)
            rest[~others] = score[~others] - mean - model.predict(columns[~others])
        candidates.append(rest)
    expected = min(candidates, key=lambda rest: np.square(rest).sum())
    unexplained = Unexplained(blocks, folds, score)
    np.testing.assert_allclose(unexplained.of(score), expected, atol=1e-8)
    np.testing.assert_allclose(unexplained.of(np.stack([score, score])), [expected, expected], atol=1e-8)


def dense_rest(unexplained, scores):
    """By the dense matrix of each fold, (fold, others)."""
    rest = np.empty(scores.shape)
    for fold, (left, values, right) in unexplained._factors_of_fold.items():
        inside = unexplained._folds == fold
        others = scores[:, ~inside] - scores[:, ~inside].mean(1, keepdims=True)
        predicts = (left / (values + unexplained._penalty)) @ right
        rest[:, inside] = scores[:, inside] - scores[:, ~inside].mean(1, keepdims=True) - others @ predicts.T
    return rest


@pytest.mark.parametrize("n", [40, 1500])  # fewer and more units than columns
def test_what_is_not_explained_takes_memory_for_columns_not_for_pairs_of_units(n):
    rng = np.random.default_rng(9)
    blocks, scores = [rng.standard_normal((n, 60)), rng.standard_normal((n, 5))], rng.standard_normal((30, n))
    tracemalloc.start()
    unexplained = Unexplained(blocks, np.arange(n) % 5, scores[0])
    found = unexplained.of(scores)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n < 100 or most < 20 * 8 * n * 65  # 16 MB; the matrices of all penalties took 86 MB
    np.testing.assert_allclose(found, dense_rest(unexplained, scores), atol=1e-10)


def rejections(effect, hidden_bias, packs, plain=False):
    """How often the test, or a plain permutation test, calls a score evidence; both see only a feature of the bias."""
    count = 0
    for seed in range(packs):
        rng = np.random.default_rng(seed)
        bias = rng.standard_normal(80)
        labels = (rng.random(80) < expit(hidden_bias * bias)).astype(int)
        score = bias + effect * labels + rng.standard_normal(80)
        feature = np.column_stack([bias, np.square(bias)])
        blocks = [(feature - feature.mean(0)) / feature.std(0)]
        folds = stratified_group_folds(labels, None, 5, 0)
        propensity = np.full(80, 0.5) if plain else propensities(blocks, labels, folds)
        rest = score if plain else Unexplained(blocks, folds, score).of(score)
        drawn = conditional_labels(labels, propensity, np.zeros(80), 99, seed)
        values, observed = (drawn - propensity) @ rest, (labels - propensity) @ rest
        count += (1 + (values >= observed).sum()) / 100 <= 0.05
    return count


def test_a_bias_that_the_features_show_is_no_evidence_and_an_effect_is():
    assert rejections(0.0, 1.5, 60, plain=True) > 50  # a plain permutation test accuses nearly always
    assert rejections(0.0, 1.5, 60) <= 7  # 5 % of 60 is 3; P(more than 7) is 1 %
    assert rejections(2.0, 1.5, 20) >= 16


def test_log_odds_are_kept_finite():
    labels, blocks = units(40, 50.0, seed=8)
    assert np.isfinite(logit(propensities(blocks, labels, stratified_group_folds(labels, None, 4, 0)))).all()
