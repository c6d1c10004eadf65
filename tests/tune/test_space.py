"""tune.space: every trial of the grid is one that can be run, in the same order each time."""

import json

import optuna
import pytest

from gansfp.embedding.backbones import parse_backbone
from gansfp.images.views import get_view
from gansfp.scoring.attribution import COVARIANCES, INITS, LINKAGES
from gansfp.scoring.distances import METRICS
from tune.space import DEFAULT_PAIRS, TASKS, clusterings, grid, suggest

PAIRS = [("highpass-w15-64", "full"), ("mobilenetv2_100", "lungs"), ("mobilenetv2_100:map", "full"), ("lbp", "outer")]


@pytest.mark.parametrize("task", TASKS)
def test_default_pairs_are_backbones_and_views_that_exist(task):
    pairs = DEFAULT_PAIRS[task]
    assert len(set(pairs)) == len(pairs) >= 5
    for backbone, view in pairs:
        assert parse_backbone(backbone).name == backbone
        assert get_view(view)
    assert any(not parse_backbone(backbone).needs_weights for backbone, _ in pairs)  # something without weights


@pytest.mark.parametrize("task", TASKS)
def test_grid_is_complete_without_twins_and_the_same_each_time(task):
    trials = grid(task, PAIRS)
    assert trials == grid(task, PAIRS)
    assert len({json.dumps(trial, sort_keys=True) for trial in trials}) == len(trials)
    assert {(trial["backbone"], trial["view"]) for trial in trials} == set(PAIRS)
    assert {trial["components"] for trial in trials} == {0, 0.95}
    assert all(json.loads(json.dumps(trial)) == trial for trial in trials)


def test_grid_of_membership_has_the_metrics_that_differ():
    found: dict[str, set[str]] = {}
    for trial in grid("membership", PAIRS):
        found.setdefault(trial["backbone"], set()).add(trial["metric"])
    assert found["mobilenetv2_100"] == found["lbp"] == set(METRICS)
    assert found["highpass-w15-64"] == found["mobilenetv2_100:map"] == {"euclidean"}


def test_grid_of_attribution_standardises_and_does_not():
    assert {trial["standardise"] for trial in grid("attribution", PAIRS)} == {False, True}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_suggested_has_the_grids_keys_and_reaches_all_of_it(task):
    def draw(seed):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return [suggest(study.ask(), task, PAIRS) for _ in range(120)]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = draw(0)
    assert drawn == draw(0)
    assert drawn != draw(1)
    keys = {(trial["backbone"], tuple(trial)) for trial in grid(task, PAIRS)}
    assert {(trial["backbone"], tuple(trial)) for trial in drawn} == keys

    def without_components(trials):
        return {json.dumps({k: v for k, v in trial.items() if k != "components"}) for trial in trials}

    assert without_components(drawn) == without_components(grid(task, PAIRS))
    assert {trial["components"] for trial in drawn} >= {0, 0.95}


@pytest.mark.parametrize("components", [0, 0.95])
def test_clusterings_of_a_trial(components):
    found = clusterings(components, standardise=True, seed=7)
    assert len(set(found)) == len(found)
    assert {c.linkage for c in found if c.method == "hierarchical"} <= set(LINKAGES)
    assert any(c.method == "kmeans" for c in found)
    mixtures = [c for c in found if c.method == "gmm"]
    assert bool(mixtures) == bool(components)  # a mixture of thousands of numbers has nothing to rest on
    assert {c.covariance for c in mixtures} <= set(COVARIANCES)
    assert {c.init for c in mixtures} <= set(INITS)
    assert {(c.components, c.standardise, c.seed) for c in found} == {(components, True, 7)}
