"""gansfp.decision.decide: decisions by every rule, figures beside their chance, p-values that say when they cannot be had."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, f1_score, roc_auc_score

from gansfp.decision.decide import (
    attribution_report,
    cross_validated_report,
    decide_by_other_folds,
    decide_membership,
    membership_report,
)
from gansfp.decision.stacking import combine
from gansfp.decision.thresholds import choose_threshold, parse_rule
from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.permutation import p_values_auc

FIGURES = {
    "accuracy", "precision", "recall", "specificity", "f1", "kappa", "auc", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1"
}  # fmt: skip
BESIDE = {"p_value", "p_value_selected", "p_value_smallest", "f1_all_used", "n", "n_groups", "tried", "warnings"}
RULES = ("f1", "balanced_accuracy", "median", 0.3, 0.0, 1.0)


def example(strengths=(1.5, 1, 0, 0), seed=0, each=20, unknown=40):
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.repeat([USED, NOT_USED], each), rng.permutation(np.arange(unknown) % 2)])
    scores = np.array(strengths, float)[:, None] * truth + rng.normal(size=(len(strengths), len(truth)))
    labels = np.where(np.arange(len(truth)) < 2 * each, truth, UNKNOWN)
    return scores, labels, np.where(labels == UNKNOWN, -1, np.arange(len(truth)) % 5), truth


@pytest.mark.parametrize("rule", RULES)
def test_decisions_by_every_rule(rule):
    scores, labels, folds, _ = example()
    labelled = labels != UNKNOWN
    found = decide_membership(scores, labels, folds, "stack", rule)
    score = found.combined.score
    if isinstance(rule, str) and rule != "median":
        assert found.threshold == choose_threshold(score[labelled], labels[labelled], rule)
    else:  # by the unknown slices alone
        assert found.threshold == choose_threshold(score[~labelled], None, rule)
        share = 0.5 if rule == "median" else rule
        assert found.decision[~labelled].mean() == pytest.approx(share, abs=0.5 / 40)
    assert np.array_equal(found.decision[~labelled], score[~labelled] >= found.threshold)
    for fold in range(5):
        here, others = folds == fold, labelled & (folds != fold)
        threshold = choose_threshold(score[others], labels[others], rule)
        assert np.array_equal(found.decision[here], score[here] >= threshold)


@pytest.mark.parametrize("rule", RULES)
def test_a_folds_own_labels_never_change_its_decisions(rule):
    scores, labels, folds, _ = example((0.5, 0, 0), each=40)
    labelled = labels != UNKNOWN
    alone = decide_by_other_folds(scores[0, labelled], labels[labelled], folds[labelled], rule)
    whole = decide_membership(scores, labels, folds, None, rule).decision
    for fold in range(5):
        here = folds == fold
        flipped = np.where(here, 1 - labels, labels)
        again = decide_by_other_folds(scores[0, labelled], flipped[labelled], folds[labelled], rule)
        assert np.array_equal(alone[here[labelled]], again[here[labelled]])
        # the threshold rests on the other folds' scores, which this fold's labels took part in fitting: the score not
        one, two = (decide_membership(scores, each, folds, None, rule).combined.score for each in (labels, flipped))
        assert np.array_equal(one[here], two[here])
    assert set(np.unique(whole)) <= {0, 1}


def test_what_learns_is_left_out():
    scores, labels, folds, _ = example((9, 1, 9, 1, 0))
    learns = np.array([True, False, True, False, False])
    found = decide_membership(scores, labels, folds, "stack", learns=learns)
    expected = combine("stack", scores[~learns], labels, folds)
    assert np.array_equal(found.combined.score, expected.score)
    assert found.combined.members == tuple(np.flatnonzero(~learns)[list(expected.members)].tolist())
    assert found.cross_validated_auc == expected.areas
    best = decide_membership(scores, labels, folds, "best", learns=learns).combined
    assert best.members in ((1,), (3,))
    alone = decide_membership(scores, labels, folds, "best", learns=np.ones(5, bool)).combined
    assert alone.members in ((0,), (2,))


def test_without_unknown_slices_the_labelled_rule():
    scores, labels, folds, _ = example(unknown=0)
    for rule in RULES:
        found = decide_membership(scores, labels, folds, None, rule)
        assert found.threshold == choose_threshold(found.combined.score, labels, rule)
        assert found.decision.shape == (40,)


def test_membership_report_has_every_figure_beside_its_chance():
    scores, labels, folds, truth = example()
    unknown = labels == UNKNOWN
    found = decide_membership(scores, labels, folds)
    score, decision = found.combined.score[unknown], found.decision[unknown]
    groups = np.arange(40) // 2
    report = membership_report(truth[unknown], score, decision, groups, scores[:, unknown], 200, 0)
    assert set(report) >= FIGURES | BESIDE
    for name in FIGURES:
        assert set(report[name]) == {"value", "low", "high", "chance"}
    assert report["auc"]["value"] == pytest.approx(roc_auc_score(truth[unknown], score))
    assert report["f1"]["value"] == pytest.approx(f1_score(truth[unknown], decision))
    assert report["auc"]["low"] < report["auc"]["value"] < report["auc"]["high"]
    assert report["auc"]["chance"] == 0.5
    assert report["f1"]["chance"] == report["f1_all_used"] == pytest.approx(2 / 3)
    expected = p_values_auc(truth[unknown], np.concatenate([score[None], scores[:, unknown]]), groups, 0, 200, 0)
    assert (report["p_value"], report["p_value_selected"]) == (expected.p_value, expected.p_value_selected)
    assert (report["n"], report["n_groups"], report["tried"], report["warnings"]) == (40, 20, 4, [])


def test_cross_validated_report():
    scores, labels, folds, _ = example((2, 0, 9))
    learns, groups = np.array([False, False, True]), np.arange(80)
    labelled = labels != UNKNOWN
    found = decide_membership(scores, labels, folds, None, learns=learns)
    report = cross_validated_report(found, scores, labels, folds, groups, 300, 0, None, learns)
    assert set(report) >= FIGURES | BESIDE
    assert report["auc"]["value"] == pytest.approx(roc_auc_score(labels[labelled], found.combined.score[labelled]))
    assert report["f1"]["value"] == pytest.approx(f1_score(labels[labelled], found.decision[labelled]))
    assert report["p_value"] == report["p_value_smallest"] == 1 / 201
    # of what does not learn alone: the third would reach 1
    expected = p_values_auc(labels[labelled], scores[:2, labelled], None, 0, 300, 0)
    assert report["p_value_selected"] == expected.p_value_selected
    assert (report["n"], report["n_groups"], report["tried"], report["warnings"]) == (40, 40, 3, [])


def test_cross_validated_report_says_what_it_cannot():
    scores, labels, folds, _ = example((2, 0))
    found = decide_membership(scores, labels, folds, "best", learns=np.ones(2, bool))
    report = cross_validated_report(found, scores, labels, folds, np.arange(80), 100, 0, "best", np.ones(2, bool))
    assert report["p_value"] is report["p_value_selected"] is report["p_value_smallest"] is None
    assert "every configuration learns from the labels" in report["warnings"][0]
    folds = np.where(labels == UNKNOWN, -1, np.arange(80) % 2)
    groups = np.where(labels == UNKNOWN, np.arange(80) + 9, labels * 2 + folds)  # two patients a fold
    report = cross_validated_report(found, scores, labels, folds, groups, 100, 0, "best")
    assert report["p_value_smallest"] == 1 / 4
    assert report["p_value"] > 0.1
    assert report["warnings"] == ["too few groups in each fold: p cannot fall below 0.25"]


def test_attribution_report():
    truth = np.repeat(["gan", "vae", "flow"], 20)
    rng = np.random.default_rng(0)
    tried = np.stack([np.repeat([2, 0, 1], 20), rng.integers(3, size=60)])
    labels = np.where(rng.random(60) < 0.1, 0, tried[0])
    report = attribution_report(truth, labels, np.arange(60), tried, 100, 0)
    assert set(report) >= {"ari", "nmi", "v_measure", "purity"} | BESIDE - {"f1_all_used"}
    assert report["ari"]["value"] == pytest.approx(adjusted_rand_score(truth, labels))
    assert report["ari"]["chance"] == pytest.approx(0, abs=0.01)
    assert report["purity"]["chance"] > 1 / 3
    assert report["p_value"] == report["p_value_selected"] == 1 / 101
    assert (report["n"], report["n_groups"], report["tried"], report["warnings"]) == (60, 60, 2, [])
    few = attribution_report(truth, labels, np.arange(60) // 20, tried, 100, 0)
    assert few["p_value"] > 0.05
    assert "cannot fall below" in few["warnings"][0]


def test_rules_of_a_command_line():
    assert [parse_rule(text) for text in ("f1", "balanced_accuracy", "median")] == ["f1", "balanced_accuracy", "median"]
    assert [parse_rule(text) for text in ("0.25", "0", "1", "1e-1")] == [0.25, 0, 1, 0.1]
    for text in ("1.5", "-0.1", "nan", "inf", "F1", ""):
        with pytest.raises(UsageError, match=f"--decide: got '{text}', expected one of"):
            parse_rule(text)
