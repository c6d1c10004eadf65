"""Searches what tells members and generators apart, on labelled training slices alone, in parallel over GPUs or cores.

    python -m tune.search --data DATA --work WORK --task membership
    python -m tune.search --data DATA --work WORK --task attribution --algo optuna --max-trials 40 --gpus-per-trial 0.25

Embeds what is missing, puts each embedding into Ray's object store once, and runs one trial for each way to prepare an
embedding. A trial leaves one file of rows in WORK/search/<task>/trials/, which is what a run that goes on after a kill
finds; at the end they become trials.parquet and best.json. It never reads a truth file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.embedding import shards
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, UsageError
from gansfp.images.views import get_view
from gansfp.networks.weights import Weights
from gansfp.runtime.cluster import start_ray
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.embedding import available, embed
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_embedding_options,
    check_places,
    cluster_config,
    embed_config,
    embed_workers,
    names,
    positive,
    seed,
    share,
)
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage
from gansfp.scoring.membership import check_ks, learns_from_labels
from tune import evaluate
from tune.space import DEFAULT_PAIRS, TASKS, grid
from tune.trials import ALGORITHMS, Problem, SearchConfig, is_there, put, read_table, run_trials

log = logging.getLogger(__name__)

_UNTOLD = ("configuration", "error", "status", "scores", "known")  # of a row, in best.json


def search(
    catalog: Catalog,
    work: str,
    config: SearchConfig,
    embedding: EmbedConfig,
    weights: Mapping[str, Weights],
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Searches on the embeddings of `embedding.pairs`, which must be there, and returns what best.json holds.

    catalog: the whole of DATA; left_out: what the default lacks, for the record. Raises DataError where the labelled
    slices do not allow a search.
    """
    started = time.monotonic()
    images = catalog.select(task=config.task)
    problem, identities, unreadable = _problem(images, work, config, embedding, weights)
    pairs = embedding.pairs
    trials = grid(config.task, pairs) if config.algorithm == "grid" else []
    if config.max_trials:
        trials = _sample(trials, config.max_trials, config.seed)
    total = len(trials) or config.max_trials or 32
    todo = [trial for trial in trials if not is_there(problem.place(trial))]
    if trials and len(todo) < total:
        log.info("search %s: %d of %d trials are there already", config.task, total - len(todo), total)
    with Progress(f"search {config.task}", len(todo) if trials else total, "trials") as progress:
        if todo or not trials:
            done = run_trials(problem, todo, total, pairs, progress)
            trials = trials or done
    ids = {"images": images.ids.tolist()} | _row_ids(images, problem)
    table = _gather(problem, list(dict.fromkeys(problem.place(trial) for trial in trials)), ids)
    best = {
        "task": config.task,
        "best": best_rows(table),
        "tried": table.num_rows,
        "failed": int(np.sum(np.array(table["status"].to_pylist()) == "failed")),
        "search": asdict(config),
        "identities": {f"{b} {v}": identities[b, v] for b, v in pairs},
        "unreadable": unreadable,
        "ids": ids,
        "digest": images.digest(),
    }
    store.write_bytes_atomically(store.join(problem.folder, "best.json"), json.dumps(best, indent=1).encode())
    facts = {"rows": table.num_rows, "failed": best["failed"], "left_out": list(left_out)}
    record_stage(work, f"search-{config.task}", time.monotonic() - started, facts, asdict(config))
    if best["failed"]:
        errors = sorted({error for error in table["error"].to_pylist() if error})
        log.warning("search %s: %d configurations failed, e.g. %s", config.task, best["failed"], errors[0])
    of_set = Counter(value or "" for value in table["set"].to_pylist())
    for name, row in best["best"].items():
        what = (
            f"AUC {row['auc']:.3f}"
            if config.task == "membership"
            else f"ARI {row['ari_known']:.3f} on known generators"
        )
        where = f"{config.task}, set {name}" if name else config.task
        log.info("search %s: best of %d: %s, cross-validated", where, of_set[name], what)
    return best


