"""Searches what tells members and generators apart, on labelled training slices alone, in parallel over GPUs or cores.

    python -m tune.search --data DATA --work WORK --task membership
    python -m tune.search --data DATA --work WORK --task attribution --algo optuna --max-trials 40 --gpus-per-trial 0.25

Embeds what is missing, and runs one trial for each way to prepare an embedding; the trials of one embedding run one
after the other and share what they can. A trial reads the vectors of one set at a time from the shards, and leaves one
file of rows in WORK/search/<task>/trials/; a later run finds these files and does not repeat the trials. At the end the
rows become trials.parquet and best.json. The search never reads a truth file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.decision.search_result import (
    TRIALS_DIGEST,
    BestRow,
    Configuration,
    Search,
    SearchedIds,
    SearchResult,
    Trial,
    check_current,
    read_search,
    search_folder,
    write_result,
)
from gansfp.device import release_memory
from gansfp.embedding import shards
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.embedding.shards import Pair, StoredEmbedding
from gansfp.errors import DataError
from gansfp.networks.weights import Weights
from gansfp.runtime.cluster import ClusterConfig, start_ray
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.embedding import Workers, embed
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_embedding_options,
    check_places,
    cluster_config,
    collection_config,
    embed_config,
    embed_workers,
    seed,
)
from gansfp.runtime.precision import settle_precision
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage
from gansfp.scoring.membership import check_ks
from tune.embedding_size import check_embedding_sizes
from tune.options import add_search_options, choose_pairs, parse_ks, search_config
from tune.problem import ForEachPair, Problem, Result, SearchConfig, TaskSlices, Vectors, is_there, read_table
from tune.rows import LONG_COLUMNS, SCHEMA
from tune.space import TASKS
from tune.trials import DRAWN_TRIALS, for_each_pair, get_algorithm, run_trials

log = logging.getLogger(__name__)

_NOT_IN_BEST = ("configuration", "error", "status", *LONG_COLUMNS)  # columns of a row that best.json leaves out


@dataclass(frozen=True)
class SearchInputs:
    """What a search embeds and searches. weights: by network; left_out: a line for each default network without
    weights; stage: added to the names of the stages in WORK/log, where a task is searched twice."""

    embedding: EmbedConfig
    weights: Mapping[str, Weights]
    left_out: Sequence[str] = ()
    stage: str = ""


def search(catalog: Catalog, work: str, config: SearchConfig, inputs: SearchInputs) -> SearchResult:
    """Searches on the embeddings of `inputs`, which must be there, and returns what best.json holds.

    catalog: the whole of DATA. Ray must be up. Raises DataError where the labelled slices do not allow a search.
    """
    started = time.monotonic()
    images = catalog.select(task=config.task)
    problem, identities, unreadable = _problem(images, work, config, inputs)
    trials = _run(problem, inputs.embedding.pairs)
    ids = problem.slices.ids(images)
    table, trials_digest = _collect(problem, list(dict.fromkeys(problem.place(trial) for trial in trials)), ids)
    result = SearchResult(
        task=config.task,
        best=best_rows(table),
        tried=table.num_rows,
        failed=int(np.sum(np.array(table["status"].to_pylist()) == "failed")),
        search=asdict(config),
        identities={f"{backbone} {view}": of_pair for (backbone, view), of_pair in identities.items()},
        unreadable=unreadable,
        ids=ids,
        digest=images.digest(),
        trials_digest=trials_digest,
    )
    for_each = functools.partial(for_each_pair, problem)
    result = _leave_for_final(problem.folder, result, problem.slices, for_each, images)
    release_memory()
    facts = {"rows": result.tried, "failed": result.failed, "left_out": list(inputs.left_out)}
    record_stage(work, f"search-{config.task}{inputs.stage}", time.monotonic() - started, facts, asdict(config))
    _describe(result, table)
    return result


def _problem(
    images: Catalog, work: str, config: SearchConfig, inputs: SearchInputs
) -> tuple[Problem, dict[Pair, dict[str, str]], dict[str, str]]:
    """The problem, the identities of its embeddings, and reasons by the id of each slice that cannot be read.

    This process reads no vectors: each trial reads those that it works on.
    """
    hashes, width = images.hashes(), 0
    identities: dict[Pair, dict[str, str]] = {}
    unreadable: dict[str, str] = {}
    readable = np.ones(len(images), bool)
    for pair in TASKS[config.task].with_controls(inputs.embedding.pairs):
        identities[pair] = identity(pair, inputs.embedding, inputs.weights)
        statuses = shards.read_statuses(work, identities[pair], hashes)
        width = max(width, statuses.width)
        readable &= statuses.ok
        failed = ~statuses.ok
        unreadable |= dict(zip(images.ids[failed].tolist(), statuses.error[failed].tolist(), strict=True))
    slices = _find_slices(images, readable, config)
    digest = hashlib.sha256(json.dumps([images.digest(), slices.fingerprint(images)]).encode()).hexdigest()
    keys = {pair: json.dumps([identities[pair], digest], sort_keys=True) for pair in inputs.embedding.pairs}
    stored = functools.partial(_stored, work=work, identities=identities, hashes=hashes)
    problem = Problem(config, TASKS[config.task], search_folder(work, config.task), stored, keys, slices, width)
    return problem, identities, unreadable


def _stored(
    pair: Pair, work: str, identities: Mapping[Pair, Mapping[str, str]], hashes: Mapping[str, str]
) -> StoredEmbedding:
    return StoredEmbedding(work, identities[pair], hashes)


def _find_slices(images: Catalog, readable: np.ndarray, config: SearchConfig) -> TaskSlices:
    """The slices of a task's images. Raises GansfpError where they do not allow the search."""
    slices = TASKS[config.task].find_slices(images, readable, config.seed)
    check_ks(config.ks, slices.most_clusters())
    return slices


