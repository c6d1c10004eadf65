"""Training on the Ray cluster with Ray Train: one process per GPU, or one process on the cores of a node.

The training itself can resume (gansfp/training/loop.py): Ray Train starts a process again after it died, and the user
can start the command again.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue

from gansfp import store
from gansfp.errors import GansfpError
from gansfp.runtime.cluster import usable_gpus
from gansfp.runtime.progress import Progress
from gansfp.runtime.worker_errors import as_text, from_text
from gansfp.training.records import Report, TrainingRecord

MAX_FAILURES = 3  # deaths of processes or nodes; after more the command gives up, and can be started again
SHOWN = ("train_loss", "loss", "accuracy", "dice", "iou", "examples_per_second")  # in the progress display
POLL = 0.2  # seconds that the driver waits for a message of the processes


class Training(Protocol):
    """A network that can be trained, such as gansfp.training.unet.UnetTraining."""

    @property
    def epochs(self) -> int:
        """The most epochs, of all training stages together."""

    def identity(self) -> dict[str, object]:
        """Returns what identifies the trained network: the "identity" in model.json."""

    def run(self, folder: str, device: str, report: Report | None) -> TrainingRecord:
        """Trains, or resumes the training, and returns what FOLDER/model.json holds."""


@dataclass
class _Result:
    """How a training ended: with its record, or with the text of an error (see gansfp.runtime.worker_errors)."""

    record: TrainingRecord | None = None
    error: str = ""


def fit(training: Training, work: str, name: str, gpus: int | None = None) -> TrainingRecord:
    """Trains WORK/models/<name> on the Ray to which this process is connected; returns what its model.json holds.

    gpus: how many GPUs to plan for; None: those of the cluster now. Raises GansfpError as the training does, or where
    its processes died too often.
    """
    count = usable_gpus(gpus)
    messages: Queue = Queue(actor_options={"num_cpus": 0})
    folder = store.join(work, "models", name)
    # Ray Train writes files of its own. On a local disk they have one place, so the next run removes what a killed run
    # has left there.
    ray_files = store.join(work, "models", f".ray-{uuid.uuid4().hex[:12]}" if store.is_remote(work) else ".ray")
    store.remove(ray_files)
    file_system, path = store.open_store(ray_files)
    trainer = TorchTrainer(
        _train,
        train_loop_config={"training": training, "folder": folder, "messages": messages},
        scaling_config=ScalingConfig(
            num_workers=max(1, count), use_gpu=count > 0, resources_per_worker=None if count else {"CPU": _cores()}
        ),
        run_config=RunConfig(
            name="train",
            storage_path=path,
            storage_filesystem=file_system,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    try:
        with Progress(f"train {name}", training.epochs, "epochs") as progress, _listening(messages, progress) as result:
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise GansfpError(f"{folder}: training failed ({store.one_line(error)[:200]}); run it again") from error
    finally:
        store.remove(ray_files)
        messages.shutdown()
    if result.error:
        raise from_text(result.error) or GansfpError(result.error)
    if result.record is None:
        raise GansfpError(f"{folder}: training ended without a result; run it again")
    return result.record


def _train(config: Mapping[str, Any]) -> None:
    """Runs the training in a worker process. Sends a GansfpError instead of raising it: Ray would train again."""
    device, rank = get_device(), ray.train.get_context().get_world_rank()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))

    def send(message: Mapping[str, float | str] | TrainingRecord | str) -> None:
        if rank == 0:
            config["messages"].put(message)

    try:
        send(config["training"].run(config["folder"], str(device), send))
    except GansfpError as error:
        send(as_text(error))


@contextlib.contextmanager
def _listening(messages: Queue, progress: Progress) -> Iterator[_Result]:
    """Shows the reports of the epochs while they come; yields the result, which is complete when the context ends.

    Epochs of an earlier run of the same training stage count neither as done nor as to do.
    """
    result = _Result()
    ended = threading.Event()

    def listen() -> None:
        epochs: dict[object, int] = {}  # by training stage: its last epoch; a fault repeats some
        planned, before = progress.total, 0
        while not ended.is_set() or not messages.empty():
            with contextlib.suppress(Empty):
                message = messages.get(timeout=POLL)
                if isinstance(message, TrainingRecord):
                    result.record = message
                elif isinstance(message, str):
                    result.error = message
                else:
                    if not epochs:
                        before = int(message["epoch"]) - 1
                    epochs[message.get("stage")] = int(message["epoch"])
                    progress.note = ", ".join(f"{key} {value:.4g}" for key, value in message.items() if key in SHOWN)
                    progress.of(sum(epochs.values()) - before, planned - before)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield result
    finally:
        ended.set()
        listener.join()


def _cores() -> int:
    """Returns the number of cores of the largest node; 1 where the cluster has no node yet."""
    return max([1, *(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])])
