"""p-values by permutation, for one configuration and for the best of all configurations that were tried.

p = (1 + b) / (1 + B), where b of B permutations reach the observed value (Phipson and Smyth 2010). It is never 0, and
valid for every B. resampling.permuted_labels defines what is permuted: groups, or slices within a group.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import rankdata

from gansfp.errors import UsageError
from gansfp.statistics.metrics import adjusted_rand
from gansfp.statistics.resampling import count_permutations, group_codes, permuted_labels

_ROWS = 128  # permutations, and configurations, in one product; bounds the memory
_CELLS = 1 << 24  # numbers in one block of a product; bounds the memory where there are many slices


@dataclass(frozen=True)
class PValues:
    """The p-values of a chosen configuration, by itself and as the best of all that were tried.

    p_value: of the chosen configuration; valid if it was chosen without these labels. p_value_selected: compares the
    best of all with the best of all under permuted labels, so it accounts for the search. observed: the statistic of
    the chosen configuration; best, best_index: of the best. by_chance: percentiles 0 to 100 of the best under permuted
    labels, which is what the search finds by luck. smallest: neither p-value can fall below it; it is large
    where there are few groups or few permutations.
    """

    p_value: float
    p_value_selected: float
    observed: float
    best: float
    best_index: int
    by_chance: tuple[float, ...]
    tried: int
    n_groups: int
    permutations: int
    smallest: float

    @property
    def warning(self) -> str:
        """Says why these p-values cannot be small; empty if they can."""
        if self.smallest <= 0.05:
            return ""
        return f"{self.n_groups} groups and {self.permutations} permutations: p cannot fall below {self.smallest:.2g}"


def p_values_auc(
    truth: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray | None = None,
    chosen: int | np.ndarray = 0,
    permutations: int = 1000,
    seed: int = 0,
) -> PValues:
    """Tests whether labels unrelated to the scores could give so large an area under the ROC curve.

    truth: (n,) 0/1, scores: (n,) or (n_configurations, n) float, a higher score means more likely used, groups: (n,) or
    None, chosen: the row of scores for p_value, or scores (n,) that count as one more row, before the others.
    One-sided; ties count half (midranks).

    The scores must not have been computed from these labels. Out-of-fold scores of a method that was fitted to the
    labels depend on them; the p-value is then approximate, because an exact test would repeat the fit for every
    permutation.

    The computation is one product of labels and ranks, exact in float64. The scores and the labels (permutations, n)
    are in memory; everything else is computed block by block.
    """
    parts = [np.atleast_2d(scores)]
    if isinstance(chosen, np.ndarray):
        # Not in one array with the others: there they would all have to be as wide as the widest numbers.
        parts, chosen = [chosen[None], *parts], 0
    labels = _checked(truth, parts, chosen)
    if labels.max() > 1:
        raise UsageError(f"p-value: got {labels.max() + 1} kinds of labels, expected 2: 0 (not used) and 1 (used)")
    return _permute(labels, parts, groups, chosen, permutations, seed, _auc)


def p_values_ari(
    truth: np.ndarray,
    labelings: np.ndarray,
    groups: np.ndarray | None = None,
    chosen: int = 0,
    permutations: int = 1000,
    seed: int = 0,
) -> PValues:
    """Tests whether generators unrelated to the clusters could give so large an adjusted Rand index.

    truth: (n,) of any kind, labelings: (n,) or (n_configurations, n) cluster labels; the other arguments as in
    p_values_auc. Clusterings that are equal up to the names of clusters are computed once.
    """
    labelings = np.atleast_2d(labelings)
    labels = _checked(truth, [labelings], chosen)
    unique, row_of = np.unique(np.stack([_renamed(row) for row in labelings]), axis=0, return_inverse=True)
    result = _permute(labels, [unique], groups, int(row_of[chosen]), permutations, seed, _ari)
    best = int(np.flatnonzero(row_of == result.best_index)[0])
    return PValues(**{**asdict(result), "best_index": best, "tried": len(labelings)})


def _permute(
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    groups: np.ndarray | None,
    chosen: int,
    permutations: int,
    seed: int,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> PValues:
    """parts: arrays (c, n) whose rows are numbered through."""
    codes = group_codes(groups, len(labels))
    # row 0 holds the observed labels, so that they go through the same arithmetic
    labelings = np.concatenate([labels[None], permuted_labels(labels, codes, permutations, seed)])
    best, best_index = np.full(len(labelings), -np.inf), 0
    of_chosen, step, tried = best, _block(len(labels)), 0
    for rows in (part[start : start + step] for part in parts for start in range(0, len(part), step)):
        values = statistic(labelings, rows)
        if tried <= chosen < tried + len(rows):
            of_chosen = values[:, chosen - tried]
        if values[0].max() > best[0]:
            best_index = tried + int(values[0].argmax())
        best = np.maximum(best, values.max(1))
        tried += len(rows)

    def p_value(values: np.ndarray) -> float:
        # "not below" instead of "at least", so that an undefined value counts as reached; 1e-12 allows for rounding
        reached = ~(values[1:] < values[0] - 1e-12)
        return float((1 + reached.sum()) / (1 + permutations))

    return PValues(
        p_value=p_value(of_chosen),
        p_value_selected=p_value(best),
        observed=float(of_chosen[0]),
        best=float(best[0]),
        best_index=best_index,
        by_chance=tuple(np.percentile(best[1:], np.arange(101)).tolist()),
        tried=tried,
        n_groups=int(codes.max()) + 1,
        permutations=permutations,
        smallest=max(1 / (1 + permutations), 1 / count_permutations(labels, codes)),
    )


def _block(n: int) -> int:
    return min(_ROWS, max(1, _CELLS // n))


def _auc(labelings: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the AUC of every score under every labelling, (b, c); nan for a single class. labelings: (b, n) 0/1,
    scores: (c, n)."""
    ranks = rankdata(scores, axis=1)
    positives = labelings.sum(1, dtype=np.float64)[:, None]
    rank_sums = np.empty((len(labelings), len(scores)))
    step = _block(labelings.shape[1])
    for i in range(0, len(labelings), step):
        rank_sums[i : i + step] = labelings[i : i + step].astype(np.float64) @ ranks.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rank_sums - positives * (positives + 1) / 2) / (positives * (labelings.shape[1] - positives))


