"""Searches what tells members and generators apart, on labelled training slices alone, in parallel over GPUs or cores.

    python -m tune.search --data DATA --work WORK --task membership
    python -m tune.search --data DATA --work WORK --task attribution --algo optuna --max-trials 40 --gpus-per-trial 0.25

Embeds what is missing, puts each embedding into Ray's object store once, and runs one trial for each way to prepare an
embedding. A trial leaves one file of rows in WORK/search/<task>/trials/, which is what a run that goes on after a kill
finds; at the end they become trials.parquet and best.json. It never reads a truth file.
"""

from __future__ import annotations

import hashlib
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

import ray
import torch
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from gansfp import shards, store
from gansfp.attribution import best_k
from gansfp.backbones import Weights, parse_backbone
from gansfp.catalog import Catalog, update_catalog
from gansfp.embed import EmbedConfig, identity, load_all_weights
from gansfp.errors import DataError, GansfpError, UsageError
from gansfp.membership import Sweep, check_ks
from jobs.cli import Parser, names, positive, run
from jobs.cluster import add_cluster_options, start_ray
from jobs.embed import add_embedding_options, available, embed, embed_config
from jobs.progress import Progress
from jobs.record import record_stage
from tune import evaluate
from tune.space import DEFAULT_PAIRS, TASKS, grid, suggest

Pair = tuple[str, str]
ALGORITHMS = ("grid", "optuna")
ATTRIBUTION_KS = tuple(range(2, 13))

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchConfig:
    """What is searched and how. Raises UsageError for a value that is not to be had."""

    task: str
    algorithm: str = "grid"
    max_trials: int | None = None
    gpus_per_trial: float = 0.25
    seed: int = 0
    ks: tuple[int, ...] = ()  # empty: the default of the task

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"--task: got {self.task!r}, expected one of {list(TASKS)}")
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"--algo: got {self.algorithm!r}, expected one of {list(ALGORITHMS)}")
        if self.gpus_per_trial <= 0:
            raise UsageError(f"--gpus-per-trial: got {self.gpus_per_trial}, expected more than 0, such as 0.25")
        if any(k < 1 + (self.task == "attribution") for k in self.ks):
            raise UsageError(f"--k: got {min(self.ks)}, expected at least {1 + (self.task == 'attribution')}")


@dataclass(frozen=True, eq=False)
class Problem:
    """What every trial works on: the embeddings by reference, the rows that mean something in them."""

    config: SearchConfig
    folder: str
    vectors: Mapping[Pair, ray.ObjectRef]
    keys: Mapping[Pair, str]  # digest of what the embedding is and of the images it holds
    rows: Any  # list[SetRows] or AttributionRows

    def place(self, trial: Mapping[str, Any]) -> str:
        """The file of a trial's rows; another embedding, split, sweep or seed has another."""
        pair = (trial["backbone"], trial["view"])
        told = json.dumps([dict(trial), self.keys[pair], self.config.seed, self.config.ks], sort_keys=True)
        return store.join(self.folder, "trials", hashlib.sha256(told.encode()).hexdigest()[:20] + ".parquet")

    def run(self, trial: dict[str, Any], device: str) -> float:
        """Runs a trial whose rows are not there yet; returns what Optuna maximises. A trial that fails is a row."""
        place = self.place(trial)
        if not store.exists(place):
            started = time.monotonic()
            try:
                rows, error = self._evaluate(trial, device), ""
            except (GansfpError, ValueError, ArithmeticError, np.linalg.LinAlgError, torch.OutOfMemoryError) as caught:
                rows, error = [], f"{type(caught).__name__}: {store.one_line(caught)}"
            sink = pa.BufferOutputStream()
            pq.write_table(evaluate.table(self.config.task, trial, rows, started, error), sink)
            store.write_bytes_atomically(place, sink.getvalue())
        return _merit(_read(place))

    def _evaluate(self, trial: dict[str, Any], device: str) -> list[dict[str, Any]]:
        vectors = ray.get(self.vectors[trial["backbone"], trial["view"]])
        config = self.config
        if config.task == "membership":
            sweep = Sweep(ks=config.ks) if config.ks else Sweep()
            return evaluate.evaluate_membership(trial, vectors, self.rows, sweep, device, config.seed)
        return evaluate.evaluate_attribution(trial, vectors, self.rows, config.ks or ATTRIBUTION_KS, device, config.seed)


