"""Metrics from counts and ranks: of one labelling, or of thousands of weighted resamples at once.

The plain functions take truth and predictions and return numbers. Each stands on a function that takes rows of weights,
one row a resample, so that an interval costs a few matrix products and not thousands of calls.
"""

import numpy as np

from gansfp.errors import UsageError
from gansfp.statistics.resampling import permuted_labels

FALSE_POSITIVE_RATES = (0.01, 0.1)


def decision_metrics(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Accuracy, precision, recall, specificity, f1, kappa (Cohen) of 0/1 predictions. truth, prediction: (n,) 0/1.

    Where nothing is called used, precision and f1 are 0; what has no slices to rest on is nan.
    """
    truth, prediction = binary(truth, "truth"), binary(prediction, "prediction")
    table = confusion_by_group(truth, prediction, np.zeros(len(truth), dtype=np.int64))
    return {name: float(value[0]) for name, value in decisions(table).items()}


def auc(truth: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a used slice scores above one not used, ties half. nan for one
    class."""
    return float(ranking(binary(truth, "truth"), np.asarray(score), np.ones((1, len(truth))))["auc"][0])


def tpr_at_fpr(truth: np.ndarray, score: np.ndarray, rate: float) -> float:
    """The largest share of used slices that a threshold finds while it calls at most `rate` of the others used.

    The convention of Carlini et al. 2022, without interpolation; tied scores are called used together or not at all.
    """
    truth = binary(truth, "truth")
    return float(ranking(truth, np.asarray(score), np.ones((1, len(truth))), (rate,))[f"tpr_at_fpr_{rate:g}"][0])


def partition_metrics(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """ari (Hubert and Arabie 1985), nmi (arithmetic mean), v_measure, purity. truth, labels: (n,) of any kind.

    v_measure with equal weights is nmi with the arithmetic mean, by algebra; both names are reported because both are
    used.
    """
    table = cells_by_group(truth, labels, np.zeros(len(truth), dtype=np.int64))
    return {name: float(value[0]) for name, value in partitions(np.ones((1, 1)), table).items()}


def membership_chance(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """What each membership figure is worth without knowing anything, under the same names.

    accuracy: calling all of the majority; f1: calling every slice used (f1_all_used); precision: the share used;
    recall, specificity: the share called used, or not; tpr_at_fpr: the expectation for scores without ties, (m + 1) /
    (N + 1) with m of N negatives allowed, near the rate itself unless negatives are few.
    """
    truth, prediction = binary(truth, "truth"), binary(prediction, "prediction")
    used, called = float(truth.mean()), float(prediction.mean())
    negatives = int((truth == 0).sum())
    return {
        "accuracy": max(used, 1 - used),
        "precision": used,
        "recall": called,
        "specificity": 1 - called,
        "f1": f1_all_used(truth),
        "kappa": 0.0,
        "auc": 0.5,
        **{
            f"tpr_at_fpr_{rate:g}": (negatives_allowed(negatives, rate) + 1) / (negatives + 1)
            for rate in FALSE_POSITIVE_RATES
        },
    }


def attribution_chance(
    truth: np.ndarray, labels: np.ndarray, permutations: int = 200, seed: int = 0
) -> dict[str, float]:
    """The mean of each attribution figure when the generators are permuted among the slices: ari 0, the others
    above."""
    codes = np.unique(truth, return_inverse=True)[1]
    arranged = permuted_labels(codes, np.arange(len(codes)), permutations, seed)
    drawn = [partition_metrics(row, labels) for row in arranged]
    return {name: 0.0 if name == "ari" else float(np.mean([d[name] for d in drawn])) for name in drawn[0]}


def f1_all_used(truth: np.ndarray) -> float:
    """The F1 of calling every slice used: 2p / (1 + p), with p the share used. truth: (n,) 0/1."""
    used = float(binary(truth, "truth").mean())
    return 2 * used / (1 + used)


def negatives_allowed(negatives: int, rate: float) -> int:
    """How many slices not used may be called used at that false positive rate: what tpr_at_fpr rests on."""
    return int(np.floor(rate * negatives + 1e-9))


def binary(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels as (n,) int64 after checking that they are 0 and 1, and that there are any."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size or not np.isin(labels, (0, 1)).all():
        found = np.unique(labels)[:5].tolist()
        raise UsageError(f"{name}: got values {found} of shape {labels.shape}, expected 0 and 1 of shape (n,)")
    return labels.astype(np.int64)


def confusion_by_group(truth: np.ndarray, prediction: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """True positives, false positives, false negatives, true negatives of each group: (G, 4) float64."""
    outcome = 2 * (1 - truth) + (1 - prediction)  # 0: used and called so, 1: missed, 2: wrongly called, 3: rightly not
    table = np.bincount(4 * codes + outcome, minlength=4 * (int(codes.max()) + 1)).reshape(-1, 4)
    return table[:, [0, 2, 1, 3]].astype(np.float64)


def decisions(tables: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of decision_metrics from confusion counts (b, 4), (b,) each."""
    tp, fp, fn, tn = tables.T
    n = tp + fp + fn + tn
    with np.errstate(invalid="ignore", divide="ignore"):
        agreed = (tp + tn) / n
        by_chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
        return {
            "accuracy": agreed,
            "precision": np.where(tp == 0, 0.0, tp / (tp + fp)),
            "recall": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "f1": np.where(tp == 0, 0.0, 2 * tp / (2 * tp + fp + fn)),
            "kappa": (agreed - by_chance) / (1 - by_chance),
        }


def ranking(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray, rates: tuple[float, ...] = FALSE_POSITIVE_RATES
) -> dict[str, np.ndarray]:
    """auc and tpr_at_fpr of each row of weights, (b,) each. truth: (n,) 0/1, score: (n,), weights: (b, n) whole
    numbers."""
    if not np.isfinite(score).all():
        raise UsageError("scores: got values that are not finite; leave out slices that could not be scored")
    order = np.argsort(-score, kind="stable")
    levels = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # the last slice of each distinct score
    weights = weights[:, order]
    # used and not used above each threshold: the corners of the ROC curve
    found = np.cumsum(weights * truth[order], axis=1)[:, levels]
    wrong = np.cumsum(weights * (1 - truth[order]), axis=1)[:, levels]
    used, unused = found[:, -1], wrong[:, -1]
    steps = np.diff(wrong, axis=1, prepend=0)
    heights = found - np.diff(found, axis=1, prepend=0) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        out = {"auc": (steps * heights).sum(1) / (used * unused)}
        for rate in rates:
            allowed = (wrong <= rate * unused[:, None] + 1e-9).sum(1)
            best = np.where(allowed > 0, found[np.arange(len(found)), allowed - 1], 0.0)
            out[f"tpr_at_fpr_{rate:g}"] = np.where(unused > 0, best / used, np.nan)
    return out


def cells_by_group(truth: np.ndarray, labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Contingency table of each group: (G, classes, clusters) float64. truth, labels: (n,) of any kind, codes: (n,)."""
    classes, rows = np.unique(truth, return_inverse=True)
    clusters, columns = np.unique(labels, return_inverse=True)
    if rows.shape != columns.shape or not rows.size:
        raise UsageError(f"clusters: got {rows.size} true labels and {columns.size} cluster labels, expected as many")
    table = np.zeros((int(codes.max()) + 1, len(classes), len(clusters)))
    np.add.at(table, (codes, rows, columns), 1)
    return table


def partitions(weights: np.ndarray, table: np.ndarray, between: float = 1.0) -> dict[str, np.ndarray]:
    """The metrics of partition_metrics for each row of weights, (b,) each. weights: (b, G), table: (G, classes,
    clusters).

    The pairs of the Rand index are those within a group, once for each time it was drawn, and those between different
    groups, times `between`; pairs of two copies of one group are none.
    """

    def pairs(counts: np.ndarray) -> np.ndarray:
        across = (weights @ counts) ** 2 - weights**2 @ counts**2
        within = weights @ (counts * (counts - 1))
        return (between * across + within).sum(1) / 2

    cells = table.reshape(len(table), -1)
    ari = _adjusted(pairs(cells), pairs(table.sum(2)), pairs(table.sum(1)), pairs(cells.sum(1, keepdims=True)))
    counts = (weights @ cells).reshape(-1, *table.shape[1:])
    return {"ari": ari, **_information(counts / counts.sum((1, 2), keepdims=True))}


def partition_of_shares(shares: np.ndarray) -> dict[str, float]:
    """The metrics of partition_metrics for endlessly many slices. shares: (classes, clusters), sum 1."""
    ari = _adjusted(
        (shares**2).sum(keepdims=True)[0],
        (shares.sum(1) ** 2).sum(keepdims=True),
        (shares.sum(0) ** 2).sum(keepdims=True),
        np.ones(1),
    )
    return {name: float(value[0]) for name, value in {"ari": ari, **_information(shares[None])}.items()}


def _adjusted(index: np.ndarray, rows: np.ndarray, columns: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Adjusted Rand index from numbers of pairs, (b,) each."""
    expected = rows * columns / np.maximum(total, 1e-300)
    room = (rows + columns) / 2 - expected
    # no room: both are one cluster, or both all singletons, and agree
    return np.where(room == 0, 1.0, (index - expected) / np.where(room == 0, 1.0, room))


def _information(shares: np.ndarray) -> dict[str, np.ndarray]:
    """nmi, v_measure and purity of contingency tables given as shares (b, classes, clusters), (b,) each."""

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(np.where(p > 0, p, 1))).reshape(len(p), -1).sum(1)

    total = entropy(shares.sum(2)) + entropy(shares.sum(1))
    shared = total - entropy(shares)
    # no entropy in either: both are one cluster, and agree; rounding may leave -1e-17
    nmi = np.where(total < 1e-12, 1.0, np.clip(2 * shared / np.maximum(total, 1e-12), 0, 1))
    return {"nmi": nmi, "v_measure": nmi, "purity": shares.max(1).sum(1)}
