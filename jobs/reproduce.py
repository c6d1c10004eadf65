"""The 60 published systems on your data: what each would have said, and its score beside the published one.

    python -m jobs.reproduce --data DATA --work WORK --weights WEIGHTS
    python -m jobs.reproduce --data DATA --work WORK --systems 53,aim24-t1-5-outer-resnet50-min10
    python -m jobs.reproduce --data DATA --work WORK --random-weights --max-steps 20 --input-size 64      for trying out

Every slice is embedded once for all systems together, networks that several systems share are trained once, and
decisions are spread over the cluster. A system that fails is a row with its reason. What is finished is kept:
predictions in WORK/results/reproduction/<id>-<name>/, networks in WORK/models. The truth is read to score, after all
predictions are written. The exit status is 0 where every system has its row, also one that says why it failed.
"""

from __future__ import annotations

import logging
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.truth import read_attribution_truth, read_membership_truth
from gansfp.decision.result_files import write_result
from gansfp.embedding.embedder import PRECISIONS, EmbedConfig
from gansfp.errors import GansfpError
from gansfp.images.lungs import MASK_NAMES
from gansfp.networks.weights import WEIGHT_ENDINGS, check_folder
from gansfp.published.recipe import Recipe
from gansfp.published.recipes import find
from gansfp.published.systems import clusters_known, nothing_to_decide, read_answers
from gansfp.published.table import Row, as_csv, as_markdown
from gansfp.published.training_plan import Planner, Scale
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.embedding import Workers
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_outside_option,
    check_places,
    cluster_config,
    names,
    positive,
    seed,
    share,
)
from gansfp.runtime.readme import Place
from gansfp.runtime.record import record_stage
from gansfp.statistics.intervals import SetDecisions, attribution_figures, mean_f1
from gansfp.statistics.metrics import decision_metrics, f1_all_used, partition_metrics
from jobs.reproduction import baselines
from jobs.reproduction.predictions import Predictions, Said
from jobs.reproduction.prerequisites import Embedding

PLACE = Place("<!-- reproduction: written by jobs.reproduce -->", "<!-- end of reproduction -->")

log = logging.getLogger(__name__)


@dataclass
class Truth:
    """The answers, read once for all rows. by_set: (labels (n,) 0/1, groups (n,)); attribution: (names, groups)."""

    by_set: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    attribution: tuple[np.ndarray, np.ndarray] | None = None
    known: np.ndarray | None = None  # the generators of the training slices, which the catalog tells


def read_truth(data: str, catalog: Catalog) -> Truth:
    """What DATA has of it. Raises DataError as gansfp.collection.truth does."""
    truth = Truth()
    for name in catalog.sets_to_decide():
        labels = read_membership_truth(data, catalog, name)
        if labels is not None:
            groups = catalog.unknown(name).groups()
            truth.by_set[name] = (np.array(list(labels.values())), groups)
    test = catalog.unattributed()
    generators = read_attribution_truth(data, catalog) if len(test) else None
    if generators is not None:
        truth.attribution = (np.array(list(generators.values())), test.groups())
    truth.known = catalog.known_generators().column("generator")
    return truth


def scored(row: Row, answers: baselines.Answers, truth: Truth, seed: int) -> Row:
    """A row with the figures of these answers, by set or "attribution"; as it was where there is no truth."""
    if row.task == "attribution":
        if truth.attribution is None:
            return row
        generators, groups = truth.attribution
        ari = attribution_figures(generators, answers["attribution"], groups, seed=seed)["ari"]
        return replace(row, reproduced=ari, chance=0.0)
    of = {name: (*truth.by_set[name], answers[name]) for name in answers if name in truth.by_set}
    if not of:
        return row
    each = {name: decision_metrics(labels, answer) for name, (labels, _, answer) in of.items()}
    decided = [SetDecisions(truth=labels, prediction=answer, groups=groups) for labels, groups, answer in of.values()]
    return replace(
        row,
        reproduced=mean_f1(decided, seed=seed),
        chance=float(np.mean([f1_all_used(labels) for labels, _, _ in of.values()])),
        f1={name: figures["f1"] for name, figures in each.items()},
        accuracy={name: figures["accuracy"] for name, figures in each.items()},
    )


def table(
    recipes: Sequence[Recipe],
    said: dict[int, Said],
    data: str,
    catalog: Catalog,
    work: str,
    seed: int,
    levels: baselines.Grey,
) -> list[Row]:
    """The rows of these systems and of the baselines, scored where DATA has the truth."""
    truth = read_truth(data, catalog)
    rows = []
    for task in ("membership", "attribution"):
        of_task = [recipe for recipe in recipes if recipe.task == task]
        if not of_task:
            continue
        for name in () if nothing_to_decide(task, catalog) else baselines.names(task):
            row = Row(name.replace("_", " "), task)
            try:
                rows.append(scored(row, baselines.answers(name, task, catalog, levels, seed), truth, seed))
            except GansfpError as error:
                rows.append(replace(row, error=str(error)))
        rows += [system_row(recipe, said[recipe.id], catalog, work, truth, seed) for recipe in of_task]
    return rows


