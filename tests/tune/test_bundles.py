"""Which trials run in one process, so that they share the principal components of their embedding."""

import pytest

from tune.space import TASKS, grid
from tune.trials import bundles, gpu_share

PAIRS = [("highpass", "full"), ("residual", "full"), ("mobilenetv2_100", "full")]


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("slots", [1, 2, 16])
def test_every_trial_is_in_one_bundle_and_a_bundle_has_one_embedding(task, slots):
    trials = grid(TASKS[task], PAIRS)
    found = bundles(trials, slots)
    assert sorted(trial.to_json() for bundle in found for trial in bundle) == sorted(t.to_json() for t in trials)
    assert all(len({trial.pair for trial in bundle}) == 1 for bundle in found)
    assert len(found) >= min(2 * slots, len(trials))


def test_an_embedding_is_one_bundle_where_there_are_enough_of_them():
    trials = grid(TASKS["membership"], PAIRS)
    assert [bundle[0].pair for bundle in bundles(trials, 1)] == PAIRS
    halves = bundles(trials, 2)  # too few embeddings to keep two slots busy to the end
    assert [(bundle[0].pair, bundle[0].components) for bundle in halves] == [(p, c) for p in PAIRS for c in (0, 0.95)]
    assert bundles([], 2) == []


@pytest.mark.parametrize(
    ("gpus", "cpus", "share"), [(1, 16, 1 / 16), (1, 4, 0.25), (4, 16, 0.25), (8, 4, 1), (1, 128, 1 / 32)]
)
def test_as_many_trials_as_cores_share_the_gpus(gpus, cpus, share):
    assert gpu_share(gpus, cpus) == share
