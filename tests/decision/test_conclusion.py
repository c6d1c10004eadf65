"""decision.conclusion: verdict, patients, share and power of one set together, and what they leave out."""

import csv
import json
from dataclasses import replace

import numpy as np

from gansfp.decision.blind import MEASURED, Facts
from gansfp.decision.conclusion import Left, conclude
from gansfp.decision.decide import FinalConfig, decide_membership
from gansfp.decision.evidence import membership_evidence
from gansfp.decision.judged import DecidedSet, judged_by_others, judged_by_truth
from gansfp.decision.result_files import _quoted, write_patients
from gansfp.decision.search_result import Configuration, ScoredRows, SetIds
from gansfp.embedding.measures import MEASURES
from gansfp.labels import UNKNOWN
from gansfp.statistics.resampling import stratified_group_folds

CONFIG = FinalConfig(permutations=99)
PATIENTS, EACH = 80, 2


def decided_set(shift: float, unknown: bool = True) -> tuple[DecidedSet, dict[str, int]]:
    """Half of the patients are used, whose scores are `shift` higher; half of each have no label."""
    rng, n = np.random.default_rng(0), PATIENTS * EACH
    groups = np.repeat([f"p,{number:02d}" for number in range(PATIENTS)], EACH)
    used = np.repeat(np.arange(PATIENTS) % 2, EACH)
    labels = np.where((np.repeat(np.arange(PATIENTS), EACH) < PATIENTS // 2) | (not unknown), used, UNKNOWN)
    scores = rng.normal(size=(5, n)) + shift * used
    known, folds = labels != UNKNOWN, np.full(n, -1)
    folds[known] = stratified_group_folds(labels[known], groups[known], 5, 0)
    decided = decide_membership(scores, labels, folds)
    names = [f"s{row}" for row in range(n)]
    ids = SetIds(names, ["g"] * 50, labels.tolist(), folds.tolist(), groups.tolist())
    rows = ScoredRows(np.arange(5), [Configuration({"number": number}) for number in range(5)], scores)
    truth = {name: int(value) for name, value, label in zip(names, used, labels, strict=True) if label == UNKNOWN}
    return DecidedSet(ids, rows, labels, folds, groups, np.zeros(5, bool), decided), truth


def facts() -> Facts:
    rng, n = np.random.default_rng(1), PATIENTS * EACH
    return Facts(MEASURES, rng.normal(size=(n, len(MEASURES))), {MEASURED: rng.normal(size=(n, 4))})


def concluded(shift, left=None, config=CONFIG):
    of_set, truth = decided_set(shift)
    unknown, decided = of_set.labels == UNKNOWN, of_set.decided
    used, score, decision = np.array(list(truth.values())), decided.combined.score[unknown], decided.decision[unknown]
    tried = of_set.rows.scores[:, unknown]
    evidence = membership_evidence(used, score, decision, of_set.groups[unknown], tried, config)
    return conclude(of_set, judged_by_truth(of_set, truth), evidence, left or Left(facts()), config), of_set, truth


def test_a_leak_and_none_are_told_and_written(tmp_path):
    leak, of_set, truth = concluded(4.0)
    none, *_ = concluded(0.0)
    assert (leak.verdict.finding, none.verdict.finding) == ("leak", "no evidence")
    assert 0.3 < leak.share.value < 0.7
    assert leak.power is None
    assert "12 not-used patients" in leak.missing
    for found in (leak, none):
        json.dumps(found.as_dict(), allow_nan=False)
    write_patients(str(tmp_path), "a", leak.patients)
    with open(tmp_path / "results/membership-a-patients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["patient"] for row in rows} == set(of_set.groups[of_set.labels == UNKNOWN].tolist())
    assert {row["slices"] for row in rows} == {str(EACH)}
    named = {row["patient"] for row in rows if row["named"] == "1"}
    used = {group for group, name in zip(of_set.groups, of_set.ids.real, strict=True) if truth.get(name) == 1}
    assert len(named) >= 16
    assert (leak.patients.withheld, none.patients.withheld) == (0, 0)
    assert len(named - used) <= 0.3 * len(named)
    p_values = [float(row["p"]) for row in rows]
    assert p_values == sorted(p_values)


def test_without_facts_nothing_can_be_told():
    found, *_ = concluded(4.0, Left())
    assert found.verdict.finding == "cannot tell"
    assert "run tune.search again" in found.verdict.sentence
    assert found.missing


def test_nobody_is_named_where_the_verdict_is_no_leak(tmp_path):
    found, *_ = concluded(4.0, Left())  # the scores tell the classes apart, but nothing can be concluded
    assert found.patients.listed.named.sum() >= 16
    assert not found.patients.named.any()
    report = found.as_dict()["patients"]
    assert (report["named"], report["withheld"]) == (0, int(found.patients.listed.named.sum()))
    write_patients(str(tmp_path), "a", found.patients)
    lines = (tmp_path / "results/membership-a-patients.csv").read_text().splitlines()[1:]
    assert lines
    assert all(line.endswith(",0") for line in lines)


def test_a_provisional_answer_measures_no_power():
    found, *_ = concluded(4.0, config=replace(CONFIG, power=False))
    assert found.missing == "it is measured with the final answer"


def test_without_unknown_slices_there_are_no_names_and_no_share(tmp_path):
    of_set, _ = decided_set(3.0, unknown=False)
    judged = judged_by_others(of_set, None)
    assert judged.patients == (PATIENTS // 2, PATIENTS // 2)
    evidence = membership_evidence(
        judged.truth, judged.score, judged.score > 0, of_set.groups, of_set.rows.scores, CONFIG
    )
    found = conclude(of_set, judged, evidence, Left(facts()), replace(CONFIG, permutations=20))
    assert (found.share, found.patients.listed, len(found.patients.names)) == (None, None, 0)
    write_patients(str(tmp_path), "a", found.patients)
    assert (tmp_path / "results/membership-a-patients.csv").read_text() == "patient,slices,score,p,q,named\n"
    json.dumps(found.as_dict(), allow_nan=False)


def test_names_are_quoted_for_csv():
    assert [_quoted(name) for name in ("a", "a,b", 'a"b', "a\nb")] == ["a", '"a,b"', '"a""b"', '"a\nb"']


def test_a_seed_gives_the_same():
    assert concluded(1.0)[0].as_dict() == concluded(1.0)[0].as_dict()