def _gather(problem: Problem, places: Sequence[str], ids: dict[str, Any]) -> pa.Table:
    """Writes trials.parquet, one row group a trial, and returns all of it but the long columns: scores of all
    configurations for all slices would be the largest thing in memory."""
    facts = []
    schema = evaluate.SCHEMA.with_metadata({"gansfp": json.dumps(ids)})
    with tempfile.TemporaryDirectory(prefix="gansfp-search-") as scratch:
        file = os.path.join(scratch, "trials.parquet")
        try:
            with pq.ParquetWriter(file, schema) as writer:
                for place in places:
                    table = read_table(place)
                    writer.write_table(table.replace_schema_metadata(schema.metadata))
                    facts.append(table.drop_columns(["scores", "known"]))
        except OSError as error:
            raise DataError(f"{scratch}: cannot be written ({store.one_line(error)}); set TMPDIR") from error
        with pa.memory_map(file) as content:
            store.write_bytes_atomically(store.join(problem.folder, "trials.parquet"), content.read_buffer())
    return pa.concat_tables(facts)


def _problem(
    images: Catalog,
    work: str,
    config: SearchConfig,
    embedding: EmbedConfig,
    weights: Mapping[str, Weights],
) -> tuple[Problem, dict[Pair, dict[str, str]], dict[str, str]]:
    hashes = images.hashes()
    vectors, keys, identities = {}, {}, {}
    unreadable: dict[str, str] = {}
    readable = np.ones(len(images), bool)
    for pair in embedding.pairs:
        identities[pair] = identity(pair, embedding, weights)
        found = shards.read_embeddings(work, identities[pair], hashes)
        readable &= found.ok
        unreadable |= dict(zip(images.ids[~found.ok].tolist(), found.error[~found.ok].tolist(), strict=True))
        vectors[pair] = put(found.vectors)
    rows = _rows(images, readable, config)
    if config.task == "membership":
        described = [[images.ids[one.real].tolist(), one.labels.tolist(), one.folds.tolist()] for one in rows]
    else:
        described = [rows.known.tolist(), rows.generators.tolist(), rows.test.tolist()]
    digest = hashlib.sha256(json.dumps([images.digest(), described]).encode()).hexdigest()
    for pair in embedding.pairs:
        keys[pair] = json.dumps([identities[pair], digest], sort_keys=True)
    folder = store.join(work, "search", config.task)
    return Problem(config, folder, vectors, keys, rows), identities, unreadable


def _rows(images: Catalog, readable: np.ndarray, config: SearchConfig) -> Any:
    """The SetRows or the AttributionRows of a task's images. Raises GansfpError where they do not allow the search."""
    if not len(images):
        raise DataError(f"{images.data}: got no {config.task} images, expected a folder {config.task}/")
    if config.task == "membership":
        sets = evaluate.membership_sets(images, readable, config.seed)
        check_ks(config.ks, min(len(one.generated) for one in sets))
        return sets
    rows = evaluate.attribution_rows(images, readable)
    check_ks(config.ks, len(rows.test) - 1)
    return rows


