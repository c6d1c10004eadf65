"""Options that several commands share: named once, parsed and checked once, and turned into configurations."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from gansfp import store
from gansfp.decision.decision import FinalConfig
from gansfp.decision.stacking import COMBINATIONS
from gansfp.decision.thresholds import DEFAULT_RULE, RULES, parse_rule
from gansfp.embedding.embedder import PRECISIONS, EmbedConfig
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, UsageError
from gansfp.images.lungs import MASK_NAMES
from gansfp.images.views import VIEWS
from gansfp.networks.weights import WEIGHT_ENDINGS
from gansfp.runtime.cluster import ClusterConfig
from gansfp.runtime.command import Parser
from gansfp.runtime.embedding import Workers


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """--address, --gpus and --verbose, for every command that runs on Ray."""
    parser.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else Ray is started on this machine)")
    parser.add_argument(
        "--gpus", type=count, help="how many to count on, where a cluster starts them as needed (default: those there)"
    )
    parser.add_argument("--verbose", action="store_true", help="show what Ray and other libraries have to say")


def cluster_config(options: argparse.Namespace) -> ClusterConfig:
    """The cluster that those options ask for."""
    return ClusterConfig(options.address, options.gpus, options.verbose)


def add_outside_option(parser: argparse.ArgumentParser) -> None:
    """--allow-outside, for every command that reads DATA."""
    parser.add_argument(
        "--allow-outside", action="store_true", help="let a table in DATA name files that are not below it"
    )


def check_places(data: str, work: str) -> None:
    """What can be said of DATA and WORK at once. Raises DataError where DATA is missing or WORK cannot be written,
    UsageError where they are one folder, or in a submitted job relative paths: those end in Ray's copy of the checkout.
    """
    for name, place in (("--data", data), ("--work", work)):
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (store.is_remote(place) or os.path.isabs(place)):
            raise UsageError(f"{name}: got {place!r} in a submitted job, expected an absolute path or a URI")
    if store.absolute(data) == store.absolute(work):
        raise UsageError(f"--work: got {work!r}, which is --data, expected another folder")
    if not store.exists(data):
        raise DataError(f"--data: got {data!r}, where nothing is; expected a folder or a URI with images")
    store.check_writable(work)


def add_embedding_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The options of every command that embeds: what, where, how."""
    parser.add_argument("--data", required=required, help="the collection: a folder or a URI")
    parser.add_argument("--work", required=required, help="where results go: a folder or a URI")
    add_outside_option(parser)
    parser.add_argument("--backbones", type=names, help="names with commas between; see gansfp/embedding/backbones.py")
    parser.add_argument("--views", type=names, help=f"among {','.join(VIEWS)}")
    parser.add_argument("--lungs", default="threshold", help=f"the lung mask, among {','.join(MASK_NAMES)}")
    parser.add_argument(
        "--weights",
        help=f"a folder of <timm name>{'|'.join(WEIGHT_ENDINGS)} and of lungmask's file; else their own downloads",
    )
    parser.add_argument("--precision", default=PRECISIONS[0], help=f"one of {','.join(PRECISIONS)}")
    parser.add_argument("--gpus-per-actor", type=share, default=1.0, help="a share: 0.5 puts two actors on a GPU")
    parser.add_argument("--batch", type=positive, help="slices on the device at once")
    parser.add_argument("--min-actors", type=positive, help="embedding processes asked for from the start")
    parser.add_argument(
        "--max-actors", type=positive, help="embedding processes at any time (default: one a GPU or core)"
    )


def embed_config(options: argparse.Namespace, pairs: Sequence[Pair]) -> EmbedConfig:
    """The configuration that those options ask for. Raises UsageError for unknown names."""
    return EmbedConfig(tuple(pairs), options.lungs, options.precision)


def embed_workers(options: argparse.Namespace) -> Workers:
    """The workers that those options ask for. Raises UsageError for numbers that contradict each other."""
    return Workers(options.gpus_per_actor, options.batch, options.min_actors, options.max_actors)


def add_final_options(parser: Parser) -> None:
    """How decisions are made, for every command that makes them."""
    parser.add_argument("--combine", choices=COMBINATIONS, help="default: whichever cross-validates better")
    parser.add_argument("--decide", default=DEFAULT_RULE, help=f"threshold: {', '.join(RULES)}, or a rate")
    parser.add_argument("--permutations", type=positive, default=1000, help="of the p-values")


def final_config(options: Any) -> FinalConfig:
    """The configuration that those options ask for."""
    return FinalConfig(options.combine, parse_rule(options.decide), options.permutations, options.seed)


def count(text: str, least: int = 0) -> int:
    """An option's value that must be a whole number of at least `least`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least {least}")
    return value


def positive(text: str) -> int:
    """An option's value that must be a whole number of at least 1."""
    return count(text, least=1)


def seed(text: str) -> int:
    """An option's value that every random generator takes: a whole number that 32 bits hold."""
    value = count(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number below {2**32}")
    return value


def share(text: str) -> float:
    """An option's value that is a share of a device: more than 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0 and at most 1, such as 0.5")
    return value


def names(text: str) -> tuple[str, ...]:
    """An option's value that is a list of names with commas between."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected names with commas between")
    return found
