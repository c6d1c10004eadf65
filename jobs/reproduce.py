"""Runs the published systems on your data and compares their scores with the published ones.

    python -m jobs.reproduce --data DATA --work WORK --weights WEIGHTS
    python -m jobs.reproduce --data DATA --work WORK --systems 53,aim24-t1-5-outer-resnet50-min10
    python -m jobs.reproduce --data DATA --work WORK --random-weights --max-steps 20 --input-size 64      a trial run

Each slice is embedded once for all systems. A network that several systems share is trained once. Decisions are
distributed over the Ray cluster. A system that fails has a row with the reason. Finished work is kept: predictions in
WORK/results/reproduction/<id>-<name>/, networks in WORK/models. The truth is read only to score, after all predictions
are written. The exit status is 0 when every system has its row, also if the row says why the system failed.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.truth import read_attribution_truth, read_membership_truth
from gansfp.decision.result_files import write_result
from gansfp.embedding.embedder import EmbedConfig
from gansfp.images.lungs import MASK_NAMES
from gansfp.networks.weights import WEIGHT_ENDINGS, check_folder
from gansfp.published.recipe import Recipe
from gansfp.published.recipes import find
from gansfp.published.table import Row, as_csv, as_markdown
from gansfp.published.training_plan import Planner, Scale
from gansfp.runtime.cluster import ClusterConfig
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.embedding import Workers
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_collection_options,
    add_precision_option,
    check_places,
    cluster_config,
    collection_config,
    names,
    positive,
    seed,
    share,
)
from gansfp.runtime.readme import Place
from gansfp.runtime.record import record_stage
from jobs.reproduction.baselines import read_grey_levels
from jobs.reproduction.predictions import Predictions
from jobs.reproduction.prerequisites import EmbeddingJob
from jobs.reproduction.scores import Scorer, Truth

PLACE = Place("<!-- reproduction: written by jobs.reproduce -->", "<!-- end of reproduction -->")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReproduceConfig:
    """Which systems run, and how.

    embed: how slices are embedded; its pairs are not used. scale: how training is scaled down. stage_folders: the data
    of training stages that DATA does not hold. weights: a folder of weights, or None. random_weights: random weights
    are used where weights are missing. upscaler: the name of the upscaler for systems that enlarge slices.
    """

    recipes: tuple[Recipe, ...]
    embed: EmbedConfig
    workers: Workers
    cluster: ClusterConfig
    scale: Scale
    stage_folders: tuple[str, ...]
    weights: str | None
    random_weights: bool
    upscaler: str
    seed: int


def read_truth(data: str, catalog: Catalog) -> Truth:
    """Reads the truth that DATA has. Raises DataError as gansfp.collection.truth does."""
    labels = {}
    for name in catalog.sets_to_decide():
        used = read_membership_truth(data, catalog, name)
        if used is not None:
            labels[name] = np.array(list(used.values()))
    generators = read_attribution_truth(data, catalog) if len(catalog.unattributed()) else None
    return Truth(labels, None if generators is None else np.array(list(generators.values())))


def reproduce(data: str, work: str, catalog: Catalog, config: ReproduceConfig) -> list[Row]:
    """Makes the predictions that are missing in WORK, and returns the row of each system and baseline."""
    predictions = Predictions(
        config.recipes,
        catalog,
        EmbeddingJob(work, config.embed, config.workers, config.cluster),
        Planner(catalog, config.scale, config.embed.mask, config.seed, config.stage_folders),
        config.weights,
        config.random_weights,
        config.seed,
        config.upscaler,
    )
    tasks = sorted({recipe.task for recipe in config.recipes})
    levels = read_grey_levels(catalog, tasks, work, predictions.start_ray)
    outcomes = predictions.run()
    return Scorer(catalog, work, read_truth(data, catalog), config.seed).rows(config.recipes, outcomes, levels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of the module's docstring."""
    options = parser().parse_args(arguments)
    # The checks are in the order of their cost: names, then places.
    config = reproduce_config(options)
    check_folder(config.weights)
    readme: str | None = options.readme
    if readme:
        PLACE.read(readme)
    check_places(options.data, options.work)
    with held(options.work, "jobs.reproduce"):
        data, work, started = options.data, store.absolute(options.work), time.monotonic()
        catalog = read_collection(data, work, collection_config(options))
        rows = reproduce(data, work, catalog, config)
        failed = sum(bool(row.error) for row in rows)
        facts = {"done": len(rows), "failed": failed}
        systems = {"systems": [recipe.name for recipe in config.recipes]}
        record_stage(work, "reproduce", time.monotonic() - started, facts, systems)
        command = f"python -m jobs.reproduce {shlex.join(sys.argv[1:] if arguments is None else arguments)}"
        text = as_markdown(rows, introduction(command, catalog))
        write_result(work, "reproduction.csv", as_csv(rows).encode())
        write_result(work, "reproduction.md", text.encode())
        if readme:
            PLACE.write(readme, text)
        print(text, end="")
        if failed:
            log.warning("%d of %d rows have no scores; the table says why", failed, len(rows))


