"""Records of a training: what FOLDER/model.json holds of it, and what a training reports after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from gansfp.errors import WeightsError
from gansfp.networks.model_files import read_finished

T = TypeVar("T")

# Called after each epoch with epoch, epochs, steps, examples_per_second, train_loss and the figures of the validation;
# a classifier adds the name of its training stage as "stage".
Report = Callable[[Mapping[str, float | str]], None]


@dataclass(frozen=True)
class SkippedStage:
    """A training stage that is not trained, and the reason."""

    stage: str
    why: str

    def as_dict(self) -> dict[str, str]:
        """Returns the entry of model.json."""
        return {"stage": self.stage, "why": self.why}


@dataclass(frozen=True)
class StageRecord:
    """One training stage of a classifier, as the model.json of the whole classifier holds it.

    stage: its name. The other fields are those of TrainingRecord.
    """

    stage: str
    settings: Mapping[str, object]
    epochs: int
    steps: int
    best_epoch: int
    figures: Mapping[str, float]
    seconds: float
    examples: list[int]
    peak_memory: int | None


@dataclass(frozen=True)
class TrainingRecord:
    """What model.json holds of a trained network.

    identity: which network was trained on which slices. settings: the fields of gansfp.training.loop.Settings. epochs,
    steps: how many were trained. best_epoch: the epoch, counted from 1, whose weights are kept. figures: training loss
    and validation figures of that epoch; history: the same of every epoch. seconds: the training time. examples: how
    many examples there were to train on and to validate with. peak_memory: bytes on the GPU; None on a CPU.
    stages, skipped: the training stages of a classifier. They are empty for other networks, and model.json has no
    entries for them then.
    """

    identity: Mapping[str, object]
    settings: Mapping[str, object]
    epochs: int
    steps: int
    best_epoch: int
    figures: Mapping[str, float]
    history: list[dict[str, float]]
    seconds: float
    examples: list[int]
    peak_memory: int | None
    stages: tuple[StageRecord, ...] = ()
    skipped: tuple[SkippedStage, ...] = ()

    @property
    def total_seconds(self) -> float:
        """The training time of all training stages together."""
        return sum(stage.seconds for stage in self.stages) if self.stages else self.seconds

    def of_stage(self, name: str) -> StageRecord:
        """Returns the part of this record that the whole classifier's record keeps of one training stage."""
        shared = [field.name for field in fields(StageRecord) if field.name != "stage"]
        return StageRecord(name, **{name: getattr(self, name) for name in shared})

    def as_dict(self) -> dict[str, object]:
        """Returns the content of model.json."""
        content: dict[str, object] = dict(vars(self))
        del content["stages"], content["skipped"]
        if not self.stages:
            return content
        stages = [dict(vars(stage)) for stage in self.stages]
        return {**content, "stages": stages, "skipped": [stage.as_dict() for stage in self.skipped]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrainingRecord:
        """Reads the content of a model.json. Raises WeightsError where an entry is missing."""
        stages = tuple(_build(StageRecord, stage) for stage in content.get("stages", ()))
        skipped = tuple(_build(SkippedStage, stage) for stage in content.get("skipped", ()))
        return _build(cls, {**content, "stages": stages, "skipped": skipped})


def _build(record: type[T], content: Mapping[str, Any]) -> T:
    """Builds a record from the entries that it has fields for."""
    names = [field.name for field in fields(record)]  # type: ignore[arg-type]
    for name in names:
        if name not in content:
            raise WeightsError(f"model.json: has no entry {name!r}, expected a file that jobs.train wrote; train again")
    return record(**{name: content[name] for name in names})


def read_record(folder: str, configuration: Mapping[str, Mapping[str, object]]) -> TrainingRecord | None:
    """Returns the record of the network in a folder; None where its training has not ended.

    configuration: the identity and the settings that the record must have. Raises UsageError where it has others.
    """
    content = read_finished(folder, configuration)
    return None if content is None else TrainingRecord.from_dict(content)
