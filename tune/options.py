"""The options of a search, and the configurations that they ask for; shared by tune.search and jobs.audit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.shards import Pair
from gansfp.errors import UsageError
from gansfp.images.views import get_view
from gansfp.runtime.command import Parser
from gansfp.runtime.embedding import available
from gansfp.runtime.options import names, positive, share
from tune.problem import SearchConfig
from tune.space import TASKS
from tune.trials import ALGORITHMS, DRAWN_TRIALS, get_algorithm


def add_search_options(parser: Parser) -> None:
    """Adds the options of every command that searches."""
    parser.add_argument(
        "--algo", default="grid", help=f"the search algorithm: one of {', '.join(ALGORITHMS)} (default %(default)s)"
    )
    parser.add_argument(
        "--max-trials",
        type=positive,
        help=f"trials of each task: a random sample of the grid; as many as optuna draws (default {DRAWN_TRIALS})",
    )
    parser.add_argument(
        "--gpus-per-trial",
        type=share,
        help="share of a GPU for a trial: 0.25 runs four on a GPU (default: as many as there are cores, at most 32)",
    )
    parser.add_argument(
        "--max-memory",
        type=float,
        default=SearchConfig.max_memory,
        help="GB of a trial for distances and dendrograms (default %(default)g); if slices need more, clustering is "
        "approximated, and the log and the results say so",
    )
    parser.add_argument(
        "--allow-large-embeddings",
        action="store_true",
        help="search embeddings that are larger than --max-memory, such as raw feature maps (MODEL:map)",
    )
    parser.add_argument(
        "--copy-blend",
        type=float,
        default=SearchConfig.copy_blend,
        help="planted copies, by which the audit measures what it would have seen: the share of another patient's "
        "slice in each (default %(default)s)",
    )


def search_config(options: argparse.Namespace, task: str, ks: tuple[int, ...] = ()) -> SearchConfig:
    """Returns the search that the options ask for. Raises UsageError for an unknown task or algorithm, or a bad k."""
    if task not in TASKS:
        raise UsageError(f"--task: got {task!r}, expected one of {list(TASKS)}")
    get_algorithm(options.algo)
    TASKS[task].check_ks(ks)
    return SearchConfig(
        task,
        algorithm=options.algo,
        max_trials=options.max_trials,
        gpus_per_trial=options.gpus_per_trial,
        gpus=options.gpus,
        seed=options.seed,
        ks=ks,
        max_memory=options.max_memory,
        allow_large=options.allow_large_embeddings,
        copy_blend=options.copy_blend,
    )


def parse_ks(text: str) -> tuple[int, ...]:
    """Parses the value of --k: whole numbers with commas between."""
    try:
        return tuple(int(part) for part in names(text))
    except ValueError:
        raise UsageError(f"--k: got {text!r}, expected whole numbers with commas between") from None


def choose_pairs(
    task: str, backbones: Sequence[str], views: Sequence[str], folder: str | None
) -> tuple[list[Pair], list[str]]:
    """The embeddings to search: all backbones x views where they are named, else the task's default, without those
    whose weights cannot be had; the second value names these and says why. Raises UsageError for a view that does not
    exist, and for a control of the task, which no trial searches."""
    for view in views:
        get_view(view)
    if backbones:
        pairs = [(backbone, view) for backbone in backbones for view in views or ("full",)]
        if controls := [backbone for backbone, view in pairs if (backbone, view) in TASKS[task].controls]:
            raise UsageError(
                f"--backbones: got {controls[0]!r}, which a {task} search embeds by itself, to compare the classes; "
                "leave it out"
            )
        return pairs, []
    default = TASKS[task].default_pairs
    if views:
        default = tuple((backbone, view) for backbone in dict.fromkeys(b for b, _ in default) for view in views)
    networks = dict.fromkeys(parse_backbone(b).model for b, _ in default if parse_backbone(b).needs_weights)
    usable, left_out = available(list(networks), folder)
    return [(b, v) for b, v in default if parse_backbone(b).model in ("", *usable)], left_out
