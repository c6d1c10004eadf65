"""Options that several commands share, how their values are checked, and the configurations that they give."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from gansfp import store
from gansfp.collection.readings import READ_AS
from gansfp.decision.decide import FinalConfig
from gansfp.decision.stacking import COMBINATIONS
from gansfp.decision.thresholds import DEFAULT_RULE, RULES, parse_rule
from gansfp.embedding.embedder import AUTO, PRECISIONS, EmbedConfig
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, UsageError
from gansfp.images.lungs import MASK_NAMES
from gansfp.images.views import VIEWS
from gansfp.networks.weights import WEIGHT_ENDINGS
from gansfp.runtime.cluster import ClusterConfig
from gansfp.runtime.collection import CollectionConfig
from gansfp.runtime.command import Parser
from gansfp.runtime.embedding import Workers


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Adds --address, --gpus and --verbose, for every command that runs on Ray."""
    parser.add_argument(
        "--address", help="HOST:PORT of a Ray cluster (default: RAY_ADDRESS, else Ray starts on this machine)"
    )
    parser.add_argument(
        "--gpus",
        type=count,
        help="number of GPUs to plan for, where a Ray cluster starts them when needed (default: those that it has now)",
    )
    parser.add_argument("--verbose", action="store_true", help="show the messages of Ray and other libraries")


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """Adds --precision, for every command that embeds."""
    parser.add_argument(
        "--precision",
        default=AUTO,
        help=f"of the networks: one of {', '.join(PRECISIONS)} (default %(default)s: as the embeddings in WORK, else "
        "bfloat16 where the devices are faster in it)",
    )


def cluster_config(options: argparse.Namespace) -> ClusterConfig:
    """Returns the Ray cluster that the options ask for."""
    return ClusterConfig(options.address, options.gpus, options.verbose)


def add_collection_options(parser: argparse.ArgumentParser) -> None:
    """Adds --allow-outside and --sixteen-bit, for every command that reads DATA."""
    parser.add_argument(
        "--allow-outside", action="store_true", help="let a table in DATA name files that are not below it"
    )
    parser.add_argument(
        "--sixteen-bit",
        choices=READ_AS,
        help="what numbers of 16 bits are where files do not tell: the full range, 8-bit levels in the low byte, or HU "
        "with an offset; auto recognises them, by class (default: as in an earlier run in WORK, else auto)",
    )


def collection_config(options: argparse.Namespace) -> CollectionConfig:
    """Returns how the options want DATA to be read."""
    return CollectionConfig(options.allow_outside, options.sixteen_bit)


def check_places(data: str, work: str) -> None:
    """Checks DATA and WORK before any work is done.

    Raises DataError where DATA is missing or WORK cannot be written, UsageError where both are one folder, or where a
    submitted job gets a relative path: it would lead into Ray's copy of the checkout.
    """
    for name, place in (("--data", data), ("--work", work)):
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (store.is_remote(place) or os.path.isabs(place)):
            raise UsageError(f"{name}: got {place!r} in a submitted job, expected an absolute path or a URI")
    if store.absolute(data) == store.absolute(work):
        raise UsageError(f"--work: got {work!r}, which is --data, expected another folder")
    if not store.exists(data):
        raise DataError(f"--data: got {data!r}, which does not exist; expected a folder or a URI with images")
    store.check_writable(work)


def add_embedding_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the options of every command that embeds."""
    parser.add_argument("--data", required=required, help="the collection: a folder or a URI")
    parser.add_argument("--work", required=required, help="the folder or URI for results")
    add_collection_options(parser)
    parser.add_argument("--backbones", type=names, help="backbones, with commas between; jobs/README.md lists them")
    parser.add_argument("--views", type=names, help=f"views, with commas between: {','.join(VIEWS)}")
    parser.add_argument(
        "--lungs", default="threshold", help=f"the lung mask: one of {', '.join(MASK_NAMES)} (default %(default)s)"
    )
    parser.add_argument(
        "--weights",
        help=f"a folder of <timm name>{'|'.join(WEIGHT_ENDINGS)}, and of lungmask's file (default: downloads)",
    )
    add_precision_option(parser)
    parser.add_argument(
        "--gpus-per-actor",
        type=share,
        default=1.0,
        help="share of a GPU for an embedding process: 0.5 puts two on a GPU (default %(default)s)",
    )
    parser.add_argument("--batch", type=positive, help="slices that are on the device at the same time")
    parser.add_argument("--min-actors", type=positive, help="embedding processes to start with")
    parser.add_argument(
        "--max-actors", type=positive, help="embedding processes at most (default: one for each GPU or core)"
    )


def embed_config(options: argparse.Namespace, pairs: Sequence[Pair]) -> EmbedConfig:
    """Returns the embedding that the options ask for. Raises UsageError for unknown names."""
    return EmbedConfig(tuple(pairs), options.lungs, options.precision)


def embed_workers(options: argparse.Namespace) -> Workers:
    """Returns the workers that the options ask for. Raises UsageError for numbers that contradict each other."""
    return Workers(options.gpus_per_actor, options.batch, options.min_actors, options.max_actors)


def add_final_options(parser: Parser) -> None:
    """Adds the options of every command that decides about test slices."""
    parser.add_argument(
        "--combine",
        choices=COMBINATIONS,
        help="the best configuration, or a stack of several (default: the one with the larger cross-validated AUC)",
    )
    parser.add_argument(
        "--decide",
        default=DEFAULT_RULE,
        help=f"the threshold rule: {', '.join(RULES)}, or the share of slices to call used (default %(default)s)",
    )
    parser.add_argument(
        "--permutations", type=positive, default=1000, help="permutations for each p-value (default %(default)s)"
    )
    parser.add_argument(
        "--alpha",
        type=level,
        default=0.05,
        help="the level of the verdicts' tests (default %(default)s)",
    )
    parser.add_argument(
        "--fdr", type=level, default=0.1, help="the share of wrong names in a list of patients (default %(default)s)"
    )
    parser.add_argument(
        "--match", action="store_true", help="also compare used and not-used patients whose slices are alike"
    )


def final_config(options: argparse.Namespace) -> FinalConfig:
    """Returns the final step that the options ask for. Raises UsageError for an unknown threshold rule."""
    return FinalConfig(
        options.combine,
        parse_rule(options.decide),
        options.permutations,
        options.seed,
        alpha=options.alpha,
        fdr=options.fdr,
        match=options.match,
    )


def count(text: str, least: int = 0) -> int:
    """Parses the value of an option: a whole number of at least `least`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least {least}")
    return value


def positive(text: str) -> int:
    """Parses the value of an option: a whole number of at least 1."""
    return count(text, least=1)


def seed(text: str) -> int:
    """Parses the seed of all random generators: a whole number below 2**32."""
    value = count(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number below {2**32}")
    return value


def level(text: str) -> float:
    """Parses the level of a test: more than 0, at most 0.5."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 0.5:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0 and at most 0.5, such as 0.05")
    return value


def share(text: str) -> float:
    """Parses a share of a device: more than 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0 and at most 1, such as 0.5")
    return value


def names(text: str) -> tuple[str, ...]:
    """Parses names with commas between; each name once."""
    values = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not values:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected names with commas between")
    return values
