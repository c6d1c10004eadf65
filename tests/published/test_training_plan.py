"""Trainings of recipes at full and at reduced scale."""

from gansfp.collection.catalog import read_catalog
from gansfp.published.recipes import find
from gansfp.published.training_plan import Planner, Scale
from gansfp.training.loop import Settings


def test_notes_say_what_is_scaled_down():
    recipe, inception, autoencoder = find(["1", "4", "37"])
    assert Scale().notes(recipe) == []
    assert Scale(epochs=50, batch_size=256, input_size=224).notes(recipe) == []
    assert Scale(3, 20, 64, 8).notes(recipe) == ["scaled down: 3 epochs, 20 steps, 64 px, batches of 8"]
    assert Scale(input_size=64).size(inception) == 75
    assert Scale(input_size=100).size(autoencoder) == 64
    settings = Scale(3, 20, 64, 8).settings(recipe.training, 7)
    assert settings == Settings("sgd", 1e-3, 8, 3, 10, 20, 7)
    assert Scale(epochs=99).settings(recipe.training, 0).epochs == 50
    assert Scale(max_steps=20).settings(recipe.training, 0).epochs == 20


def test_published_trainings(challenge):
    """The training stages of each kind of plan, on two sets."""
    planner = Planner(read_catalog(str(challenge)), Scale(), "threshold", 0)
    plans = {number: planner.plan(find([number])[0], None) for number in ("1", "7", "13", "17", "37")}
    stages = {
        n: [[stage.name for stage in training.stages] for training in plans[n].trainings]
        for n in ("1", "7", "13", "17")
    }
    assert stages["1"] == [["set clean", "set warp"]]
    assert stages["7"] == [["known generators"]]
    assert stages["13"] == [["real against generated"]]
    assert [len(names) for names in stages["17"]] == [4, 4]
    networks = {n: list(plan.source.models) for n, plan in plans.items()}
    assert all(networks[n] == [""] for n in ("1", "7", "13"))
    assert all(networks[n] == ["clean", "warp"] for n in ("17", "37"))
    (training,) = plans["13"].trainings
    assert (training.head, training.copies, training.augmentation) == ("dropout_dense", 50, "kde-lab-2024")
    assert training.stages[0].examples.counts() == {"real": 32, "generated": 60}
    assert training.stages[0].settings == Settings("adam", 1e-4, 32, 50, 0)
    assert len(plans["37"].trainings[0].slices) == 80
