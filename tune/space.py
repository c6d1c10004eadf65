"""The search space: what one trial is (an embedding, made ready), and what is swept inside a trial.

A trial is worth its overhead only if it shares work: the distances, dendrograms and principal components of one
prepared embedding serve every method, k, linkage and rule, which are swept inside it and give one row each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna

from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.shards import Pair
from gansfp.scoring.attribution import COVARIANCES, INITS, Clustering
from gansfp.scoring.distances import METRICS

TASKS = ("membership", "attribution")

# Pooled features forget where things are and see little of what a generator remembers; small high-pass slices keep it.
# Several windows, because generators differ in the scales they draw well.
NETWORKS = ("mobilenetv2_100", "densenet121")
DEFAULT_PAIRS: dict[str, tuple[Pair, ...]] = {
    "membership": (
        *((f"highpass-w{window}-64", "full") for window in (0, 7, 15, 31, 63)),
        *((f"highpass-w{window}-32", "full") for window in (7, 15)),
        *(("highpass-w15-64", view) for view in ("lungs", "outer")),
        *((network, view) for network in NETWORKS for view in ("full", "lungs", "outer")),
        *((f"{network}:map", "full") for network in NETWORKS),
    ),
    "attribution": (
        ("residual", "full"),
        ("lbp", "full"),
        *((network, view) for network in NETWORKS for view in ("full", "lungs", "outer")),
    ),
}
COMPONENTS = (0, 0.95)  # principal components: none, or the share of variance kept


def grid(task: str, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Every trial of the grid, in a fixed order."""
    return [
        {"backbone": backbone, "view": view, "components": components, **rest}
        for backbone, view in pairs
        for components in COMPONENTS
        for rest in _RESTS[task](backbone)
    ]


def suggest(trial: optuna.Trial, task: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """One trial as Optuna draws it; a parameter exists only under the backbone that has it."""
    backbone, _, view = trial.suggest_categorical("pair", [f"{b} {v}" for b, v in pairs]).rpartition(" ")
    components = trial.suggest_categorical("components", [0, 0.8, 0.9, 0.95, 0.99])
    rests = _RESTS[task](backbone)
    choice = 0
    if len(rests) > 1:
        choice = trial.suggest_int(f"preparation_of_{len(rests)}", 0, len(rests) - 1)
    return {"backbone": backbone, "view": view, "components": components, **rests[choice]}


def _membership_rests(backbone: str) -> list[dict[str, Any]]:
    parsed = parse_backbone(backbone)
    of_unit_norm = parsed.kind == "highpass" or parsed.features == "map"
    # between vectors of unit norm cosine orders as euclidean does, and manhattan hardly otherwise
    return [{"metric": metric} for metric in (("euclidean",) if of_unit_norm else METRICS)]


def _attribution_rests(backbone: str) -> list[dict[str, Any]]:
    return [{"standardise": standardise} for standardise in (False, True)]


_RESTS = {"membership": _membership_rests, "attribution": _attribution_rests}


def clusterings(components: int | float, standardise: bool, seed: int) -> list[Clustering]:
    """The clusterings that one attribution trial sweeps; no full covariances, which few slices cannot fill."""
    common: dict[str, Any] = {"components": components, "standardise": standardise, "seed": seed}
    found = [Clustering("hierarchical", linkage, **common) for linkage in ("ward", "average", "complete")]
    found.append(Clustering("hierarchical", "average", "cosine", **common))
    found.append(Clustering("kmeans", **common))
    if components:
        found += [
            Clustering("gmm", covariance=covariance, init=init, **common)
            for covariance in COVARIANCES
            for init in INITS
            if covariance in ("diag", "spherical") and init in ("kmeans", "k-means++")
        ]
    return found
