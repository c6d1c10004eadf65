"""Shortcuts of the attribution: how far do files and grey levels alone tell known generators apart?"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gansfp.collection.catalog import Catalog
from gansfp.cores import cores
from gansfp.decision.search_result import Scalar
from gansfp.decision.shortcuts import Shortcut
from gansfp.embedding.backbones import cpu_features, is_on_cpu, parse_backbone
from gansfp.embedding.embedder import SMALL_BATCH, Embedder
from gansfp.embedding.shards import Pair
from gansfp.images import slices
from gansfp.images.slices import Source
from gansfp.scoring.attribution import Clustering, cluster
from gansfp.scoring.traces import combs, histograms, with_one_histogram
from gansfp.statistics.metrics import partition_metrics

MOST = 600  # slices that are read
TELLS = 0.2  # adjusted Rand index from which a trace alone tells generators apart
WITHOUT_WEIGHTS = "residual"  # stands for a network, whose weights the last step of a search does not have


@dataclass(frozen=True, eq=False)
class Known:
    """Slices of known generators. bytes: (n,) of each slice in its file; pixels: (n, 256, 256) uint8; generators: (n,)
    str."""

    bytes: np.ndarray
    pixels: np.ndarray
    generators: np.ndarray


def read_known(images: Catalog, rows: np.ndarray, generators: np.ndarray) -> Known | None:
    """Reads slices, at most MOST. rows: (n,) of images; generators: (n,) str. None where fewer than two generators
    have readable ones."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST])
    sources = images.sources()
    with ThreadPoolExecutor(cores()) as threads:
        loaded = list(threads.map(_pixels, [sources[row] for row in rows[chosen]]))
    readable = np.array([pixels is not None for pixels in loaded], bool)
    chosen, pixels = chosen[readable], [of_slice for of_slice in loaded if of_slice is not None]
    if len(set(generators[chosen].tolist())) < 2:
        return None
    frames = np.maximum(images.column("frames"), 1)
    sizes = (images.column("bytes") / frames)[rows[chosen]]
    return Known(sizes, np.stack(pixels), generators[chosen])


def _pixels(source: Source) -> np.ndarray | None:
    return slices.load(source).pixels


def traces_of(known: Known, choices: Mapping[str, Scalar]) -> list[Shortcut]:
    """How well known generators are told apart by one trace alone, and by the chosen configuration after all files are
    made equal: adjusted Rand indices, where chance gives 0, with the true number of generators.

    choices: of the chosen configuration. A network's place takes WITHOUT_WEIGHTS.
    """
    shares = histograms(known.pixels)
    found = [
        _alone("the size of the file alone tells known generators apart", np.log1p(known.bytes)[:, None], known),
        _alone("the histogram of grey levels alone tells known generators apart", np.sqrt(shares), known),
        _alone("gaps and peaks of the histogram alone tell known generators apart", combs(shares), known),
    ]
    backbone = str(choices["backbone"])
    if parse_backbone(backbone).needs_weights:
        backbone = WITHOUT_WEIGHTS
    clustering = _clustering(choices)
    before, after = (
        _ari(_embedded((backbone, "full"), pixels), clustering, known.generators)
        for pixels in (known.pixels, with_one_histogram(known.pixels, known.generators))
    )
    what = f"{backbone} tells known generators apart after all of them got one histogram: adjusted Rand index"
    return [*found, Shortcut(what, after, "before that", before, after < before - TELLS)]


def _alone(what: str, features: np.ndarray, known: Known) -> Shortcut:
    ari = _ari(features.astype(np.float32), Clustering("kmeans"), known.generators)
    return Shortcut(f"{what}: adjusted Rand index", ari, "by chance", 0.0, ari > TELLS)


def _ari(x: np.ndarray, clustering: Clustering, generators: np.ndarray) -> float:
    labels = cluster(x, clustering, len(set(generators.tolist()))).labels
    return float(partition_metrics(np.unique(generators, return_inverse=True)[1], labels)["ari"])


def _clustering(choices: Mapping[str, Scalar]) -> Clustering:
    """The clustering of a configuration."""
    components = choices["components"]
    assert not isinstance(components, str)
    linkage, metric, covariance, init = (
        str(choices.get(name, getattr(Clustering, name))) for name in ("linkage", "metric", "covariance", "init")
    )
    standardise = bool(choices["standardise"])
    return Clustering(str(choices["method"]), linkage, metric, covariance, init, components, standardise)


def _embedded(pair: Pair, pixels: np.ndarray) -> np.ndarray:
    masks = np.zeros(pixels.shape, bool)
    if is_on_cpu(pair[0]):
        return np.stack([cpu_features([pair], *one)[pair] for one in zip(pixels, masks, strict=True)])
    return Embedder([pair], {}, batch_limit=SMALL_BATCH)(pixels, masks)[pair]
