"""The training loop of all networks: epochs, early stopping, checkpoints, one process or several.

A Learner holds a network, its examples and its loss; classifier.py, unet.py and autoencoder.py of this folder have one
each. After each epoch the loop writes a checkpoint. If the training was stopped, the same call resumes from it. At the
end the loop writes the weights of the best epoch (gansfp/networks/model_files.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from gansfp import store
from gansfp.device import is_bfloat16_fast, is_out_of_memory
from gansfp.errors import DataError, GansfpError, UsageError
from gansfp.networks.model_files import read_state, state_place, write_model, write_state
from gansfp.training.batches import read_batches
from gansfp.training.learner import Batch, Examples, Learner
from gansfp.training.records import Report, TrainingRecord, read_record

MOMENTUM = 0.9  # of "sgd", as published by KDE-lab 2023 and KDE-med-lab 2024
# The pixels that go through a network together on a CPU: 16 slices. With more the operating system may kill the process
# for its memory. On a GPU the whole batch goes through; it is halved where it does not fit.
CPU_PIXELS = 16 * 256**2
FAST_WRITE = 1.0  # seconds; a checkpoint that is written faster is written after each epoch
WRITE_INTERVAL = 20  # after a slower write, the loop trains this many times as long before it writes again

OPTIMISERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a network is trained. Raises UsageError for a value outside its range.

    rate: the learning rate. batch: examples per optimiser step, of all processes together. patience: the training stops
    after this many epochs without a lower validation loss; 0: it never stops early. max_steps: the most optimiser
    steps; 0: no limit.
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


@dataclass
class _State:
    """What a checkpoint holds beside the network and the optimiser."""

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    best_epoch: int = 0  # 0: none yet
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def stops(self, settings: Settings) -> bool:
        """Returns True when the training ends with this epoch."""
        out_of_patience = settings.patience and self.epoch - self.best_epoch >= settings.patience
        out_of_steps = settings.max_steps and self.steps >= settings.max_steps
        return bool(self.epoch and (self.epoch >= settings.epochs or out_of_patience or out_of_steps))


def train(
    learner: Learner,
    folder: str,
    settings: Settings,
    identity: Mapping[str, object],
    device: str,
    report: Report | None = None,
) -> TrainingRecord:
    """Trains a network, or resumes its training, and returns what FOLDER/model.json holds.

    A training that has ended is not repeated. identity: which network is trained on which examples, as JSON. report:
    called in every process after each epoch, see gansfp.training.records.Report. Where torch.distributed is
    initialised, each process takes its share of every batch. A GPU computes with bfloat16 autocast if it is faster in
    it; other devices compute in float32.

    Raises UsageError where the folder holds a network of another identity or other settings, DataError where the folder
    cannot be read or written or there are no examples, GansfpError where the loss becomes NaN or infinite.
    """
    configuration: dict[str, Mapping[str, object]] = {"identity": identity, "settings": asdict(settings)}
    if finished := read_record(folder, configuration):
        return finished
    if not len(learner.train):
        raise DataError(f"{folder}: got no examples to train on, expected one or more")
    run = _Run(learner, folder, settings, configuration, device)
    state = run.resume()
    while not state.stops(settings):
        epoch_report = run.epoch(state)
        if report:
            report(epoch_report)
    return run.finish(state)


class _Run:
    """The part of one process in a training."""

    def __init__(
        self,
        learner: Learner,
        folder: str,
        settings: Settings,
        configuration: dict[str, Mapping[str, object]],
        device: str,
    ) -> None:
        self.learner, self.folder, self.settings, self.device = learner, folder, settings, device
        self.configuration = configuration
        several = distributed.is_available() and distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        self.cuda = device.startswith("cuda")
        self.half = self.cuda and is_bfloat16_fast(device)
        self.micro = settings.batch if self.cuda else min(_cpu_examples(learner.train), settings.batch)
        self.network = learner.model.to(device)
        if self.cuda and self.world > 1:  # else batch norm sees the share of one process: on eight GPUs one slice of 8
            self.network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.model = DistributedDataParallel(self.network) if self.world > 1 else self.network
        self.optimiser = OPTIMISERS[settings.optimiser](self.network.parameters(), settings.rate)
        self.write_ended = self.write_seconds = 0.0  # of the last checkpoint

    def resume(self) -> _State:
        """Loads the last checkpoint, if there is one, and returns its state; otherwise the state of a start."""
        checkpoint: Mapping[str, Any] | None = read_state(self.folder, self.configuration)
        if checkpoint is None:
            return _State()
        self.network.load_state_dict(checkpoint["network"])
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        log.info("%s: resumes after epoch %d", self.folder, checkpoint["state"]["epoch"])
        return _State(**checkpoint["state"])

    def epoch(self, state: _State) -> dict[str, float | str]:
        """Trains one epoch, validates, keeps the best weights, writes a checkpoint; returns the report of the epoch."""
        started = time.monotonic()
        with torch.random.fork_rng(devices=[self.device] if self.cuda else []):
            # Seeded by epoch: dropout after a restart draws what it would have drawn without one.
            torch.manual_seed(_seed_from(self.settings.seed, state.epoch, self.rank))
            loss, examples = self._learn(state)
        seconds = time.monotonic() - started
        figures = self._validate() if len(self.learner.valid) else {}
        if not np.isfinite([loss, figures.get("loss", 0.0)]).all():
            raise GansfpError(
                f"{self.folder}: the loss became NaN or infinite in epoch {state.epoch + 1}; "
                "use a smaller learning rate (--rate)"
            )
        state.epoch += 1
        if not figures or figures["loss"] < min((row["loss"] for row in state.history), default=np.inf):
            state.best_epoch = state.epoch
            state.best = self._copy_of_weights()
        state.history.append({"train_loss": loss, **figures})
        state.seconds += time.monotonic() - started
        if self.rank == 0 and not state.stops(self.settings):
            self._write_checkpoint(state)
        return {
            "epoch": state.epoch,
            "epochs": self.settings.epochs,
            "steps": state.steps,
            "examples_per_second": examples / max(seconds, 1e-9),
            "train_loss": loss,
            **figures,
        }

    def _copy_of_weights(self) -> dict[str, torch.Tensor]:
        """Returns the network's tensors in the memory of the host. Waits for a GPU once, not for each tensor."""
        tensors = self.network.state_dict().items()
        copies = {name: tensor.detach().to("cpu", non_blocking=True, copy=True) for name, tensor in tensors}
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return copies

    def _write_checkpoint(self, state: _State) -> None:
        """Writes what the next epoch starts from. Skips epochs where writing is slow, see FAST_WRITE."""
        started = time.monotonic()
        if self.write_seconds > FAST_WRITE and started - self.write_ended < WRITE_INTERVAL * self.write_seconds:
            return
        content = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(), "state": vars(state)}
        write_state(self.folder, self.configuration, content)
        self.write_ended = time.monotonic()
        self.write_seconds = self.write_ended - started

    def finish(self, state: _State) -> TrainingRecord:
        """Writes the weights of the best epoch and the record of the training; returns the record."""
        record = TrainingRecord(
            identity=self.configuration["identity"],
            settings=self.configuration["settings"],
            epochs=state.epoch,
            steps=state.steps,
            best_epoch=state.best_epoch,
            figures=state.history[state.best_epoch - 1],
            history=state.history,
            seconds=round(state.seconds, 3),
            examples=[len(self.learner.train), len(self.learner.valid)],
            peak_memory=torch.cuda.max_memory_allocated(self.device) if self.cuda else None,
        )
        if self.rank == 0:
            tensors = {name: tensor.contiguous() for name, tensor in state.best.items()}
            write_model(self.folder, record.as_dict(), tensors)
            store.remove(state_place(self.folder))
        if self.world > 1:
            distributed.barrier()
        return record

    def _learn(self, state: _State) -> tuple[float, int]:
        """Passes over the examples once, or until max_steps: returns the mean loss and the number of examples."""
        self.model.train()
        order = np.random.default_rng([self.settings.seed, state.epoch]).permutation(len(self.learner.train))
        steps = [order[start : start + self.settings.batch] for start in range(0, len(order), self.settings.batch)]
        if len(steps) > 1 and len(steps[-1]) < 2 * self.world:  # batch norm needs two examples or more
            steps.pop()
        if self.settings.max_steps:
            steps = steps[: self.settings.max_steps - state.steps]
        total, examples = torch.zeros((), dtype=torch.float64, device=self.device), sum(map(len, steps))
        shares = [self._share(rows) for rows in steps]
        batches = read_batches(self.learner.train, [rows for rows, _ in shares], state.epoch + 1, self.cuda)
        for rows, (_, weight), batch in zip(steps, shares, batches, strict=True):
            total += self._step(batch, weight, len(rows))
        state.steps += len(steps)
        return self._summed({"loss": total})["loss"] / max(examples, 1), examples

    def _share(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Returns the rows of this process and their weight.

        With fewer rows than processes, those that have none take the first one with weight 0: all processes must take
        part in every exchange, or the others wait for them.
        """
        of_this_process = rows[self.rank :: self.world]
        return (of_this_process, 1.0) if len(of_this_process) else (rows[:1], 0.0)

    def _step(self, batch: Batch, weight: float, examples: int) -> torch.Tensor:
        """Makes one step of the optimiser and returns the sum of the losses, on the device: reading it would wait.

        batch: this process's share of the step's examples, with their weight; examples: how many all processes have
        together.
        """
        while True:
            try:
                total = self._gradient(batch, weight, examples)
                self.optimiser.step()
                return total
            except RuntimeError as error:  # OutOfMemoryError is a subclass
                if self.micro == 1 or self.world > 1 or not is_out_of_memory(error):
                    raise
            # Outside the handler, because its error would keep the tensors alive. _gradient starts again from zero.
            self.micro //= 2
            log.warning("out of memory on %s: training continues with %d examples at once", self.device, self.micro)
            if self.cuda:
                torch.cuda.empty_cache()

    def _gradient(self, batch: Batch, weight: float, examples: int) -> torch.Tensor:
        """Computes the gradient of the mean loss of all the step's examples, in parts that fit on the device.

        Arguments and result: as for _step.
        """
        self.optimiser.zero_grad(set_to_none=True)
        count = len(next(iter(batch.values())))
        parts = _parts(batch, -(-count // self.micro))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self._without_sync():
                with self._precision():
                    losses = self.learner.losses(self.model, self._upload(part)).float()
                # The processes' gradients are averaged. With this factor the average is the mean over all examples.
                (losses.sum() * (weight * self.world / examples)).backward()
            total += losses.detach().sum() * weight
        return total

    def _without_sync(self) -> AbstractContextManager[object]:
        """Returns a context in which several processes do not exchange their gradients."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Returns the learner's figures on its validation examples. Each example goes to one of the processes."""
        self.network.eval()
        rows, weight = self._share(np.arange(len(self.learner.valid)))
        parts = [rows[start : start + self.micro] for start in range(0, len(rows), self.micro)]
        sums: Batch = {}
        for batch in read_batches(self.learner.valid, parts, 0, self.cuda):
            with self._precision():
                measured = self.learner.measure(self.network, self._upload(batch))
            of_batch = {name: value.detach().double().cpu() * weight for name, value in measured.items()}
            sums = {name: value + sums[name] if sums else value for name, value in of_batch.items()}
        return self.learner.figures(self._summed(sums))

    def _summed(self, sums: Batch) -> dict[str, float]:
        """Adds up the sums of all processes, which have the same names in all of them."""
        if self.world > 1:
            for name in sorted(sums):
                sums[name] = sums[name].to(self.device)
                distributed.all_reduce(sums[name])
        return {name: float(value) for name, value in sums.items()}

    def _upload(self, batch: Batch) -> Batch:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self.half else nullcontext()


def _cpu_examples(examples: Examples) -> int:
    """Returns how many examples go through a network together on a CPU, by the largest array of an example.

    Small slices count as 256x256 pixels, because they may be resized to that first.
    """
    pixels = max(int(np.size(value)) for value in examples.item(0, 1).values())
    return max(1, CPU_PIXELS // max(pixels, 256**2))


def _parts(batch: Batch, count: int) -> list[Batch]:
    """Returns a batch as `count` parts, whose sizes differ by at most one."""
    parts = {name: torch.tensor_split(value, count) for name, value in batch.items()}
    return [{name: values[number] for name, values in parts.items()} for number in range(count)]


def _seed_from(*numbers: int) -> int:
    """Returns one seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
