"""The figures of metrics.json, each with its 95 % confidence interval.

Intervals are bootstrap intervals over whole groups (resampling.py). All resamples are computed at once: a resample is a
row of weights, which says how often each group was drawn, and every figure is computed from weighted counts. An
interval tells how far the figure would move with other patients from the same source. Predictions and clusters are
taken as they are; nothing is fitted again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gansfp.errors import UsageError
from gansfp.statistics.metrics import (
    FALSE_POSITIVE_RATES,
    MEMBERSHIP_METRICS,
    GroupCounts,
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
    """A value and its 95 % interval; nan where a number is undefined, or where too few groups allow no interval."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def as_dict(self) -> dict[str, float | None]:
        """Returns the entry of metrics.json. An undefined number is None, because JSON has no NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class SetDecisions:
    """The decisions about one set. truth, prediction: (n,) 0/1; groups: (n,), or None for independent slices."""

    truth: np.ndarray
    prediction: np.ndarray
    groups: np.ndarray | None = None


def membership_figures(
    truth: np.ndarray,
    score: np.ndarray,
    prediction: np.ndarray,
    groups: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Returns every figure of MEMBERSHIP_METRICS with its interval.

    truth: (n,) 0/1, score: (n,) float, a higher score means more likely used, prediction: (n,) 0/1, groups: (n,) or
    None.

    Intervals are percentile intervals. Groups are resampled within strata (all used, all not used, mixed), because
    whoever made the test set decided how many used slices it has; chance did not. So every resample has both classes.
    With fewer than two groups of a class there is no interval: one patient tells nothing about others. Where a figure
    is perfect, all resamples are equal; _estimate then takes a bound instead. The rates at 1 % false positives rest on
    a handful of negatives; `support` counts them.
    """
    truth, score, prediction = binary(truth, "truth"), np.asarray(score), binary(prediction, "prediction")
    codes = group_codes(groups, len(truth))
    tables = confusion_by_group(truth, prediction, codes)
    all_once = np.ones((1, len(tables)))
    blocks = bootstrap_weights(group_labels(truth, codes), resamples, seed, max(1, _CELLS // len(truth)))
    values, samples = (
        _gather({**decisions(w @ tables), **ranking(truth, score, w[:, codes])} for w in weights)
        for weights in ([all_once], blocks)
    )
    counts = _count_groups(truth, codes)
    return {
        name: _estimate(
            float(values[name][0]),
            samples[name],
            independent=metric.independent(counts) if counts.fewest > 1 else 0,
            lowest=metric.lowest,
        )
        for name, metric in MEMBERSHIP_METRICS.items()
    }


def mean_f1(sets: Sequence[SetDecisions], resamples: int = 2000, seed: int = 0) -> Estimate:
    """Returns the mean F1 over sets, which is the measure of the challenge. Each set is resampled by itself."""
    if not sets:
        raise UsageError("mean F1: got no sets, expected one or more")
    values, samples, fewest = [], [], []
    for i, of_set in enumerate(sets):
        truth = binary(of_set.truth, "truth")
        codes = group_codes(of_set.groups, len(truth))
        tables = confusion_by_group(truth, binary(of_set.prediction, "prediction"), codes)
        blocks = bootstrap_weights(group_labels(truth, codes), resamples, seed + i, max(1, _CELLS // len(tables)))
        samples.append(_gather(decisions(w @ tables) for w in blocks)["f1"])
        values.append(decisions(tables.sum(0, keepdims=True))["f1"][0])
        fewest.append(_count_groups(truth, codes).fewest)
    return _estimate(float(np.mean(values)), np.mean(samples, axis=0), min(fewest) if min(fewest) > 1 else 0)


def attribution_figures(
    truth: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Returns ari, nmi, v_measure and purity with intervals. truth, labels: (n,) of any kind, groups: (n,) or None.

    A bootstrap resample can hold the same slice twice, and a slice always agrees with itself. So the plain bootstrap
    of pair counts is too high: for a true ARI of 0.09 and 40 groups of 5 slices, its interval covered the true value in
    76 % of the cases instead of 95 %. Here pairs of two copies of one group do not count, and the other pairs between
    groups are scaled by G / (G - 1), so that every pair has its expectation again. The coverage is then 90 % in that
    case, and 94 to 97 % for 60 to 200 independent slices. Entropies have no such correction. The interval of nmi and
    v_measure is therefore moved down by twice the bias of the bootstrap: once for the resamples, and once for the
    value, which is above 0 by chance. In that case this raises the coverage from 31 % to 92 %.
    """
    codes = group_codes(groups, len(truth))
    table = cells_by_group(truth, labels, codes)
    count = len(table)
    values = partition_metrics(truth, labels)
    blocks = bootstrap_weights(np.zeros(count, dtype=np.int64), resamples, seed, max(1, _CELLS // count))
    samples = _gather(partitions(w, table, count / max(count - 1, 1)) for w in blocks)
    for name in ("nmi", "v_measure"):
        samples[name] = np.clip(samples[name] - 2 * (samples[name].mean() - values[name]), 0, 1)
    # the lower limit of a perfect figure: as if the share that may still fail were put in random clusters
    lost = _unseen_failures(count)
    shares = table.sum(0) / len(codes)
    with_failures = partition_of_shares((1 - lost) * shares + lost * np.outer(shares.sum(1), shares.sum(0)))
    figures = {}
    for name, value in values.items():
        low, high = np.percentile(samples[name], [2.5, 97.5])
        low = min(low, with_failures[name]) if value > 1 - 1e-12 else min(low, value)
        figures[name] = Estimate(value, float(low), float(max(high, value))) if count > 1 else Estimate(value)
    return figures


def support(truth: np.ndarray, groups: np.ndarray | None = None) -> dict[str, int]:
    """Returns how many slices and groups the membership figures rest on, and how many negatives each tpr_at_fpr
    allows to be called used."""
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


def _count_groups(truth: np.ndarray, codes: np.ndarray) -> GroupCounts:
    used, not_used = (len(np.unique(codes[truth == label])) for label in (1, 0))
    return GroupCounts(len(np.unique(codes)), used, not_used)


def _estimate(value: float, samples: np.ndarray, independent: int, lowest: float = 0) -> Estimate:
    """Returns the value and percentile interval of a figure between `lowest` and 1; no interval if `independent` is 0.

    A perfect value is perfect in every resample, though the next patient might fail. The lower limit is then the value
    for the largest failure rate that is compatible with no failure among `independent` groups. The same holds for the
    upper limit of a value of 0.
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
    """Returns the largest failure rate compatible with no failure in that many trials, at 97.5 % (Clopper and Pearson
    1934)."""
    return 1 - 0.025 ** (1 / independent)