def check_enough(catalog: Catalog, config: SearchConfig) -> None:
    """Raises GansfpError where the catalog already shows that the search is impossible, before hours of embedding."""
    images = catalog.select(task=config.task)
    _find_slices(images, images.column("status") == "ok", config)


def _run(problem: Problem, pairs: Sequence[Pair]) -> list[Trial]:
    """Runs the trials whose files are not there; returns all trials of the search."""
    config = problem.config
    algorithm = get_algorithm(config.algorithm)
    planned = algorithm.plan(problem.task, pairs) if algorithm.plan else []
    if config.max_trials:
        planned = _sample(planned, config.max_trials, config.seed)
    total = len(planned) or config.max_trials or DRAWN_TRIALS
    todo = [trial for trial in planned if not is_there(problem.place(trial))]
    if planned and len(todo) < total:
        log.info("search %s: %d of %d trials are there already", config.task, total - len(todo), total)
    with Progress(f"search {config.task}", len(todo) if planned else total, "trials") as progress:
        if todo or not planned:
            ended = run_trials(problem, todo, total, pairs, progress)
            return planned or sorted(ended, key=Trial.to_json)  # they end in any order
    return planned


def _sample(trials: list[Trial], most: int, seed: int) -> list[Trial]:
    rows = np.sort(np.random.default_rng(seed).permutation(len(trials))[:most])
    return [trials[row] for row in rows]


def _collect(problem: Problem, places: Sequence[str], ids: SearchedIds) -> tuple[pa.Table, str]:
    """Writes trials.parquet, one row group a trial. Returns all of it but the long columns: the scores of all
    configurations for all slices would be the largest thing in memory. And the digest of its trials, in their order."""
    short_tables, digest = [], hashlib.sha256()
    schema = SCHEMA.with_metadata({"gansfp": json.dumps(ids.as_dict())})
    with tempfile.TemporaryDirectory(prefix="gansfp-search-") as scratch:
        file = os.path.join(scratch, "trials.parquet")
        try:
            with pq.ParquetWriter(file, schema) as writer:
                for place in places:
                    table = read_table(place).replace_schema_metadata(schema.metadata)
                    writer.write_table(table)
                    short_tables.append(table.drop_columns(list(LONG_COLUMNS)))
                    # The file's name comes from all that decides the rows, but for failures.
                    of_rows = table.select(["configuration", "status"]).to_pylist()
                    digest.update(json.dumps([os.path.basename(place), of_rows]).encode())
                writer.add_key_value_metadata({TRIALS_DIGEST: digest.hexdigest()})
        except OSError as error:
            raise DataError(f"{scratch}: cannot be written ({store.one_line(error)}); set TMPDIR") from error
        with pa.memory_map(file) as content:
            store.write_bytes_atomically(store.join(problem.folder, "trials.parquet"), content.read_buffer())
    return pa.concat_tables(short_tables), digest.hexdigest()


