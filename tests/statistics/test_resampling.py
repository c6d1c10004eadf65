"""Groups stay whole in resamples, permutations and folds."""

from itertools import permutations as every_order

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gansfp.errors import UsageError
from gansfp.statistics.resampling import (
    MIXED,
    bootstrap_weights,
    count_permutations,
    group_codes,
    group_labels,
    permuted_labels,
    permuted_within_folds,
    stratified_group_folds,
)


def test_codes_number_the_groups_and_leave_slices_without_one_alone():
    assert group_codes(None, 3).tolist() == [0, 1, 2]
    codes = group_codes(np.array(["b", "a", "", "b", ""]), 5)
    assert codes[0] == codes[3]
    assert len(set(codes.tolist())) == 4
    assert sorted(set(codes.tolist())) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match=r"shape \(2,\) for 3 slices"):
        group_codes(np.array(["a", "b"]), 3)


def test_group_labels_are_shared_or_mixed():
    got = group_labels(np.array([1, 1, 0, 2, 0]), np.array([0, 0, 1, 2, 2]))
    assert got.tolist() == [1, 0, MIXED]


def test_bootstrap_draws_as_many_groups_of_each_stratum_as_there_are():
    strata = np.array([0, 0, 0, 5, 5, -1])
    weights = np.concatenate(list(bootstrap_weights(strata, 4000, seed=0, block=700)))
    assert weights.shape == (4000, 6)
    for stratum in (0, 5, -1):
        assert np.all(weights[:, strata == stratum].sum(1) == (strata == stratum).sum())
    # a draw of 3 from 3: mean 1, variance 2/3
    np.testing.assert_allclose(weights[:, :3].mean(0), 1, atol=0.06)
    np.testing.assert_allclose(weights[:, :3].var(0), 2 / 3, atol=0.06)


def test_permutations_reach_every_exchange_of_the_groups_and_no_other_labels():
    # groups of 2, 1, 3 slices with one label each, and a mixed group
    codes = np.array([0, 0, 1, 2, 2, 2, 3, 3, 3])
    labels = np.array([1, 1, 0, 0, 0, 0, 1, 0, 0])
    got = {tuple(row) for row in permuted_labels(labels, codes, 2000, seed=0).tolist()}
    expected = {
        tuple(np.r_[np.array(pure)[codes[:6]], mixed].tolist())
        for pure in every_order([1, 0, 0])
        for mixed in every_order([1, 0, 0])
    }
    assert got == expected
    assert count_permutations(labels, codes) == len(expected) == 9


def test_permutations_of_independent_slices_are_uniform():
    labels = np.array([0, 1, 2, 0])
    drawn = permuted_labels(labels, np.arange(4), 12000, seed=1)
    arranged, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(arranged) == count_permutations(labels, np.arange(4)) == 12
    assert np.all(np.abs(counts - 1000) < 150)


def test_the_count_of_permutations_of_many_slices_does_not_overflow():
    assert count_permutations(np.arange(5000) % 2, np.arange(5000)) == float("inf")


@pytest.mark.parametrize("seed", range(5))
def test_folds_keep_groups_together_and_balance_both_classes(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=60)
    groups = np.repeat([f"patient {i}" for i in range(60)], sizes)
    labels = np.repeat(rng.permutation(np.repeat(["used", "not used"], [20, 40])), sizes)
    labels[groups == "patient 7"] = np.resize(["used", "not used"], sizes[7])
    folds = stratified_group_folds(labels, groups, 5, seed)
    assert sorted(set(folds.tolist())) == [0, 1, 2, 3, 4]
    for group in set(groups.tolist()):
        assert len(set(folds[groups == group].tolist())) == 1
    for label in ("used", "not used"):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 8, counts
    assert np.array_equal(folds, stratified_group_folds(labels, groups, 5, seed))


