"""scoring.traces: histograms, their teeth, and slices that all got one histogram."""

import numpy as np
import pytest

from gansfp.scoring.traces import combs, histograms, with_one_histogram
from gansfp.simulation.phantom import phantoms


@pytest.fixture(scope="module")
def pixels():
    return phantoms(5, 1, 0)[0]


def test_histograms_are_counted(pixels):
    shares = histograms(pixels)
    for row, slice_ in enumerate(pixels):
        for level in range(256):
            assert shares[row, level] == np.count_nonzero(slice_ == level) / slice_.size


def test_teeth_are_what_stands_out_of_the_running_median(pixels):
    shares = histograms(pixels)
    teeth, roots = combs(shares), np.sqrt(shares)
    for level in range(4, 252):
        expected = roots[:, level] - np.median(roots[:, level - 4 : level + 5], axis=1)
        np.testing.assert_allclose(teeth[:, level], expected, atol=1e-12)


def test_a_stretched_histogram_has_more_teeth(pixels):
    stretched = np.clip(np.rint(pixels * 1.3), 0, 255).astype(np.uint8)
    plain, gaps = (np.abs(combs(histograms(x))[:, 60:200]).mean() for x in (pixels, stretched))
    assert gaps > 1.5 * plain


def test_groups_get_the_same_histogram_and_keep_black_and_the_order(pixels):
    groups, factors = np.array(["a", "a", "b", "b", "b"]), np.array([1, 1, 0.6, 0.6, 0.6])[:, None, None]
    darker = (pixels * factors).astype(np.uint8)
    equal = with_one_histogram(darker, groups)
    assert ((equal == 0) == (darker == 0)).all()
    bright, before = (histograms(x)[:, 1:] for x in (equal, darker))
    bright, before = (shares / shares.sum(1, keepdims=True) for shares in (bright, before))
    for group in "ab":
        of_group = np.cumsum(bright[groups == group].mean(0))
        assert np.abs(of_group - np.cumsum(before.mean(0))).max() < 0.01
    for old, new in zip(darker, equal, strict=True):
        means = [new[old == level].mean() for level in np.unique(old)]
        assert (np.diff(means) > -1).all()


def test_equal_groups_change_by_a_level_at_most_and_a_seed_gives_the_same(pixels):
    same = np.concatenate([pixels, pixels])
    equal = with_one_histogram(same, np.repeat(["a", "b"], 5))
    assert np.abs(equal.astype(int) - same).max() <= 1
    assert np.array_equal(equal, with_one_histogram(same, np.repeat(["a", "b"], 5)))


def test_black_slices_stay_black():
    assert with_one_histogram(np.zeros((2, 256, 256), np.uint8), np.array(["a", "b"])).max() == 0
