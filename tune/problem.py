"""What a search works on, without Ray: its configuration, the two tasks, one trial, and the files that trials leave."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.decision.search_result import Scalar, Search, SearchedIds, SearchResult, Trial
from gansfp.device import in_memory_of, release_memory
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, UsageError
from gansfp.rows import Rows
from gansfp.scoring import distances
from gansfp.scoring.membership import Sweep
from gansfp.scoring.projections import Projection
from tune.rows import SCHEMA, TO_REPEAT, Row, trial_table

Result = TypeVar("Result")

log = logging.getLogger(__name__)

LEAST_MEMORY = 0.05  # GB: some 800 centres, enough to cut into any number of clusters that is asked for
VERSION = 2  # of what trials hold: another one where the same vectors get other scores
COPY_BLEND = 0.5  # a generator that copies so roughly is one that an audit should still see
ATTRIBUTION_KS = tuple(range(2, 13))


@dataclass(frozen=True)
class SearchConfig:
    """What is searched and how.

    gpus_per_trial: None: so small a share that all cores work. gpus: how many to plan for, also those still to come;
    None: those that the Ray cluster has now. ks: numbers of
    clusters; empty: the default of the task. max_memory: GB of a trial for what grows with the square of the slices.
    allow_large: take embeddings that are larger than that. copy_blend: see tune.planted.Plant. Raises UsageError for a
    value that the search does not take.
    """

    task: str
    algorithm: str = "grid"
    max_trials: int | None = None
    gpus_per_trial: float | None = None
    gpus: int | None = None
    seed: int = 0
    ks: tuple[int, ...] = ()
    max_memory: float = distances.MAX_MEMORY / 1e9
    allow_large: bool = False
    copy_blend: float = COPY_BLEND

    def __post_init__(self) -> None:
        if self.gpus_per_trial is not None and self.gpus_per_trial <= 0:
            raise UsageError(f"--gpus-per-trial: got {self.gpus_per_trial}, expected more than 0, such as 0.25")
        if not LEAST_MEMORY <= self.max_memory < np.inf:
            raise UsageError(f"--max-memory: got {self.max_memory:g}, expected at least {LEAST_MEMORY} (GB)")
        if not 0 <= self.copy_blend <= 1:
            raise UsageError(f"--copy-blend: got {self.copy_blend:g}, expected 0 to 1, such as 0.5")

    @property
    def limit(self) -> int:
        """max_memory in bytes."""
        return int(self.max_memory * 1e9)


@dataclass(frozen=True)
class Sweeps:
    """The inner values of a trial: what is swept for membership, and the numbers of clusters for attribution."""

    membership: Sweep
    attribution: tuple[int, ...]


@dataclass(frozen=True)
class TrialOptions:
    """How a trial is computed.

    limit: bytes for what grows with the square of the slices. rows, axes: the vectors of a set, and their principal
    components, by the set's name: the trials of one embedding share them.
    """

    sweeps: Sweeps
    device: str = "cpu"
    seed: int = 0
    limit: int = distances.MAX_MEMORY
    rows: dict[str, Rows] = field(default_factory=dict)
    axes: dict[str, Projection] = field(default_factory=dict)


class Vectors(Protocol):
    """An embedding of the images of a task. An array is one; so is what reads the rows that it is asked for."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Returns the vectors (n, d) float32 of these rows (n,) of the task's images."""


class ForEachPair(Protocol):
    """Computes something from each embedding and its vectors, in the order of the pairs."""

    def __call__(self, pairs: Sequence[Pair], compute: Callable[[Pair, Vectors], Result], /) -> Iterable[Result]: ...


class TaskSlices(ABC):
    """The slices of a task, by rows of its embeddings, and what a trial computes from them."""

    @abstractmethod
    def evaluate(self, trial: Trial, vectors: Vectors, options: TrialOptions) -> list[Row]:
        """The rows of one trial."""

    @abstractmethod
    def ids(self, images: Catalog) -> SearchedIds:
        """Which image each entry of a row's `scores` and `known` belongs to."""

    @abstractmethod
    def fingerprint(self, images: Catalog) -> list[object]:
        """What tells these slices, labels and folds from others, as JSON."""

    @abstractmethod
    def square_bytes(self) -> int:
        """The most that a trial takes for distances and dendrograms, all of it exact, beside its embedding."""

    @abstractmethod
    def vector_bytes(self, width: int) -> int:
        """The most that a trial takes for vectors of that many numbers."""

    @abstractmethod
    def most_clusters(self) -> int:
        """The largest number of clusters that can be asked for."""

    @abstractmethod
    def leave_for_final(self, search: Search, for_each_pair: ForEachPair, images: Catalog) -> SearchResult:
        """Computes from the embeddings what the final step needs of them, so that it need not read them. Returns the
        search's result with it. images: of the task."""