def test_independent_slices_are_dealt_evenly_and_the_seed_shuffles_them():
    labels = np.repeat([0, 1], [50, 25])
    folds = stratified_group_folds(labels, None, 5, 0)
    for label in (0, 1):
        counts = np.bincount(folds[labels == label])
        assert counts.max() == counts.min()
    assert not np.array_equal(folds, stratified_group_folds(labels, None, 5, 1))


def test_few_groups_make_fewer_folds_and_one_is_refused():
    labels = np.array([1, 1, 1, 0, 0, 0, 0])
    groups = np.array(["a", "b", "b", "c", "d", "e", "f"])
    folds = stratified_group_folds(labels, groups, 5)
    assert folds.max() == 1
    for fold in (0, 1):
        assert set(labels[folds == fold].tolist()) == {0, 1}
    with pytest.raises(UsageError, match="2 groups or more of every class, got 0: 4, 1: 1"):
        stratified_group_folds(labels, np.array(["a", "a", "a", "c", "d", "e", "f"]), 5)


LABELLED_GROUPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["", "a", "b", "c", "d", "e", "f"])), max_size=40
)


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=20))
@settings(deadline=None)
def test_codes_are_equal_exactly_within_a_group(groups):
    codes = group_codes(np.array(groups, dtype=str), len(groups)).tolist()
    assert sorted(set(codes)) == list(range(len(set(codes))))
    for i, first in enumerate(groups):
        for j, second in enumerate(groups):
            assert (codes[i] == codes[j]) == (i == j or first == second != "")


@given(LABELLED_GROUPS, st.integers(2, 6), st.integers(0, 3))
@settings(deadline=None)
def test_folds_of_any_groups(slices, folds, seed):
    labels = np.array([label for label, _ in slices], int)
    groups = np.array([group for _, group in slices], str)
    codes = group_codes(groups, len(groups))
    classes = set(labels.tolist())
    holders = {label: len(set(codes[labels == label].tolist())) for label in classes}
    try:
        fold_of = stratified_group_folds(labels, groups, folds, seed)
    except UsageError:
        # a class of a single group, or mixed groups that leave one of two folds without a class; pure groups never do
        assert not classes or min(holders.values()) < 2 or MIXED in group_labels(labels, codes)
        return
    assert sorted(set(fold_of.tolist())) == list(range(fold_of.max() + 1))
    assert 2 <= fold_of.max() + 1 <= min(folds, *holders.values())
    for code in set(codes.tolist()):
        assert len(set(fold_of[codes == code].tolist())) == 1, "a group is in one fold"
    for fold in range(fold_of.max() + 1):
        assert set(labels[fold_of == fold].tolist()) == set(labels[fold_of != fold].tolist()) == classes


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6)), min_size=4, max_size=25), st.integers(0, 3))
@settings(deadline=None)
def test_folds_of_groups_with_one_label_differ_by_no_more_than_a_group(sized, seed):
    sized = [(0, 1), (0, 2), (1, 1), (1, 2), *sized]
    sizes = np.array([size for _, size in sized])
    labels, groups = np.repeat([label for label, _ in sized], sizes), np.repeat(np.arange(len(sized)), sizes)
    fold_of = stratified_group_folds(labels, groups, 5, seed)
    for label in (0, 1):
        counts = np.bincount(fold_of[labels == label], minlength=fold_of.max() + 1)
        assert counts.max() - counts.min() <= max(size for of_group, size in sized if of_group == label)


def test_labels_within_folds_are_those_of_each_fold_permuted_by_itself():
    rng = np.random.default_rng(0)
    labels, folds = rng.integers(0, 2, 60), rng.integers(-1, 3, 60)
    groups = np.array([f"p{fold}-{number}" for fold, number in zip(folds, rng.integers(0, 6, 60), strict=True)])
    permuted = permuted_within_folds(labels, groups, folds, 20, 7)
    assert (permuted[:, folds < 0] == labels[folds < 0]).all()
    for fold in range(3):
        rows = folds == fold
        expected = permuted_labels(labels[rows], group_codes(groups[rows], int(rows.sum())), 20, 7 + fold)
        np.testing.assert_array_equal(permuted[:, rows], expected)
