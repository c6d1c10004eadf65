"""p-values against loops over scikit-learn, and their calibration where scores and labels are unrelated."""

import time

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import adjusted_rand_score

from gansfp.errors import UsageError
from gansfp.statistics.permutation import p_values_ari, p_values_auc
from gansfp.statistics.resampling import group_codes, permuted_labels


def plain_auc(truth, score):
    """Compares every used slice with every slice that was not used."""
    used, unused = score[truth == 1][:, None], score[truth == 0]
    return np.mean((used > unused) + 0.5 * (used == unused))


def reference(statistic, truth, rows, groups, permutations, seed):
    """One configuration, one permutation at a time."""
    labels = np.unique(truth, return_inverse=True)[1]
    arranged = permuted_labels(labels, group_codes(groups, len(truth)), permutations, seed)
    observed = np.array([statistic(labels, row) for row in rows])
    null = np.array([[statistic(t, row) for row in rows] for t in arranged])
    single = (1 + (null >= observed - 1e-12).sum(0)) / (1 + permutations)
    selected = (1 + (null.max(1) >= observed.max() - 1e-12).sum()) / (1 + permutations)
    return observed, single, selected, null.max(1)


@pytest.mark.parametrize("grouped", [False, True])
def test_auc_equals_the_loop(grouped):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(15), rng.integers(1, 6, 15)) if grouped else None
    n = 40 if groups is None else len(groups)
    truth = rng.integers(0, 2, n) if groups is None else rng.integers(0, 2, 15)[groups]
    truth[groups == 4 if grouped else slice(0)] = np.resize([0, 1], (groups == 4).sum() if grouped else 0)
    scores = np.round(rng.normal(size=(150, n)) + 0.3 * truth, 1)
    observed, alone, selected, best = reference(plain_auc, truth, scores, groups, 60, 3)
    for chosen in (0, 7, 149):
        got = p_values_auc(truth, scores, groups, chosen, 60, 3)
        assert got.observed == pytest.approx(observed[chosen], abs=1e-12)
        assert got.p_value == pytest.approx(alone[chosen], abs=1e-12)
        assert got.p_value_selected == pytest.approx(selected, abs=1e-12)
        assert (got.best_index, got.best) == (observed.argmax(), pytest.approx(observed.max(), abs=1e-12))
        assert got.tried == 150
        np.testing.assert_allclose(np.array(got.by_chance)[[0, 50, 100]], [best.min(), np.median(best), best.max()])
    beside = p_values_auc(truth, scores[1:].astype(np.float32), groups, scores[0], 60, 3)  # 32 bits keep their order
    assert beside == p_values_auc(truth, scores, groups, 0, 60, 3)
    single = p_values_auc(truth, scores[7], groups, 0, 60, 3)
    assert single.p_value == single.p_value_selected == pytest.approx(alone[7])


@pytest.mark.parametrize("grouped", [False, True])
def test_ari_equals_the_loop(grouped):
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(18), rng.integers(1, 5, 18)) if grouped else None
    n = 50 if groups is None else len(groups)
    truth = np.array(["w", "x", "y", "z"])[rng.integers(0, 4, n) if groups is None else rng.integers(0, 4, 18)[groups]]
    labelings = np.stack([rng.integers(0, k, n) for k in rng.integers(1, 9, 140)])
    labelings[11] = 7 - labelings[30]  # the same clustering under other names
    observed, alone, selected, best = reference(adjusted_rand_score, truth, labelings, groups, 20, 5)
    for chosen in (0, 11, 139):
        got = p_values_ari(truth, labelings, groups, chosen, 20, 5)
        assert got.observed == pytest.approx(observed[chosen], abs=1e-12)
        assert got.p_value == pytest.approx(alone[chosen], abs=1e-12)
        assert got.p_value_selected == pytest.approx(selected, abs=1e-12)
        assert got.best == pytest.approx(observed.max(), abs=1e-12)
        assert observed[got.best_index] == pytest.approx(observed.max(), abs=1e-12)
        assert got.tried == 140
        np.testing.assert_allclose(np.array(got.by_chance)[[0, 50, 100]], [best.min(), np.median(best), best.max()])


def significant(draw, rounds=200):
    """The share of p < 0.05 over draws without an effect, and the share that a calibrated test exceeds with probability
    0.001."""
    return np.mean([draw(seed) < 0.05 for seed in range(rounds)]), binom.ppf(0.999, rounds, 0.05) / rounds