def _merit(table: pa.Table) -> float:
    """The best row of a trial; the mean over sets for membership."""
    if table["status"][0].as_py() == "failed":
        return -1.0
    if table["task"][0].as_py() == "attribution":
        return float(np.max(table["ari_known"].to_numpy()))
    best: dict[str, float] = {}
    for name, value in zip(table["set"].to_pylist(), table["auc"].to_pylist(), strict=True):
        best[name] = max(best.get(name, 0.0), value)
    return float(np.mean(list(best.values())))


def _read(place: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(store.read_bytes(place)))


def search(
    catalog: Catalog, work: str, config: SearchConfig, pairs: Sequence[Pair], weights: Mapping[str, Weights], embedding: EmbedConfig
) -> dict[str, Any]:
    """Searches on embeddings that are there and returns what best.json holds. catalog: the whole of DATA.

    Raises DataError where the labelled slices do not allow it.
    """
    started = time.monotonic()
    images = catalog.select(task=config.task)
    if not len(images):
        raise DataError(f"{catalog.data}: got no {config.task} images, expected a folder {config.task}/")
    problem, identities, unreadable = _problem(images, work, config, pairs, weights, embedding)
    trials = grid(config.task, pairs) if config.algorithm == "grid" else []
    if config.max_trials:
        trials = _sample(trials, config.max_trials, config.seed)
    total = len(trials) or config.max_trials or 32
    todo = [trial for trial in trials if not store.exists(problem.place(trial))]
    if trials and len(todo) < total:
        log.info("search %s: %d of %d trials are there already", config.task, total - len(todo), total)
    with Progress(f"search {config.task}", len(todo) if trials else total, "trials") as progress:
        if todo or not trials:
            done = _run(problem, todo, total, pairs, progress)
            trials = trials or done
    table = pa.concat_tables([_read(place) for place in dict.fromkeys(problem.place(trial) for trial in trials)])
    ids = {"images": images.ids.tolist()} | _row_ids(images, problem)
    table = table.replace_schema_metadata({"gansfp": json.dumps(ids)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write_bytes_atomically(store.join(problem.folder, "trials.parquet"), sink.getvalue())
    best = {
        "task": config.task,
        "best": best_rows(table),
        "tried": table.num_rows,
        "failed": int(np.sum(np.array(table["status"].to_pylist()) == "failed")),
        "search": asdict(config),
        "identities": {f"{b} {v}": identities[b, v] for b, v in pairs},
        "unreadable": unreadable,
        "ids": ids,
    }
    store.write_bytes_atomically(store.join(problem.folder, "best.json"), json.dumps(best, indent=1).encode())
    record_stage(work, f"search-{config.task}", time.monotonic() - started, {"rows": table.num_rows})
    if best["failed"]:
        errors = sorted({error for error in table["error"].to_pylist() if error})
        log.warning("search %s: %d trials failed, e.g. %s", config.task, best["failed"], errors[0])
    return best


def _problem(
    images: Catalog, work: str, config: SearchConfig, pairs: Sequence[Pair], weights: Mapping[str, Weights], embedding: EmbedConfig
) -> tuple[Problem, dict[Pair, dict[str, str]], dict[str, str]]:
    hashes = dict(zip(images.ids.tolist(), images.column("sha256").tolist(), strict=True))
    vectors, keys, identities, unreadable = {}, {}, {}, {}
    readable = np.ones(len(images), bool)
    for pair in pairs:
        identities[pair] = identity(pair, embedding, weights)
        found = shards.read_embeddings(work, identities[pair], hashes)
        readable &= found.ok
        unreadable |= dict(zip(images.ids[~found.ok].tolist(), found.error[~found.ok].tolist(), strict=True))
        vectors[pair] = ray.put(found.vectors)
    rows: Any
    if config.task == "membership":
        rows = evaluate.membership_sets(images, readable, config.seed)
        check_ks(config.ks, min(len(one.generated) for one in rows))
        described = [[images.ids[one.real].tolist(), one.labels.tolist(), one.folds.tolist()] for one in rows]
    else:
        rows = evaluate.attribution_rows(images, readable)
        check_ks(config.ks, len(rows.test) - 1)
        described = [rows.known.tolist(), rows.generators.tolist(), rows.test.tolist()]
    digest = hashlib.sha256(json.dumps([list(hashes.items()), described]).encode()).hexdigest()
    for pair in pairs:
        keys[pair] = json.dumps([identities[pair], digest], sort_keys=True)
    folder = store.join(work, "search", config.task)
    return Problem(config, folder, vectors, keys, rows), identities, unreadable


def _row_ids(images: Catalog, problem: Problem) -> dict[str, Any]:
    """Which image each entry of a row's `scores` is."""
    if problem.config.task == "attribution":
        return {"test": images.ids[problem.rows.test].tolist(), "known": images.ids[problem.rows.known].tolist()}
    return {
        "sets": {
            one.name: {
                "real": images.ids[one.real].tolist(),
                "generated": images.ids[one.generated].tolist(),
                "labels": one.labels.tolist(),
                "folds": one.folds.tolist(),
                "groups": one.groups.tolist(),
            }
            for one in problem.rows
        }
    }


def best_rows(table: pa.Table) -> dict[str, dict[str, Any]]:
    """The best configuration of each set (attribution: of ""), chosen without truth.

    Membership by cross-validated AUC. Attribution by how well the known generators are found again, their number to be
    found too, then with it given, then by the silhouette of the test slices; of the ks that one the silhouette chose.
    """
    best: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {}
    columns = [name for name in table.column_names if name != "scores"]
    for number, row in enumerate(table.select(columns).to_pylist()):
        if row["status"] == "failed" or row["chosen_k"] is False:
            continue
        key = (
            (row["auc"],)
            if row["task"] == "membership"
            else (round(row["ari_known"], 3), round(row["ari_known_given_k"], 3), row["silhouette"])
        )
        name = row["set"] or ""
        if name not in best or key > best[name][0]:
            found = {k: v for k, v in row.items() if v is not None and k not in ("configuration", "error", "status")}
            best[name] = key, {**found, "configuration": json.loads(row["configuration"]), "row": number}
    if not best:
        raise DataError(f"search: every trial failed, e.g. {table['error'][0].as_py()}")
    return {name: row for name, (_, row) in sorted(best.items())}


def _sample(trials: list[dict[str, Any]], most: int, seed: int) -> list[dict[str, Any]]:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(trials))[:most])
    return [trials[i] for i in chosen]


