"""tune.space: every trial of the grid is one that can be run, in the same order each time."""

import json
from dataclasses import replace

import optuna
import pytest

from gansfp.decision.search_result import Trial
from gansfp.embedding.backbones import parse_backbone
from gansfp.images.views import get_view
from gansfp.scoring.distances import METRICS
from tune.space import TASKS, grid, suggest

PAIRS = [
    ("highpass-w15-64", "full"),
    ("mobilenetv2_100", "lungs"),
    ("mobilenetv2_100:sketch", "full"),
    ("lbp", "outer"),
]


@pytest.mark.parametrize("task", TASKS)
def test_default_pairs_are_backbones_and_views_that_exist(task):
    pairs = TASKS[task].default_pairs
    assert len(set(pairs)) == len(pairs) >= 5
    for backbone, view in pairs:
        assert parse_backbone(backbone).name == backbone
        assert get_view(view)
    assert any(not parse_backbone(backbone).needs_weights for backbone, _ in pairs)  # something without weights


@pytest.mark.parametrize("task", TASKS)
def test_grid_is_complete_without_twins_and_the_same_each_time(task):
    trials = grid(TASKS[task], PAIRS)
    assert trials == grid(TASKS[task], PAIRS)
    assert len({json.dumps(trial.as_dict(), sort_keys=True) for trial in trials}) == len(trials)
    assert {trial.pair for trial in trials} == set(PAIRS)
    assert {trial.components for trial in trials} == {0, 0.95}
    assert all(Trial.from_json(trial.to_json()) == trial for trial in trials)


def test_grid_of_membership_has_the_metrics_that_differ():
    found: dict[str, set[str]] = {}
    for trial in grid(TASKS["membership"], PAIRS):
        found.setdefault(trial.backbone, set()).add(trial.metric)
    assert found["mobilenetv2_100"] == found["lbp"] == set(METRICS)
    assert found["highpass-w15-64"] == found["mobilenetv2_100:sketch"] == {"euclidean"}


def test_grid_of_attribution_standardises_and_does_not():
    assert {trial.standardise for trial in grid(TASKS["attribution"], PAIRS)} == {False, True}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_suggested_has_the_grids_keys_and_reaches_all_of_it(task):
    def draw(seed):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return [suggest(study.ask(), TASKS[task], PAIRS) for _ in range(120)]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = draw(0)
    assert drawn == draw(0)
    assert drawn != draw(1)
    keys = {(trial.backbone, tuple(trial.as_dict())) for trial in grid(TASKS[task], PAIRS)}
    assert {(trial.backbone, tuple(trial.as_dict())) for trial in drawn} == keys

    def without_components(trials):
        return {replace(trial, components=0) for trial in trials}

    assert without_components(drawn) == without_components(grid(TASKS[task], PAIRS))
    assert {trial.components for trial in drawn} >= {0, 0.95}
