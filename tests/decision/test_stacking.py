"""Stacking against scikit-learn and plain loops: no fold judges itself, and p-values without a leak are not small."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from gansfp.decision.pool import ALIKE, OUTLIER, FoldAucs, Pool, area_under_curve, standardised
from gansfp.decision.stacking import (
    COMBINATIONS,
    MEMBERS,
    REFITS,
    STRENGTH,
    Nested,
    calibrated,
    choose_members,
    combine,
    count_refits,
    nested_for,
    p_value_refitted,
)
from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.logistic import logistic
from gansfp.statistics.permutation import p_values_auc


def example(strengths, seed=0, each=30, unknown=200, folds=5):
    """Independent noise plus the label times each strength: scores, labels, folds, and the truth of unknown slices."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.repeat([USED, NOT_USED], each), rng.permutation(np.arange(unknown) % 2)])
    scores = np.array(strengths, float)[:, None] * truth + rng.normal(size=(len(strengths), len(truth)))
    labels = np.where(np.arange(len(truth)) < 2 * each, truth, UNKNOWN)
    fold = np.where(labels == UNKNOWN, -1, np.arange(len(truth)) % folds)
    return scores, labels, fold, truth[2 * each :]


def test_area_under_curve():
    rng = np.random.default_rng(0)
    scores, used = np.round(rng.normal(size=(20, 50)), 1), rng.random(50) < 0.3
    expected = [roc_auc_score(used, row) for row in scores]
    np.testing.assert_allclose(area_under_curve(scores, used), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [True, False])
def test_aucs_without_folds_equal_scikit_learn(ties, dtype, monkeypatch):
    monkeypatch.setattr("gansfp.decision.pool._CELLS", 300)  # blocks of two configurations
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 120)).astype(dtype)
    scores = np.round(scores, 1) if ties else scores
    folds = rng.permutation(np.repeat([-1, 0, 1, 2, 5], 24))
    labelings = rng.integers(0, 2, (3, 120))
    labelings[:, folds < 0] = UNKNOWN
    aucs = FoldAucs(Pool(scores, folds), labelings)
    for number, labels in enumerate(labelings):
        for held_out in ((), (0,), (5,), (1, 2), (0, 5, 2)):
            rows = (folds >= 0) & ~np.isin(folds, held_out)
            expected = [roc_auc_score(labels[rows] == USED, row[rows]) for row in scores]
            np.testing.assert_allclose(aucs.without(number, frozenset(held_out)), expected, rtol=1e-12)


def test_many_labellings_are_combined_as_one_by_one(monkeypatch):
    monkeypatch.setattr("gansfp.decision.stacking._CELLS", 4 * 25 * 2)  # two labellings at a time
    scores, labels, folds, _ = example([0.5, 1.0, 0.0, 0.3])
    labelings = np.stack([np.random.default_rng(number).permutation(labels[:60]) for number in range(5)])
    labelings = np.concatenate([labelings, np.full((5, 200), UNKNOWN)], axis=1)
    pool = Pool(scores, folds)
    together = [nested.out_of_fold() for nested in nested_for(pool, labelings, None)]
    one_by_one = [Nested(pool, of_labels).out_of_fold() for of_labels in labelings]
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize(("numbers", "signal"), [(3, 0.0), (10, 50.0), (40, 1.0)])
def test_logistic_equals_scikit_learn(numbers, signal, share):
    rng = np.random.default_rng(numbers)
    used = np.arange(60) < 60 * share
    x = rng.normal(size=(60, numbers))
    x[:, 0] += signal * used  # 50: separable by far
    x[:, 2] = 0
    coefficients, intercept = logistic(x, used, STRENGTH)
    model = LogisticRegression(C=STRENGTH, class_weight="balanced", tol=1e-10, max_iter=10000).fit(x, used)
    np.testing.assert_allclose(coefficients, model.coef_[0], atol=1e-4)
    assert intercept == pytest.approx(model.intercept_[0], abs=1e-3)


