"""What has to be trained for which recipes, at full or reduced scale: recipes of one training share its network."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from gansfp import store
from gansfp.networks.model_files import read_facts
from gansfp.published.training_plan import Training, name_of
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage
from gansfp.runtime.tasks import Call, Outcome, spread
from gansfp.training.loop import Report


def train_all(trainings: Iterable[Training], work: str, start: Callable[[], int]) -> dict[str, Outcome]:
    """Trains each network once, a task each, or takes over what is there; their seconds or errors by name.

    start: brings Ray up where something is to be done, and returns the number of GPUs.
    """
    by_name = {name_of(training): training for training in trainings}
    found = {name: Outcome(seconds) for name in by_name if (seconds := _seconds(work, name)) is not None}
    todo = {name: training for name, training in by_name.items() if name not in found}
    if not todo:
        return found
    gpus, started = start(), time.monotonic()
    together: dict[Any, list[str]] = defaultdict(list)  # of the same weights to start from, which travel once
    for name, training in todo.items():
        together[getattr(training, "start", None)].append(name)
    calls: dict[str, Call] = {}
    for names in together.values():
        shared = ray.put({name: todo[name] for name in names})
        calls |= {name: Call(train_one, (name, shared, work), on_device=True, reports=True) for name in names}
    with Progress("train", sum(training.epochs for training in todo.values()), "epochs") as progress:
        ended: dict[str, int] = {}

        def look(told: dict[str, dict[str, Any]]) -> None:
            under_way = sum(facts["reports"] for name, facts in told.items() if name not in ended)
            progress.note = "; ".join(_told(name, facts) for name, facts in told.items() if name not in ended)
            progress.set(sum(ended.values()) + under_way, progress.failed)

        for name, outcome in spread(calls, gpus, look):
            found[name], ended[name] = outcome, todo[name].epochs
            progress.set(max(progress.done, sum(ended.values())), progress.failed + bool(outcome.error))
    failed = sum(bool(found[name].error) for name in todo)
    record_stage(work, "train for systems", time.monotonic() - started, {"done": len(todo), "failed": failed})
    return found


def train_one(name: str, trainings: Mapping[str, Training], work: str, device: str, report: Report) -> float:
    """Task: trains one of the networks, or goes on with it; the seconds that all its stages took."""
    facts = trainings[name].run(store.join(work, "models", name), device, report)
    return _total(facts)


def _seconds(work: str, name: str) -> float | None:
    """Those that a network took, None where it is not trained yet."""
    facts = read_facts(store.join(work, "models", name))
    return None if facts is None else _total(facts)


def _total(facts: Mapping[str, Any]) -> float:
    return sum(stage["seconds"] for stage in facts.get("stages", [facts]))


def _told(name: str, facts: Mapping[str, Any]) -> str:
    return f"{name} epoch {facts['epoch']}, loss {facts['train_loss']:.3g}"
