"""Baselines to print beside every system: decisions that do not use the content of the slices.

A system shows nothing about membership unless it beats "all_used", a fair coin and the file size. A system shows
nothing about the generator unless it beats the file size, the mean grey level and the number of grey levels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gansfp.decision.thresholds import choose_threshold
from gansfp.errors import UsageError
from gansfp.labels import UNKNOWN, USED
from gansfp.published.rules import Decision
from gansfp.scoring.attribution import Clustering, cluster
from gansfp.statistics.metrics import decision_metrics

FILE_PROPERTIES = ("bytes", "mean_grey", "grey_levels")
BASELINES = {
    "membership": ("all_used", "random", *FILE_PROPERTIES),
    "attribution": ("one_cluster", "random", *FILE_PROPERTIES),
}


def grey_properties(pixels: np.ndarray) -> tuple[float, int]:
    """Returns a slice's mean grey level, 0 to 255, and its number of different grey levels. pixels: (h, w) uint8."""
    counts = np.bincount(pixels.ravel(), minlength=256)
    return float(counts @ np.arange(256) / pixels.size), int((counts > 0).sum())


def decide_baseline(
    name: str, labels: np.ndarray, properties: Mapping[str, np.ndarray] | None = None, seed: int = 0
) -> Decision:
    """Decides about real slices by a membership baseline. "random" is a fair coin for each slice.

    labels: (n,) 1 used, 0 not used, -1 unknown; properties: the FILE_PROPERTIES of the slices, (n,) each: the file size
    in bytes, and the two of grey_properties. Raises UsageError for an unknown name, for properties that are not finite,
    and where a class has no labelled slice to learn from.
    """
    _check_name(name, "membership")
    if name == "all_used":
        return Decision(np.ones(len(labels), np.int64), None)
    if name == "random":
        return Decision(np.random.default_rng(seed).integers(0, 2, len(labels)), None)
    return decide_by_property(_finite_property(name, properties, len(labels)), labels)


def attribute_baseline(
    name: str, n: int, k: int, properties: Mapping[str, np.ndarray] | None = None, seed: int = 0
) -> np.ndarray:
    """Clusters n slices by an attribution baseline: one cluster, random clusters, or k-means of one property.

    k: the number of clusters; if there are fewer slices, their number. properties: as for decide_baseline. Returns
    (n,) int64.
    """
    _check_name(name, "attribution")
    if name == "one_cluster":
        return np.zeros(n, np.int64)
    if name == "random":
        return np.random.default_rng(seed).integers(0, k, n)
    values = _finite_property(name, properties, n)[:, None].astype(np.float32)
    return cluster(values, Clustering("kmeans", standardise=True, seed=seed), min(k, n)).labels


def decide_by_property(values: np.ndarray, labels: np.ndarray) -> Decision:
    """Decides by a threshold on one number: the threshold and the side with the best balanced accuracy on the labelled
    slices.

    If both sides are equally good, slices above the threshold are used. Of equally good thresholds, choose_threshold
    takes the one that calls the fewest slices used. values: (n,) float, labels: (n,). The score is the value, or minus
    the value where slices below the threshold are used.
    """
    labelled = labels != UNKNOWN
    truth = (labels[labelled] == USED).astype(np.int64)
    candidates: list[tuple[float, Decision]] = []
    for side in (1, -1):
        score = side * np.asarray(values, np.float64)
        prediction = (score >= choose_threshold(score[labelled], truth, "balanced_accuracy")).astype(np.int64)
        metrics = decision_metrics(truth, prediction[labelled])
        candidates.append((metrics["recall"] + metrics["specificity"], Decision(prediction, score, {"side": side})))
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _check_name(name: str, task: str) -> None:
    if name not in BASELINES[task]:
        raise UsageError(f"baseline: got {name!r}, expected one of {list(BASELINES[task])}")


def _finite_property(name: str, properties: Mapping[str, np.ndarray] | None, n: int) -> np.ndarray:
    values = np.asarray((properties or {}).get(name, ()), np.float64)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise UsageError(
            f"baseline {name!r}: got {values.shape} numbers for {n} slices, expected one for each slice, all finite"
        )
    return values
