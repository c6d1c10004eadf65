"""Runs trials side by side over GPUs or cores, with Ray Tune; each trial leaves one file of rows, whole or not at all.

The files in WORK/search/<task>/trials/ are what a later run finds: no trial is done twice, and nothing that was pickled
is ever read back.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read at import: only the old output can be switched off
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must end the search, not only Tune's part of it

import optuna
import ray
import torch
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.optuna import OptunaSearch

from gansfp import store
from gansfp.decision.search_result import Trial
from gansfp.device import release_memory, return_memory
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError, UsageError
from gansfp.runtime.cluster import usable_gpus
from gansfp.runtime.progress import Progress
from gansfp.runtime.worker_errors import from_text
from tune.problem import Problem, SearchConfig, Task, Vectors
from tune.space import TASKS, grid, suggest

log = logging.getLogger(__name__)

SMALL_MEMORY = 1e9  # bytes that a trial may take without asking: less than a core's share of most machines
MOST_SHARERS = 32  # trials on one GPU: each process takes some 0.5 GB of its memory, beside its vectors
BUNDLES = 2  # the least number of bundles of trials a slot: with fewer, slots would wait long for the last bundle
BATCH = 8  # trials that are drawn from the same results; on more cores, the others wait
DRAWN_TRIALS = 32  # of an algorithm that draws, unless --max-trials says another number

Result = TypeVar("Result")


@dataclass(frozen=True)
class Algorithm:
    """How a search finds its trials. Exactly one of the two is given.

    plan: all trials, known before the search. searcher: draws each trial from the results of those before it.
    """

    plan: Callable[[Task, Sequence[Pair]], list[Trial]] | None = None
    searcher: Callable[[SearchConfig, Task, Sequence[Pair]], Searcher] | None = None


def _optuna(config: SearchConfig, task: Task, pairs: Sequence[Pair]) -> Searcher:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    draw = functools.partial(_draw, task=task.name, pairs=list(pairs))  # no lambda: Tune pickles it
    return OptunaSearch(draw, metric="merit", mode="max", seed=config.seed)


def _draw(drawn: optuna.Trial, task: str, pairs: Sequence[Pair]) -> dict[str, list[str]]:
    return {"trials": [suggest(drawn, TASKS[task], pairs).to_json()]}


ALGORITHMS: dict[str, Algorithm] = {
    "grid": Algorithm(plan=grid),
    "optuna": Algorithm(searcher=_optuna),
}


class Batches(ConcurrencyLimiter):
    """Draws BATCH trials from the same results, and waits until all have ended: so what is drawn depends neither
    on the number of cores nor on which trial ends first. Ray's own batches end as soon as no trial is running."""

    def __init__(self, searcher: Searcher) -> None:
        super().__init__(searcher, BATCH)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the searcher the results of a batch when the last one is there. Optuna orders them by their numbers."""
        self.cached_results[trial_id] = result, error
        if len(self.cached_results) == BATCH:
            for ended, (of_trial, failed) in self.cached_results.items():
                self.searcher.on_trial_complete(ended, of_trial, failed)
            self.live_trials.clear()
            self.cached_results.clear()


def get_algorithm(name: str) -> Algorithm:
    """The search algorithm of that name. Raises UsageError, which lists the names, for any other."""
    if name not in ALGORITHMS:
        raise UsageError(f"--algo: got {name!r}, expected one of {list(ALGORITHMS)}")
    return ALGORITHMS[name]


def bundles(trials: Sequence[Trial], slots: float) -> list[list[Trial]]:
    """Returns the trials in bundles, each of which runs in one process: one an embedding, so that its trials share its
    principal components.

    slots: bundles that can run side by side. Where there are too few embeddings to keep all slots busy to the end, a
    bundle is the trials of an embedding with equally many components, or a single trial.
    """
    for key in (lambda trial: trial.pair, lambda trial: (trial.pair, trial.components), lambda trial: trial):
        grouped: dict[Hashable, list[Trial]] = {}
        for trial in trials:
            grouped.setdefault(key(trial), []).append(trial)
        if len(grouped) >= BUNDLES * slots:
            break
    return list(grouped.values())


class _Report(tune.Callback):
    """Counts trials as they end and remembers what each one was."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.trials: list[Trial] = []
        self.error = ""  # the traceback of a trial that could not leave its rows

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune writes its callbacks to disk, to restore a run, which is never done; threads cannot be written

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Mapping[str, Any], **info: object
    ) -> None:
        self.trials.append(Trial.from_json(result["trial"]))
        self.progress.add(1)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        with open(trial.error_file, encoding="utf-8") as file:
            self.error = file.read()
        lost = len(trial.config["trials"]) - (trial.last_result or {}).get("training_iteration", 0)
        self.progress.add(lost, lost)


