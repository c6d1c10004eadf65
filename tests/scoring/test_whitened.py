"""Nearest neighbours in whitened principal components against plain loops, and what they see that others do not."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from gansfp.errors import UsageError
from gansfp.labels import UNKNOWN
from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.scoring.membership import Sweep, scores
from gansfp.scoring.projections import pca


def example(seed=0, generated=30, real=24, numbers=12, axes=True):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((generated, numbers)).astype(np.float32) * np.geomspace(30, 1, numbers, dtype=np.float32)
    y = rng.standard_normal((real, numbers)).astype(np.float32) * np.geomspace(30, 1, numbers, dtype=np.float32)
    labels = np.where(np.arange(real) < 16, np.arange(real) % 2, UNKNOWN)
    folds = np.where(labels == UNKNOWN, -1, np.arange(real) // 2 % 4)
    groups = np.array([f"p{number // 2}" for number in range(real)])
    fitted = pca(np.concatenate([x, y]), numbers) if axes else None
    return EmbeddedSet(x, y, labels, groups, folds, axes=fitted)


def plain(data, components, neighbours, reference):
    """Scores of all real slices, slice by slice."""
    both = np.concatenate([data.generated, data.real]).astype(np.float64)
    white = PCA(components, whiten=True, svd_solver="full").fit_transform(both)
    unit = white / np.linalg.norm(white, axis=1, keepdims=True)
    generated, real = unit[: len(data.generated)], unit[len(data.generated) :]
    found = []
    for row, vector in enumerate(real):
        near = np.sort(generated @ vector)[::-1][:neighbours].mean()
        others = [real[i] @ vector for i in range(len(real)) if data.groups[i] != data.groups[row]]
        found.append(near - (np.mean(sorted(others)[::-1][:neighbours]) if reference == "real" else 1))
    return np.array(found)


def test_whitened_scores_equal_plain_loops():
    data = example()
    found = list(scores(data, Sweep(methods=("whitened",), whitened=(3, 10), neighbours=(1, 5))))
    assert len(found) == 8
    for parameters, of_slices in found:
        expected = plain(data, parameters["whitened"], parameters["neighbours"], parameters["reference"])
        np.testing.assert_allclose(of_slices, expected, atol=1e-4)


def test_more_components_than_there_are_give_those_that_there_are():
    found = [p["whitened"] for p, _ in scores(example(), Sweep(methods=("whitened",), whitened=(100, 300)))]
    assert found == [12] * 4  # once, not twice


def test_one_slice_again_and_again_has_no_whitened_scores():
    data = example()
    same = np.repeat(data.real[:1], 30, axis=0)
    axes = pca(np.concatenate([same, data.real[:1].repeat(24, axis=0)]), 5)
    flat = EmbeddedSet(same, data.real[:1].repeat(24, axis=0), data.labels, data.groups, data.folds, axes=axes)
    assert list(scores(flat, Sweep(methods=("whitened",)))) == []


def test_without_axes_there_are_no_whitened_scores():
    data = example(axes=False)
    assert list(scores(data, Sweep(methods=("whitened",)))) == []
    with pytest.raises(UsageError, match="whitened: got vectors without principal components"):
        data.whitened(3)


def test_what_one_slice_has_alone_is_seen_beside_what_all_share():
    rng = np.random.default_rng(3)
    spread = np.concatenate([np.full(5, 40.0), np.ones(40)])
    real = (rng.standard_normal((120, 45)) * spread).astype(np.float32)
    used = np.arange(120) % 2
    memorised = real[used == 1] + (rng.standard_normal((60, 45)) * np.where(spread > 1, 30, 0.6)).astype(np.float32)
    folds = np.arange(120) // 2 % 5
    axes = pca(np.concatenate([memorised, real]), 45)
    data = EmbeddedSet(memorised, real, used, np.arange(120).astype(str), folds, axes=axes)
    sweep = Sweep(methods=("nearest", "whitened"), neighbours=(1,), whitened=(45,))
    aucs = {(p["method"], p["reference"]): roc_auc_score(used, of_slices) for p, of_slices in scores(data, sweep)}
    assert aucs["nearest", "none"] < 0.75
    assert aucs["whitened", "none"] > 0.95


def test_a_number_of_components_must_be_positive():
    with pytest.raises(UsageError, match="whitened: got 0, expected at least 1"):
        Sweep(whitened=(0,))
