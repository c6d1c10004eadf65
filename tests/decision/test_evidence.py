"""gansfp.decision.evidence: figures beside their chance levels, and p-values that warn where they cannot be had."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, f1_score, roc_auc_score

from gansfp.decision.decide import FinalConfig, decide_membership
from gansfp.decision.evidence import attribution_evidence, cross_validated_evidence, membership_evidence
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.permutation import p_values_auc

FIGURES = {
    "accuracy", "precision", "recall", "specificity", "f1", "kappa", "auc", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1"
}  # fmt: skip
BESIDE = {"p_value", "p_value_selected", "p_value_smallest", "f1_all_used", "n", "n_groups", "tried", "warnings"}


def example(strengths=(1.5, 1, 0, 0), seed=0, each=20, unknown=40):
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.repeat([USED, NOT_USED], each), rng.permutation(np.arange(unknown) % 2)])
    scores = np.array(strengths, float)[:, None] * truth + rng.normal(size=(len(strengths), len(truth)))
    labels = np.where(np.arange(len(truth)) < 2 * each, truth, UNKNOWN)
    return scores, labels, np.where(labels == UNKNOWN, -1, np.arange(len(truth)) % 5), truth


def test_membership_evidence_has_every_figure_beside_its_chance():
    scores, labels, folds, truth = example()
    unknown = labels == UNKNOWN
    found = decide_membership(scores, labels, folds)
    score, decision = found.combined.score[unknown], found.decision[unknown]
    groups = np.arange(40) // 2
    config = FinalConfig(permutations=200)
    evidence = membership_evidence(truth[unknown], score, decision, groups, scores[:, unknown], config)
    report = evidence.as_dict()
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


def test_cross_validated_evidence():
    scores, labels, folds, _ = example((2, 0, 9))
    learns, groups = np.array([False, False, True]), np.arange(80)
    labelled = labels != UNKNOWN
    found = decide_membership(scores, labels, folds, None, learns=learns)
    config = FinalConfig(permutations=300)
    report = cross_validated_evidence(found, scores, labels, folds, groups, config, learns).as_dict()
    assert set(report) >= FIGURES | BESIDE
    assert report["auc"]["value"] == pytest.approx(roc_auc_score(labels[labelled], found.combined.score[labelled]))
    assert report["f1"]["value"] == pytest.approx(f1_score(labels[labelled], found.decision[labelled]))
    assert report["p_value"] == report["p_value_smallest"] == 1 / 201
    # Only of configurations that do not learn: with the third it would be another.
    expected = p_values_auc(labels[labelled], scores[:2, labelled], None, 0, 300, 0)
    assert report["p_value_selected"] == expected.p_value_selected
    assert (report["n"], report["n_groups"], report["tried"], report["warnings"]) == (40, 40, 3, [])


def test_cross_validated_evidence_warns_of_what_is_missing():
    scores, labels, folds, _ = example((2, 0))
    found = decide_membership(scores, labels, folds, "best", learns=np.ones(2, bool))
    config = FinalConfig("best", permutations=100)
    learns = np.ones(2, bool)
    report = cross_validated_evidence(found, scores, labels, folds, np.arange(80), config, learns).as_dict()
    assert report["p_value"] is report["p_value_selected"] is report["p_value_smallest"] is None
    assert "every configuration learns from the labels" in report["warnings"][0]
    folds = np.where(labels == UNKNOWN, -1, np.arange(80) % 2)
    groups = np.where(labels == UNKNOWN, np.arange(80) + 9, labels * 2 + folds)  # two patients a fold
    report = cross_validated_evidence(found, scores, labels, folds, groups, config).as_dict()
    assert report["p_value_smallest"] == 1 / 4
    assert report["p_value"] > 0.1
    assert report["warnings"] == ["too few groups in each fold: p cannot fall below 0.25"]


def test_attribution_evidence():
    truth = np.repeat(["gan", "vae", "flow"], 20)
    rng = np.random.default_rng(0)
    tried = np.stack([np.repeat([2, 0, 1], 20), rng.integers(3, size=60)])
    labels = np.where(rng.random(60) < 0.1, 0, tried[0])
    config = FinalConfig(permutations=100)
    report = attribution_evidence(truth, labels, np.arange(60), tried, config).as_dict()
    assert set(report) >= {"ari", "nmi", "v_measure", "purity"} | BESIDE - {"f1_all_used"}
    assert report["ari"]["value"] == pytest.approx(adjusted_rand_score(truth, labels))
    assert report["ari"]["chance"] == pytest.approx(0, abs=0.01)
    assert report["purity"]["chance"] > 1 / 3
    assert report["p_value"] == report["p_value_selected"] == 1 / 101
    assert (report["n"], report["n_groups"], report["tried"], report["warnings"]) == (60, 60, 2, [])
    (chosen,) = attribution_evidence(truth, labels, np.arange(60), tried, config, chosen_here=True).warnings
    assert "the clustering is the best of 2 on these very slices, so its figures are too high" in chosen
    few = attribution_evidence(truth, labels, np.arange(60) // 20, tried, config).as_dict()
    assert few["p_value"] > 0.05
    assert "cannot fall below" in few["warnings"][0]
