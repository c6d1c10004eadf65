"""How every network here is trained: epochs, early stopping, checkpoints that survive a kill, one process or several.

A network, its examples and its loss are a Learner's (gansfp/training/classifier.py, gansfp/training/unet.py, gansfp/training/autoencoder.py).
After each epoch its state is written, from which the same call goes on; at the end the weights of the best epoch
(gansfp/networks/model_files.py).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate

from gansfp import store
from gansfp.device import is_out_of_memory
from gansfp.errors import DataError, GansfpError, UsageError
from gansfp.networks.model_files import read_finished, read_state, state_place, write_model, write_state

MOMENTUM = 0.9  # of "sgd", as published by KDE-lab 2023 and KDE-med-lab 2024
# Numbers that go through a network together on a CPU, whose system ends a process that takes too much: 16 slices. On a
# GPU it is the whole batch, halved where it does not fit.
CPU_NUMBERS = 16 * 256**2
CHEAP = 1.0  # seconds of writing a state that nobody minds after each epoch
SELDOM = 20  # where it takes longer: this many times as long is trained before the next one
AHEAD = 4  # batches that are read while one is computed
READERS = 8  # threads that read, where a GPU computes

OPTIMISERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM),
}

Batch = dict[str, torch.Tensor]
Report = Callable[[dict[str, Any]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a network is trained. Raises UsageError for a value that is not to be had.

    rate: the learning rate. batch: examples an optimiser step, of all processes together. patience: epochs without a
    lower validation loss after which training stops; 0: never. max_steps: optimiser steps in all; 0: no limit.
    """

    optimiser: str = "adam"
    rate: float = 1e-3
    batch: int = 256
    epochs: int = 50
    patience: int = 10
    max_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"optimiser: got {self.optimiser!r}, expected one of {sorted(OPTIMISERS)}")
        if not 0 < self.rate < 1:
            raise UsageError(f"learning rate: got {self.rate!r}, expected more than 0 and less than 1")
        for name, least in (("batch", 1), ("epochs", 1), ("patience", 0), ("max_steps", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UsageError(f"{name}: got {value!r}, expected a whole number of at least {least}")


class Examples(Protocol):
    """What is learnt from. An item depends on index and epoch alone, so that a run that goes on sees the same."""

    def __len__(self) -> int: ...

    def item(self, index: int, epoch: int) -> dict[str, Any]:
        """One example: arrays of the same shapes for all, and numbers."""


class Learner(Protocol):
    """A network to be trained. Its calls get the model, which may be wrapped, and must call it as a whole."""

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def train(self) -> Examples: ...

    @property
    def valid(self) -> Examples:
        """What is validated with; empty: the last epoch counts as the best."""

    def losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """(n,) the loss of each example, differentiable."""

    def measure(self, model: torch.nn.Module, batch: Batch) -> Batch:
        """Sums over the examples of a validation batch, "loss" and "count" among them."""

    def figures(self, sums: dict[str, float]) -> dict[str, float]:
        """What those sums, of all batches, come to: "loss", and what else tells how good the network is."""


@dataclass
class _State:
    """What the next epoch starts from, beside the network and the optimiser."""

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    best_epoch: int = 0  # 0: none yet
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def stops(self, settings: Settings) -> bool:
        """True where no epoch is to follow."""
        late = settings.patience and self.epoch - self.best_epoch >= settings.patience
        enough = settings.max_steps and self.steps >= settings.max_steps
        return bool(self.epoch and (self.epoch >= settings.epochs or late or enough))


def train(
    learner: Learner,
    folder: str,
    settings: Settings,
    identity: dict[str, Any],
    device: str,
    report: Report | None = None,
) -> dict[str, Any]:
    """Trains a network, or goes on with it, and returns what FOLDER/model.json holds; what has ended is not repeated.

    identity: what is trained on what, as JSON. report: called in every process after each epoch with epoch, epochs,
    steps, loss (of training), seconds, and the figures of the validation. Where torch.distributed is initialised, each
    process takes its share of every batch. bfloat16 autocast on a GPU, float32 on a CPU.

    Raises UsageError where the folder holds a network that was trained otherwise, DataError where it cannot be read or
    written or there is nothing to learn from, GansfpError where the loss is no number any more.
    """
    told = {"identity": identity, "settings": asdict(settings)}
    if finished := read_finished(folder, told):
        return finished
    if not len(learner.train):
        raise DataError(f"{folder}: got no examples to train on")
    run = _Run(learner, folder, settings, told, device)
    state = run.resume()
    while not state.stops(settings):
        facts = run.epoch(state)
        if report:
            report(facts)
    return run.finish(state)


class _Run:
    """One process's part in a training."""

    def __init__(self, learner: Learner, folder: str, settings: Settings, told: dict[str, Any], device: str) -> None:
        self.learner, self.folder, self.settings, self.told, self.device = learner, folder, settings, told, device
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        self.cuda = device.startswith("cuda")
        self.micro = settings.batch if self.cuda else min(_fitting(learner.train), settings.batch)
        self.network = learner.model.to(device)
        self.model = DistributedDataParallel(self.network) if self.world > 1 else self.network
        self.optimiser = OPTIMISERS[settings.optimiser](self.network.parameters(), settings.rate)
        self.written = self.writing = 0.0  # when the last state was, and how long that took

    def resume(self) -> _State:
        """Where the last epoch that was finished left off, or the start."""
        found = read_state(self.folder, self.told)
        if found is None:
            return _State()
        self.network.load_state_dict(found["network"])
        self.optimiser.load_state_dict(found["optimiser"])
        log.info("%s: goes on after epoch %d", self.folder, found["state"]["epoch"])
        return _State(**found["state"])

    def epoch(self, state: _State) -> dict[str, Any]:
        """Trains one epoch, validates, keeps the best, writes the state; returns what is reported."""
        started = time.monotonic()
        with torch.random.fork_rng(devices=[self.device] if self.cuda else []):
            # By epoch, so that dropout after a restart is what it would have been without.
            torch.manual_seed(_drawn(self.settings.seed, state.epoch, self.rank))
            loss, examples = self._learn(state)
        seconds = time.monotonic() - started
        figures = self._validate() if len(self.learner.valid) else {}
        if not np.isfinite([loss, figures.get("loss", 0.0)]).all():
            raise GansfpError(f"{self.folder}: the loss is no number after epoch {state.epoch + 1}; lower the rate")
        state.epoch += 1
        if not figures or figures["loss"] < min((row["loss"] for row in state.history), default=np.inf):
            state.best_epoch = state.epoch
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}
        state.history.append({"train_loss": loss, **figures})
        state.seconds += time.monotonic() - started
        if self.rank == 0 and not state.stops(self.settings):
            self._write(state)
        told = {"epoch": state.epoch, "epochs": self.settings.epochs, "steps": state.steps}
        return {**told, "examples_per_second": examples / max(seconds, 1e-9), "train_loss": loss, **figures}

    def _write(self, state: _State) -> None:
        """Writes what the next epoch starts from; a large one not after each epoch."""
        started = time.monotonic()
        if self.writing > CHEAP and started - self.written < SELDOM * self.writing:
            return
        content = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "state": vars(state)}
        write_state(self.folder, self.told, content)
        self.written = time.monotonic()
        self.writing = self.written - started

    def finish(self, state: _State) -> dict[str, Any]:
        """Writes the best weights and what they are; returns the latter."""
        facts = {
            **self.told,
            "epochs": state.epoch,
            "steps": state.steps,
            "best_epoch": state.best_epoch,
            "figures": state.history[state.best_epoch - 1],
            "history": state.history,
            "seconds": round(state.seconds, 3),
            "examples": [len(self.learner.train), len(self.learner.valid)],
            "peak_memory": torch.cuda.max_memory_allocated(self.device) if self.cuda else None,
        }
        if self.rank == 0:
            tensors = {name: tensor.contiguous() for name, tensor in state.best.items()}
            write_model(self.folder, facts, tensors)
            store.remove(state_place(self.folder))
        if self.world > 1:
            distributed.barrier()
        return facts

    def _learn(self, state: _State) -> tuple[float, int]:
        """One pass over the examples, or the steps that are left: the mean loss, and how many examples there were."""
        self.model.train()
        order = np.random.default_rng([self.settings.seed, state.epoch]).permutation(len(self.learner.train))
        steps = [order[start : start + self.settings.batch] for start in range(0, len(order), self.settings.batch)]
        if len(steps) > 1 and len(steps[-1]) < 2 * self.world:  # batch norm of one example is none
            steps.pop()
        if self.settings.max_steps:
            steps = steps[: self.settings.max_steps - state.steps]
        total, examples = 0.0, sum(map(len, steps))
        mine = [rows[self.rank :: self.world] for rows in steps]
        for rows, batch in zip(steps, self._batches(self.learner.train, mine, state.epoch + 1), strict=True):
            total += self._step(batch, len(rows))
        state.steps += len(steps)
        return self._summed({"loss": torch.tensor(total)})["loss"] / max(examples, 1), examples

    def _step(self, batch: Batch, of: int) -> float:
        """One step of the optimiser on this process's part of `of` examples; the sum of their losses."""
        while True:
            try:
                total = self._gradient(batch, of)
                self.optimiser.step()
                return total
            except RuntimeError as error:  # of which OutOfMemoryError is one
                if self.micro == 1 or self.world > 1 or not is_out_of_memory(error):
                    raise
            # Outside the handler, which would keep the tensors alive; the step's gradients begin anew.
            self.micro //= 2
            log.warning("out of memory on %s: going on with %d examples at once", self.device, self.micro)
            if self.cuda:
                torch.cuda.empty_cache()

    def _gradient(self, batch: Batch, of: int) -> float:
        """The gradient of the mean loss of `of` examples, gathered from parts that fit on the device."""
        self.optimiser.zero_grad(set_to_none=True)
        count = len(next(iter(batch.values())))
        parts = _split(batch, -(-count // self.micro))
        total = 0.0
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            waits = (
                self.model.no_sync() if isinstance(self.model, DistributedDataParallel) and not last else nullcontext()
            )
            with waits:
                with self._precision():
                    losses = self.learner.losses(self.model, self._upload(part)).float()
                # The processes' gradients are averaged; with this factor that is the mean over all examples.
                (losses.sum() * self.world / of).backward()
            total += float(losses.detach().sum())
        return total

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The learner's figures on its validation examples, each looked at once by one of the processes."""
        self.network.eval()
        rows = np.arange(self.rank, len(self.learner.valid), self.world)
        parts = [rows[start : start + self.micro] for start in range(0, len(rows), self.micro)]
        sums: Batch = {}
        for batch in self._batches(self.learner.valid, parts, 0):
            with self._precision():
                found = self.learner.measure(self.network, self._upload(batch))
            found = {name: value.detach().double().cpu() for name, value in found.items()}
            sums = {name: value + sums[name] if sums else value for name, value in found.items()}
        return self.learner.figures(self._summed(sums))

    def _summed(self, sums: Batch) -> dict[str, float]:
        """Sums of all processes; each has examples to validate, or none has."""
        if self.world > 1:
            for name in sorted(sums):
                sums[name] = sums[name].to(self.device)
                distributed.all_reduce(sums[name])
        return {name: float(value) for name, value in sums.items()}

    def _batches(self, examples: Examples, parts: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """The examples of each part, collated; the next ones are read meanwhile."""
        with ThreadPoolExecutor(READERS if self.cuda else 1) as readers:
            waiting: deque[list[Future[dict[str, Any]]]] = deque()
            for rows in parts:
                waiting.append([readers.submit(examples.item, int(row), epoch) for row in rows])
                if len(waiting) > AHEAD:
                    yield default_collate([item.result() for item in waiting.popleft()])
            for items in waiting:
                yield default_collate([item.result() for item in items])

    def _upload(self, batch: Batch) -> Batch:
        if self.cuda:
            return {name: value.pin_memory().to(self.device, non_blocking=True) for name, value in batch.items()}
        return batch

    def _precision(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self.cuda else nullcontext()


def _fitting(examples: Examples) -> int:
    """How many examples go through a network together on a CPU, by the largest array of one; slices of any size that is
    resized first count as much as whole ones."""
    numbers = max(int(np.size(value)) for value in examples.item(0, 1).values())
    return max(1, CPU_NUMBERS // max(numbers, 256**2))


def _split(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` parts whose sizes differ by one at most."""
    parts = {name: torch.tensor_split(value, count) for name, value in batch.items()}
    return [{name: values[number] for name, values in parts.items()} for number in range(count)]


def _drawn(*numbers: int) -> int:
    """A seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
