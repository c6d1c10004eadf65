"""Training on the cluster, by Ray Train: a process a GPU, or one on the cores of a node; epochs shown as they end.

What is trained goes on by itself (gansfp/training/loop.py): a process that dies is started again, and so is the command.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from gansfp import errors, store
from gansfp.errors import GansfpError
from gansfp.runtime.cluster import usable_gpus
from gansfp.runtime.progress import Progress
from gansfp.training.loop import Report

FAILURES = 3  # deaths of processes or nodes after which a training is given up; the command goes on from there
SHOWN = ("train_loss", "loss", "accuracy", "dice", "iou", "examples_per_second")
POLL = 0.2  # seconds between two looks at what the processes tell


class Training(Protocol):
    """What can be trained: gansfp.training.unet.UnetTraining, gansfp.training.classifier.ClassifierTraining, ..."""

    @property
    def epochs(self) -> int:
        """How many there are at most, in all stages together."""

    def identity(self) -> dict[str, Any]:
        """What is trained on what, as model.json will hold it."""

    def run(self, folder: str, device: str, report: Report | None) -> dict[str, Any]:
        """Trains, or goes on, and returns what FOLDER/model.json holds."""


def fit(training: Training, work: str, name: str, gpus: int | None = None) -> dict[str, Any]:
    """Trains WORK/models/<name> on the Ray that this process is connected to; returns what its model.json holds.

    gpus: to count on, None: those that are there. Raises GansfpError as the training does, or where its processes died
    too often.
    """
    count = usable_gpus(gpus)
    told: Queue = Queue(actor_options={"num_cpus": 0})
    folder = store.join(work, "models", name)
    # What Ray Train writes for itself: locally in one place, so that what a killed run has left goes away.
    notes = store.join(work, "models", f".ray-{uuid.uuid4().hex[:12]}" if store.is_remote(work) else ".ray")
    store.remove(notes)
    file_system, path = store.open_store(notes)
    trainer = TorchTrainer(
        _train,
        train_loop_config={"training": training, "folder": folder, "told": told},
        scaling_config=ScalingConfig(
            num_workers=max(1, count), use_gpu=count > 0, resources_per_worker=None if count else {"CPU": _cores()}
        ),
        run_config=RunConfig(
            name="train",
            storage_path=path,
            storage_filesystem=file_system,
            failure_config=FailureConfig(max_failures=FAILURES),
        ),
    )
    try:
        with Progress(f"train {name}", training.epochs, "epochs") as progress, _shown(told, progress) as found:
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise GansfpError(f"{folder}: training failed ({store.one_line(error)[:200]}); run it again") from error
    finally:
        store.remove(notes)
        told.shutdown()
    if "error" in found:
        raise getattr(errors, found["error"][0])(found["error"][1])
    return found["facts"]


def _train(config: dict[str, Any]) -> None:
    """What each process does. An error of ours is told and not raised: Ray would try again."""
    device, rank = get_device(), ray.train.get_context().get_world_rank()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))

    def report(facts: dict[str, Any]) -> None:
        if rank == 0:
            config["told"].put(("epoch", facts))

    try:
        found: tuple[str, Any] = ("facts", config["training"].run(config["folder"], str(device), report))
    except GansfpError as error:
        found = ("error", (type(error).__name__, str(error)))
    if rank == 0:
        config["told"].put(found)


@contextlib.contextmanager
def _shown(told: Queue, progress: Progress) -> Iterator[dict[str, Any]]:
    """Shows epochs as they are told; yields what else was told, whole after the context has ended."""
    found: dict[str, Any] = {}
    over = threading.Event()

    def listen() -> None:
        done = 0
        while not over.is_set() or not told.empty():
            with contextlib.suppress(Empty):
                what, facts = told.get(timeout=POLL)
                found[what] = facts
                if what == "epoch":
                    done += 1
                    progress.note = ", ".join(f"{key} {value:.4g}" for key, value in facts.items() if key in SHOWN)
                    progress.set(done)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield found
    finally:
        over.set()
        listener.join()


def _cores() -> int:
    """The cores of the largest node; one where none is there yet."""
    return max([1, *(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])])