def introduction(command: str, catalog: Catalog) -> list[str]:
    """Returns the lines above the table that explain it."""
    sets = [f"`{name}` ({len(catalog.of_set(name)):,} slices)" for name in catalog.sets()]
    attribution = len(catalog.select(task="attribution"))
    parts = [f"sets {', '.join(sets)}"] if sets else []
    parts += [f"attribution ({attribution:,} slices)"] if attribution else []
    return [
        f"Written by `{command}`.",
        "",
        "Published scores are of the papers' own data. Reproduced scores are of this data, so they need not agree: "
        f"{' and '.join(parts)}. A system is useful only if its score is higher than `by chance` and higher than the "
        "baselines in italics, which use only a file's size and grey levels. **Scores in (parentheses) are of random "
        "weights or of scaled-down training: they show that the system runs, and say nothing about the published "
        "one.** Numbers in brackets and under `assumed` (what the paper leaves open) refer to the list below the "
        "tables. `s`: seconds of the decision and of the trainings that it needs, without embedding. Predictions are "
        "in `results/reproduction`, all scores in `results/reproduction.csv`.",
    ]


def reproduce_config(options: argparse.Namespace) -> ReproduceConfig:
    """Returns the configuration for these options. Raises UsageError for unknown names and impossible numbers."""
    return ReproduceConfig(
        recipes=tuple(find(options.systems)),
        embed=EmbedConfig((), options.lungs, options.precision),
        workers=Workers(options.gpus_per_actor, None, options.min_actors, options.max_actors),
        cluster=cluster_config(options),
        scale=Scale(options.epochs or 0, options.max_steps or 0, options.input_size or 0, options.batch_size or 0),
        stage_folders=tuple(options.stages_data),
        weights=options.weights,
        random_weights=options.random_weights,
        upscaler=options.upscaler,
        seed=options.seed,
    )


def parser() -> Parser:
    """Returns the parser of the command's options."""
    parser = Parser(prog="jobs.reproduce", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--systems", type=names, default=("all",), help="ids or names, separated by commas (default: all)"
    )
    parser.add_argument("--data", required=True, help="the collection: a folder or a URI")
    parser.add_argument("--work", required=True, help="the folder or URI for the results")
    add_collection_options(parser)
    parser.add_argument(
        "--weights",
        help=f"a folder with files <timm name>{'|'.join(WEIGHT_ENDINGS)}; other weights are downloaded by timm",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="use random weights where weights are missing; the row of the table says so",
    )
    parser.add_argument("--lungs", default="threshold", help=f"the lung mask, one of {','.join(MASK_NAMES)}")
    parser.add_argument(
        "--upscaler",
        choices=("esrgan", "bicubic"),
        default="esrgan",
        help="how systems that enlarge slices do it (default: %(default)s)",
    )
    add_precision_option(parser)
    parser.add_argument("--seed", type=seed, default=0, help="seed of all random numbers (default: %(default)s)")
    _add_scale_options(parser)
    parser.add_argument(
        "--stages-data",
        nargs="+",
        default=(),
        metavar="FOLDER",
        help="data of the first training stages of KDE-lab 2023: natural images, tampered and authentic; then COVID-19 "
        "CT; each folder has one sub-folder for each class; without a folder the stage is skipped",
    )
    parser.add_argument(
        "--readme", metavar="FILE", help=f"also write the table into this file, between {PLACE.begin} and {PLACE.end}"
    )
    parser.add_argument(
        "--gpus-per-actor", type=share, default=1.0, help="the share of a GPU: with 0.5 two actors share one GPU"
    )
    parser.add_argument("--min-actors", type=positive, help="number of embedding processes at the start")
    parser.add_argument("--max-actors", type=positive, help="largest number of embedding processes")
    add_cluster_options(parser)
    return parser


def _add_scale_options(parser: Parser) -> None:
    """Adds the options that scale training down. The table says where they change a system."""
    parser.add_argument("--epochs", type=positive, help="largest number of epochs of each training stage")
    parser.add_argument("--max-steps", type=positive, help="largest number of optimiser steps of each training stage")
    parser.add_argument("--input-size", type=positive, help="pixels a side of the inputs of trained networks")
    parser.add_argument("--batch-size", type=positive, help="slices in an optimiser step")


if __name__ == "__main__":
    run(main)
