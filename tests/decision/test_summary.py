"""gansfp.decision.summary: each figure stands beside its interval, its chance level and its p-values."""

from dataclasses import replace

import pytest

from gansfp.decision.evidence import Evidence, Figure
from gansfp.decision.reports import AttributionReport, DecisionReport, MembershipReport, Metrics, RunReport, SetReport
from gansfp.decision.search_result import Configuration
from gansfp.decision.summary import ATTRIBUTION_FIGURES, MEMBERSHIP_FIGURES, summary
from gansfp.statistics.intervals import Estimate

RUN = RunReport(0, 100, {})


def evidence(names=MEMBERSHIP_FIGURES, p_value=0.01, selected=0.02, warnings=()):
    figures = {name: Figure(Estimate(0.75, 0.5, 0.875), 0.25) for name in names}
    return Evidence(figures, {"n": 1300, "n_groups": 66}, 7, p_value, selected, 0.001, warnings=warnings)


def metrics(cross_validated, test=None, run=RUN):
    decision = DecisionReport("best", {"best": 0.75}, "f1", 0.5, [])
    return Metrics(run, MembershipReport({"s": SetReport(cross_validated, decision, 1206, test)}))


def test_every_figure_stands_beside_its_interval_and_chance_level():
    lines = summary(metrics(evidence(), evidence())).splitlines()
    assert lines[0] == "membership, set s: did these slices train the generator?"
    assert lines[1] == "  1,300 test slices with truth, 66 groups; 1,206 configurations tried"
    for name in MEMBERSHIP_FIGURES:
        assert f"  {name:<18}  0.750  [0.500, 0.875]       0.250" in lines
    assert lines[-2:] == ["  p-value 0.01; corrected for the search 0.02", "  => better than chance"]


def test_without_truth_the_labelled_slices_are_shown():
    text = summary(metrics(evidence(warnings=("few groups",))))
    assert "1,300 labelled slices, cross-validated (the test has no truth), 66 groups" in text
    assert "  careful: few groups" in text


@pytest.mark.parametrize(
    ("p_value", "selected", "conclusion"),
    [
        (0.01, 0.04, "better than chance"),
        (0.01, 0.06, "better than chance by itself, not after correcting for the search: weak evidence"),
        (0.06, 0.01, "not told apart from chance; that nothing was seen does not mean that nothing is there"),
        (None, None, "not tested: there is no p-value"),
    ],
)
def test_the_conclusion_needs_both_p_values(p_value, selected, conclusion):
    text = summary(metrics(evidence(p_value=p_value, selected=selected)))
    assert text.splitlines()[-1] == f"  => {conclusion}"


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
    attribution = AttributionReport(
        evidence(ATTRIBUTION_FIGURES), 2, Configuration({"method": "kmeans"}), 5, {0: "gan", 1: "new"}
    )
    run = RunReport(0, 100, {"a": "empty file"}, left_out=("backbone 'x': no weights",))
    lines = summary(replace(metrics(evidence(), run=run), attribution=attribution)).splitlines()
    assert "attribution: which generator made each slice?" in lines
    assert "  2 clusters: 0 resembles gan, 1 resembles new" in lines
    assert lines[-2:] == [
        "1 images could not be read; metrics.json names them with their reasons",
        "left out: backbone 'x': no weights",
    ]