def check_enough(catalog: Catalog, config: SearchConfig) -> None:
    """Raises GansfpError where the catalog alone says that the search cannot be; told before hours of embedding."""
    images = catalog.select(task=config.task)
    _rows(images, images.column("status") == "ok", config)


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

    Membership by cross-validated AUC; configurations that learn from labels only if there are no others, because their
    AUC flatters (see gansfp/decision/stacking.py). Attribution by how well the known generators are found again, their number
    to be found too, to one decimal: what a few slices more or less say is noise. Then by the margin of the splits
    there, then by the same with their number given, then by the silhouette of the test slices.
    """
    best: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {}
    for number, row in enumerate(table.to_pylist()):
        if row["status"] == "failed" or row["chosen_k"] is False:
            continue
        configuration = json.loads(row["configuration"])
        key = (
            (not learns_from_labels(configuration), row["auc"])
            if row["task"] == "membership"
            else (round(row["ari_known"], 1), row["margin"], round(row["ari_known_given_k"], 3), row["silhouette"])
        )
        name = row["set"] or ""
        if name not in best or key > best[name][0]:
            found = {k: v for k, v in row.items() if v is not None and k not in _UNTOLD}
            best[name] = key, {**found, "configuration": configuration, "row": number}
    if not best:
        raise DataError(f"search: every trial failed, e.g. {table['error'][0].as_py()}")
    return {name: row for name, (_, row) in sorted(best.items())}


def _sample(trials: list[dict[str, Any]], most: int, seed: int) -> list[dict[str, Any]]:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(trials))[:most])
    return [trials[i] for i in chosen]


def choose_pairs(
    task: str, backbones: Sequence[str], views: Sequence[str], folder: str | None
) -> tuple[list[Pair], list[str]]:
    """The embeddings to search: all backbones x views where they are named, else the task's default, of which those
    whose weights cannot be had are left out; the second value says which and why."""
    for view in views:
        get_view(view)
    if backbones:
        return [(backbone, view) for backbone in backbones for view in views or ("full",)], []
    default = DEFAULT_PAIRS[task]
    if views:
        default = tuple((backbone, view) for backbone in dict.fromkeys(b for b, _ in default) for view in views)
    networks = dict.fromkeys(parse_backbone(b).model for b, _ in default if parse_backbone(b).kind == "timm")
    usable, left_out = available(list(networks), folder)
    return [(b, v) for b, v in default if parse_backbone(b).model in ("", *usable)], left_out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="tune.search", description=(__doc__ or "").splitlines()[0])
    add_embedding_options(parser)
    parser.add_argument("--task", required=True, help=f"one of {','.join(TASKS)}")
    add_search_options(parser)
    parser.add_argument("--k", type=names, default=(), help="numbers of clusters to sweep, such as 2,4,8")
    parser.add_argument("--seed", type=seed, default=0)
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    ks = tuple(_number(k) for k in options.k)
    config = search_config(options, options.task, ks)
    embed_workers(options)  # refuses what cannot be, before anything is done
    check_places(options.data, options.work)
    pairs, left_out = choose_pairs(config.task, options.backbones or (), options.views or (), options.weights)
    for line in left_out:
        log.warning("left out: %s", line)
    embedding = embed_config(options, pairs)
    weights = load_all_weights(embedding.backbones, options.weights, embedding.network_mask)
    with held(options.work, "tune.search"):
        work = store.absolute(options.work)
        catalog = read_collection(options.data, work, options.allow_outside)
        check_enough(catalog, config)
        embed_and_search(catalog, work, config, embedding, weights, left_out, options)


def embed_and_search(
    catalog: Catalog,
    work: str,
    config: SearchConfig,
    embedding: EmbedConfig,
    weights: Mapping[str, Weights],
    left_out: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Embeds what the search lacks, then searches, on the Ray that the options name."""
    images, stage = catalog.select(task=config.task), f"embed-{config.task}"
    embed(images, work, embedding, weights, embed_workers(options), cluster_config(options), stage)
    start_ray(cluster_config(options))
    search(catalog, work, config, embedding, weights, left_out)


def add_search_options(parser: Parser) -> None:
    """How a search goes, for every command that searches."""
    parser.add_argument("--algo", default="grid", help=f"one of {','.join(ALGORITHMS)}")
    parser.add_argument(
        "--max-trials", type=positive, help="of each task; grid: a random sample of it; optuna: how many (default 32)"
    )
    parser.add_argument("--gpus-per-trial", type=share, default=0.25, help="a share: 0.25 runs four trials on a GPU")
    parser.add_argument(
        "--max-memory",
        type=float,
        default=SearchConfig.max_memory,
        help="GB of a trial for distances and dendrograms (default %(default)g); with more slices than fit, clustering "
        "is approximated, and says so",
    )


def search_config(options: argparse.Namespace, task: str, ks: tuple[int, ...] = ()) -> SearchConfig:
    """The configuration that those options ask for."""
    return SearchConfig(
        task,
        algorithm=options.algo,
        max_trials=options.max_trials,
        gpus_per_trial=options.gpus_per_trial,
        gpus=options.gpus,
        seed=options.seed,
        ks=ks,
        max_memory=options.max_memory,
    )


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--k: got {text!r}, expected whole numbers with commas between") from None


if __name__ == "__main__":
    run(main)
