"""gansfp.decision.controls: what slices show by themselves is seen, named, and never taken for a leak."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from gansfp.decision.blind import SOURCE, Facts, find_differences, units_of
from gansfp.decision.controls import HALVES, ControlConfig, control, member_only
from gansfp.decision.judged import Judged
from gansfp.decision.pool import Pool
from gansfp.decision.stacking import nested_for
from gansfp.embedding.measures import BRIGHTNESS, FILES, NOISE, Measure
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.resampling import stratified_group_folds

CONFIG = ControlConfig(alpha=0.05, permutations=199, seed=0)
MEASURES = (Measure("noise", NOISE), Measure("contrast", BRIGHTNESS), Measure("format JPEG", FILES))


def example(leak=0.0, bias=0.0, seen=0.0, patients=60, each=2, seed=0):
    """Patients with `each` slices: half labelled, half to be judged. bias: by how much the noise of the not-used
    differs; seen: how much of the noise the score follows; leak: by how much the used patients' scores are higher."""
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"p{number}" for number in range(2 * patients)], each)
    truth = np.repeat(np.arange(2 * patients) % 2, each)
    noise = np.repeat(rng.standard_normal(2 * patients) + bias * (np.arange(2 * patients) % 2 == 0), each)
    score = leak * truth + seen * -noise + np.repeat(rng.standard_normal(2 * patients), each)
    score += 0.3 * rng.standard_normal(len(truth))
    measured = np.column_stack([noise, rng.standard_normal(len(truth)), np.zeros(len(truth))])
    facts = Facts(MEASURES, measured, {("highpass", "full"): rng.standard_normal((len(truth), 4))})
    labels = np.where(np.arange(len(truth)) < patients * each, truth, UNKNOWN)
    rows = np.flatnonzero(labels == UNKNOWN)
    return Judged(rows, truth[rows], score[rows], groups, labels, score), facts


def test_units_are_patients_and_labels():
    units = units_of(np.array(["a", "a", "b", "b", "", ""]), np.array([1, 1, 0, 1, 0, 0]))
    assert len(units.labels) == 5  # a; b used; b not used; two slices without a group
    values = np.array([1.0, 3.0, 5.0, 7.0, 9.0, 11.0])
    means = units.means(values)
    assert means[units.codes].tolist() == [2.0, 2.0, 5.0, 7.0, 9.0, 11.0]
    assert units.labels[units.codes].tolist() == [1, 1, 0, 1, 0, 0]


def test_differences_are_named_with_their_auc_and_corrected_p_value():
    judged, facts = example(bias=2.0)
    units = units_of(judged.groups[judged.rows], judged.truth)
    found = find_differences(facts, judged.rows, units, 0.05)
    assert [(difference.kind, difference.what) for difference in found] == [(NOISE, "noise")]
    patients = judged.groups[judged.rows]
    of_patient = dict(zip(patients, facts.measured[judged.rows, 0], strict=True))
    label = dict(zip(patients, judged.truth, strict=True))
    used = [value for group, value in of_patient.items() if label[group]]
    not_used = [value for group, value in of_patient.items() if not label[group]]
    assert found[0].auc == pytest.approx(1 - roc_auc_score([1] * 30 + [0] * 30, used + not_used))
    assert found[0].p_value == pytest.approx(3 * mannwhitneyu(used, not_used).pvalue)
    judged, facts = example(bias=0.0)
    assert find_differences(facts, judged.rows, units, 0.05) == ()


def test_without_a_leak_or_bias_the_blind_control_is_at_chance():
    judged, facts = example()
    controls = control(judged, facts, CONFIG)
    assert controls.blind.low < 0.5 < controls.blind.high
    assert controls.conditional.p_value > 0.05
    assert (controls.differences, controls.missing) == ((), ())


def test_a_bias_is_seen_by_the_blind_control_and_is_no_leak():
    judged, facts = example(bias=1.5, seen=2.0)
    assert roc_auc_score(judged.truth, judged.score) > 0.75
    controls = control(judged, facts, CONFIG)
    assert controls.blind.value > 0.75
    assert controls.blind.low > 0.5
    assert controls.conditional.p_value > 0.05
    assert [difference.kind for difference in controls.differences] == [NOISE]


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_a_leak_is_found_beside_a_bias(bias):
    judged, facts = example(leak=6.0, bias=bias, seen=0.5)
    assert control(judged, facts, CONFIG).conditional.p_value < 0.05


