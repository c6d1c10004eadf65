"""Runs trials side by side over GPUs or cores, with Ray Tune; each leaves one file of rows, whole or not at all.

The files in WORK/search/<task>/trials/ are what a run that goes on after a kill finds: no trial is done twice, and
nothing that was pickled is ever read back.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read at import: only the old output can be switched off
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is to end the search, not only Tune's part of it

import optuna
import ray
import torch
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from gansfp import store
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, GansfpError, UsageError
from gansfp.runtime.cluster import usable_gpus
from gansfp.runtime.progress import Progress
from gansfp.runtime.worker_errors import from_text
from gansfp.scoring import distances
from gansfp.scoring.membership import Sweep
from tune import evaluate
from tune.space import TASKS, suggest

log = logging.getLogger(__name__)

ALGORITHMS = ("grid", "optuna")
SMALL_MEMORY = 1e9  # bytes that a trial may take without asking: less than a core's share of most machines
ATTRIBUTION_KS = tuple(range(2, 13))
LEAST_MEMORY = 0.05  # GB: some 800 centres, enough to cut into any number of clusters that is asked for


@dataclass(frozen=True)
class SearchConfig:
    """What is searched and how. Raises UsageError for a value that is not to be had."""

    task: str
    algorithm: str = "grid"
    max_trials: int | None = None
    gpus_per_trial: float = 0.25
    gpus: int | None = None  # to count on, also those still to come; None: those that the cluster has now
    seed: int = 0
    ks: tuple[int, ...] = ()  # empty: the default of the task
    max_memory: float = distances.MAX_MEMORY / 1e9  # GB of a trial, for what grows by the square of the slices

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"--task: got {self.task!r}, expected one of {list(TASKS)}")
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"--algo: got {self.algorithm!r}, expected one of {list(ALGORITHMS)}")
        if self.gpus_per_trial <= 0:
            raise UsageError(f"--gpus-per-trial: got {self.gpus_per_trial}, expected more than 0, such as 0.25")
        if any(k < 1 + (self.task == "attribution") for k in self.ks):
            raise UsageError(f"--k: got {min(self.ks)}, expected at least {1 + (self.task == 'attribution')}")
        if not LEAST_MEMORY <= self.max_memory < np.inf:
            raise UsageError(f"--max-memory: got {self.max_memory:g}, expected at least {LEAST_MEMORY} (GB)")

    @property
    def limit(self) -> int:
        """max_memory in bytes."""
        return int(self.max_memory * 1e9)


@dataclass(frozen=True, eq=False)
class Problem:
    """What every trial works on: the embeddings by reference, the rows that mean something in them."""

    config: SearchConfig
    folder: str
    vectors: Mapping[Pair, ray.ObjectRef]
    keys: Mapping[Pair, str]  # digest of what the embedding is and of the images it holds
    rows: Any  # list[SetRows] or AttributionRows

    @property
    def sweep(self) -> Sweep:
        """The inner values of a membership trial."""
        return Sweep(ks=self.config.ks) if self.config.ks else Sweep()

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of clusters of an attribution trial."""
        return self.config.ks or ATTRIBUTION_KS

    def place(self, trial: Mapping[str, Any]) -> str:
        """The file of a trial's rows; another embedding, split, sweep, seed, version has another."""
        key = self.keys[trial["backbone"], trial["view"]]
        version = [importlib.metadata.version("gansfp"), evaluate.SCHEMA.to_string()]
        told = json.dumps(
            [dict(trial), key, self.config.seed, self.config.limit, asdict(self.sweep), self.ks, version],
            sort_keys=True,
        )
        return store.join(self.folder, "trials", hashlib.sha256(told.encode()).hexdigest()[:20] + ".parquet")

    def run(self, trial: dict[str, Any], device: str) -> float:
        """Runs a trial whose rows are not there yet; returns what Optuna maximises. A trial that fails is a row."""
        place = self.place(trial)
        if not is_there(place):
            started = time.monotonic()
            try:
                rows, error = self._evaluate(trial, device), ""
            except Exception as caught:  # whatever it is, the other trials are not to be lost with this one
                rows, error = [], f"{type(caught).__name__}: {store.one_line(caught)}"
            sink = pa.BufferOutputStream()
            pq.write_table(evaluate.table(self.config.task, trial, rows, started, error), sink)
            store.write_bytes_atomically(place, sink.getvalue())
        return _merit(read_table(place))

    def _evaluate(self, trial: dict[str, Any], device: str) -> list[dict[str, Any]]:
        vectors = ray.get(self.vectors[trial["backbone"], trial["view"]])
        how = (device, self.config.seed, self.config.limit)
        if self.config.task == "membership":
            return evaluate.evaluate_membership(trial, vectors, self.rows, self.sweep, *how)
        return evaluate.evaluate_attribution(trial, vectors, self.rows, self.ks, *how)


