"""Which test slices a verdict rests on: those of patients whom the fits have not seen, else the labelled slices."""

import numpy as np
import pytest

from gansfp.decision.blind import Facts
from gansfp.decision.conclusion import Left, conclude
from gansfp.decision.decide import FinalConfig, decide_membership
from gansfp.decision.evidence import membership_evidence
from gansfp.decision.final import JudgedTest, judge_test
from gansfp.decision.judged import DecidedSet, judged_by_others
from gansfp.decision.result_files import MembershipAnswers
from gansfp.decision.search_result import Configuration, ScoredRows, SetIds
from gansfp.embedding.measures import NOISE, Measure
from gansfp.labels import UNKNOWN
from gansfp.statistics.resampling import stratified_group_folds

CONFIG = FinalConfig(permutations=99, power=False)
PATIENTS, EACH, CONFIGURATIONS = 60, 3, 80


def example(others: int, seed: int = 0) -> tuple[DecidedSet, dict[str, int]]:
    """No leak: scores know the patient, not the label. Labelled patients have test slices too; `others` have only test
    slices."""
    rng = np.random.default_rng(seed)
    labelled, of_others = np.arange(PATIENTS).repeat(EACH), PATIENTS + np.arange(others).repeat(EACH)
    patients = np.concatenate([labelled, labelled, of_others])
    label = np.arange(PATIENTS + others) % 2
    of_patient = rng.normal(size=(CONFIGURATIONS, PATIENTS + others))
    scores = of_patient[:, patients] + 0.5 * rng.normal(size=(CONFIGURATIONS, len(patients)))
    known = np.arange(len(patients)) < len(labelled)
    labels, groups = np.where(known, label[patients], UNKNOWN), np.array([f"p{patient}" for patient in patients])
    folds = np.full(len(patients), -1)
    folds[known] = stratified_group_folds(labels[known], groups[known], 5, 0)
    decided = decide_membership(scores, labels, folds, "stack")
    ids = SetIds([f"s{row}" for row in range(len(labels))], ["g"], labels.tolist(), folds.tolist(), groups.tolist())
    names = [Configuration({"number": number}) for number in range(CONFIGURATIONS)]
    rows, learns = ScoredRows(np.arange(CONFIGURATIONS), names, scores), np.zeros(CONFIGURATIONS, bool)
    truth = {f"s{row}": int(label[patients[row]]) for row in np.flatnonzero(~known)}
    return DecidedSet(ids, rows, labels, folds, groups, learns, decided), truth


def judged_test(of_set: DecidedSet, truth: dict[str, int]) -> JudgedTest:
    test, decided = of_set.labels == UNKNOWN, of_set.decided
    answers = MembershipAnswers(
        decided.combined.score[test], decided.decision[test], decided.combined.probability[test], np.ones(len(truth))
    )
    return judge_test(of_set, truth, of_set.groups[test], answers, np.flatnonzero(test), CONFIG)


@pytest.mark.parametrize("seed", range(3))
def test_patients_whom_the_fits_have_seen_are_no_evidence(seed):
    of_set, truth = example(30, seed)
    # Test slices of labelled patients look like a leak.
    test = np.flatnonzero(of_set.labels == UNKNOWN)
    seen, score, decision = test[: PATIENTS * EACH], of_set.decided.combined.score, of_set.decided.decision
    used = np.array([truth[f"s{row}"] for row in seen])
    wrong = membership_evidence(
        used, score[seen], decision[seen], of_set.groups[seen], of_set.rows.scores[:, seen], CONFIG
    )
    assert wrong.figures["auc"].estimate.value > 0.65
    assert wrong.p_value < 0.05
    found = judged_test(of_set, truth)
    assert found.left_out == PATIENTS
    assert found.judged.patients == (15, 15)
    assert found.judged.rows.tolist() == list(range(2 * PATIENTS * EACH, len(of_set.labels)))
    assert found.evidence.support["n"] == len(found.decisions.truth) == 30 * EACH
    assert found.evidence.p_value > 0.05
    assert f"{PATIENTS} patients have labelled and test slices" in found.evidence.warnings[-1]
    rng = np.random.default_rng(seed)
    facts = Facts((Measure("noise", NOISE),), rng.normal(size=(len(of_set.labels), 1)), {})
    verdict = conclude(of_set, found.judged, found.evidence, Left(facts), CONFIG).verdict
    assert verdict.finding == "no evidence"
    assert "traces of 30 patients" in verdict.sentence


@pytest.mark.parametrize("others", [0, 1, 4])
def test_where_too_few_other_patients_remain_the_labelled_slices_judge(others):
    found = judged_test(*example(others))
    assert found.evidence is None
    assert "all figures rest on the labelled slices" in found.warning


def test_without_shared_patients_all_test_slices_count():
    of_set, truth = example(4)
    groups = np.where(of_set.labels == UNKNOWN, np.char.add("other ", of_set.groups), of_set.groups)
    apart = DecidedSet(of_set.ids, of_set.rows, of_set.labels, of_set.folds, groups, of_set.learns, of_set.decided)
    found = judged_test(apart, truth)
    assert (found.left_out, found.warning, found.evidence.warnings) == (0, "", ())
    assert len(found.judged.rows) == len(truth)
    without = DecidedSet(
        of_set.ids, of_set.rows, of_set.labels, of_set.folds, np.full(len(groups), ""), of_set.learns, of_set.decided
    )
    assert judged_test(without, truth).left_out == 0  # a slice without a group is a patient of its own
    assert judged_by_others(without, None).patients == (PATIENTS * EACH // 2, PATIENTS * EACH // 2)
