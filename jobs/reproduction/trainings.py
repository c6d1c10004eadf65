"""Trains the networks that the published systems need, one Ray task each; systems of one training share its network."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import ray

from gansfp import store
from gansfp.networks.model_files import read_facts
from gansfp.networks.weights import Weights
from gansfp.published.training_plan import Training, name_of
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage
from gansfp.runtime.tasks import Call, Outcome, Progressed, run_calls
from gansfp.training.records import Report, TrainingRecord


def train_all(trainings: Iterable[Training], work: str, start: Callable[[], int]) -> dict[str, Outcome]:
    """Trains each network once, unless it is trained already; returns training times in seconds, or errors, by name.

    start: starts Ray, only where there is a network to train, and returns the number of GPUs.
    """
    by_name = {name_of(training): training for training in trainings}
    outcomes = {name: Outcome(seconds) for name in by_name if (seconds := _seconds(work, name)) is not None}
    to_train = {name: training for name, training in by_name.items() if name not in outcomes}
    if not to_train:
        return outcomes
    gpus, started = start(), time.monotonic()
    with Progress("train", sum(training.epochs for training in to_train.values()), "epochs") as progress:
        ended_epochs: dict[str, int] = {}

        def show(reports: Mapping[str, Progressed]) -> None:
            running = {name: report for name, report in reports.items() if name not in ended_epochs}
            progress.note = "; ".join(_note(name, report) for name, report in running.items())
            epochs = sum(report.reports for report in running.values())
            progress.set(sum(ended_epochs.values()) + epochs, progress.failed)

        for name, outcome in run_calls(_calls(to_train, work), gpus, show):
            outcomes[name], ended_epochs[name] = outcome, to_train[name].epochs
            progress.set(max(progress.done, sum(ended_epochs.values())), progress.failed + bool(outcome.error))
    failed = sum(bool(outcomes[name].error) for name in to_train)
    record_stage(work, "train for systems", time.monotonic() - started, {"done": len(to_train), "failed": failed})
    return outcomes


def _calls(trainings: Mapping[str, Training], work: str) -> dict[str, Call]:
    """Returns a call for each training. Trainings that start with the same weights share one object in Ray's store."""
    names_by_start: dict[Weights | None, list[str]] = defaultdict(list)
    for name, training in trainings.items():
        names_by_start[getattr(training, "start", None)].append(name)
    calls: dict[str, Call] = {}
    for names in names_by_start.values():
        shared = ray.put({name: trainings[name] for name in names})
        calls |= {name: Call(train_one, (name, shared, work), on_device=True, reports=True) for name in names}
    return calls


def train_one(name: str, trainings: Mapping[str, Training], work: str, device: str, report: Report) -> float:
    """Task: trains one of the networks, or resumes its training; returns the seconds that its training took."""
    return trainings[name].run(store.join(work, "models", name), device, report).total_seconds


def _seconds(work: str, name: str) -> float | None:
    """Returns the training time of a network; None where it is not trained yet."""
    content = read_facts(store.join(work, "models", name))
    return None if content is None else TrainingRecord.from_dict(content).total_seconds


def _note(name: str, report: Progressed) -> str:
    return f"{name} epoch {report.facts['epoch']}, loss {report.facts['train_loss']:.3g}"