def best_rows(table: pa.Table) -> dict[str, BestRow]:
    """The best configuration of each set (attribution: of ""), chosen without truth, by the order of the task.

    Raises DataError where every trial failed.
    """
    best: dict[str, tuple[tuple[float, ...], BestRow]] = {}
    for index, row in enumerate(table.to_pylist()):
        if row["status"] == "failed" or row["chosen_k"] is False:
            continue
        configuration = Configuration.from_json(row["configuration"])
        order = TASKS[row["task"]].order(configuration.choices, row)
        name = row["set"] or ""
        if name not in best or order > best[name][0]:
            columns = {
                column: value for column, value in row.items() if value is not None and column not in _NOT_IN_BEST
            }
            best[name] = order, BestRow(index, configuration, columns)
    if not best:
        raise DataError(f"search: every trial failed, e.g. {table['error'][0].as_py()}")
    return {name: row for name, (_, row) in sorted(best.items())}


def _leave_for_final(
    folder: str, result: SearchResult, slices: TaskSlices, for_each: ForEachPair, images: Catalog
) -> SearchResult:
    """Writes best.json, and what the final step needs of the embeddings."""
    result = slices.leave_for_final(Search(folder, result), for_each, images)
    write_result(folder, result)
    return result


def complete_search(catalog: Catalog, work: str, task: str) -> None:
    """Adds what an earlier version's search did not leave for the final step, from the embeddings. Needs no Ray.

    Does nothing where there is no search, or where nothing is missing. Raises DataError where DATA has changed since.
    """
    found = read_search(work, task)
    if found is None or found.complete:
        return
    check_current(catalog, found.result)
    images, result = catalog.select(task=task), found.result
    readable = ~np.isin(images.ids, list(result.unreadable))
    slices = TASKS[task].find_slices(images, readable, int(str(result.search["seed"])))

    def for_each(pairs: Sequence[Pair], compute: Callable[[Pair, Vectors], Result]) -> Iterator[Result]:
        for pair in pairs:
            yield compute(pair, StoredEmbedding(work, result.identities[" ".join(pair)], images.hashes()))

    _leave_for_final(found.folder, result, slices, for_each, images)


def _describe(result: SearchResult, table: pa.Table) -> None:
    """Logs the best row of each set, and how many rows failed."""
    if result.failed:
        errors = sorted({error for error in table["error"].to_pylist() if error})
        log.warning("search %s: %d configurations failed, e.g. %s", result.task, result.failed, errors[0])
    tried = Counter(value or "" for value in table["set"].to_pylist())
    for name, best in result.best.items():
        title = f"{result.task}, set {name}" if name else result.task
        merit = TASKS[result.task].describe(best.columns)
        log.info("search %s: best of %d: %s, cross-validated", title, tried[name], merit)


def embed_and_search(
    catalog: Catalog, work: str, config: SearchConfig, inputs: SearchInputs, workers: Workers, cluster: ClusterConfig
) -> SearchResult:
    """Embeds what the search lacks, then searches."""
    images, stage = catalog.select(task=config.task), f"embed-{config.task}{inputs.stage}"
    hashes = dict.fromkeys(inputs.embedding.pairs, images.hashes())
    settled = settle_precision(inputs.embedding, hashes, work, inputs.weights, cluster)
    inputs = replace(inputs, embedding=settled)
    everything = replace(settled, pairs=TASKS[config.task].with_controls(settled.pairs))
    embed(images, work, everything, inputs.weights, workers, cluster, stage)
    start_ray(cluster)
    return search(catalog, work, config, inputs)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="tune.search", description=(__doc__ or "").splitlines()[0])
    add_embedding_options(parser)
    parser.add_argument("--task", required=True, help=f"one of {','.join(TASKS)}")
    add_search_options(parser)
    parser.add_argument("--k", type=parse_ks, default=(), help="numbers of clusters to sweep, such as 2,4,8")
    parser.add_argument("--seed", type=seed, default=0, help="of everything that is drawn (default %(default)s)")
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    config = search_config(options, options.task, options.k)
    workers, cluster = embed_workers(options), cluster_config(options)
    check_places(options.data, options.work)
    pairs, left_out = choose_pairs(config.task, options.backbones or (), options.views or (), options.weights)
    for line in left_out:
        log.warning("left out: %s", line)
    embedding = embed_config(options, pairs)
    weights = load_all_weights(embedding.backbones, options.weights, embedding.network_mask)
    with held(options.work, "tune.search"):
        work = store.absolute(options.work)
        catalog = read_collection(options.data, work, collection_config(options))
        check_enough(catalog, config)
        check_embedding_sizes(catalog, config, pairs, weights)
        embed_and_search(catalog, work, config, SearchInputs(embedding, weights, left_out), workers, cluster)


if __name__ == "__main__":
    run(main)