def _ari(labelings: np.ndarray, clusterings: np.ndarray) -> np.ndarray:
    """Returns the adjusted Rand index of every clustering under every labelling, (b, c). labelings: (b, n),
    clusterings: (c, n)."""
    n = labelings.shape[1]
    classes = np.arange(labelings.max() + 1)[:, None]
    sizes = clusterings.max(1) + 1
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    columns = np.zeros((n, int(sizes.sum())), dtype=np.float32)
    for clusters, start in zip(clusterings, starts, strict=True):
        columns[np.arange(n), start + clusters] = 1
    column_pairs = np.add.reduceat(_pairs(columns.sum(0, dtype=np.float64)), starts)
    indices = np.empty((len(labelings), len(clusterings)))
    step = _block(n)
    for i in range(0, len(labelings), step):
        rows = (labelings[i : i + step, None, :] == classes).astype(np.float32)
        table = rows.reshape(-1, n) @ columns  # contingency tables; counts below 2^24 are exact in float32
        cell_pairs = _pairs(table.astype(np.float64)).reshape(len(rows), len(classes), -1).sum(1)
        index = np.add.reduceat(cell_pairs, starts, axis=1)
        row_pairs = _pairs(rows.sum(2, dtype=np.float64)).sum(1)[:, None]
        indices[i : i + step] = adjusted_rand(index, row_pairs, column_pairs, n * (n - 1) / 2)
    return indices


def _checked(truth: np.ndarray, parts: Sequence[np.ndarray], chosen: int) -> np.ndarray:
    """Returns the labels as integers 0... Raises UsageError for arguments that do not fit."""
    for rows in parts:
        if rows.ndim != 2 or rows.shape[1:] != np.shape(truth) or rows.size == 0:
            raise UsageError(
                f"p-value: got labels of shape {np.shape(truth)} for rows of shape {rows.shape}, expected a label a "
                "column"
            )
        if not np.isfinite(rows).all():
            raise UsageError("p-value: got values that are not finite; leave out slices that could not be scored")
    count = sum(map(len, parts))
    if not 0 <= chosen < count:
        raise UsageError(f"p-value: got chosen={chosen} of {count} configurations, expected one of their rows")
    return np.unique(truth, return_inverse=True)[1].astype(np.int16)


def _renamed(labels: np.ndarray) -> np.ndarray:
    """Returns labels 0.. in order of first appearance; clusterings that are equal up to names become equal."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _pairs(counts: np.ndarray) -> np.ndarray:
    """Returns the number of pairs among each count."""
    return counts * (counts - 1) / 2
