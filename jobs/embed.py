"""Embeds every slice of DATA through all (backbone, view) pairs; a second run embeds what the first one left.

python -m jobs.embed --data DATA --work WORK --backbones mobilenetv2_100,highpass --views full,lungs,outer
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gansfp import store
from gansfp.embedding.embedder import load_all_weights
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.embedding import available, embed
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_embedding_options,
    check_places,
    cluster_config,
    collection_config,
    embed_config,
    embed_workers,
)
from gansfp.runtime.precision import settle_precision

DEFAULT_BACKBONES = ("mobilenetv2_100", "densenet121", "lbp")
DEFAULT_VIEWS = ("full", "lungs", "outer")

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.embed", description=(__doc__ or "").splitlines()[0])
    add_embedding_options(parser)
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    workers, views = embed_workers(options), options.views or DEFAULT_VIEWS
    # Names before places before weights: what is quick to tell is told first.
    embed_config(options, [(backbone, view) for backbone in options.backbones or DEFAULT_BACKBONES for view in views])
    check_places(options.data, options.work)
    with held(options.work, "jobs.embed"):
        backbones = options.backbones
        if not backbones:
            backbones, left_out = available(DEFAULT_BACKBONES, options.weights)
            for line in left_out:
                log.warning("left out: %s", line)
        config = embed_config(options, [(backbone, view) for backbone in backbones for view in views])
        weights = load_all_weights(config.backbones, options.weights, config.network_mask)
        work = store.absolute(options.work)
        catalog, cluster = read_collection(options.data, work, collection_config(options)), cluster_config(options)
        config = settle_precision(config, dict.fromkeys(config.pairs, catalog.hashes()), work, weights, cluster)
        embed(catalog, work, config, weights, workers, cluster)


if __name__ == "__main__":
    run(main)
