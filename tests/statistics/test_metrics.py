"""Metrics against scikit-learn, plain and weighted."""

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.metrics.cluster import pair_confusion_matrix

from gansfp.errors import UsageError
from gansfp.statistics.metrics import (
    attribution_chance,
    cells_by_group,
    confusion_by_group,
    decision_metrics,
    decisions,
    f1_all_used,
    membership_chance,
    negatives_allowed,
    partition_metrics,
    partition_of_shares,
    partitions,
    ranking,
)


def scored(n, seed, levels=None, share=0.4):
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < share).astype(int)
    truth[:2] = 0, 1
    score = rng.normal(size=n) + truth
    return truth, score if levels is None else np.floor(score * levels) / levels


def sklearn_decisions(truth, prediction, weights=None):
    w = {"sample_weight": weights}
    return {
        "accuracy": sk.accuracy_score(truth, prediction, **w),
        "precision": sk.precision_score(truth, prediction, zero_division=0, **w),
        "recall": sk.recall_score(truth, prediction, **w),
        "specificity": sk.recall_score(truth, prediction, pos_label=0, **w),
        "f1": sk.f1_score(truth, prediction, zero_division=0, **w),
        "kappa": sk.cohen_kappa_score(truth, prediction, **w),
    }


def rank(truth, score, *rates):
    """auc and tpr_at_fpr of slices that each count once."""
    return {name: value[0] for name, value in ranking(truth, score, np.ones((1, len(truth))), rates).items()}


def plain_tpr(truth, score, rate):
    """Tries every threshold."""
    best = 0.0
    for threshold in np.unique(score):
        called = score >= threshold
        if called[truth == 0].mean() <= rate + 1e-12:
            best = max(best, called[truth == 1].mean())
    return best


@pytest.mark.parametrize("called", [0.0, 0.3, 1.0])
def test_decisions_equal_sklearn(called):
    truth, score = scored(70, 0)
    prediction = (np.argsort(np.argsort(-score)) < called * 70).astype(int)
    got = decision_metrics(truth, prediction)
    assert got == pytest.approx(sklearn_decisions(truth, prediction), abs=1e-12)


def test_decisions_of_one_class_are_undefined_where_a_denominator_is_0():
    got = decision_metrics(np.ones(4), np.array([1, 1, 0, 1]))
    assert np.isnan(got["specificity"])
    assert got["recall"] == 0.75
    assert np.isnan(decision_metrics(np.ones(4), np.ones(4))["kappa"])


