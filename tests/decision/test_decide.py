"""gansfp.decision.decide: decisions by every rule, and no slice decided by labels of its own fold."""

import numpy as np
import pytest

from gansfp.decision.decide import FinalConfig, decide_by_other_folds, decide_membership, rows_to_combine
from gansfp.decision.stacking import combine
from gansfp.decision.thresholds import choose_threshold, parse_rule
from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED

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


def test_scores_to_combine_are_no_copy_where_what_learns_comes_last():
    scores = np.arange(20.0).reshape(5, 4)
    for learns, rows in (
        (None, [0, 1, 2, 3, 4]),
        (np.ones(5, bool), [0, 1, 2, 3, 4]),
        (np.array([False, False, False, True, True]), [0, 1, 2]),
    ):
        chosen = scores[rows_to_combine(learns)]
        np.testing.assert_array_equal(chosen, scores[rows])
        assert np.shares_memory(chosen, scores)
    among_others = rows_to_combine(np.array([True, False, True, False, False]))
    np.testing.assert_array_equal(scores[among_others], scores[[1, 3, 4]])


def test_what_learns_is_left_out():
    scores, labels, folds, _ = example((9, 1, 9, 1, 0))
    learns = np.array([True, False, True, False, False])
    found = decide_membership(scores, labels, folds, "stack", learns=learns)
    expected = combine("stack", scores[~learns], labels, folds)
    assert np.array_equal(found.combined.score, expected.score)
    assert found.combined.members == tuple(np.flatnonzero(~learns)[list(expected.members)].tolist())
    assert found.cross_validated_auc == expected.aucs
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


def test_rules_of_a_command_line():
    assert [parse_rule(text) for text in ("f1", "balanced_accuracy", "median")] == ["f1", "balanced_accuracy", "median"]
    assert [parse_rule(text) for text in ("0.25", "0", "1", "1e-1")] == [0.25, 0, 1, 0.1]
    for text in ("1.5", "-0.1", "nan", "inf", "F1", ""):
        with pytest.raises(UsageError, match=f"--decide: got '{text}', expected one of"):
            parse_rule(text)


def test_so_few_permutations_that_nothing_can_be_found_are_refused():
    with pytest.raises(UsageError, match="permutations: got 15, expected at least 20"):
        FinalConfig(permutations=15)
    with pytest.raises(UsageError, match="got 1000, expected at least 2000"):
        FinalConfig(alpha=0.0005)
    assert FinalConfig(permutations=20).permutations == 20
