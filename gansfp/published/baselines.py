"""Baselines of honesty: what may be said of slices without looking at what is in them, to print beside every system.

A system that does not beat "all_used", a coin, or the size of the file has found nothing out about membership; one that
does not beat the colour of a file has found the file's colour, not the generator.
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

FILE_FIGURES = ("bytes", "mean_grey", "grey_levels")
BASELINES = {
    "membership": ("all_used", "random", *FILE_FIGURES),
    "attribution": ("one_cluster", "random", *FILE_FIGURES),
}


def grey_figures(pixels: np.ndarray) -> tuple[float, int]:
    """The mean of a slice, 0 to 255, and how many different grey levels it has. pixels: (h, w) uint8."""
    counts = np.bincount(pixels.ravel(), minlength=256)
    return float(counts @ np.arange(256) / pixels.size), int((counts > 0).sum())


def decide_baseline(
    name: str, labels: np.ndarray, figures: Mapping[str, np.ndarray] | None = None, seed: int = 0
) -> Decision:
    """What a membership baseline says of real slices.

    labels: (n,) 1 used, 0 not used, -1 unknown; figures: FILE_FIGURES of the slices, (n,) each: size of the file in
    bytes, and the two of grey_figures. "random" is a fair coin for each slice. Raises UsageError for an unknown name,
    for figures that are not finite, and where a class has no labelled slice to learn from.
    """
    _check(name, "membership")
    if name == "all_used":
        return Decision(np.ones(len(labels), np.int64), None)
    if name == "random":
        return Decision(np.random.default_rng(seed).integers(0, 2, len(labels)), None)
    return one_number(_figure(name, figures, len(labels)), labels)


def attribute_baseline(
    name: str, n: int, k: int, figures: Mapping[str, np.ndarray] | None = None, seed: int = 0
) -> np.ndarray:
    """Clusters (n,) int64 that an attribution baseline makes of n slices: one, random ones, or k-means of one figure.

    k: how many, fewer where there are fewer slices. figures: as for decide_baseline, of these slices.
    """
    _check(name, "attribution")
    if name == "one_cluster":
        return np.zeros(n, np.int64)
    if name == "random":
        return np.random.default_rng(seed).integers(0, k, n)
    values = _figure(name, figures, n)[:, None].astype(np.float32)
    return cluster(values, Clustering("kmeans", standardise=True, seed=seed), min(k, n)).labels


def one_number(values: np.ndarray, labels: np.ndarray) -> Decision:
    """A threshold on one number: the one, and the side of it, with the best balanced accuracy on the labelled slices.

    Where both sides do as well, used is above; of equally good thresholds the one that calls the fewest used, as
    choose_threshold has it. values: (n,) float, labels: (n,); the score is the number, or minus it.
    """
    labelled = labels != UNKNOWN
    truth = (labels[labelled] == USED).astype(np.int64)
    found = []
    for side in (1, -1):
        score = side * np.asarray(values, np.float64)
        prediction = (score >= choose_threshold(score[labelled], truth, "balanced_accuracy")).astype(np.int64)
        right = decision_metrics(truth, prediction[labelled])
        found.append((right["recall"] + right["specificity"], Decision(prediction, score, {"side": side})))
    return max(found, key=lambda each: each[0])[1]


def _check(name: str, task: str) -> None:
    if name not in BASELINES[task]:
        raise UsageError(f"baseline: got {name!r}, expected one of {list(BASELINES[task])}")


def _figure(name: str, figures: Mapping[str, np.ndarray] | None, n: int) -> np.ndarray:
    values = np.asarray((figures or {}).get(name, ()), np.float64)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise UsageError(f"baseline {name!r}: got {values.shape} numbers for {n} slices, expected one each, all finite")
    return values
