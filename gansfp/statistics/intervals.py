"""The figures of metrics.json: each with its 95 % interval, and the level that chance reaches.

Intervals are bootstrap intervals over whole groups (resampling.py), for all resamples at once: a resample is a row of
weights, how often each group was drawn, and every figure is computed from weighted counts. They say how far the figure
would move with other patients from the same source; predictions and clusters are taken as they are, not fitted again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gansfp.errors import UsageError
from gansfp.statistics.metrics import (
    FALSE_POSITIVE_RATES,
    binary,
    cells_by_group,
    confusion_by_group,
    decisions,
    negatives_allowed,
    partition_metrics,
    partition_of_shares,
    partitions,
    ranking,
)
from gansfp.statistics.resampling import bootstrap_weights, group_codes, group_labels

_CELLS = 1 << 20  # numbers in one block of resamples: bounds the memory


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; nan where it is undefined, or where there are too few groups for an interval."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def as_dict(self) -> dict[str, float | None]:
        """As metrics.json holds it: what is undefined is None, which JSON knows, not NaN, which it does not."""
        figure = {"value": self.value, "low": self.low, "high": self.high}
        return {name: float(x) if np.isfinite(x) else None for name, x in figure.items()}


def membership_figures(
    truth: np.ndarray,
    score: np.ndarray,
    prediction: np.ndarray,
    groups: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Accuracy, precision, recall, specificity, f1, kappa, auc, tpr_at_fpr_0.01 and tpr_at_fpr_0.1 with intervals.

    truth: (n,) 0/1, score: (n,) float, higher means more likely used, prediction: (n,) 0/1, groups: (n,) or None.

    Percentile intervals. Groups are resampled within strata (all used, all not used, mixed), because how many used
    slices a test set has was decided by whoever made it, not by chance; so no resample misses a class. With fewer than
    two groups of a class there is no interval: one patient says nothing about others. Where a figure is perfect,
    resamples never differ; _estimate puts a bound in their place. The rates at 1 % false positives rest on a handful
    of negatives: `support` says how many.
    """
    truth, score, prediction = binary(truth, "truth"), np.asarray(score), binary(prediction, "prediction")
    codes = group_codes(groups, len(truth))
    tables = confusion_by_group(truth, prediction, codes)
    every = np.ones((1, len(tables)))
    blocks = bootstrap_weights(group_labels(truth, codes), resamples, seed, max(1, _CELLS // len(truth)))
    values, samples = (
        _gather({**decisions(w @ tables), **ranking(truth, score, w[:, codes])} for w in part)
        for part in ([every], blocks)
    )
    used, unused = _groups_by_class(truth, codes)
    independent = {"accuracy": len(tables), "recall": used, "specificity": unused}
    return {
        name: _estimate(
            float(value[0]),
            samples[name],
            independent=independent.get(name, min(used, unused)) if min(used, unused) > 1 else 0,
            lowest=-1 if name == "kappa" else 0,
        )
        for name, value in values.items()
    }


def mean_f1(
    sets: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]], resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The mean over sets of the F1, the challenge's measure; each set is resampled by itself.

    sets: (truth, prediction, groups) of each, as in membership_figures.
    """
    if not sets:
        raise UsageError("mean F1: got no sets")
    values, samples, fewest = [], [], []
    for i, (labels, prediction, groups) in enumerate(sets):
        truth = binary(labels, "truth")
        codes = group_codes(groups, len(truth))
        tables = confusion_by_group(truth, binary(prediction, "prediction"), codes)
        blocks = bootstrap_weights(group_labels(truth, codes), resamples, seed + i, max(1, _CELLS // len(tables)))
        samples.append(_gather(decisions(w @ tables) for w in blocks)["f1"])
        values.append(decisions(tables.sum(0, keepdims=True))["f1"][0])
        fewest.append(min(_groups_by_class(truth, codes)))
    return _estimate(float(np.mean(values)), np.mean(samples, axis=0), min(fewest) if min(fewest) > 1 else 0)


def attribution_figures(
    truth: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """ari, nmi, v_measure and purity with intervals. truth, labels: (n,) of any kind, groups: (n,) or None.

    A bootstrap resample holds the same slice twice, and a slice always agrees with itself, so the plain bootstrap of
    pair counts is too high (for a true ARI of 0.09 and 40 groups of 5 its interval covered 76 % instead of 95 %).
    Here pairs of two copies of one group do not count, and the other pairs between groups are scaled by G / (G - 1),
    which gives every pair its own expectation back (90 % there; 94 to 97 % for 60 to 200 independent slices).
    Entropies have no such remedy: the interval of nmi and v_measure is moved down by twice the bootstrap's bias, once
    for the resamples and once for the value, which is above 0 by chance alone (31 % becomes 92 % there).
    """
    codes = group_codes(groups, len(truth))
    table = cells_by_group(truth, labels, codes)
    count = len(table)
    values = partition_metrics(truth, labels)
    blocks = bootstrap_weights(np.zeros(count, dtype=np.int64), resamples, seed, max(1, _CELLS // count))
    samples = _gather(partitions(w, table, count / max(count - 1, 1)) for w in blocks)
    for name in ("nmi", "v_measure"):
        samples[name] = np.clip(samples[name] - 2 * (samples[name].mean() - values[name]), 0, 1)
    # where the clustering is perfect: as if the share that may yet fail had been put anywhere
    lost = _unseen_failures(count)
    shares = table.sum(0) / len(codes)
    failing = partition_of_shares((1 - lost) * shares + lost * np.outer(shares.sum(1), shares.sum(0)))
    figures = {}
    for name, value in values.items():
        low, high = np.percentile(samples[name], [2.5, 97.5])
        low = min(low, failing[name]) if value > 1 - 1e-12 else min(low, value)
        figures[name] = Estimate(value, float(low), float(max(high, value))) if count > 1 else Estimate(value)
    return figures


def support(truth: np.ndarray, groups: np.ndarray | None = None) -> dict[str, int]:
    """What the membership figures rest on: slices, groups, and the negatives that each tpr_at_fpr may call used."""
    truth = binary(truth, "truth")
    negatives = int((truth == 0).sum())
    return {
        "n": len(truth),
        "n_used": len(truth) - negatives,
        "n_not_used": negatives,
        "n_groups": int(group_codes(groups, len(truth)).max(initial=-1)) + 1,
        **{f"negatives_at_fpr_{rate:g}": negatives_allowed(negatives, rate) for rate in FALSE_POSITIVE_RATES},
    }


def _gather(blocks: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    blocks = list(blocks)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _groups_by_class(truth: np.ndarray, codes: np.ndarray) -> tuple[int, int]:
    """How many groups hold a used slice, and how many one that was not used."""
    return len(np.unique(codes[truth == 1])), len(np.unique(codes[truth == 0]))


def _estimate(value: float, samples: np.ndarray, independent: int, lowest: float = 0) -> Estimate:
    """Value and percentile interval of a membership figure between `lowest` and 1; no interval if `independent` is 0.

    A perfect value is perfect in every resample, though the next patient might fail. Its lower limit is then that for
    as many failures as `independent` groups without one leave possible; the same, turned round, at 0.
    """
    if not independent:
        return Estimate(value)
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    lost = _unseen_failures(independent)
    if value == 1:
        low = min(low, 1 - lost * (1 - lowest))
    if value == 0 and lowest == 0:
        high = max(high, lost)
    return Estimate(value, float(min(low, value)), float(max(high, value)))


def _unseen_failures(independent: int) -> float:
    """The failure rate that none in so many trials leaves possible, at 97.5 % (Clopper and Pearson 1934)."""
    return 1 - 0.025 ** (1 / independent)