def test_logistic_halves_steps_that_are_too_long():
    x = np.array([[-30.0], [-29], [30], [-28], [31], [29]])
    used = np.array([False, False, True, True, True, True])
    coefficients, intercept = logistic(x, used, strength=1e6)
    model = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-12, max_iter=100000).fit(x, used)
    assert coefficients[0] == pytest.approx(model.coef_[0, 0], abs=1e-3)
    assert intercept == pytest.approx(model.intercept_[0], abs=3e-2)


def test_standardised():
    scores = np.array([[1, 2, 3, 4], [5, 5, 5, 5], [0.1 + 0.2] * 4, [0, 0, 0, 1e100]])
    got = standardised(scores)
    np.testing.assert_allclose(got[0], (scores[0] - 2.5) / np.std(scores[0]))
    assert got[1:3].tolist() == [[0] * 4] * 2
    lone = np.append(np.zeros(99), 1)[None]
    assert standardised(lone).max() == OUTLIER
    assert standardised(lone, np.inf).max() == pytest.approx(99**0.5)


def correlated(seed=0, constant=()):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(6, 80))
    scores = np.concatenate([base, base + 0.05 * rng.normal(size=base.shape), -base])
    scores[list(constant)] = 7
    return scores


def test_configurations_are_alike_by_rank_correlation():
    scores = correlated()
    expected = np.abs(spearmanr(np.exp(scores), axis=1).statistic) >= ALIKE
    got = Pool(scores, np.zeros(80, int)).alike
    assert np.array_equal(got, expected)
    assert got.sum() > len(scores)
    constant = Pool(correlated(constant=(0, 4)), np.zeros(80, int)).alike
    assert not constant[[0, 4]].any()
    assert not constant[:, [0, 4]].any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [2, MEMBERS])
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_members_are_good_and_different(seed, most):
    scores = correlated(seed, constant=(3,))
    used = np.random.default_rng(seed).random(80) < 0.5
    chosen = []
    for row in sorted(range(len(scores)), key=lambda r: (-roc_auc_score(used, scores[r]), r)):
        known = [abs(spearmanr(scores[row], scores[other]).statistic) for other in chosen]
        if row != 3 and max(known, default=0) < ALIKE and len(chosen) < most:
            chosen.append(row)
    pool = Pool(scores, np.zeros(80, int))
    assert choose_members(area_under_curve(scores, used), pool.alike, most) == chosen
    assert 1 < len(chosen) <= min(most, 6)


def test_a_constant_configuration_is_chosen_only_if_all_are_constant():
    pool = Pool(np.ones((3, 8)), np.zeros(8, int))
    used = np.arange(8) < 4
    assert choose_members(area_under_curve(pool.scores, used), pool.alike) == [0]


def plain(name, scores, labels, judges):
    """A combination by scikit-learn: scores of all slices, fitted to the labels of the rows `judges` (bool)."""
    used = labels[judges] == USED
    # rounded, so that rounding errors break no tie
    aucs = [round(roc_auc_score(used, row[judges]), 9) for row in scores]
    standard = np.array([np.clip((row - row.mean()) / row.std(), -OUTLIER, OUTLIER) for row in scores])
    if name == "best":
        score, members = standard[int(np.argmax(aucs))], [int(np.argmax(aucs))]
    else:
        members = []
        for row in np.argsort([-a for a in aucs], kind="stable"):
            if all(abs(spearmanr(scores[row], scores[m]).statistic) < ALIKE for m in members):
                members.append(int(row))
        model = LogisticRegression(C=STRENGTH, class_weight="balanced", tol=1e-10, max_iter=10000)
        score = model.fit(standard[members][:, judges].T, used).decision_function(standard[members].T)
    return (score - score.mean()) / score.std(), members


