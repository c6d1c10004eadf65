"""p-values by permutation, for one configuration and for the best of all that were tried.

p = (1 + b) / (1 + B), with b of B permutations that reach the observed value (Phipson and Smyth 2010): never 0, and
valid whatever B is. What may be permuted with what, groups or slices, is in resampling.permuted_labels.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import rankdata

from gansfp.errors import UsageError
from gansfp.statistics.resampling import count_permutations, group_codes, permuted_labels

_ROWS = 128  # permutations, and configurations, that are multiplied at once: bounds the memory,
_CELLS = 1 << 24  # and so do these numbers in one such block, where there are many slices


@dataclass(frozen=True)
class PValues:
    """The certainty of a chosen configuration, alone and as the best of all that were tried.

    p_value is that of the chosen one, right if it was chosen without these labels. p_value_selected compares the best
    of all with the best of all under permuted labels, so it pays for the search. Neither can fall below
    `smallest`, which few groups or few permutations make large.
    """

    p_value: float
    p_value_selected: float
    observed: float
    best: float
    best_index: int
    tried: int
    n_groups: int
    permutations: int
    smallest: float

    def as_dict(self) -> dict[str, float | int | None]:
        """As metrics.json holds it: what is undefined is None."""
        return {name: None if np.isnan(value) else value for name, value in asdict(self).items()}

    @property
    def warning(self) -> str:
        """Why these p-values cannot show anything; empty if they can."""
        if self.smallest <= 0.05:
            return ""
        return f"{self.n_groups} groups and {self.permutations} permutations: p cannot fall below {self.smallest:.2g}"


def p_values_auc(
    truth: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray | None = None,
    chosen: int = 0,
    permutations: int = 1000,
    seed: int = 0,
) -> PValues:
    """Could so large an area under the ROC curve come from labels that have nothing to do with the scores?

    truth: (n,) 0/1, scores: (n,) or (n_configurations, n) float, higher means more likely used, groups: (n,) or None,
    chosen: the row of scores whose own p-value is asked for. One-sided; ties count half (midranks).

    The scores must not have been computed from these labels. Out-of-fold scores of a method fitted to the labels depend
    on them, and the p-value is then approximate only: exactly, the fit would be repeated for every permutation.

    One product of labels and ranks, exact in float64; the scores and (permutations, n) labels are held, all else
    block by block.
    """
    scores = np.atleast_2d(scores)
    labels = _checked(truth, scores, chosen)
    if labels.max() > 1:
        raise UsageError(f"p-value: got {labels.max() + 1} kinds of labels, expected 0 (not used) and 1 (used)")
    return _permute(labels, scores, groups, chosen, permutations, seed, _auc)


def p_values_ari(
    truth: np.ndarray,
    labelings: np.ndarray,
    groups: np.ndarray | None = None,
    chosen: int = 0,
    permutations: int = 1000,
    seed: int = 0,
) -> PValues:
    """Could so large an adjusted Rand index come from generators that have nothing to do with the clusters?

    truth: (n,) of any kind, labelings: (n,) or (n_configurations, n) cluster labels, the rest as in p_values_auc.
    Clusterings that are the same up to names are computed once.
    """
    labelings = np.atleast_2d(labelings)
    labels = _checked(truth, labelings, chosen)
    unique, back = np.unique(np.stack([_renamed(row) for row in labelings]), axis=0, return_inverse=True)
    result = _permute(labels, unique, groups, int(back[chosen]), permutations, seed, _ari)
    best = int(np.flatnonzero(back == result.best_index)[0])
    return PValues(**{**asdict(result), "best_index": best, "tried": len(labelings)})


def _permute(
    labels: np.ndarray,
    rows: np.ndarray,
    groups: np.ndarray | None,
    chosen: int,
    permutations: int,
    seed: int,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> PValues:
    codes = group_codes(groups, len(labels))
    # the observed labels go through the same arithmetic, as row 0
    arranged = np.concatenate([labels[None], permuted_labels(labels, codes, permutations, seed)])
    best, best_index = np.full(len(arranged), -np.inf), 0
    alone, step = best, _block(len(labels))
    for start in range(0, len(rows), step):
        values = statistic(arranged, rows[start : start + step])
        if start <= chosen < start + step:
            alone = values[:, chosen - start]
        if values[0].max() > best[0]:
            best_index = start + int(values[0].argmax())
        best = np.maximum(best, values.max(1))

    def p_value(values: np.ndarray) -> float:
        # not "<", so that an undefined value counts against the finding; 1e-12 forgives rounding between equal values
        reached = ~(values[1:] < values[0] - 1e-12)
        return float((1 + reached.sum()) / (1 + permutations))

    return PValues(
        p_value=p_value(alone),
        p_value_selected=p_value(best),
        observed=float(alone[0]),
        best=float(best[0]),
        best_index=best_index,
        tried=len(rows),
        n_groups=int(codes.max()) + 1,
        permutations=permutations,
        smallest=max(1 / (1 + permutations), 1 / count_permutations(labels, codes)),
    )


def _block(n: int) -> int:
    return min(_ROWS, max(1, _CELLS // n))


def _auc(arranged: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUC of every score under every labelling, (b, c). arranged: (b, n) 0/1, scores: (c, n). nan for a single
    class."""
    ranks = rankdata(scores, axis=1)
    positives = arranged.sum(1, dtype=np.float64)[:, None]
    wins = np.empty((len(arranged), len(scores)))
    step = _block(arranged.shape[1])
    for i in range(0, len(arranged), step):
        wins[i : i + step] = arranged[i : i + step].astype(np.float64) @ ranks.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return (wins - positives * (positives + 1) / 2) / (positives * (arranged.shape[1] - positives))