@dataclass(frozen=True)
class Task:
    """One of the two questions, and what the search does differently for it.

    default_pairs: embeddings that are searched unless others are named. trials: every way to prepare an embedding with
    that many principal components. controls: embeddings that no trial searches; the final step compares classes by
    them. find_slices: the slices of a catalog of the task's images; raises DataError where
    they do not allow a search. merit: the column that Optuna maximises. order: of a configuration's choices and its
    row's columns; the largest is the best. describe: says in words how good a row is. least_k: the smallest number of
    clusters.
    """

    name: str
    default_pairs: tuple[Pair, ...]
    trials: Callable[[Pair, int | float], list[Trial]]
    find_slices: Callable[[Catalog, np.ndarray, int], TaskSlices]
    merit: str
    order: Callable[[Mapping[str, Scalar], Mapping[str, Scalar]], tuple[float, ...]]
    describe: Callable[[Mapping[str, Scalar]], str]
    least_k: int
    controls: tuple[Pair, ...] = ()

    def with_controls(self, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
        """The embeddings to search, and those of the controls, each once."""
        return tuple(dict.fromkeys([*pairs, *self.controls]))

    def check_ks(self, ks: Sequence[int]) -> None:
        """Raises UsageError for a number of clusters below the smallest one that makes sense."""
        if min(ks, default=self.least_k) < self.least_k:
            raise UsageError(f"--k: got {min(ks)}, expected at least {self.least_k}")


@dataclass(frozen=True, eq=False)
class Problem:
    """What every trial works on.

    folder: WORK/search/<task>. vectors_of: returns the vectors of an embedding, without reading them. keys: what
    identifies each embedding and the images that it holds. width: the most numbers in a vector of any embedding.
    """

    config: SearchConfig
    task: Task
    folder: str
    vectors_of: Callable[[Pair], Vectors]
    keys: Mapping[Pair, str]
    slices: TaskSlices
    width: int = 0

    @functools.cached_property
    def sweeps(self) -> Sweeps:
        """The inner values: the user's numbers of clusters, or the defaults."""
        ks = self.config.ks
        return Sweeps(Sweep(ks=ks) if ks else Sweep(), ks or ATTRIBUTION_KS)

    def place(self, trial: Trial) -> str:
        """The file of a trial's rows; with another embedding, fold, sweep, seed or version it has another name."""
        sweeps = self.sweeps
        version = [importlib.metadata.version("gansfp"), VERSION, SCHEMA.to_string()]
        identity = [trial.as_dict(), self.keys[trial.pair], self.config.seed, self.config.limit]
        text = json.dumps([*identity, asdict(sweeps.membership), sweeps.attribution, version], sort_keys=True)
        return store.join(self.folder, "trials", hashlib.sha256(text.encode()).hexdigest()[:20] + ".parquet")

    @property
    def trial_bytes(self) -> int:
        """The most that a trial takes: distances and dendrograms within the limit, and vectors."""
        return min(self.slices.square_bytes(), self.config.limit) + self.slices.vector_bytes(self.width)

    def run(self, trials: Sequence[Trial], device: str) -> Iterator[float]:
        """Runs trials of one embedding, which share its principal components. Leaves out those whose file is there.

        Yields of each trial, when it has ended, what Optuna maximises. A trial that fails is one row; the next command
        runs it again, unless it asked for what is not possible (UsageError). A trial that does not fit into a GPU's
        memory is computed on the CPU.
        """
        options = TrialOptions(self.sweeps, device, self.config.seed, self.config.limit)
        for trial in trials:
            place = self.place(trial)
            if not is_there(place):
                self._run(trial, place, options)
            yield merit(read_table(place), self.task)

    def _run(self, trial: Trial, place: str, options: TrialOptions) -> None:
        started = time.monotonic()
        rows, error, to_repeat = [], "", False
        try:
            rows = in_memory_of(options.device, functools.partial(self._evaluate, trial, options))
        except Exception as failure:  # whatever failed, the other trials must go on
            error = f"{type(failure).__name__}: {store.one_line(failure)}"
            to_repeat = not isinstance(failure, UsageError)  # a store or a device that failed may do its work next time
        sink = pa.BufferOutputStream()
        pq.write_table(trial_table(self.config.task, trial, rows, started, error, to_repeat), sink)
        store.write_bytes_atomically(place, sink.getvalue())
        release_memory()

    def _evaluate(self, trial: Trial, options: TrialOptions, device: str) -> list[Row]:
        return self.slices.evaluate(trial, self.vectors_of(trial.pair), replace(options, device=device))


def merit(table: pa.Table, task: Task) -> float:
    """The best value of a trial, the mean over sets; -1 where every row failed."""
    best: dict[str, float] = {}
    for row in table.select(["set", "status", task.merit]).to_pylist():
        if row["status"] == "ok":
            best[row["set"] or ""] = max(best.get(row["set"] or "", 0.0), row[task.merit])
    return float(np.mean(list(best.values()))) if best else -1.0


def is_there(place: str) -> bool:
    """Whether a trial has left its rows, and need not run again. A damaged file is reported."""
    if not store.exists(place):
        return False
    file_system, inner = store.open_store(place)
    try:
        with file_system.open_input_file(inner) as source:
            metadata = store.open_parquet(source).schema_arrow.metadata or {}
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        log.warning("%s: damaged (%s); its trial runs again", place, store.one_line(error))
        return False
    return TO_REPEAT not in metadata


def read_table(place: str) -> pa.Table:
    """A trial's rows. Raises DataError where they cannot be read."""
    try:
        return store.read_parquet(place)
    except (OSError, ValueError) as error:
        line = store.one_line(error)
        raise DataError(f"{place}: cannot be read ({line}); remove the file, then its trial runs again") from error
