"""Runs all of it: catalog, embeddings, search and final decisions; without --data on a simulated challenge.

python -m jobs.audit --data DATA --work WORK [--weights DIR]
python -m jobs.audit --data DATA --dry-run  says what DATA is taken for
python -m jobs.audit                        simulates into data/simulated, results in work/simulated
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.description import describe_collection
from gansfp.decision.decide import FinalConfig
from gansfp.decision.reports import Metrics
from gansfp.decision.search_result import read_search
from gansfp.decision.summary import summary
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import load_all_weights
from gansfp.errors import DataError, UsageError
from gansfp.images.grey_levels import AUTO
from gansfp.networks.weights import check_folder
from gansfp.report.options import ReportConfig, add_report_option
from gansfp.runtime.cluster import ClusterConfig
from gansfp.runtime.collection import CollectionConfig, read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.embedding import Workers
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_embedding_options,
    add_final_options,
    check_places,
    cluster_config,
    collection_config,
    embed_config,
    embed_workers,
    final_config,
    seed,
)
from gansfp.simulation.challenge import SimulationConfig, simulate
from jobs.final import decide
from tune.embedding_size import check_embedding_sizes
from tune.options import add_search_options, choose_pairs, search_config
from tune.problem import SearchConfig
from tune.search import SearchInputs, check_enough, embed_and_search
from tune.space import TASKS

SIMULATED_DATA, SIMULATED_WORK = os.path.join("data", "simulated"), os.path.join("work", "simulated")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditConfig:
    """An audit. searches: by task; collection: how DATA is read."""

    data: str
    work: str
    searches: Mapping[str, SearchConfig]
    final: FinalConfig
    workers: Workers
    cluster: ClusterConfig
    collection: CollectionConfig
    report: ReportConfig


def audit(config: AuditConfig, inputs: Mapping[str, SearchInputs]) -> Metrics:
    """Reads the catalog, embeds, searches and decides, for each task that DATA has enough images of.

    It works from cheap to dear: first the backbones without weights, with a provisional answer, then the networks,
    which may take hours. A run that is stopped in between has that answer in WORK/results.

    inputs: what each task embeds and searches.
    """
    own_ray = not ray.is_initialized()  # else that of a program that calls this
    catalog = read_collection(config.data, config.work, config.collection)
    tasks = tasks_of(catalog)
    for line in dict.fromkeys(line for task in tasks for line in inputs[task].left_out):
        log.warning("left out: %s", line)
    for task in tasks:
        check_enough(catalog, config.searches[task])
        check_embedding_sizes(catalog, config.searches[task], inputs[task].embedding.pairs, inputs[task].weights)
    everything = {task: inputs[task] for task in tasks}
    cheap, pending = without_networks(everything)
    if cheap and pending and not all(_is_searched(config.work, task, everything[task]) for task in tasks):
        _search(config, catalog, cheap)
        print(f"{summary(_decide(config, catalog, cheap, pending))}\n", flush=True)
        everything = {task: replace(part, stage="-networks") for task, part in everything.items()}
    _search(config, catalog, everything)
    if own_ray:
        ray.shutdown()  # nothing below needs its workers, nor the memory that it shares with this process
    return _decide(config, catalog, everything)


def without_networks(inputs: Mapping[str, SearchInputs]) -> tuple[dict[str, SearchInputs], list[str]]:
    """What each task can embed without weights, and the networks that this leaves for later. A task that has networks
    alone is left out."""
    cheap, pending = {}, []
    for task, of_task in inputs.items():
        free = tuple(pair for pair in of_task.embedding.pairs if not parse_backbone(pair[0]).needs_weights)
        pending += [backbone for backbone, view in of_task.embedding.pairs if (backbone, view) not in free]
        if free:
            cheap[task] = replace(of_task, embedding=replace(of_task.embedding, pairs=free))
    return cheap, list(dict.fromkeys(pending))


def _is_searched(work: str, task: str, inputs: SearchInputs) -> bool:
    """Whether an earlier run has searched all embeddings, so that a provisional answer would come no earlier."""
    try:
        found = read_search(work, task)
    except DataError:  # it was stopped while it wrote; the search writes these files again
        return False
    return found is not None and set(found.pairs) >= set(inputs.embedding.pairs)


def _search(config: AuditConfig, catalog: Catalog, inputs: Mapping[str, SearchInputs]) -> None:
    for task, of_task in inputs.items():
        embed_and_search(catalog, config.work, config.searches[task], of_task, config.workers, config.cluster)


def _decide(
    config: AuditConfig, catalog: Catalog, inputs: Mapping[str, SearchInputs], pending: Sequence[str] = ()
) -> Metrics:
    """pending: the backbones that are still to come."""
    return decide(config.data, config.work, config.final, catalog, list(inputs), pending, config.report)


def tasks_of(catalog: Catalog) -> list[str]:
    """The tasks that DATA has enough images of; logs what is missing for the other one. Raises DataError for none."""
    tasks = [task for task in TASKS if len(catalog.select(task=task))]
    if not tasks:
        raise DataError(f"{catalog.data}: got no images of a task, expected membership/ or attribution/")
    if tasks == list(TASKS):
        missing = _missing_for_attribution(catalog)
        if missing:
            log.warning("attribution is left out: got %s", missing)
            tasks.remove("attribution")
    return tasks


def _missing_for_attribution(catalog: Catalog) -> str:
    generators = set(catalog.known_generators().column("generator").tolist())
    if len(generators) < 2:
        return f"{len(generators)} known generators, expected 2 or more in attribution/train"
    if not len(catalog.unattributed().select(status="ok")):
        return "no readable slices in attribution/test"
    return ""


def simulate_challenge(seed: int) -> None:
    """Writes the simulated challenge, unless it is there."""
    if not os.path.isdir(SIMULATED_DATA):
        log.info("no --data: simulating a challenge with known truth in %s", SIMULATED_DATA)
        simulate(SimulationConfig(seed=seed), SIMULATED_DATA, progress=log.info)


def audit_config(options: argparse.Namespace) -> AuditConfig:
    """The audit that the options ask for. Raises UsageError for what cannot be, before anything is done."""
    if options.data and not options.work:
        raise UsageError("--work: got none, expected a folder or a URI for the results")
    final = final_config(options)
    searches = {task: search_config(options, task) for task in TASKS}
    workers = embed_workers(options)
    # Names before places before weights: a mistake that is found quickly is reported first.
    embed_config(options, [(b, v) for b in options.backbones or ("highpass",) for v in options.views or ("full",)])
    check_folder(options.weights)
    data, work = options.data or SIMULATED_DATA, store.absolute(options.work or SIMULATED_WORK)
    cluster, collection = cluster_config(options), collection_config(options)
    return AuditConfig(data, work, searches, final, workers, cluster, collection, ReportConfig(options.pictures))


def search_inputs(options: argparse.Namespace) -> dict[str, SearchInputs]:
    """What each task embeds and searches, with its weights. Raises GansfpError where they cannot be had."""
    chosen = {task: choose_pairs(task, options.backbones or (), options.views or (), options.weights) for task in TASKS}
    everything = embed_config(options, [pair for pairs, _ in chosen.values() for pair in pairs])
    weights = load_all_weights(everything.backbones, options.weights, everything.network_mask)
    return {
        task: SearchInputs(embed_config(options, pairs), weights, left_out)
        for task, (pairs, left_out) in chosen.items()
    }


def describe(data: str | None, config: CollectionConfig) -> None:
    """Prints what DATA is taken for. Raises UsageError without DATA, DataError where it cannot be read."""
    if not data:
        raise UsageError("--dry-run: got no --data, expected the folder or the URI to look at")
    print(describe_collection(data, allow_outside=config.allow_outside, sixteen_bit=config.sixteen_bit or AUTO))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.audit", description=(__doc__ or "").splitlines()[0])
    add_embedding_options(parser, required=False)
    add_search_options(parser)
    add_final_options(parser)
    add_report_option(parser)
    parser.add_argument("--seed", type=seed, default=0, help="of everything that is drawn (default %(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what DATA's folders and files are taken for; write nothing"
    )
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    if options.dry_run:
        describe(options.data, collection_config(options))
        return
    config = audit_config(options)
    if not options.data:
        simulate_challenge(options.seed)
    check_places(config.data, options.work or SIMULATED_WORK)
    inputs = search_inputs(options)
    with held(config.work, "jobs.audit"):
        metrics = audit(config, inputs)
        print(summary(metrics))
        stages = sorted(metrics.run.seconds.items(), key=lambda stage: -stage[1])
        seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in stages)
        log.info("seconds by stage, the longest first: %s", seconds)
        log.info("results are in %s", store.join(config.work, "results"))


if __name__ == "__main__":
    run(main)