@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("n", [2, 40, 301])
def test_auc_and_tpr_equal_sklearn_and_a_loop(n, levels):
    truth, score = scored(n, n, levels)
    rates = (0.0, 0.01, 0.1, 0.5, 1.0)
    got = rank(truth, score, *rates)
    assert got["auc"] == pytest.approx(sk.roc_auc_score(truth, score), abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(truth, score, drop_intermediate=False)
    for rate in rates:
        expected = plain_tpr(truth, score, rate)
        assert got[f"tpr_at_fpr_{rate:g}"] == pytest.approx(expected, abs=1e-12)
        assert expected == pytest.approx(tpr[fpr <= rate + 1e-12].max(), abs=1e-12)


def test_a_rate_that_is_a_whole_number_of_negatives_allows_all_of_them():
    # 0.01 * 2900 is 28.999999999999996 in floating point
    truth = np.r_[np.zeros(2900, int), 1]
    score = np.r_[np.arange(2900.0), 2900 - 29.5]
    assert rank(truth, score, 0.01)["tpr_at_fpr_0.01"] == 1
    assert negatives_allowed(2900, 0.01) == 29
    assert negatives_allowed(99, 0.01) == 0


def test_weighted_metrics_equal_those_of_repeated_slices():
    rng = np.random.default_rng(1)
    truth, score = scored(60, 2, levels=4)
    prediction = (score > 0.5).astype(int)
    weights = rng.integers(0, 4, size=(9, 60)).astype(float)
    independent = np.arange(60)
    got = {**decisions(weights @ confusion_by_group(truth, prediction, independent)), **ranking(truth, score, weights)}
    for row, w in enumerate(weights.astype(int)):
        t, s, p = np.repeat(truth, w), np.repeat(score, w), np.repeat(prediction, w)
        expected = {
            **sklearn_decisions(truth, prediction, w),
            "auc": sk.roc_auc_score(t, s),
            **{f"tpr_at_fpr_{rate}": plain_tpr(t, s, rate) for rate in (0.01, 0.1)},
        }
        assert {name: value[row] for name, value in got.items()} == pytest.approx(expected, abs=1e-12)
        assert decision_metrics(t, p) == pytest.approx({k: expected[k] for k in decision_metrics(t, p)}, abs=1e-12)


@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
def test_partition_metrics_equal_sklearn(error):
    rng = np.random.default_rng(3)
    truth = rng.choice(["a", "b", "c"], size=80)
    labels = np.where(rng.random(80) < error, rng.integers(10, 15, 80), np.unique(truth, return_inverse=True)[1])
    table = sk.cluster.contingency_matrix(truth, labels)
    expected = {
        "ari": sk.adjusted_rand_score(truth, labels),
        "nmi": sk.normalized_mutual_info_score(truth, labels),
        "v_measure": sk.v_measure_score(truth, labels),
        "purity": table.max(0).sum() / 80,
    }
    assert partition_metrics(truth, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("truth", "labels"), [([0, 0, 0], [1, 1, 1]), ([0, 1, 2], [2, 1, 0]), ([0, 0, 0], [0, 1, 2])])
def test_trivial_partitions_equal_sklearn(truth, labels):
    got = partition_metrics(np.array(truth), np.array(labels))
    assert got["ari"] == pytest.approx(sk.adjusted_rand_score(truth, labels))
    assert got["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, labels))


def test_pairs_of_two_copies_of_a_group_do_not_count():
    rng = np.random.default_rng(4)
    n, codes = 24, np.repeat(np.arange(8), 3)
    truth, labels = rng.integers(0, 3, n), rng.integers(0, 4, n)
    weights = rng.integers(0, 3, size=(5, 8)).astype(float)
    got = partitions(weights, cells_by_group(truth, labels, codes), between=1.5)["ari"]
    for row, w in enumerate(weights):
        same = np.zeros((2, 2))  # pairs apart or together, in truth by in labels
        for i in range(n):
            for j in range(n):
                if i != j:
                    a, b = codes[i], codes[j]
                    same[int(truth[i] == truth[j]), int(labels[i] == labels[j])] += (
                        w[a] if a == b else 1.5 * w[a] * w[b]
                    )
        total, both = same.sum(), same[1, 1]
        expected = same[1].sum() * same[:, 1].sum() / total
        by_hand = (both - expected) / ((same[1].sum() + same[:, 1].sum()) / 2 - expected)
        assert got[row] == pytest.approx(by_hand, abs=1e-12)
    unweighted = partitions(np.ones((1, 8)), cells_by_group(truth, labels, codes))["ari"][0]
    (a, b), (c, d) = pair_confusion_matrix(truth, labels).astype(float)
    assert unweighted == pytest.approx(2 * (a * d - b * c) / ((a + b) * (b + d) + (a + c) * (c + d)))


def test_shares_are_the_limit_of_many_slices():
    shares = np.array([[0.3, 0.1], [0.05, 0.55]])
    rows, columns = np.indices((2, 2))
    counts = (shares * 20000).astype(int).ravel()
    truth, labels = np.repeat(rows.ravel(), counts), np.repeat(columns.ravel(), counts)
    assert partition_of_shares(shares) == pytest.approx(partition_metrics(truth, labels), abs=1e-4)


def test_chance_levels_are_the_means_of_random_guesses():
    rng = np.random.default_rng(5)
    truth = np.r_[np.ones(30, int), np.zeros(60, int)]
    prediction = np.r_[np.ones(45, int), np.zeros(45, int)]
    drawn = []
    for _ in range(1500):
        p, s = rng.permutation(prediction), rng.random(90)
        drawn.append(
            {**decision_metrics(truth, p), **{k: v[0] for k, v in ranking(truth, s, np.ones((1, 90))).items()}}
        )
    chance = membership_chance(truth, prediction)
    assert chance.keys() == drawn[0].keys()
    for name in ("precision", "recall", "specificity", "kappa", "auc", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1"):
        assert np.mean([d[name] for d in drawn]) == pytest.approx(chance[name], abs=0.015), name
    assert chance["accuracy"] == pytest.approx(60 / 90)
    assert chance["f1"] == f1_all_used(truth) == pytest.approx(sk.f1_score(truth, np.ones(90, int)))


def test_attribution_chance_is_the_mean_over_permuted_generators():
    rng = np.random.default_rng(6)
    truth, labels = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    got = attribution_chance(truth, labels)
    assert got["ari"] == 0
    expected = np.mean([sk.normalized_mutual_info_score(rng.permutation(truth), labels) for _ in range(300)])
    assert got["nmi"] == got["v_measure"] == pytest.approx(expected, abs=0.01)
    assert 0.25 < got["purity"] < 0.6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decision_metrics(np.array([0, 2]), np.array([0, 1])), "truth: got values .*2.*expected 0 and 1"),
        (lambda: rank(np.array([0, 1]), np.array([0.0, np.nan])), "not finite"),
        (lambda: f1_all_used(np.array([])), "expected 0 and 1"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