def correlated_null(seed):
    """30 patients of 1 to 12 slices; each patient has its own score and its own label, which are unrelated."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(30), rng.integers(1, 13, 30))
    truth = rng.permutation(np.repeat([0, 1], 15))[groups]
    return truth, rng.normal(size=30)[groups] + 0.2 * rng.normal(size=len(groups)), groups


def test_p_values_are_calibrated_for_independent_slices():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return p_values_auc(rng.permutation(np.repeat([0, 1], 40)), rng.normal(size=80), permutations=199).p_value

    share, limit = significant(draw)
    assert 0.005 <= share <= limit


def test_p_values_are_calibrated_for_correlated_groups_where_naive_ones_are_not():
    def grouped(seed):
        truth, score, groups = correlated_null(seed)
        return p_values_auc(truth, score, groups, permutations=199).p_value

    def naive(seed):
        truth, score, _ = correlated_null(seed)
        return p_values_auc(truth, score, None, permutations=199).p_value

    share, limit = significant(grouped)
    assert 0.005 <= share <= limit
    assert significant(naive)[0] > 0.15


def test_p_values_are_calibrated_for_groups_of_both_labels():
    def draw(seed):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(12), 8)
        truth = rng.integers(0, 2, 96)
        truth[:32] = np.repeat(rng.permutation([0, 0, 1, 1]), 8)
        return p_values_auc(
            truth, 2 * rng.normal(size=12)[groups] + rng.normal(size=96), groups, permutations=199
        ).p_value

    share, limit = significant(draw)
    assert 0.005 <= share <= limit


def test_p_value_selected_accounts_for_the_search():
    def draws(seed):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=(30, 60))
        truth = rng.permutation(np.repeat([0, 1], 30))
        aucs = [plain_auc(truth, s) for s in scores]
        return p_values_auc(truth, scores, chosen=int(np.argmax(aucs)), permutations=99)

    results = [draws(seed) for seed in range(150)]
    assert np.mean([r.p_value < 0.05 for r in results]) > 0.5, "the best of thirty is often significant by itself"
    assert np.mean([r.p_value_selected < 0.05 for r in results]) <= binom.ppf(0.999, 150, 0.05) / 150


def test_ari_p_values_are_calibrated():
    def draw(seed):
        rng = np.random.default_rng(seed)
        return p_values_ari(rng.integers(0, 4, 60), rng.integers(0, 4, (5, 60)), permutations=199).p_value_selected

    share, limit = significant(draw)
    assert 0.005 <= share <= limit


def test_a_real_effect_gives_the_smallest_p_value():
    rng = np.random.default_rng(2)
    truth = np.repeat([0, 1], 40)
    got = p_values_auc(truth, np.stack([rng.normal(size=80), rng.normal(size=80) + 1.5 * truth]), chosen=1)
    assert got.p_value == got.p_value_selected == got.smallest == 1 / 1001
    assert got.best_index == 1


def test_too_few_groups_give_a_warning():
    groups = np.repeat(np.arange(5), 20)
    truth = (groups < 2).astype(int)
    got = p_values_auc(truth, truth + 0.0, groups)
    assert got.smallest == pytest.approx(1 / 10)
    assert got.p_value > 0.05
    assert "5 groups" in got.warning
    assert "0.1" in got.warning
    assert p_values_auc(truth, truth + 0.0).warning == ""


def test_one_class_has_no_p_value_below_one():
    got = p_values_auc(np.ones(10), np.arange(10.0))
    assert got.p_value == got.p_value_selected == got.smallest == 1
    assert np.isnan([got.observed, got.best]).all()


def test_the_result_does_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    truth, scores, labelings = rng.integers(0, 2, 30), rng.normal(size=(20, 30)), rng.integers(0, 4, (20, 30))
    expected = p_values_auc(truth, scores, permutations=50), p_values_ari(truth, labelings, permutations=50)
    monkeypatch.setattr("gansfp.statistics.permutation._ROWS", 7)
    assert (p_values_auc(truth, scores, permutations=50), p_values_ari(truth, labelings, permutations=50)) == expected


def test_a_thousand_by_a_thousand_by_a_thousand_takes_seconds():
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 1000)
    start = time.perf_counter()
    p_values_auc(truth, rng.normal(size=(1000, 1000)))
    p_values_ari(rng.integers(0, 4, 1000), rng.integers(0, 6, (1000, 1000)))
    assert time.perf_counter() - start < 30  # 1 s on one core of 2024


@pytest.mark.parametrize(
    ("truth", "scores", "chosen", "message"),
    [
        ([0, 1, 1], [[1.0, 2]], 0, r"shape \(3,\) for rows of shape \(1, 2\)"),
        ([0, 1], [[1.0, 2]], 1, "chosen=1 of 1"),
        ([0, 1], [[1.0, np.nan]], 0, "not finite"),
        ([0, 1, 2], [[1.0, 2, 3]], 0, "got 3 kinds of labels"),
    ],
)
def test_bad_usage(truth, scores, chosen, message):
    with pytest.raises(UsageError, match=message):
        p_values_auc(np.array(truth), np.array(scores), chosen=chosen)