def system_row(recipe: Recipe, said: Said, catalog: Catalog, work: str, truth: Truth, seed: int) -> Row:
    """The row of a system whose predictions have been made, or that has failed."""
    published = recipe.published
    row = Row(
        recipe.name,
        recipe.task,
        str(recipe.id),
        recipe.paper,
        published["test_f1_mean" if recipe.task == "membership" else "test_ari"],
        published_known=published["train_ari"],
        assumed=recipe.assumed,
        notes=tuple(said.notes),
        seconds=math.nan if said.error else said.seconds,
        error=said.error,
    )
    if said.error:
        return row
    if recipe.task == "attribution":
        test = catalog.unattributed()
        row = scored(row, {"attribution": read_answers(work, recipe, "attribution", test)}, truth, seed)
        known = catalog.known_generators()
        if not clusters_known(recipe, catalog):
            return row
        labels = read_answers(work, recipe, "known", known)
        return replace(row, known=partition_metrics(known.column("generator"), labels)["ari"])
    answers = {name: read_answers(work, recipe, name, catalog.unknown(name)) for name in catalog.sets_to_decide()}
    return scored(row, answers, truth, seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    options = parser().parse_args(arguments)
    # Names before places before weights: what is quick to tell is told first.
    recipes = find(options.systems)
    config = EmbedConfig((), options.lungs, options.precision)
    workers = Workers(options.gpus_per_actor, None, options.min_actors, options.max_actors)
    scale = Scale(options.epochs or 0, options.max_steps or 0, options.input_size or 0, options.batch_size or 0)
    check_folder(options.weights)
    if options.readme:
        PLACE.read(options.readme)
    check_places(options.data, options.work)
    with held(options.work, "jobs.reproduce"):
        work, started = store.absolute(options.work), time.monotonic()
        catalog = read_collection(options.data, work, options.allow_outside)
        embedding = Embedding(work, config, workers, cluster_config(options))
        predictions = Predictions(
            recipes,
            catalog,
            embedding,
            Planner(catalog, scale, options.lungs, options.seed, options.stages_data),
            options.weights,
            options.random_weights,
            options.seed,
            options.upscaler,
        )
        levels = baselines.grey(catalog, sorted({recipe.task for recipe in recipes}), work, predictions.start)
        said = predictions.run()
        rows = table(recipes, said, options.data, catalog, work, options.seed, levels)
        failed = [row for row in rows if row.error]
        facts = {"done": len(rows), "failed": len(failed)}
        record_stage(work, "reproduce", time.monotonic() - started, facts, {"systems": [r.name for r in recipes]})
        command = f"python -m jobs.reproduce {shlex.join(sys.argv[1:] if arguments is None else arguments)}"
        text = as_markdown(rows, described(command, catalog))
        write_result(work, "reproduction.csv", as_csv(rows).encode())
        write_result(work, "reproduction.md", text.encode())
        if options.readme:
            PLACE.write(options.readme, text)
        print(text, end="")
        if failed:
            log.warning("%d of %d rows have no figures, the table says why", len(failed), len(rows))


def described(command: str, catalog: Catalog) -> list[str]:
    """What the table is, for the lines above it."""
    sets = [f"`{name}` ({len(catalog.of_set(name)):,} slices)" for name in catalog.sets()]
    clusters = len(catalog.select(task="attribution"))
    data = [f"sets {', '.join(sets)}"] * bool(sets) + [f"attribution ({clusters:,} slices)"] * bool(clusters)
    return [
        f"Written by `{command}`.",
        "",
        "Published figures are of the papers' own data, reproduced ones of this, so they need not agree: "
        f"{' and '.join(data)}. A system is worth what it has above `by chance` and above the baselines in italics, "
        "which know no more than a file's size and grey levels. **Figures in (parentheses) are of random weights or of "
        "training that was scaled down: they show that the system runs, and say nothing about the published one.** "
        "Numbers in brackets and under `assumed` (what the paper leaves open) lead to the list below. `s`: seconds of "
        "the decision and of the training that it rests on, without embedding. Predictions are in "
        "`results/reproduction`, all figures in `results/reproduction.csv`.",
    ]


def parser() -> Parser:
    """The options of the command."""
    found = Parser(prog="jobs.reproduce", description=(__doc__ or "").splitlines()[0])
    found.add_argument("--systems", type=names, default=("all",), help="ids or names with commas between (default all)")
    found.add_argument("--data", required=True, help="the collection: a folder or a URI")
    found.add_argument("--work", required=True, help="where results go: a folder or a URI")
    add_outside_option(found)
    found.add_argument("--weights", help=f"a folder of <timm name>{'|'.join(WEIGHT_ENDINGS)}; else timm's download")
    found.add_argument(
        "--random-weights", action="store_true", help="random ones where weights cannot be had; the row says so"
    )
    found.add_argument("--lungs", default="threshold", help=f"the lung mask, among {','.join(MASK_NAMES)}")
    found.add_argument(
        "--upscaler", choices=("esrgan", "bicubic"), default="esrgan", help="what enlarges the slices of system 16"
    )
    found.add_argument("--precision", default=PRECISIONS[0], help=f"one of {','.join(PRECISIONS)}")
    found.add_argument("--seed", type=seed, default=0)
    found.add_argument("--epochs", type=positive, help="of training, at most; as all that scales down, the row says it")
    found.add_argument("--max-steps", type=positive, help="optimiser steps of each training")
    found.add_argument("--input-size", type=positive, help="pixels a side, for networks that are trained")
    found.add_argument("--batch-size", type=positive, help="slices an optimiser step")
    found.add_argument(
        "--stages-data",
        nargs="+",
        default=(),
        metavar="FOLDER",
        help="what KDE-lab 2023 trained on first: natural images, tampered and authentic; COVID-19 CT; one or both, "
        "each a folder of classes",
    )
    found.add_argument("--readme", metavar="FILE", help=f"also put the table between {PLACE.begin} and {PLACE.end}")
    found.add_argument("--gpus-per-actor", type=share, default=1.0, help="a share: 0.5 puts two actors on a GPU")
    found.add_argument("--min-actors", type=positive, help="embedding processes asked for from the start")
    found.add_argument("--max-actors", type=positive, help="embedding processes at any time")
    add_cluster_options(found)
    return found


if __name__ == "__main__":
    run(main)