def test_where_classes_do_not_overlap_no_leak_is_found():
    judged, facts = example(leak=6.0, bias=30.0)
    controls = control(judged, facts, CONFIG)
    assert controls.blind.value > 0.99
    assert controls.conditional.p_value > 0.05


def test_matched_patients_are_alike_by_themselves():
    judged, facts = example(leak=6.0, bias=1.0)
    config = ControlConfig(alpha=0.05, permutations=99, seed=0, match=True)
    auc, pairs = control(judged, facts, config).matched
    assert 5 < pairs <= 30
    assert auc.value > 0.9
    judged, facts = example(bias=30.0)
    controls = control(judged, facts, config)
    assert controls.matched is None
    assert controls.missing == ("matching: fewer than 5 pairs of used and not-used patients are alike",)


def test_one_patient_of_a_class_has_no_blind_control_and_says_so():
    judged, facts = example(patients=60)
    one = judged.groups[judged.rows[judged.truth == USED][0]]
    kept = (judged.truth == NOT_USED) | (judged.groups[judged.rows] == one)
    few = Judged(
        judged.rows[kept], judged.truth[kept], judged.score[kept], judged.groups, judged.labels, judged.combined
    )
    controls = control(few, facts, CONFIG)
    assert (controls.blind, controls.conditional) == (None, None)
    assert controls.missing == ("1 used and 30 not-used patients: a blind control needs 2 of each",)


def labelled(leak, seed=0):
    """Scores of three configurations on labelled slices, as a search leaves them, and what judges them by refits."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 2)
    groups = np.array([f"p{number}" for number in range(60)])
    folds = stratified_group_folds(labels, groups, 5, 0)
    scores = leak * labels + rng.standard_normal((3, 60))
    pool = Pool(scores, folds)

    def refit(labelings):
        return (nested.out_of_fold() for nested in nested_for(pool, labelings, None))

    (combined,) = refit(labels[None])
    facts = Facts(MEASURES[:1], rng.standard_normal((60, 1)), {})
    return Judged(np.arange(60), labels, combined, groups, labels, combined, refit, folds), facts, scores


def test_two_labelled_patients_of_a_class_have_no_blind_control_and_say_so():
    labels = np.concatenate([[USED, USED], np.repeat(NOT_USED, 30)])
    groups = np.array([f"p{number}" for number in range(32)])
    folds, score = stratified_group_folds(labels, groups, 5, 0), np.arange(32.0)
    facts = Facts(MEASURES[:1], np.random.default_rng(0).standard_normal((32, 1)), {})
    judged = Judged(np.arange(32), labels, score, groups, labels, score, iter, folds)
    controls = control(judged, facts, CONFIG)
    assert (controls.blind, controls.conditional) == (None, None)
    assert "2 folds, expected 3 or more: it takes 3 patients of each class" in controls.missing[0]


@pytest.mark.parametrize(("leak", "found"), [(2.0, True), (0.0, False)])
def test_cross_validated_slices_are_judged_by_refits(leak, found):
    judged, facts, _ = labelled(leak)
    conditional = control(judged, facts, ControlConfig(0.05, 99, 0)).conditional
    assert (conditional.p_value < 0.05) == found
    assert conditional.smallest == 1 / 100


def test_halves_of_one_class_are_told_apart_by_chance_alone():
    judged, _, scores = labelled(leak=3.0)
    found, missing = member_only(scores, judged.labels, judged.groups, None, 0)
    assert missing == ()
    for auc in found.values():
        assert auc.low < auc.value < auc.high
        assert auc.value == pytest.approx(0.5, abs=0.12)
    again, _ = member_only(scores, judged.labels, judged.groups, None, 0)
    assert found == again
    assert HALVES >= 10


def test_a_class_with_few_patients_has_no_member_only_control():
    judged, _, scores = labelled(leak=0.0)
    groups = np.where(judged.labels == USED, "one", judged.groups)
    found, missing = member_only(scores, judged.labels, groups, None, 0)
    assert list(found) == ["not_used"]
    assert missing == ("member-only control: 1 used patients, at least 10 are needed",)


@pytest.mark.parametrize(("bias", "kinds"), [(0.0, [SOURCE]), (6.0, [NOISE])])
def test_pictures_that_differ_in_no_measurement_are_named_as_another_source(bias, kinds):
    judged, facts = example(bias=bias)
    pictures = facts.pictures["highpass", "full"].copy()
    pictures[:, 0] += 1.5 * (np.arange(len(pictures)) // 2 % 2)
    found = control(judged, Facts(MEASURES, facts.measured, {("highpass", "full"): pictures}), CONFIG)
    assert [difference.kind for difference in found.differences] == kinds
