"""gansfp.decision.summary: each figure stands beside its interval, its chance level and its p-values."""

from dataclasses import replace

import numpy as np
import pytest

from gansfp.decision.conclusion import Conclusion, Patients
from gansfp.decision.controls import Conditional, Controls
from gansfp.decision.evidence import Evidence, Figure
from gansfp.decision.reports import AttributionReport, DecisionReport, MembershipReport, Metrics, RunReport, SetReport
from gansfp.decision.search_result import Configuration
from gansfp.decision.summary import ATTRIBUTION_FIGURES, MEMBERSHIP_FIGURES, summary
from gansfp.decision.verdict import Support, judge_clusters, judge_set
from gansfp.statistics.intervals import Estimate
from gansfp.statistics.patients import PatientList

RUN = RunReport(0, 100, {})
NAMED = np.array([True, False])
SHARE = Estimate(0.5, 0.4, 0.6)


def evidence(names=MEMBERSHIP_FIGURES, p_value=0.01, selected=0.02, warnings=()):
    figures = {name: Figure(Estimate(0.75, 0.5, 0.875), 0.25) for name in names}
    return Evidence(figures, {"n": 1300, "n_groups": 66}, 7, p_value, selected, 0.001, warnings=warnings)


def metrics(cross_validated, test=None, run=RUN, share=SHARE, left_out=0):
    decision = DecisionReport("best", {"best": 0.75}, "f1", 0.5, [])
    controls = Controls(Estimate(0.5, 0.4, 0.6), conditional=Conditional(0.03, 0.001))
    verdict = judge_set(test or cross_validated, controls, Support(33, 33, has_truth=test is not None), 0.05)
    listed = PatientList(*np.array([[0, 1], [3, 1], [4, 0]]), np.array([0.01, 0.9]), np.array([0.02, 0.9]), NAMED)
    patients = Patients(listed, np.array(["anna", "bert"]), 0.1, wrong=0, of=33)
    concluded = Conclusion(verdict, controls, patients, share, 0.25)
    report = SetReport(concluded, cross_validated, decision, 1206, test, left_out=left_out)
    return Metrics(run, MembershipReport({"s": report}))


def test_every_figure_stands_beside_its_interval_and_chance_level():
    lines = summary(metrics(evidence(), evidence())).splitlines()
    assert lines[0] == "membership, set s: did these slices train the generator?"
    assert lines[1].startswith("  LEAK: Looked for traces of 66 patients (33 used, 33 not used)")
    assert "  - p-value of a leak beyond what the slices show by themselves: 0.03" in lines
    assert "  1,300 test slices with truth, 66 groups; 1,206 configurations tried" in lines
    for name in MEMBERSHIP_FIGURES:
        assert f"  {name:<18}  0.750  [0.500, 0.875]       0.250" in lines
    assert lines[-1] == "  p-value 0.01; corrected for the search 0.02"


def test_patients_are_counted_beside_slices():
    lines = summary(metrics(evidence(), evidence())).splitlines()
    least = "; at least 25% if only the not-used labels hold"
    assert f"  - share: 50% of the unknown patients were used, 40% to 60% at 95 %{least}" in lines
    assert "  - named at a false discovery rate of 10%: 1 of 2 unknown patients" in lines
    most = 1 - 0.05 ** (1 / 33)
    high = "0 of 33 patients who were not used score as high as the last one named"
    assert f"  - {high}: at most {most:.1%} false accusations, at 95 %" in lines
    of_set = metrics(evidence(), evidence()).as_dict()["membership"]["sets"]["s"]
    assert of_set["patients"]["false_accusations_at_most"] == pytest.approx(most)
    assert of_set["patients"]["named"] == 1
    assert of_set["share"] == {"value": 0.5, "low": 0.4, "high": 0.6, "at_least_by_not_used": 0.25}


def test_a_share_that_is_not_known_has_no_figure():
    unknown = metrics(evidence(), evidence(), share=Estimate(0.5, 0.0, 1.0))
    assert "  - share: not known" in summary(unknown).splitlines()
    assert unknown.as_dict()["membership"]["sets"]["s"]["share"] is None


def test_without_a_leak_the_share_is_no_count_of_used_patients():
    line = next(
        line
        for line in summary(metrics(evidence(selected=0.5), evidence(selected=0.5))).splitlines()
        if "share:" in line
    )
    assert line.endswith(
        "40% to 60% at 95 %. Careful: without a leak this only says how many are like the used patients"
    )
    assert "at least" not in line


def test_patients_that_are_left_out_are_counted():
    few = metrics(evidence(warnings=("12 patients have labelled and test slices",)), left_out=12)
    lines = summary(few).splitlines()
    assert "  careful: 12 patients have labelled and test slices" in lines
    assert any("cross-validated (too few test slices can be judged)" in line for line in lines)
    assert few.as_dict()["membership"]["sets"]["s"]["patients_left_out"] == 12


def test_without_truth_the_labelled_slices_are_shown():
    text = summary(metrics(evidence(warnings=("few groups",))))
    assert "1,300 labelled slices, cross-validated (the test has no truth), 66 groups" in text
    assert "  careful: few groups" in text


def test_an_answer_that_others_follow_says_so_first():
    run = replace(RUN, pending=("mobilenetv2_100", "densenet121"))
    lines = summary(metrics(evidence(), run=run)).splitlines()
    assert lines[0] == (
        "PROVISIONAL: without mobilenetv2_100, densenet121, which take longer; the final answer follows"
    )
    assert metrics(evidence(), run=run).as_dict()["run"]["pending"] == ["mobilenetv2_100", "densenet121"]


def test_what_is_not_defined_is_a_dash():
    undefined = Figure(Estimate(float("nan")), float("nan"))
    figures = dict.fromkeys(MEMBERSHIP_FIGURES, undefined)
    text = summary(metrics(replace(evidence(), figures=figures)))
    assert f"  {'auc':<18}      -  [-, -]                   -" in text.splitlines()


def test_clusters_bad_images_and_what_is_left_out():
    of_clusters = evidence(ATTRIBUTION_FIGURES)
    attribution = AttributionReport(
        judge_clusters(of_clusters, 0.05), of_clusters, 2, Configuration({"method": "kmeans"}), 5, {0: "gan", 1: "new"}
    )
    run = RunReport(0, 100, {"a": "empty file"}, left_out=("backbone 'x': no weights",))
    lines = summary(replace(metrics(evidence(), run=run), attribution=attribution)).splitlines()
    assert "attribution: which generator made each slice?" in lines
    assert "  TOLD APART: The clusters tell generators apart: adjusted Rand index 0.750, where chance gives 0." in lines
    assert "  2 clusters: 0 resembles gan, 1 resembles new" in lines
    assert lines[-2:] == [
        "1 images could not be read; metrics.json names them with their reasons",
        "left out: backbone 'x': no weights",
    ]
