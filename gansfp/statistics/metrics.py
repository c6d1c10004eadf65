"""Metrics from counts and ranks: of one labelling, or of thousands of weighted resamples at once.

The plain functions take truth and predictions and return numbers. Each calls a function that takes rows of weights, one
row for each resample, so that an interval costs a few matrix products instead of thousands of calls.

MEMBERSHIP_METRICS lists the membership figures of metrics.json. A new figure is one entry there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from gansfp.errors import UsageError
from gansfp.statistics.resampling import permuted_labels

FALSE_POSITIVE_RATES = (0.01, 0.1)


@dataclass(frozen=True)
class Shares:
    """What a chance level depends on. used: share of slices that were used; called: share of slices that are called
    used; negatives: number of slices that were not used."""

    used: float
    called: float
    negatives: int


@dataclass(frozen=True)
class GroupCounts:
    """Numbers of groups. total: all of them; used: those with a used slice; not_used: those with one not used."""

    total: int
    used: int
    not_used: int

    @property
    def fewest(self) -> int:
        """The number of groups of the rarer class."""
        return min(self.used, self.not_used)


@dataclass(frozen=True)
class MembershipMetric:
    """One membership figure of metrics.json; its largest possible value is 1.

    chance: computes the value that a guess without any knowledge reaches. of_counts: computes the figure from true
    positives, false positives, false negatives and true negatives, (b,) float64 each; None for a figure that `ranking`
    computes from scores. lowest: the smallest possible value. independent: how many groups could each have shown a
    failure; these bound the interval of a perfect figure (intervals.py).
    """

    chance: Callable[[Shares], float]
    of_counts: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None
    lowest: float = 0
    independent: Callable[[GroupCounts], int] = lambda groups: groups.fewest


def _accuracy(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return (tp + tn) / (tp + fp + fn + tn)


def _precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return np.where(tp == 0, 0.0, tp / (tp + fp))


def _recall(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return tp / (tp + fn)


def _specificity(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return tn / (tn + fp)


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    return np.where(tp == 0, 0.0, 2 * tp / (2 * tp + fp + fn))


def _kappa(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    """Cohen's kappa."""
    agreed = _accuracy(tp, fp, fn, tn)
    by_chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / (tp + fp + fn + tn) ** 2
    return (agreed - by_chance) / (1 - by_chance)


def _chance_of_rate(rate: float, shares: Shares) -> float:
    """The expectation of tpr_at_fpr for scores without ties: (m + 1) / (N + 1) with m of N negatives allowed. It is
    near the rate itself unless negatives are few."""
    return (negatives_allowed(shares.negatives, rate) + 1) / (shares.negatives + 1)


def _f1_all_used(share: float) -> float:
    return 2 * share / (1 + share)


MEMBERSHIP_METRICS: dict[str, MembershipMetric] = {
    # the chance level of accuracy is that of calling every slice what most slices are
    "accuracy": MembershipMetric(lambda s: max(s.used, 1 - s.used), _accuracy, independent=lambda g: g.total),
    "precision": MembershipMetric(lambda s: s.used, _precision),
    "recall": MembershipMetric(lambda s: s.called, _recall, independent=lambda g: g.used),
    "specificity": MembershipMetric(lambda s: 1 - s.called, _specificity, independent=lambda g: g.not_used),
    "f1": MembershipMetric(lambda s: _f1_all_used(s.used), _f1),
    "kappa": MembershipMetric(lambda s: 0.0, _kappa, lowest=-1),
    "auc": MembershipMetric(lambda s: 0.5),
    **{f"tpr_at_fpr_{rate:g}": MembershipMetric(partial(_chance_of_rate, rate)) for rate in FALSE_POSITIVE_RATES},
}


