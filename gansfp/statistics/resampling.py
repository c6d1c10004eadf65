"""Resampling, permutation and folds by group (a patient, a volume), for intervals, p-values and cross-validation.

Neighbouring slices of one patient depend on each other. A method that treats them as independent overestimates its
certainty, so every function here keeps groups whole.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import gammaln

from gansfp.errors import UsageError

MIXED = -1  # the label of a group whose slices have different labels


def group_codes(groups: np.ndarray | None, n: int) -> np.ndarray:
    """Returns groups as integers 0..G-1, (n,) int64.

    groups: (n,) str or int, or None for slices without groups. A slice without a group (groups is None, or "") is a
    group of its own.
    """
    if groups is None:
        return np.arange(n)
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise UsageError(f"groups: got shape {groups.shape} for {n} slices, expected ({n},)")
    codes = np.unique(groups, return_inverse=True)[1]
    if groups.dtype.kind in "UO":
        without = groups == ""
        codes[without] = codes.max(initial=0) + 1 + np.arange(without.sum())
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def group_labels(labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the label that all slices of a group share, or MIXED: (G,) int64.

    labels: (n,) int >= 0, codes: (n,) of group_codes.
    """
    count = codes.max(initial=-1) + 1
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(low, codes, labels)
    np.maximum.at(high, codes, labels)
    return np.where(low == high, high, MIXED)


def bootstrap_weights(strata: np.ndarray, resamples: int, seed: int, block: int) -> Iterator[np.ndarray]:
    """Yields how often each group is drawn in each bootstrap resample, in blocks: (at most `block`, G) float64.

    strata: (G,) int. From each stratum as many groups are drawn, with replacement, as it has.
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
    """Returns labels that are as likely as the given ones if they are unrelated to the scores: (permutations, n), dtype
    of labels.

    labels: (n,) int >= 0, codes: (n,) of group_codes.

    Groups whose slices share one label exchange their labels as a whole. They may differ in size, so the number of
    groups of a label stays the same, but the number of slices may change. In a group with several labels (some slices
    of a patient used, some not) the slices exchange labels within the group: the group has no label as a whole, and
    the test asks which of its slices were used. These permutations, count_permutations in number, form a mathematical
    group. That makes the p-value exact where whole groups, and the slices of a mixed group, are exchangeable.
    """
    rng = np.random.default_rng(seed)
    shared = group_labels(labels, codes)
    pure = np.flatnonzero(shared != MIXED)
    by_group = np.zeros((permutations, len(shared)), dtype=labels.dtype)
    by_group[:, pure] = rng.permuted(np.broadcast_to(shared[pure], (permutations, len(pure))), axis=1)
    permuted = by_group[:, codes]
    mixed = np.flatnonzero(shared[codes] == MIXED)
    if len(mixed):
        # slices sorted by group: sorting them by group and then at random shuffles them within each group
        slices = mixed[np.argsort(codes[mixed], kind="stable")]
        for row in permuted:
            row[slices] = labels[slices][np.argsort(codes[slices] + rng.random(len(slices)))]
    return permuted


def permuted_within_folds(
    labels: np.ndarray, groups: np.ndarray | None, folds: np.ndarray, permutations: int, seed: int
) -> np.ndarray:
    """Returns permuted_labels of each fold by itself: (permutations, n), dtype of labels. Slices of fold -1 keep their
    labels.

    labels: (n,) int, those of folds >= 0; groups: as in group_codes; folds: (n,) int. The seed of fold f is seed + f.
    """
    permuted = np.tile(labels, (permutations, 1))
    for fold in np.unique(folds[folds >= 0]):
        rows = np.flatnonzero(folds == fold)
        codes = group_codes(None if groups is None else groups[rows], len(rows))
        permuted[:, rows] = permuted_labels(labels[rows], codes, permutations, seed + int(fold))
    return permuted


def count_permutations(labels: np.ndarray, codes: np.ndarray) -> float:
    """Returns the number of different labellings that permuted_labels can draw; inf above about 10^304."""

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
    """Returns the fold of each slice for cross-validation, (n,) int64. Groups stay whole; every fold has every class.

    labels: (n,) of any kind, groups as in group_codes. The algorithm is greedy: it takes groups in order of falling
    size (the seed shuffles ties) and puts each into the fold with the smallest share of the group's classes, and of
    equal folds into the one with the fewest slices. There are fewer folds (the maximum of the result + 1) where a class
    has fewer groups than folds, or a fold would miss a class. Raises UsageError where fewer than 2 folds are possible.
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
        slices = np.zeros((count, len(classes)))
        np.add.at(slices, of_group, table)
        if (slices > 0).all():
            return of_group[codes]
    counts = ", ".join(f"{name}: {count}" for name, count in zip(classes.tolist(), holders.tolist(), strict=True))
    raise UsageError(f"cross-validation in {folds} folds needs 2 groups or more of every class, got {counts}")


def _deal(table: np.ndarray, order: np.ndarray, folds: int) -> np.ndarray:
    """Returns the fold of each group, (G,). table: (G, classes) slices; groups are dealt in the given order."""
    share = table / table.sum(0)
    shares_of_fold, sizes = np.zeros((folds, table.shape[1])), np.zeros(folds)
    fold_of_group = np.zeros(len(table), dtype=np.int64)
    for group in order:
        fullness = shares_of_fold @ share[group]
        fold = np.lexsort((sizes, fullness.round(12)))[0]  # rounded, so that rounding errors do not decide
        fold_of_group[group] = fold
        shares_of_fold[fold] += share[group]
        sizes[fold] += table[group].sum()
    return fold_of_group
