"""The size of large embeddings, such as raw feature maps: stated, and checked, before hours of embedding."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from gansfp.collection.catalog import Catalog
from gansfp.embedding.backbones import is_on_cpu, parse_backbone
from gansfp.embedding.embedder import Embedder
from gansfp.embedding.shards import Pair
from gansfp.errors import UsageError
from gansfp.images.slices import SIDE
from gansfp.networks.weights import Weights
from tune.problem import SearchConfig

LARGE = 4096  # numbers a slice; no default embedding has more
NUMBER_BYTES = 4  # float32

log = logging.getLogger(__name__)


def check_embedding_sizes(
    catalog: Catalog, config: SearchConfig, pairs: Sequence[Pair], weights: Mapping[str, Weights]
) -> None:
    """Logs the bytes of each embedding of more than 4,096 numbers a slice, for the slices of the task.

    Raises UsageError for an embedding that is larger than --max-memory, unless the search allows it.
    """
    slices = len(catalog.select(task=config.task))
    numbers_of = _numbers({backbone for backbone, _ in pairs}, weights)
    for backbone, view in pairs:
        numbers = numbers_of.get(backbone, 0)
        if numbers <= LARGE:
            continue
        size = NUMBER_BYTES * numbers * slices
        told = f"{numbers:,} numbers a slice, {size / 1e9:.2f} GB for {slices:,} slices"
        if size > config.limit and not config.allow_large:
            smaller = backbone.replace(":map", ":sketch") if parse_backbone(backbone).features == "map" else ""
            raise UsageError(
                f"embedding {backbone} {view}: got {told}, expected at most --max-memory {config.max_memory:g} GB; "
                f"{f'use {smaller}' if smaller else 'use a smaller one'}, or give --allow-large-embeddings"
            )
        log.info("large embedding %s %s: %s", backbone, view, told)


def _numbers(backbones: set[str], weights: Mapping[str, Weights]) -> dict[str, int]:
    """Numbers a slice of each backbone, by embedding one black slice. Leaves out those that CPUs compute, all small."""
    pairs = [(backbone, "full") for backbone in sorted(backbones) if not is_on_cpu(backbone)]
    black = np.zeros((1, SIDE, SIDE))
    vectors = Embedder(pairs, weights, precision="float32")(black.astype(np.uint8), black.astype(bool))
    return {backbone: of_pair.shape[1] for (backbone, _), of_pair in vectors.items()}