def decision_metrics(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Returns the figures of MEMBERSHIP_METRICS that 0/1 predictions have. truth, prediction: (n,) 0/1.

    Where no slice is called used, precision and f1 are 0; a figure whose denominator is 0 is nan.
    """
    truth, prediction = binary(truth, "truth"), binary(prediction, "prediction")
    table = confusion_by_group(truth, prediction, np.zeros(len(truth), dtype=np.int64))
    return {name: float(value[0]) for name, value in decisions(table).items()}


def partition_metrics(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns ari (Hubert and Arabie 1985), nmi (arithmetic mean), v_measure and purity. truth, labels: (n,) of any
    kind.

    v_measure with equal weights equals nmi with the arithmetic mean, by algebra. Both are reported, because papers use
    both names.
    """
    table = cells_by_group(truth, labels, np.zeros(len(truth), dtype=np.int64))
    return {name: float(value[0]) for name, value in partitions(np.ones((1, 1)), table).items()}


def membership_chance(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Returns what each membership figure reaches without any knowledge, under the same names.

    truth, prediction: (n,) 0/1. For accuracy that is calling every slice what most slices are, for f1 calling every
    slice used, for the other figures the expectation of a random guess.
    """
    truth, prediction = binary(truth, "truth"), binary(prediction, "prediction")
    shares = Shares(float(truth.mean()), float(prediction.mean()), int((truth == 0).sum()))
    return {name: metric.chance(shares) for name, metric in MEMBERSHIP_METRICS.items()}


def attribution_chance(
    truth: np.ndarray, labels: np.ndarray, permutations: int = 200, seed: int = 0
) -> dict[str, float]:
    """Returns the mean of each attribution figure when the generators are permuted among the slices. That of ari is 0,
    the others are above 0."""
    codes = np.unique(truth, return_inverse=True)[1]
    permuted = permuted_labels(codes, np.arange(len(codes)), permutations, seed)
    figures = [partition_metrics(row, labels) for row in permuted]
    return {name: 0.0 if name == "ari" else float(np.mean([row[name] for row in figures])) for name in figures[0]}


def f1_all_used(truth: np.ndarray) -> float:
    """Returns the F1 of calling every slice used: 2p / (1 + p) for a share p of used slices. truth: (n,) 0/1."""
    return _f1_all_used(float(binary(truth, "truth").mean()))


def negatives_allowed(negatives: int, rate: float) -> int:
    """Returns how many slices that were not used may be called used at a false positive rate. tpr_at_fpr rests on
    so many slices."""
    return int(np.floor(rate * negatives + 1e-9))


def binary(labels: np.ndarray, name: str) -> np.ndarray:
    """Returns labels as (n,) int64. Raises UsageError unless they are 0 and 1, and there is at least one."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size or not np.isin(labels, (0, 1)).all():
        values = np.unique(labels)[:5].tolist()
        raise UsageError(f"{name}: got values {values} of shape {labels.shape}, expected 0 and 1 of shape (n,)")
    return labels.astype(np.int64)


def confusion_by_group(truth: np.ndarray, prediction: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns true positives, false positives, false negatives and true negatives of each group: (G, 4) float64."""
    outcome = 2 * (1 - truth) + (1 - prediction)  # 0 true positive, 1 false negative, 2 false positive, 3 true negative
    table = np.bincount(4 * codes + outcome, minlength=4 * (int(codes.max()) + 1)).reshape(-1, 4)
    return table[:, [0, 2, 1, 3]].astype(np.float64)


def decisions(tables: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the figures of decision_metrics from confusion counts (b, 4), (b,) each."""
    tp, fp, fn, tn = tables.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            name: metric.of_counts(tp, fp, fn, tn)
            for name, metric in MEMBERSHIP_METRICS.items()
            if metric.of_counts is not None
        }


def ranking(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray, rates: tuple[float, ...] = FALSE_POSITIVE_RATES
) -> dict[str, np.ndarray]:
    """Returns auc and tpr_at_fpr_<rate> of each row of weights, (b,) each; nan where a class is missing.

    truth: (n,) 0/1, score: (n,), weights: (b, n) whole numbers. auc: the area under the ROC curve, which is the
    probability that a used slice scores above one that was not used; ties count half. tpr_at_fpr (the convention of
    Carlini et al. 2022, without interpolation): the largest share of used slices that any threshold finds while it
    calls at most `rate` of the other slices used; tied scores are called used together or not at all.
    """
    if not np.isfinite(score).all():
        raise UsageError("scores: got values that are not finite; leave out slices that could not be scored")
    order = np.argsort(-score, kind="stable")
    levels = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # the last slice of each distinct score
    weights = weights[:, order]
    # positives at or above each distinct score: the corners of the ROC curve
    true_positives = np.cumsum(weights * truth[order], axis=1)[:, levels]
    false_positives = np.cumsum(weights * (1 - truth[order]), axis=1)[:, levels]
    positives, negatives = true_positives[:, -1], false_positives[:, -1]
    steps = np.diff(false_positives, axis=1, prepend=0)
    heights = true_positives - np.diff(true_positives, axis=1, prepend=0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = {"auc": (steps * heights).sum(1) / (positives * negatives)}
        for rate in rates:
            allowed = (false_positives <= rate * negatives[:, None] + 1e-9).sum(1)
            best = np.where(allowed > 0, true_positives[np.arange(len(weights)), allowed - 1], 0.0)
            figures[f"tpr_at_fpr_{rate:g}"] = np.where(negatives > 0, best / positives, np.nan)
    return figures


def cells_by_group(truth: np.ndarray, labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the contingency table of each group: (G, classes, clusters) float64.

    truth, labels: (n,) of any kind, codes: (n,) of group_codes. Raises UsageError for different lengths, or for 0.
    """
    classes, rows = np.unique(truth, return_inverse=True)
    clusters, columns = np.unique(labels, return_inverse=True)
    if rows.shape != columns.shape or not rows.size:
        raise UsageError(
            f"clusters: got {rows.size} true labels and {columns.size} cluster labels, expected equally many"
        )
    table = np.zeros((int(codes.max()) + 1, len(classes), len(clusters)))
    np.add.at(table, (codes, rows, columns), 1)
    return table


def partitions(weights: np.ndarray, table: np.ndarray, between: float = 1.0) -> dict[str, np.ndarray]:
    """Returns the figures of partition_metrics for each row of weights, (b,) each.

    weights: (b, G), table: (G, classes, clusters). The Rand index counts the pairs within a group once for each time
    that the group was drawn, and the pairs between different groups `between` times. It does not count pairs of two
    copies of one group.
    """

    def pairs(counts: np.ndarray) -> np.ndarray:
        across = (weights @ counts) ** 2 - weights**2 @ counts**2
        within = weights @ (counts * (counts - 1))
        return (between * across + within).sum(1) / 2

    cells = table.reshape(len(table), -1)
    ari = adjusted_rand(pairs(cells), pairs(table.sum(2)), pairs(table.sum(1)), pairs(cells.sum(1, keepdims=True)))
    counts = (weights @ cells).reshape(-1, *table.shape[1:])
    return {"ari": ari, **_information(counts / counts.sum((1, 2), keepdims=True))}


def partition_of_shares(shares: np.ndarray) -> dict[str, float]:
    """Returns the limit of partition_metrics for infinitely many slices. shares: (classes, clusters), sum 1."""
    ari = adjusted_rand(
        (shares**2).sum(keepdims=True)[0],
        (shares.sum(1) ** 2).sum(keepdims=True),
        (shares.sum(0) ** 2).sum(keepdims=True),
        np.ones(1),
    )
    return {name: float(value[0]) for name, value in {"ari": ari, **_information(shares[None])}.items()}


def adjusted_rand(index: np.ndarray, rows: np.ndarray, columns: np.ndarray, total: np.ndarray | float) -> np.ndarray:
    """Returns the adjusted Rand index from numbers of pairs, arrays that broadcast together.

    index: pairs within a cell of the contingency table, rows: within a class, columns: within a cluster, total: all.
    """
    expected = rows * columns / np.maximum(total, 1e-300)
    span = (rows + columns) / 2 - expected
    # a span of 0: both partitions are one cluster, or both are all singletons, so they agree
    return np.where(span == 0, 1.0, (index - expected) / np.where(span == 0, 1.0, span))


def _information(shares: np.ndarray) -> dict[str, np.ndarray]:
    """Returns nmi, v_measure and purity of contingency tables given as shares (b, classes, clusters), (b,) each."""

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(np.where(p > 0, p, 1))).reshape(len(p), -1).sum(1)

    total = entropy(shares.sum(2)) + entropy(shares.sum(1))
    mutual_information = total - entropy(shares)
    # a total of 0: both partitions are one cluster, so they agree; rounding may leave -1e-17
    nmi = np.where(total < 1e-12, 1.0, np.clip(2 * mutual_information / np.maximum(total, 1e-12), 0, 1))
    return {"nmi": nmi, "v_measure": nmi, "purity": shares.max(1).sum(1)}
