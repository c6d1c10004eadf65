"""All of it: catalog, embeddings, search and final decisions; without --data on a simulated challenge.

python -m jobs.audit --data DATA --work WORK [--weights DIR]
python -m jobs.audit                        simulates into data/simulated, results in work/simulated
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.decision.summary import summary
from gansfp.embedding.embedder import EmbedConfig, load_all_weights
from gansfp.errors import DataError, UsageError
from gansfp.networks.weights import check_folder
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_embedding_options,
    add_final_options,
    check_places,
    embed_config,
    embed_workers,
    final_config,
    seed,
)
from gansfp.simulation.challenge import SimulationConfig, simulate
from jobs.final import decide
from tune.search import add_search_options, check_enough, choose_pairs, embed_and_search, search_config
from tune.space import TASKS

SIMULATED_DATA, SIMULATED_WORK = os.path.join("data", "simulated"), os.path.join("work", "simulated")

log = logging.getLogger(__name__)


def _simulate(seed: int) -> None:
    """Makes the simulated challenge, if it is not there."""
    if not os.path.isdir(SIMULATED_DATA):
        log.info("no --data: simulating a challenge with known truth in %s", SIMULATED_DATA)
        simulate(SimulationConfig(seed=seed), SIMULATED_DATA, progress=log.info)


def _tasks(catalog: Catalog) -> list[str]:
    """The tasks that DATA has enough for; what is missing for the other is said."""
    found = [task for task in TASKS if len(catalog.select(task=task))]
    known = set(catalog.known_generators().column("generator").tolist())
    if "attribution" in found and len(known) < 2 and "membership" in found:
        log.warning(
            "attribution is left out: got %d known generators, expected 2 or more in attribution/train", len(known)
        )
        found.remove("attribution")
    elif found == list(TASKS) and not len(catalog.unattributed().select(status="ok")):
        log.warning("attribution is left out: got no readable slices in attribution/test")
        found.remove("attribution")
    if not found:
        raise DataError(f"{catalog.data}: got no images of a task, expected membership/ or attribution/")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.audit", description=(__doc__ or "").splitlines()[0])
    add_embedding_options(parser, required=False)
    add_search_options(parser)
    add_final_options(parser)
    parser.add_argument("--seed", type=seed, default=0)
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    if options.data and not options.work:
        raise UsageError("--work: got none, expected a folder or a URI for the results")
    deciding, searches = final_config(options), {task: search_config(options, task) for task in TASKS}
    embed_workers(options)  # refuses what cannot be, before anything is done
    # Names before places before weights: what is quick to tell is told first.
    embed_config(options, [(b, v) for b in options.backbones or ("highpass",) for v in options.views or ("full",)])
    check_folder(options.weights)
    data, work = options.data or SIMULATED_DATA, options.work or SIMULATED_WORK
    if not options.data:
        _simulate(options.seed)
    check_places(data, work)
    work = store.absolute(work)
    chosen = {task: choose_pairs(task, options.backbones or (), options.views or (), options.weights) for task in TASKS}
    configs: dict[str, EmbedConfig] = {task: embed_config(options, pairs) for task, (pairs, _) in chosen.items()}
    everything = embed_config(options, [pair for config in configs.values() for pair in config.pairs])
    weights = load_all_weights(everything.backbones, options.weights, everything.network_mask)
    with held(work, "jobs.audit"):
        catalog = read_collection(data, work, options.allow_outside)
        tasks = _tasks(catalog)
        for line in dict.fromkeys(line for task in tasks for line in chosen[task][1]):
            log.warning("left out: %s", line)
        for task in tasks:
            check_enough(catalog, searches[task])
        for task in tasks:
            embed_and_search(catalog, work, searches[task], configs[task], weights, chosen[task][1], options)
        metrics = decide(data, work, deciding, catalog, tasks)
        print(summary(metrics))
        seconds = metrics["run"]["seconds"]
        took = ", ".join(f"{stage} {value:.0f} s" for stage, value in sorted(seconds.items(), key=lambda x: -x[1]))
        log.info("the stages, the longest first: %s", took)
        log.info("results are in %s", store.join(work, "results"))


if __name__ == "__main__":
    run(main)
