"""Threshold rules against a search through all thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from gansfp.decision.thresholds import RULES, ThresholdRule, choose_threshold, parse_rule, threshold_rule
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


def test_neighbouring_floats_are_separated():
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


def test_each_rule_says_whether_it_needs_labels():
    assert [name for name in RULES if threshold_rule(name).needs_labels] == ["f1", "balanced_accuracy"]
    assert not threshold_rule(0.3).needs_labels
    for name in RULES:
        if not threshold_rule(name).needs_labels:
            assert np.isfinite(choose_threshold(np.arange(5.0), None, name))


def test_a_new_rule_is_one_entry_of_the_table(monkeypatch):
    monkeypatch.setitem(RULES, "mean", ThresholdRule(False, lambda score, truth: float(score.mean())))
    assert parse_rule("mean") == "mean"
    assert choose_threshold(np.array([0.0, 0, 6]), None, "mean") == 2
    with pytest.raises(UsageError, match=r"got 'x', expected one of \['f1', 'balanced_accuracy', 'median', 'mean'\]"):
        parse_rule("x")


SCORED = st.lists(st.tuples(st.integers(-30, 30), st.integers(0, 1)), min_size=1, max_size=30)
ANY_RULE = st.one_of(st.sampled_from(list(RULES)), st.floats(0, 1))


def scores_and_truth(scored):
    score, truth = np.array(scored).T
    return np.append(score, [0, 1]).astype(float), np.append(truth, [0, 1])  # both classes, two distinct scores


@given(SCORED, ANY_RULE)
@settings(deadline=None)
def test_a_rising_transformation_changes_no_decision(scored, rule):
    score, truth = scores_and_truth(scored)
    decided = score >= choose_threshold(score, truth, rule)
    for transformed in (5 * score - 7, score**3, np.exp(score / 10)):
        assert np.array_equal(transformed >= choose_threshold(transformed, truth, rule), decided)


@given(SCORED, st.sampled_from([name for name in RULES if RULES[name].needs_labels]))
@settings(deadline=None)
def test_no_threshold_is_better_and_no_higher_one_equally_good(scored, rule):
    score, truth = scores_and_truth(scored)
    criterion = {"f1": f1_score, "balanced_accuracy": balanced_accuracy_score}[rule]
    threshold = choose_threshold(score, truth, rule)
    value = criterion(truth, score >= threshold)
    for level in np.unique(score):
        other = criterion(truth, score >= level)
        assert other <= value + 1e-12
        assert level < threshold or other < value - 1e-12 or (score >= level).sum() == (score >= threshold).sum()


@given(SCORED, st.floats(0, 1))
@settings(deadline=None)
def test_a_rate_calls_the_smallest_number_that_reaches_it(scored, rate):
    score, _ = scores_and_truth(scored)
    wanted = int(np.floor(rate * len(score) + 0.5))
    called = int((score >= choose_threshold(score, None, rate)).sum())
    possible = [0, *((score >= level).sum() for level in np.unique(score))]
    assert called == min(count for count in possible if count >= wanted)
