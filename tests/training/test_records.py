"""Records of a training: the content of model.json, of earlier versions too, becomes a record and stays the same."""

import json

import pytest

from gansfp.errors import UsageError, WeightsError
from gansfp.networks.model_files import write_model
from gansfp.training.records import SkippedStage, TrainingRecord, read_record

# As earlier versions wrote it.
COURSE = {
    "settings": {"optimiser": "adam", "rate": 0.001, "batch": 8, "epochs": 3, "patience": 0, "max_steps": 0, "seed": 0},
    "epochs": 3,
    "steps": 6,
    "best_epoch": 2,
    "figures": {"train_loss": 0.7, "loss": 0.5},
    "seconds": 1.5,
    "examples": [12, 3],
    "peak_memory": None,
}
PLAIN = {
    "identity": {"kind": "autoencoder", "size": 32},
    **COURSE,
    "history": [{"train_loss": 0.9, "loss": 0.6}, {"train_loss": 0.7, "loss": 0.5}, {"train_loss": 0.6, "loss": 0.8}],
}
STAGES = [{"stage": "one", **COURSE, "seconds": 2.0}, {"stage": "two", **COURSE}]
CLASSIFIER = {**PLAIN, "stages": STAGES, "skipped": [{"stage": "three", "why": "no data is named"}]}


@pytest.mark.parametrize("content", [PLAIN, CLASSIFIER])
def test_content_stays_the_same(content, tmp_path):
    record = TrainingRecord.from_dict(content)
    assert record.as_dict() == content
    write_model(str(tmp_path), record.as_dict(), {})
    assert json.loads((tmp_path / "model.json").read_text()) == content
    assert read_record(str(tmp_path), {"identity": content["identity"]}) == record
    with pytest.raises(UsageError, match="trained with kind 'autoencoder', got 'unet'"):
        read_record(str(tmp_path), {"identity": {**content["identity"], "kind": "unet"}})


def test_a_classifier_sums_the_seconds_of_its_stages():
    assert TrainingRecord.from_dict(PLAIN).total_seconds == 1.5
    record = TrainingRecord.from_dict(CLASSIFIER)
    assert record.total_seconds == 3.5
    assert record.skipped == (SkippedStage("three", "no data is named"),)
    assert record.stages[1] == record.of_stage("two")


def test_a_missing_entry(tmp_path):
    assert read_record(str(tmp_path), {}) is None
    with pytest.raises(
        WeightsError, match=r"model\.json: has no entry 'steps', expected a file that jobs\.train wrote"
    ):
        TrainingRecord.from_dict({name: value for name, value in PLAIN.items() if name != "steps"})