def _merit(table: pa.Table) -> float:
    """The best row of a trial; the mean over sets for membership; -1 where every row failed."""
    best: dict[str, float] = {}
    for row in table.select(["task", "set", "status", "auc", "ari_known"]).to_pylist():
        value = row["auc"] if row["task"] == "membership" else row["ari_known"]
        if row["status"] == "ok":
            best[row["set"] or ""] = max(best.get(row["set"] or "", 0.0), value)
    return float(np.mean(list(best.values()))) if best else -1.0


def is_there(place: str) -> bool:
    """Whether a trial has left its rows; a file without its end is named, and its trial run again."""
    if not store.exists(place):
        return False
    file_system, inner = store.open_store(place)
    try:
        with file_system.open_input_file(inner) as source:
            store.open_parquet(source)
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        log.warning("%s: not whole (%s); its trial is run again", place, store.one_line(error))
        return False
    return True


def read_table(place: str) -> pa.Table:
    """A trial's rows. Raises DataError where they cannot be read."""
    try:
        return store.read_parquet(place)
    except (OSError, ValueError) as error:
        line = store.one_line(error)
        raise DataError(f"{place}: cannot be read ({line}); remove it, and its trial is run again") from error


def _draw(trial: optuna.Trial, task: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    return {"trial": suggest(trial, task, pairs)}


def put(vectors: np.ndarray) -> ray.ObjectRef:
    """An embedding in Ray's object store, once for all trials and once for each node."""
    return ray.put(vectors)


class _Report(tune.Callback):
    """Counts trials as they end and remembers what each one was."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.trials: list[dict[str, Any]] = []
        self.error = ""  # the traceback of a trial that could not leave its rows

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down, to restore a run; nobody does, and a thread cannot be written

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials.append(json.loads(trial.last_result["trial"]))
        self.progress.add(1)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with open(trial.error_file, encoding="utf-8") as file:
            self.error = file.read()
        self.progress.add(1, 1)


def _memory(problem: Problem) -> dict[str, float]:
    """The memory that each trial asks Ray for, so that no more run side by side than fit; said before it is taken."""
    config, exact = problem.config, evaluate.square_bytes(problem.rows)
    taken = min(exact, config.limit)
    if exact > config.limit:
        log.info(
            "search %s: distances and dendrograms would take %.1f GB in a trial, above --max-memory %g: in "
            "hierarchical clustering centres of a k-means stand for the slices",
            config.task,
            exact / 1e9,
            config.max_memory,
        )
    if taken < SMALL_MEMORY:
        return {}
    log.info("search %s: up to %.1f GB for distances and dendrograms in a trial", config.task, taken / 1e9)
    largest = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if largest < taken:
        log.warning("search %s: no node has that much; give a smaller --max-memory if trials fail", config.task)
    return {"memory": float(int(min(taken, largest)))}


def run_trials(
    problem: Problem, todo: list[dict[str, Any]], total: int, pairs: Sequence[Pair], progress: Progress
) -> list[dict[str, Any]]:
    """Runs the trials over the cluster, a GPU's share or one core each. Returns them as they ended.

    Raises GansfpError where some did not, as when the system has ended a worker.
    """
    config = problem.config
    gpus = usable_gpus(config.gpus)
    resources: dict[str, float] = {"cpu": 1, "gpu": config.gpus_per_trial} if gpus else {"cpu": 1}
    resources |= _memory(problem)

    def trainable(settings: dict[str, Any], problem: Problem) -> None:
        torch.set_num_threads(1)
        device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
        tune.report({"merit": problem.run(settings["trial"], device), "trial": json.dumps(settings["trial"])})

    report = _Report(progress)
    algorithm, space, samples = None, {"trial": tune.grid_search(todo)}, 1
    if config.algorithm == "optuna":
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space_of = functools.partial(_draw, task=config.task, pairs=list(pairs))  # no lambda: Tune pickles it
        searcher = OptunaSearch(space_of, metric="merit", mode="max", seed=config.seed)
        parallel = gpus / config.gpus_per_trial if gpus else ray.cluster_resources().get("CPU", 1)
        # in batches, so that what is drawn next does not depend on which trial ends first
        algorithm, space, samples = ConcurrencyLimiter(searcher, max(1, int(parallel)), batch=True), {}, total
    with tempfile.TemporaryDirectory(prefix="gansfp-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, problem=problem), resources),
            param_space=space,
            tune_config=tune.TuneConfig(search_alg=algorithm, num_samples=samples, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=scratch, name="search", verbose=0, callbacks=[report]),
        )
        tuner.fit()
    asked = len(todo) if config.algorithm == "grid" else total
    if ours := from_text(report.error):
        raise ours
    if len(report.trials) < asked:  # Tune goes on after a worker's death
        left = asked - len(report.trials)
        raise GansfpError(f"search {config.task}: {left} of {asked} trials did not end; the same command goes on")
    return report.trials
