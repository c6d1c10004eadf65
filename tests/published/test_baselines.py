"""Baselines against trying every threshold, and against scikit-learn's k-means."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score

from gansfp.errors import UsageError
from gansfp.published.baselines import BASELINES, FILE_PROPERTIES, attribute_baseline, decide_baseline, grey_properties


def slices(seed, sign=1.0):
    """Labels of 60 slices, a third unknown, and properties that depend a little on the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([1, 0, -1], [22, 18, 20]))
    properties = {name: np.round(rng.normal(size=60) + sign * (labels == 1), 1) for name in FILE_PROPERTIES}
    return labels, properties


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", FILE_PROPERTIES)
def test_one_number_is_the_best_threshold_on_the_better_side(name, sign, seed):
    labels, properties = slices(seed, sign)
    values, labelled = properties[name], labels >= 0
    tried = {
        (side, t): balanced_accuracy_score(labels[labelled], (side * values[labelled] >= t).astype(int))
        for side in (1, -1)
        for t in side * values[labelled]
    }
    got = decide_baseline(name, labels, properties)
    assert balanced_accuracy_score(labels[labelled], got.prediction[labelled]) == pytest.approx(max(tried.values()))
    side = got.details["side"]
    assert side == sign
    best = max(t for (s, t), value in tried.items() if s == side and value >= max(tried.values()) - 1e-12)
    np.testing.assert_array_equal(got.prediction[labelled], (side * values[labelled] >= best).astype(int))
    np.testing.assert_array_equal(got.score, side * values)
    # The threshold lies between two labelled slices. Unknown slices beyond these two are decided, wherever it lies.
    beyond = ~labelled & (side * values >= best)
    lower = (side * values[labelled])[side * values[labelled] < best]
    below = ~labelled & (side * values <= max(lower, default=-np.inf))
    assert got.prediction[beyond].all()
    assert not got.prediction[below].any()


def test_unknown_slices_do_not_move_the_threshold():
    labels, properties = slices(1)
    more = {name: np.append(values, [99.0, -99.0]) for name, values in properties.items()}
    got = decide_baseline("bytes", np.append(labels, [-1, -1]), more)
    np.testing.assert_array_equal(got.prediction[:-2], decide_baseline("bytes", labels, properties).prediction)


def test_a_constant_property_gives_equal_decisions():
    labels, properties = slices(0)
    assert len(set(decide_baseline("bytes", labels, properties | {"bytes": np.ones(60)}).prediction)) == 1


def test_all_used_and_the_coin():
    labels = np.full(4000, -1)
    assert decide_baseline("all_used", labels).prediction.all()
    coin, again = (decide_baseline("random", labels, seed=3).prediction for _ in range(2))
    np.testing.assert_array_equal(coin, again)
    assert set(coin) == {0, 1}
    assert abs(coin.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert not np.array_equal(coin, decide_baseline("random", labels, seed=4).prediction)


@pytest.mark.parametrize("name", FILE_PROPERTIES)
def test_attribution_by_one_number_is_k_means(name):
    rng = np.random.default_rng(2)
    properties = {f: 100 + 40 * rng.integers(0, 4, 80) + rng.normal(size=80) for f in FILE_PROPERTIES}
    values = properties[name]
    z = ((values - values.mean()) / values.std())[:, None]
    expected = KMeans(4, n_init=10, random_state=0).fit_predict(z)
    assert adjusted_rand_score(expected, attribute_baseline(name, 80, 4, properties)) == 1


def test_attribution_without_looking():
    assert attribute_baseline("one_cluster", 7, 4).tolist() == [0] * 7
    labels = attribute_baseline("random", 400, 4, seed=1)
    assert set(labels) == {0, 1, 2, 3}
    np.testing.assert_array_equal(labels, attribute_baseline("random", 400, 4, seed=1))
    assert len(attribute_baseline("bytes", 3, 4, {"bytes": np.array([1.0, 2, 3])})) == 3, "fewer slices than clusters"
    assert not attribute_baseline("bytes", 6, 4, {"bytes": np.ones(6)}).any(), "equal values, one cluster"


def test_grey_properties_equal_numpy():
    pixels = np.random.default_rng(0).integers(0, 90, (256, 256)).astype(np.uint8) * 2
    mean, levels = grey_properties(pixels)
    assert mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert levels == len(np.unique(pixels)) == 90
    assert grey_properties(np.full((256, 256), 255, np.uint8)) == (255.0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decide_baseline("sha256", np.array([1, 0])), "got 'sha256', expected one of .*'all_used'"),
        (lambda: attribute_baseline("all_used", 4, 2), "got 'all_used', expected one of .*'one_cluster'"),
        (lambda: decide_baseline("bytes", np.array([1, 0])), r"'bytes': got \(0,\) numbers for 2 slices"),
        (lambda: decide_baseline("bytes", np.array([1, 0]), {"bytes": np.array([1, np.nan])}), "all finite"),
        (lambda: decide_baseline("bytes", np.array([1, -1]), {"bytes": np.ones(2)}), "labelled used and not used"),
    ],
)
def test_bad_usage(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_every_name_does_something():
    labels, properties = slices(5)
    for name in BASELINES["membership"]:
        assert decide_baseline(name, labels, properties).prediction.shape == (60,)
    for name in BASELINES["attribution"]:
        assert attribute_baseline(name, 60, 3, properties).shape == (60,)