def plain_auc(name, scores, labels, folds, judges):
    """The AUC on the rows `judges`; each of their folds is scored by a fit to the others."""
    score = np.zeros(len(labels))
    for fold in set(folds[judges]):
        score[folds == fold] = plain(name, scores, labels, judges & (folds != fold))[0][folds == fold]
    return round(roc_auc_score(labels[judges] == USED, score[judges]), 9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("combination", ["best", "stack", None])
def test_combine_is_nested_cross_validation(combination, seed):
    scores, labels, folds, _ = example([0.7, 0.6, 0.5, 0, 0, 0], seed, each=20, unknown=30, folds=4)
    scores = np.concatenate([scores, scores[:1] + 1e-9])
    labelled = labels != UNKNOWN
    names = [combination] if combination else list(COMBINATIONS)
    expected, chosen = np.zeros(len(labels)), []
    for fold in (-1, 0, 1, 2, 3):
        judges = labelled & (folds != fold)
        chosen.append(max(names, key=lambda name, j=judges: plain_auc(name, scores, labels, folds, j)))
        score, members = plain(chosen[-1], scores, labels, judges)
        expected[folds == fold] = score[folds == fold]
        if fold == -1:
            of_unknown = members
    got = combine(combination, scores, labels, folds)
    np.testing.assert_allclose(got.score, expected, atol=1e-4)
    assert got.name == chosen[0]
    assert got.members == tuple(of_unknown)
    assert len(got.coefficients) == len(of_unknown)
    for name in names:
        assert got.aucs[name] == pytest.approx(plain_auc(name, scores, labels, folds, labelled), abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("combination", ["best", "stack", None])
def test_a_folds_own_labels_never_change_its_scores(combination, count):
    scores, labels, folds, _ = example([0.5, 0.4, 0, 0, 0, 0, 0, 0], each=20, unknown=10, folds=count)
    before = combine(combination, scores, labels, folds).score
    for fold in range(count):
        of_fold = folds == fold
        after = combine(combination, scores, np.where(of_fold, 1 - labels, labels), folds).score
        assert np.array_equal(before[of_fold], after[of_fold])
        assert not np.array_equal(before[~of_fold], after[~of_fold])


def test_unknown_slices_are_scored_by_all_labelled_ones():
    scores, labels, folds, _ = example([0.5, 0.5, 0.5])
    unknown, others = labels == UNKNOWN, np.where(labels == UNKNOWN, -1, np.arange(len(labels)) // 2 % 3)
    first, second = (combine("stack", scores, labels, partition).score for partition in (folds, others))
    assert np.array_equal(first[unknown], second[unknown])
    assert not np.array_equal(first[~unknown], second[~unknown])


@pytest.mark.parametrize("seed", range(3))
def test_a_stack_is_better_than_its_members(seed):
    scores, labels, folds, truth = example([1, 1, 0, 0, 0], seed, each=80, unknown=2000)
    unknown, got = labels == UNKNOWN, combine(None, scores, labels, folds)
    alone = [roc_auc_score(truth, row[unknown]) for row in scores]
    joined = roc_auc_score(truth, got.score[unknown])
    assert got.name == "stack"
    assert joined > max(alone) + 0.03
    assert got.aucs["stack"] > got.aucs["best"]
    assert {0, 1} == {got.members[i] for i in np.argsort(got.coefficients)[-2:]}


def test_best_is_chosen_where_the_other_scores_are_noise():
    scores, labels, folds, truth = example([8] + [0] * 30)
    got = combine(None, scores, labels, folds)
    assert (got.name, got.members, got.coefficients) == ("best", (0,), (1.0,))
    assert roc_auc_score(truth, got.score[labels == UNKNOWN]) == 1


def test_the_result_is_reproducible():
    first, second = (combine(None, *example([0.5, 0.5, 0])[:3]) for _ in range(2))
    assert np.array_equal(first.score, second.score)
    assert np.array_equal(first.probability, second.probability)
    assert first.members == second.members


def test_probability_is_calibrated_and_never_falls():
    scores, labels, folds, truth = example([1.5], each=200, unknown=4000)
    got = combine("best", scores, labels, folds)
    order = np.argsort(got.score)
    assert (np.diff(got.probability[order]) >= 0).all()
    assert 0 < got.probability.min() < 0.1 < 0.9 < got.probability.max() < 1
    unknown = labels == UNKNOWN
    for low in np.arange(0, 1, 0.2):
        in_bin = unknown & (got.probability >= low) & (got.probability < low + 0.2)
        assert truth[in_bin[unknown]].mean() == pytest.approx(got.probability[in_bin].mean(), abs=0.06)


def test_the_probability_of_a_reversed_score_is_the_share_of_used_slices():
    labels = np.array([1, 1, 0, 0, 0, 0, -1])
    assert calibrated(-labels.astype(float), labels).tolist() == [1 / 3] * 7
    assert calibrated(np.zeros(7), labels).tolist() == pytest.approx([1 / 3] * 7)


@pytest.mark.parametrize("combination", ["best", "stack", None])
@pytest.mark.filterwarnings("error")
def test_odd_scores(combination):
    labels, folds = np.array([1, 0, 1, 0, -1]), np.array([0, 0, 1, 1, -1])
    for scores in (np.ones((3, 5)), np.eye(5), np.array([[1e100, -1e100, 1e100, -1e100, 0]]), np.zeros((1, 5))):
        got = combine(combination, scores, labels, folds)
        assert np.isfinite(got.score).all()
        assert np.isfinite(got.probability).all()
    assert np.isfinite(combine(combination, np.eye(4), labels[:4], folds[:4]).score).all()


def test_an_unknown_combination_is_refused():
    with pytest.raises(UsageError, match=r"combine: got 'worst', expected one of \['best', 'stack'\]"):
        combine("worst", *example([1])[:3])


@pytest.mark.slow
@pytest.mark.parametrize("combination", ["best", "stack"])
def test_refitted_p_values_are_calibrated_where_those_of_fixed_scores_are_not(combination):
    refitted, fixed = [], []
    for seed in range(100):
        scores, labels, folds, _ = example([0] * 6, 1000 + seed, each=12, unknown=2, folds=4)
        labelled, groups = labels != UNKNOWN, np.arange(len(labels))
        refitted.append(p_value_refitted(combination, scores, labels, folds, groups, seed, refits=40)[0])
        score = combine(combination, scores, labels, folds).score
        fixed.append(p_values_auc(labels[labelled], score[labelled], None, 0, 200, seed).p_value)
    refitted, fixed = np.array(refitted), np.array(fixed)
    assert (refitted < 0.1).mean() <= 0.16
    assert (fixed < 0.1).mean() > 0.16


def test_the_p_value_of_a_leak_is_small_and_the_smallest_possible_one_is_returned():
    scores, labels, folds, _ = example([1.5, 0, 0, 0])
    groups = np.arange(len(labels))
    assert p_value_refitted(None, scores, labels, folds, groups, 0) == (1 / (1 + REFITS), 1 / (1 + REFITS))
    # two patients a fold, one used and one not: 2^5 labellings
    by_patient = folds * 2 + (labels == USED)
    p_value, smallest = p_value_refitted("best", scores, labels, folds, by_patient, 0)
    assert smallest == pytest.approx(1 / 32)
    assert 1 / 201 < p_value < 0.12
    # a patient a fold, of which some slices were used: its own slices exchange their labels
    mixed = p_value_refitted("best", scores, labels, folds, folds, 0)
    assert mixed == (1 / (1 + REFITS), 1 / (1 + REFITS))


def test_a_small_level_has_more_refits():
    assert count_refits(1000, 0.05) == REFITS
    assert 1 / (1 + count_refits(1000, 0.004)) < 0.004
    assert count_refits(60, 0.05) == 60


def test_p_values_of_patients_with_identical_slices_are_calibrated():
    """Ten identical slices of a patient count as one."""
    rng, p_values = np.random.default_rng(0), []
    for _ in range(40):
        scores = rng.normal(size=(5, 16)).repeat(10, axis=1)
        labels, groups, folds = (
            np.arange(16).repeat(10) % 2,
            np.arange(16).repeat(10),
            np.arange(16).repeat(10) // 2 % 4,
        )
        p_values.append(p_value_refitted("best", scores, labels, folds, groups, 0, refits=60)[0])
    assert np.mean(np.array(p_values) < 0.1) <= 0.2
    assert np.median(p_values) > 0.25


def test_fits_are_shared_and_unknown_slices_have_out_of_fold_scores_of_0():
    scores, labels, folds, _ = example([0.5, 0.5])
    nested = Nested(Pool(scores, folds), labels, "stack")
    assert nested.fit("stack", frozenset({1, 2})) is nested.fit("stack", frozenset({2, 1}))
    assert (nested.out_of_fold()[labels == UNKNOWN] == 0).all()
