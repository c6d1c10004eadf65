"""How a training comes home from its processes: reports of epochs, the record, errors; with stand-ins for Ray."""

from types import SimpleNamespace

import pytest
import torch
from ray.util.queue import Empty

from gansfp.errors import UsageError
from gansfp.runtime import ray_train
from gansfp.runtime.progress import Progress
from gansfp.runtime.worker_errors import from_text
from gansfp.training.records import TrainingRecord

RECORD = TrainingRecord({"kind": "plane"}, {}, 2, 8, 1, {"loss": 0.5}, [], 1.0, [3, 1], None)


class Messages:
    """A queue in this process, with the methods of Ray's that are used."""

    def __init__(self):
        self.waiting = []

    def put(self, message):
        self.waiting.append(message)

    def empty(self):
        return not self.waiting

    def get(self, timeout):
        if self.empty():
            raise Empty
        return self.waiting.pop(0)


class Plane:
    """A training of two epochs. error: raised after them."""

    def __init__(self, error=None):
        self.error = error

    def run(self, folder, device, report):
        for epoch in (1, 2):
            report({"stage": "one", "epoch": epoch, "train_loss": 0.25, "loss": 0.5})
        if self.error:
            raise self.error
        return RECORD


@pytest.fixture
def work(monkeypatch):
    """Runs a training as the process of a rank does; returns the result and the progress display."""

    def run(training, rank=0):
        monkeypatch.setattr(ray_train, "get_device", lambda: torch.device("meta"))
        monkeypatch.setattr(ray_train.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: rank))
        messages = Messages()
        with Progress("train", 2, "epochs") as progress, ray_train._listening(messages, progress) as result:
            ray_train._train({"training": training, "folder": "f", "messages": messages})
        return result, progress

    return run


def test_epochs_are_shown_and_the_record_comes_home(work):
    result, progress = work(Plane())
    assert result == ray_train._Result(RECORD)
    assert progress.done == 2
    assert progress.note == "train_loss 0.25, loss 0.5"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ([("", 41), ("", 42)], (2, 10)),
        ([("one", 1), ("one", 2), ("two", 1)], (3, 50)),
        ([("", 1), ("", 2), ("", 2), ("", 3)], (3, 50)),
    ],
    ids=["resumed after epoch 40", "two stages", "repeated after a fault"],
)
def test_epochs_are_counted_once_and_those_of_a_run_before_not(sent, shown):
    messages = Messages()
    for stage, epoch in sent:
        messages.put({"epoch": epoch, "train_loss": 0.25} | ({"stage": stage} if stage else {}))
    with Progress("train", 50, "epochs") as progress, ray_train._listening(messages, progress):
        pass
    assert (progress.done, progress.total) == shown


def test_an_error_comes_home_as_text(work):
    result, progress = work(Plane(UsageError("rate: got 7, expected less than 1")))
    assert result.record is None
    assert progress.done == 2
    error = from_text(result.error)
    assert (type(error), str(error)) == (UsageError, "rate: got 7, expected less than 1")


def test_another_error_is_left_to_ray(work):
    with pytest.raises(ZeroDivisionError):
        work(Plane(ZeroDivisionError()))


def test_only_the_first_process_sends(work):
    result, progress = work(Plane(), rank=1)
    assert result == ray_train._Result()
    assert progress.done == 0