class _Report(tune.Callback):
    """Counts trials as they end and remembers what each one was."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.trials: list[dict[str, Any]] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.trials.append(trial.config.get("trial") or json.loads(trial.last_result["trial"]))
        self.progress.add(1)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.add(1, 1)


def _run(problem: Problem, todo: list[dict[str, Any]], total: int, pairs: Sequence[Pair], progress: Progress) -> list[dict[str, Any]]:
    """Runs the trials over the cluster, a GPU's share or one core each. Returns them as they ended."""
    config = problem.config
    gpus = ray.cluster_resources().get("GPU", 0) > 0
    resources = {"cpu": 1, "gpu": config.gpus_per_trial} if gpus else {"cpu": 1}

    def trainable(settings: dict[str, Any], problem: Problem) -> None:
        torch.set_num_threads(1)
        drawn = settings.get("trial") or _drawn(settings)
        device = "cuda" if gpus and torch.cuda.is_available() else "cpu"
        tune.report({"merit": problem.run(drawn, device), "trial": json.dumps(drawn)})

    report = _Report(progress)
    algorithm, space, samples = None, {"trial": tune.grid_search(todo)}, 1
    if config.algorithm == "optuna":
        task, drawn_pairs = config.task, list(pairs)
        searcher = OptunaSearch(
            lambda trial: {"drawn": suggest(trial, task, drawn_pairs)}, metric="merit", mode="max", seed=config.seed
        )
        parallel = max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1) / (resources.get("gpu") or 1)))
        algorithm, space, samples = ConcurrencyLimiter(searcher, parallel), None, total
    with tempfile.TemporaryDirectory(prefix="gansfp-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, problem=problem), resources),
            param_space=space,
            tune_config=tune.TuneConfig(search_alg=algorithm, num_samples=samples, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=scratch, name="search", verbose=0, callbacks=[report]),
        )
        tuner.fit()
    return report.trials


