"""Thresholds against trying every one."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from gansfp.decision.thresholds import choose_threshold
from gansfp.errors import UsageError


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("rule", "criterion"), [("f1", f1_score), ("balanced_accuracy", balanced_accuracy_score)])
def test_best_threshold_is_the_highest_of_the_best(rule, criterion, seed):
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat([0, 1], [25, 15]))
    score = np.round(rng.normal(size=40) + 0.5 * truth, 1)
    threshold = choose_threshold(score, truth, rule)
    values = {s: criterion(truth, (score >= s).astype(int)) for s in np.unique(score)}
    best = max(s for s, value in values.items() if value >= max(values.values()) - 1e-12)
    assert np.array_equal(score >= threshold, score >= best)
    below = score[score < threshold]
    assert not len(below) or threshold == pytest.approx((best + below.max()) / 2)


def test_neighbouring_floats_are_told_apart():
    low, high = 1.0, np.nextafter(1.0, 2)
    threshold = choose_threshold(np.array([low, high]), np.array([0, 1]), "f1")
    assert low < threshold <= high


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_median_and_rates_call_the_share_asked(n):
    score = np.random.default_rng(n).permutation(n).astype(float)
    assert (score >= choose_threshold(score, None, "median")).sum() == (n + 1) // 2
    for rate in (0, 0.2, 0.5, 1):
        assert (score >= choose_threshold(score, None, rate)).sum() == int(rate * n + 0.5)


def test_tied_scores_fall_on_one_side():
    score = np.array([3.0, 2, 2, 2, 1])
    assert (score >= choose_threshold(score, None, 0.4)).sum() == 4


@pytest.mark.parametrize(
    ("score", "truth", "rule", "message"),
    [
        ([1.0, 2], [0, 1], "mean", "got 'mean', expected one of"),
        ([1.0, 2], [0, 1], 1.5, "got 1.5, expected one of"),
        ([1.0, 2], None, "f1", "'f1' needs slices labelled"),
        ([1.0, 2], [1, 1], "f1", "'f1' needs slices labelled"),
        ([1.0, np.nan], [0, 1], "f1", "all finite"),
        ([], [], "median", "got 0 scores"),
    ],
)
def test_bad_usage(score, truth, rule, message):
    with pytest.raises(UsageError, match=message):
        choose_threshold(np.array(score), None if truth is None else np.array(truth), rule)
