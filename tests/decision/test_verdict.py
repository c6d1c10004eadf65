"""gansfp.decision.verdict: a leak needs every test, and whatever stands against an answer is said with its figure."""

from dataclasses import replace

import pytest

from gansfp.decision.blind import Difference
from gansfp.decision.controls import Conditional, Controls
from gansfp.decision.evidence import Evidence, Figure
from gansfp.decision.power import Power
from gansfp.decision.verdict import Support, judge_clusters, judge_set
from gansfp.statistics.intervals import Estimate

ALPHA = 0.05
SUPPORT = Support(30, 36, has_truth=True)
CONTROLS = Controls(Estimate(0.52, 0.4, 0.64), conditional=Conditional(0.01, 0.001))


def evidence(p_value=0.01, selected=0.02, smallest=0.001):
    figures = {name: Figure(Estimate(0.9, 0.8, 1.0), 0.5) for name in ("auc", "ari")}
    return Evidence(figures, {"n": 66, "n_groups": 66}, 7, p_value, selected, smallest)


@pytest.mark.parametrize(
    ("p_value", "selected", "beyond", "finding"),
    [
        (0.01, 0.04, 0.04, "leak"),
        (0.01, 0.06, 0.01, "no evidence"),
        (0.06, 0.01, 0.01, "no evidence"),
        (0.01, 0.01, 0.06, "cannot tell"),
        (0.05, 0.01, 0.01, "no evidence"),
        (0.01, 0.01, 0.05, "cannot tell"),
    ],
)
def test_a_leak_needs_all_three_p_values_below_alpha(p_value, selected, beyond, finding):
    controls = replace(CONTROLS, conditional=Conditional(beyond, 0.001))
    verdict = judge_set(evidence(p_value, selected), controls, SUPPORT, ALPHA)
    assert verdict.finding == finding
    assert "66 patients (30 used, 36 not used)" in verdict.sentence


def test_a_bias_is_named_where_the_score_may_rest_on_it():
    controls = Controls(
        Estimate(0.91, 0.85, 0.97),
        (Difference("noise", "noise", 0.93, 1e-6), Difference("file format", "format JPEG", 0.8, 1e-3)),
        Conditional(0.4, 0.001),
    )
    verdict = judge_set(evidence(), controls, SUPPORT, ALPHA)
    assert verdict.finding == "cannot tell"
    assert "blind AUC 0.91; they differ in noise, file format" in verdict.sentence
    assert "p = 0.4" in verdict.sentence
    reasons = {reason["what"]: reason["figure"] for reason in verdict.as_dict()["reasons"]}
    assert reasons["used and not-used patients differ in noise: noise alone has the AUC"] == 0.93
    assert reasons["blind control: AUC of the slices by themselves, without generated ones"] == 0.91
    assert reasons["p-value of a leak beyond what the slices show by themselves"] == 0.4


@pytest.mark.parametrize("selected", [0.01, 0.9])
def test_classes_that_do_not_overlap_tell_nothing_whatever_the_score(selected):
    controls = Controls(Estimate(1.0, 0.98, 1.0), conditional=Conditional(1.0, 1.0))
    verdict = judge_set(evidence(selected=selected), controls, SUPPORT, ALPHA)
    assert verdict.finding == "cannot tell"
    assert "differ so much by themselves" in verdict.sentence
    assert verdict.reasons[0].figure == 1.0


def test_too_few_patients_or_no_p_value_is_cannot_tell():
    few = judge_set(evidence(smallest=0.1), CONTROLS, SUPPORT, ALPHA)
    assert (few.finding, few.reasons[0].figure) == ("cannot tell", 0.1)
    assert "too few patients: no p-value can fall below 0.1" in few.sentence
    learned = judge_set(evidence(None, None, None), CONTROLS, SUPPORT, ALPHA)
    assert learned.finding == "cannot tell"
    assert "no p-value is valid" in learned.sentence


def test_too_few_patients_for_the_conditional_test_is_said_so_and_is_no_difference():
    controls = Controls(Estimate(0.48, 0.1, 0.9), conditional=Conditional(0.3, 0.07))
    verdict = judge_set(evidence(), controls, SUPPORT, ALPHA)
    assert (verdict.finding, verdict.reasons[0].figure) == ("cannot tell", 0.07)
    assert "too few patients to test beyond what the slices show by themselves" in verdict.sentence
    assert "differ so much" not in verdict.sentence


def test_without_a_blind_control_nothing_is_concluded():
    verdict = judge_set(evidence(), Controls(missing=("1 used patient",)), SUPPORT, ALPHA)
    assert verdict.finding == "cannot tell"
    assert verdict.sentence.endswith("Nothing can be concluded: 1 used patient.")


def test_alpha_is_the_users():
    assert judge_set(evidence(), CONTROLS, SUPPORT, 0.015).finding == "no evidence"
    assert judge_set(evidence(0.001, 0.001), CONTROLS, SUPPORT, 0.015).finding == "leak"


def test_cross_validated_patients_are_called_so():
    verdict = judge_set(evidence(), CONTROLS, replace(SUPPORT, has_truth=False), ALPHA)
    assert "66 patients (30 used, 36 not used) whose label is known, each judged by a fit to others" in verdict.sentence


@pytest.mark.parametrize(
    ("selected", "smallest", "finding"),
    [(0.01, 0.001, "told apart"), (0.3, 0.001, "not told apart"), (0.3, 0.2, "cannot tell")],
)
def test_clusters(selected, smallest, finding):
    verdict = judge_clusters(evidence(selected=selected, smallest=smallest), ALPHA)
    assert verdict.finding == finding
    assert "0.900" in verdict.sentence or finding == "cannot tell"


def test_nothing_seen_says_little_where_hardly_a_leak_would_have_been_seen():
    weak, strong = Power(0.4, 0.3, 0.5, 112), Power(0.05, 0.9, 0.5, 112)
    nothing = evidence(0.5, 0.6)
    verdict = judge_set(nothing, CONTROLS, SUPPORT, ALPHA, weak)
    assert verdict.finding == "cannot tell"
    assert "of leaks in which one synthetic slice in 10 is a copy, 30% would have been found" in verdict.sentence
    verdict = judge_set(nothing, CONTROLS, SUPPORT, ALPHA, strong)
    assert verdict.finding == "no evidence"
    assert "A leak in which one synthetic slice in 20 is a copy" in verdict.sentence
    assert {reason.figure for reason in verdict.reasons} > {0.9}
    assert judge_set(evidence(), CONTROLS, SUPPORT, ALPHA, weak).finding == "leak"  # what was found was found
    assert "was not measured" in judge_set(nothing, CONTROLS, SUPPORT, ALPHA).sentence