def _ari(arranged: np.ndarray, labelings: np.ndarray) -> np.ndarray:
    """Adjusted Rand index of every clustering under every labelling, (b, c). arranged: (b, n), labelings: (c, n)."""
    n = arranged.shape[1]
    classes = np.arange(arranged.max() + 1)[:, None]
    sizes = labelings.max(1) + 1
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    columns = np.zeros((n, int(sizes.sum())), dtype=np.float32)
    for row, start in zip(labelings, starts, strict=True):
        columns[np.arange(n), start + row] = 1
    column_pairs = np.add.reduceat(_pairs(columns.sum(0, dtype=np.float64)), starts)
    out = np.empty((len(arranged), len(labelings)))
    step = _block(n)
    for i in range(0, len(arranged), step):
        rows = (arranged[i : i + step, None, :] == classes).astype(np.float32)
        table = rows.reshape(-1, n) @ columns  # all contingency tables at once; counts below 2^24 are exact in float32
        cell_pairs = _pairs(table.astype(np.float64)).reshape(len(rows), len(classes), -1).sum(1)
        index = np.add.reduceat(cell_pairs, starts, axis=1)
        row_pairs = _pairs(rows.sum(2, dtype=np.float64)).sum(1)[:, None]
        expected = row_pairs * column_pairs / max(n * (n - 1) / 2, 1)
        room = (row_pairs + column_pairs) / 2 - expected
        with np.errstate(invalid="ignore", divide="ignore"):
            # no room: both are one cluster, or both all singletons, and agree
            out[i : i + step] = np.where(room == 0, 1.0, (index - expected) / room)
    return out


def _checked(truth: np.ndarray, rows: np.ndarray, chosen: int) -> np.ndarray:
    """The labels as 0.., after checking that everything fits."""
    if rows.ndim != 2 or rows.shape[1:] != np.shape(truth) or rows.size == 0:
        raise UsageError(f"p-value: got labels of shape {np.shape(truth)} for rows of shape {rows.shape}")
    if not 0 <= chosen < len(rows):
        raise UsageError(f"p-value: got chosen={chosen} of {len(rows)} configurations")
    if not np.isfinite(rows).all():
        raise UsageError("p-value: got values that are not finite; leave out slices that could not be scored")
    return np.unique(truth, return_inverse=True)[1].astype(np.int16)


def _renamed(labels: np.ndarray) -> np.ndarray:
    """Labels 0.. in order of first appearance, so that clusterings equal up to names become equal."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _pairs(counts: np.ndarray) -> np.ndarray:
    """Number of pairs among each count."""
    return counts * (counts - 1) / 2