def _drawn(settings: dict[str, Any]) -> dict[str, Any]:
    """The trial that Optuna drew: `suggest` returns it whole, under one key."""
    return dict(settings["drawn"])


def choose_pairs(task: str, backbones: Sequence[str], views: Sequence[str], folder: str | None) -> tuple[list[Pair], list[str]]:
    """The embeddings to search: all backbones x views where they are named, else the task's default, of which those
    whose weights cannot be had are left out; the second value says which and why."""
    default = DEFAULT_PAIRS[task]
    if backbones:
        return [(b, v) for b in backbones for v in (views or ("full",))], []
    networks = [b for b in dict.fromkeys(b for b, _ in default) if parse_backbone(b).kind == "timm"]
    usable, left_out = available([b for b in networks if ":" not in b], folder)
    chosen = [
        (b, v) for b, v in default if (b not in networks or b.partition(":")[0] in usable) and (not views or v in views)
    ]
    return chosen, left_out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="tune.search", description=(__doc__ or "").splitlines()[0])
    add_embedding_options(parser)
    parser.add_argument("--task", required=True, help=f"one of {','.join(TASKS)}")
    parser.add_argument("--algo", default="grid", help=f"one of {','.join(ALGORITHMS)}")
    parser.add_argument("--max-trials", type=positive, help="grid: a random sample of it; optuna: how many (default 32)")
    parser.add_argument("--gpus-per-trial", type=float, default=0.25, help="a share: 0.25 runs four trials on a GPU")
    parser.add_argument("--k", type=names, default=(), help="numbers of clusters to sweep, such as 2,4,8")
    parser.add_argument("--seed", type=int, default=0)
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    ks = tuple(_number(k) for k in options.k)
    config = SearchConfig(options.task, options.algo, options.max_trials, options.gpus_per_trial, options.seed, ks)
    pairs, left_out = choose_pairs(config.task, options.backbones or (), options.views or (), options.weights)
    for line in left_out:
        log.warning("left out: %s", line)
    embedding = embed_config(options, pairs)
    weights = load_all_weights(embedding.backbones, options.weights)
    store.check_writable(options.work)
    catalog, work = update_catalog(options.data, options.work), store.absolute(options.work)
    start_ray(options.address, options.verbose)
    embed(catalog.select(task=config.task), work, embedding, weights, options.gpus_per_actor, options.batch)
    best = search(catalog, work, config, pairs, weights, embedding)
    for name, row in best["best"].items():
        value = f"AUC {row['auc']:.3f}" if config.task == "membership" else f"ARI of the known generators {row['ari_known']:.3f}"
        log.info("best of %s %s: %s, cross-validated; %s", best["tried"], name, value, json.dumps(row["configuration"]))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--k: got {text!r}, expected whole numbers with commas between") from None


if __name__ == "__main__":
    run(main)
