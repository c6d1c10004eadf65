"""What may be redrawn and reshuffled as one: groups of slices (a patient, a volume), for intervals, p-values and folds.

Neighbouring slices of one patient share a fate. Whatever treats them as independent finds certainty where there is
none, so everything here moves whole groups.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import gammaln

from gansfp.errors import UsageError

MIXED = -1  # in place of a label: the slices of this group do not all have the same one


def group_codes(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Groups as integers 0..G-1, (n,) int64.

    groups: (n,) str or int, or None; a slice without a group (None, or "") is a group of its own.
    """
    if groups is None:
        return np.arange(n)
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise UsageError(f"groups: got shape {groups.shape} for {n} slices, expected ({n},)")
    codes = np.unique(groups, return_inverse=True)[1]
    if groups.dtype.kind in "UO":
        alone = groups == ""
        codes[alone] = codes.max(initial=0) + 1 + np.arange(alone.sum())
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def group_labels(labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The label that all slices of a group share, or MIXED: (G,) int64.

    labels: (n,) int >= 0, codes: (n,) of group_codes.
    """
    count = codes.max(initial=-1) + 1
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(low, codes, labels)
    np.maximum.at(high, codes, labels)
    return np.where(low == high, high, MIXED)


def bootstrap_weights(strata: np.ndarray, resamples: int, seed: int, block: int) -> Iterator[np.ndarray]:
    """How often each group is drawn in each bootstrap resample, in blocks: (at most `block`, G) float64.

    strata: (G,) int. In every stratum as many groups are drawn, with replacement, as it has.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        weights = np.zeros((rows, len(strata)))
        for group in members:
            drawn = rng.integers(len(group), size=(rows, len(group))) + len(group) * np.arange(rows)[:, None]
            weights[:, group] = np.bincount(drawn.ravel(), minlength=rows * len(group)).reshape(rows, -1)
        yield weights


def permuted_labels(labels: np.ndarray, codes: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """Labels as they might as well have been, if the scores knew nothing of them: (permutations, n), dtype of labels.

    labels: (n,) int >= 0, codes: (n,) of group_codes.

    Groups whose slices share one label exchange it among each other, whole. They may differ in size, so the number of
    groups of a label stays, the number of slices need not. In a group of several labels (some slices of a patient
    used, some not) the slices exchange theirs within the group: it has no label as a whole, and what is left to test is
    which of its slices it was. The count_permutations so reached are a group of permutations, which makes the
    p-value exact where whole groups, and the slices of a mixed group, are exchangeable.
    """
    rng = np.random.default_rng(seed)
    shared = group_labels(labels, codes)
    pure = np.flatnonzero(shared != MIXED)
    by_group = np.zeros((permutations, len(shared)), dtype=labels.dtype)
    by_group[:, pure] = rng.permuted(np.broadcast_to(shared[pure], (permutations, len(pure))), axis=1)
    out = by_group[:, codes]
    mixed = np.flatnonzero(shared[codes] == MIXED)
    if len(mixed):
        # places sorted by group: an order that sorts by group first, and else at random, shuffles within each group
        places = mixed[np.argsort(codes[mixed], kind="stable")]
        for row in out:
            row[places] = labels[places][np.argsort(codes[places] + rng.random(len(places)))]
    return out


def count_permutations(labels: np.ndarray, codes: np.ndarray) -> float:
    """The number of different labellings that permuted_labels can draw (inf above about 10^304)."""

    def log_orders(counts: np.ndarray) -> float:
        return float(gammaln(counts.sum() + 1) - gammaln(counts + 1).sum())

    shared = group_labels(labels, codes)
    total = log_orders(np.bincount(shared[shared != MIXED]))
    for group in np.flatnonzero(shared == MIXED):
        total += log_orders(np.bincount(labels[codes == group]))
    return float(np.round(np.exp(total))) if total < 700 else float("inf")


def stratified_group_folds(
    labels: np.ndarray, groups: np.ndarray | None = None, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """The fold of each slice for cross-validation, (n,) int64: groups stay together, every fold has every class.

    labels: (n,) of any kind, groups as in group_codes. Greedy: groups in order of falling size (ties shuffled by the
    seed), each into the fold that holds the smallest share of its classes, then the fewest slices. With fewer groups of
    a class than folds, or where a fold would miss a class, there are fewer folds (max + 1 of the result); below 2 it
    raises UsageError.
    """
    classes, labels = np.unique(labels, return_inverse=True)
    codes = group_codes(groups, len(labels))
    table = np.zeros((codes.max(initial=-1) + 1, len(classes)))
    np.add.at(table, (codes, labels), 1)
    holders = (table > 0).sum(0)
    order = np.random.default_rng(seed).permutation(len(table))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]
    for count in range(min(folds, *holders, len(table)), 1, -1):
        of_group = _deal(table, order, count)
        held = np.zeros((count, len(classes)))
        np.add.at(held, of_group, table)
        if (held > 0).all():
            return of_group[codes]
    found = ", ".join(f"{c}: {h}" for c, h in zip(classes.tolist(), holders.tolist(), strict=True))
    raise UsageError(f"cross-validation in {folds} folds needs 2 groups of every class at least, got {found}")


def _deal(table: np.ndarray, order: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each group, (G,): table (G, classes) of slices, groups dealt in the given order."""
    share = table / table.sum(0)
    held, sizes = np.zeros((folds, table.shape[1])), np.zeros(folds)
    out = np.zeros(len(table), dtype=np.int64)
    for group in order:
        fullness = held @ share[group]
        fold = np.lexsort((sizes, fullness.round(12)))[0]  # rounded, lest the last bit decide
        out[group] = fold
        held[fold] += share[group]
        sizes[fold] += table[group].sum()
    return out