def _memory(problem: Problem) -> dict[str, float]:
    """The memory that each bundle of trials asks Ray for, so that no more run side by side than fit; logged
    beforehand."""
    config, exact, needed = problem.config, problem.slices.square_bytes(), problem.trial_bytes
    if exact > config.limit:
        log.info(
            "search %s: distances and dendrograms would take %.2f GB in a trial, above --max-memory %g: in "
            "hierarchical clustering centres of a k-means stand for the slices",
            config.task,
            exact / 1e9,
            config.max_memory,
        )
    if needed < SMALL_MEMORY:
        return {}
    log.info("search %s: up to %.1f GB for vectors, distances and dendrograms in a trial", config.task, needed / 1e9)
    largest = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if largest < needed:
        log.warning("search %s: no node has that much memory; give a smaller --max-memory if trials fail", config.task)
    return {"memory": float(int(min(needed, largest)))}


def gpu_share(gpus: int, cpus: float) -> float:
    """The share of a GPU for a trial with which there are as many trials as cores, at most MOST_SHARERS on a GPU.

    Much of a trial runs on its core. With fewer trials than cores, a search may take longer with a GPU than without.
    """
    return min(1.0, max(gpus / max(cpus, 1), 1 / MOST_SHARERS))


def run_trials(
    problem: Problem, todo: Sequence[Trial], total: int, pairs: Sequence[Pair], progress: Progress
) -> list[Trial]:
    """Runs trials over the Ray cluster, with a share of a GPU or one core each. Returns them as they ended.

    todo: the trials of an algorithm that plans; otherwise `total` trials are drawn. Raises GansfpError where some did
    not end, for example because the system killed a worker.
    """
    config, algorithm = problem.config, get_algorithm(problem.config.algorithm)
    gpus, cpus = usable_gpus(config.gpus), ray.cluster_resources().get("CPU", 1)
    share = config.gpus_per_trial or gpu_share(gpus, cpus)
    resources: dict[str, float] = {"cpu": 1, "gpu": share} if gpus else {"cpu": 1}
    resources |= _memory(problem)
    slots = gpus / share if gpus else cpus

    def trainable(settings: Mapping[str, str | list[str]], problem: Problem) -> None:
        torch.set_num_threads(1)
        return_memory()
        device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
        bundle = [Trial.from_json(text) for text in settings["trials"]]
        for trial, merit in zip(bundle, problem.run(bundle, device), strict=True):
            tune.report({"merit": merit, "trial": trial.to_json()})
        if device == "cuda":
            torch.cuda.empty_cache()  # the process stays for the next trials; others share the GPU meanwhile

    report = _Report(progress)
    planned = [[trial.to_json() for trial in bundle] for bundle in bundles(todo, slots)] if todo else []
    searcher, space, samples = None, {"trials": tune.grid_search(planned)}, 1
    if algorithm.searcher:
        searcher, space, samples = Batches(algorithm.searcher(config, problem.task, pairs)), {}, total
    with tempfile.TemporaryDirectory(prefix="gansfp-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, problem=problem), resources),
            param_space=space,
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=samples, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=scratch, name="search", verbose=0, callbacks=[report]),
        )
        tuner.fit()
    if error := from_text(report.error):
        raise error
    expected = total if algorithm.searcher else len(todo)
    if lost := expected - len(report.trials):  # Tune goes on after a worker's death
        raise GansfpError(f"search {config.task}: {lost} of {expected} trials did not end; run the command again")
    return report.trials


def for_each_pair(
    problem: Problem, pairs: Sequence[Pair], compute: Callable[[Pair, Vectors], Result]
) -> Iterator[Result]:
    """What `compute` gives for each embedding and its vectors, in the order of the pairs, a core each.

    Raises errors of gansfp as they were raised in the workers, and GansfpError where a worker was lost too often.
    """

    def task(pair: Pair, shared: Callable[[Pair, Vectors], Result]) -> Result:
        torch.set_num_threads(1)
        return_memory()
        result = shared(pair, problem.vectors_of(pair))
        release_memory()  # the process waits for other tasks
        return result

    # By the object store: what `compute` holds may be too large to be sent with every task.
    shared, remote = ray.put(compute), ray.remote(task)
    try:
        return iter(ray.get([remote.remote(pair, shared) for pair in pairs]))
    except (ray.exceptions.RayTaskError, ray.exceptions.OutOfMemoryError) as error:
        if from_worker := from_text(str(error)):
            raise from_worker from error
        raise
    except ray.exceptions.RayError as error:
        lost = f"{type(error).__name__}: {store.one_line(error)}"
        raise GansfpError(f"search {problem.task.name}: a process was lost ({lost}); run the command again") from error
