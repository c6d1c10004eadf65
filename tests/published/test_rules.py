"""Every recipe that decides by embeddings, against plain scikit-learn and loops."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from gansfp.errors import UsageError
from gansfp.published.recipes import RECIPES, find
from gansfp.published.rules import (
    attribute,
    classifier_decision,
    cluster_distance,
    decide,
    kmeans_per_class,
    median_split,
    most_similar_mean,
    nearest_mean_error,
    two_means,
)

BY_METHOD = {
    method: [r for r in RECIPES if r.method == method and r.task == task]
    for task, method in (
        ("membership", "two_means"),
        ("membership", "kmeans_per_class"),
        ("membership", "cluster_distance"),
        ("attribution", "kmeans"),
        ("attribution", "hierarchical"),
        ("attribution", "gmm"),
    )
}


def with_ids(*methods):
    return pytest.mark.parametrize("recipe", [r for m in methods for r in BY_METHOD[m]], ids=lambda r: r.name)


sizes = pytest.mark.parametrize(("seed", "d"), [(0, 24), (1, 160)])  # fewer numbers than slices, and more


def membership(seed=0, n=90, g=80, d=24):
    """A set of embeddings: generated slices in lumps, real slices near the lumps; two thirds of them are labelled."""
    rng = np.random.default_rng(seed)
    lumps = 3 * rng.normal(size=(12, d))
    generated = lumps[rng.integers(0, 12, g)] + rng.normal(size=(g, d))
    real = lumps[rng.integers(0, 12, n)] + 1.5 * rng.normal(size=(n, d))
    labels = rng.permutation(np.repeat([1, 0, -1], [n // 3, n // 3, n - 2 * (n // 3)]))
    real[labels == 1] += 0.3
    return generated.astype(np.float32), real.astype(np.float32), labels


def generators(seed=0, n=110, d=32):
    """Embeddings of four generators that overlap, so that every detail of a clustering matters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, d)) * np.linspace(3, 0.3, d) * (24 / d) ** 0.5
    return (centres[rng.integers(0, 4, n)] + rng.normal(size=(n, d)) * np.linspace(3, 0.2, d)).astype(np.float32)


def manhattan(a, b):
    return float(np.abs(a.astype(float) - b).sum())


def euclidean(a, b):
    return float(np.sqrt(((a.astype(float) - b) ** 2).sum()))


@sizes
@with_ids("two_means")
def test_two_means(recipe, seed, d):
    _, real, labels = membership(seed, d=d)
    clusters = KMeans(2, n_init=10, random_state=seed).fit_predict(real.astype(float))
    is_used = {}
    for c in (0, 1):
        votes = labels[clusters == c]
        is_used[c] = int((votes == 1).sum() > (votes == 0).sum())
    got = decide(recipe, real, labels, seed=seed)
    np.testing.assert_array_equal(got.prediction, [is_used[c] for c in clusters])
    if is_used[0] == is_used[1]:
        assert got.score is None
        return
    centre = {is_used[c]: real[clusters == c].astype(float).mean(0) for c in (0, 1)}
    expected = [euclidean(x, centre[0]) - euclidean(x, centre[1]) for x in real]
    np.testing.assert_allclose(got.score, expected, atol=1e-4)


@sizes
@with_ids("kmeans_per_class")
def test_kmeans_per_class(recipe, seed, d):
    generated, real, labels = membership(seed, d=d)
    centres = {}
    for label in (0, 1):
        members = real[labels == label].astype(float)
        k = min(recipe.k, len(members))
        centres[label] = KMeans(k, n_init=10, random_state=seed).fit(members).cluster_centers_
    score = []
    for x in real:
        to_used = min(manhattan(x, c) for c in centres[1])
        to_unused = min(manhattan(x, c) for c in centres[0])
        score.append(to_unused - to_used)
    got = decide(recipe, real, labels, generated, seed=seed)
    np.testing.assert_allclose(got.score, score, atol=1e-3)
    np.testing.assert_array_equal(got.prediction, (np.array(score) > 0).astype(int))
    assert got.details == ({"k_used": 30, "k_not_used": 30} if recipe.k > 30 else {})


@sizes
@with_ids("cluster_distance")
def test_cluster_distance(recipe, seed, d):
    generated, real, labels = membership(seed, d=d)
    clusters = AgglomerativeClustering(recipe.k, linkage="ward").fit_predict(generated.astype(float))
    centroids = [generated[clusters == c].astype(float).mean(0) for c in range(recipe.k)]
    distances = []
    for x in real:
        to_centroids = [euclidean(x, c) for c in centroids]
        distances.append(min(to_centroids) if recipe.rule == "min" else sum(to_centroids) / len(to_centroids))
    got = decide(recipe, real, labels, generated, seed=seed)
    np.testing.assert_allclose(-got.score, distances, atol=1e-4)
    unknown = np.flatnonzero(labels == -1)
    nearest = sorted(unknown, key=lambda i: distances[i])[: len(unknown) // 2]
    assert set(unknown[got.prediction[unknown] == 1]) == set(nearest)
    labelled = np.flatnonzero(labels != -1)
    assert got.prediction[labelled].sum() == len(labelled) // 2
    assert got.details == {}


@sizes
@with_ids("kmeans", "hierarchical", "gmm")
def test_attribution(recipe, seed, d):
    x = generators(seed, d=d)
    z = x.astype(float)
    if recipe.pca:
        z = PCA(n_components=recipe.pca, svd_solver="full").fit_transform(z)
        assert 1 < z.shape[1] < x.shape[1]
    model = {
        "kmeans": KMeans(4, n_init=10, random_state=seed),
        "hierarchical": AgglomerativeClustering(4, linkage="ward"),
        "gmm": GaussianMixture(4, init_params=recipe.init or "kmeans", reg_covar=1e-6, random_state=seed),
    }[recipe.method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = model.fit_predict(z)
    got = attribute(recipe, x, seed=seed)
    assert adjusted_rand_score(expected, got.labels) == 1
    assert got.k == 4


def test_the_training_slices_have_their_own_number_of_clusters():
    recipe = find(["aim24-t2-54-mobilenetv2-ward"])[0]
    x = generators(2)
    expected = AgglomerativeClustering(3, linkage="ward").fit_predict(x.astype(float))
    assert adjusted_rand_score(expected, attribute(recipe, x, k=recipe.k_train).labels) == 1


def test_equal_seeds_give_equal_results():
    generated, real, labels = membership(4)
    for recipe in [rs[-1] for m, rs in BY_METHOD.items() if rs[-1].task == "membership"]:
        first, again = (decide(recipe, real, labels, generated, seed=7) for _ in range(2))
        np.testing.assert_array_equal(first.prediction, again.prediction)
    for recipe in (r for r in RECIPES if r.method in ("kmeans", "gmm")):
        first, again = (attribute(recipe, generators(5, 60), seed=7).labels for _ in range(2))
        np.testing.assert_array_equal(first, again)


def test_a_cluster_with_as_many_of_both_or_none_labelled_is_not_used():
    x = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]], np.float32)
    tie = two_means(x, np.array([1, 0, -1, 1, 0, -1]))
    assert not tie.prediction.any()
    assert tie.score is None
    alone = two_means(x, np.array([1, 0, 1, -1, -1, -1]))
    assert alone.prediction.tolist() == [1, 1, 1, 0, 0, 0]
    assert (alone.score > 0).tolist() == [True, True, True, False, False, False]
    same = two_means(np.ones((4, 2), np.float32), np.array([1, 1, 0, -1]))
    assert same.prediction.tolist() == [1, 1, 1, 1]


def test_ties_between_classes_are_not_used():
    x = np.array([[0.0], [2.0], [1.0]], np.float32)
    assert kmeans_per_class(x, np.array([1, 0, -1]), 1).prediction.tolist() == [1, 0, 0]


def test_duplicates_are_fewer_centres():
    x = np.array([[0.0]] * 4 + [[1.0]] * 4 + [[0.2]], np.float32)
    got = kmeans_per_class(x, np.array([1] * 4 + [0] * 4 + [-1]), 3)
    assert got.prediction.tolist() == [1] * 4 + [0] * 4 + [1]
    assert got.details == {}


@pytest.mark.parametrize("n", [0, 1, 2, 7, 10])
def test_median_split_calls_exactly_half(n):
    distances = np.random.default_rng(n).permutation(n).astype(float)
    called = median_split(distances)
    assert called.sum() == n // 2
    assert set(distances[called == 1]) == set(range(n // 2))
    assert median_split(np.zeros(5)).tolist() == [1, 1, 0, 0, 0], "of equals the first"


def test_fewer_generated_slices_than_clusters_are_as_many():
    generated, real, _ = membership(0, g=5)
    distances, details = cluster_distance(generated, real, 60, "min")
    np.testing.assert_allclose(distances, [min(euclidean(x, g) for g in generated) for x in real], atol=1e-4)
    assert details == {"k": 5}


def test_an_approximation_is_in_the_details():
    generated, real, _ = membership(1)
    distances, details = cluster_distance(generated, real, 4, "avg", limit=20_000)
    assert details["centres"] < len(generated)
    assert distances.shape == (len(real),)


@pytest.mark.parametrize("seed", range(3))
def test_nearest_mean_error(seed):
    rng = np.random.default_rng(seed)
    errors = rng.gamma(2.0, size=40)
    labels = rng.permutation(np.repeat([1, 0, -1], [10, 12, 18]))
    used, unused = errors[labels == 1].mean(), errors[labels == 0].mean()
    got = nearest_mean_error(errors, labels)
    assert got.prediction.tolist() == [int(abs(e - used) < abs(e - unused)) for e in errors]
    np.testing.assert_array_equal(got.prediction, got.score > 0)
    tie = nearest_mean_error(np.array([0.0, 2.0, 1.0]), np.array([1, 0, -1]))
    assert tie.prediction.tolist() == [1, 0, 0]


def test_most_similar_mean():
    got = most_similar_mean(np.array([0.5, 0.2, 0.3]), np.array([0.4, 0.25, 0.3]))
    assert got.prediction.tolist() == [1, 0, 0]
    np.testing.assert_allclose(got.score, [0.1, -0.05, 0])


@pytest.mark.parametrize(("target", "classes"), [("used", ("not_used", "used")), ("generated", ("generated", "real"))])
def test_classifier_decision(target, classes):
    p = np.array([0.2, 0.5, 0.51])
    columns = {target: p}
    probabilities = np.stack([columns.get(c, 1 - p) for c in classes], axis=1)
    got = classifier_decision(probabilities, classes, target)
    assert got.prediction.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(got.score, p)


REAL = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decide(RECIPES[0], REAL, np.array([1, 1, -1])), "2 slices labelled used and 0 not used"),
        (lambda: decide(RECIPES[20], REAL, np.full(3, -1)), "0 slices labelled used and 0 not used"),
        (lambda: decide(RECIPES[0], REAL * np.nan, np.array([1, 0, -1])), "km24-t1-densenet121: got .* not finite"),
        (lambda: decide(RECIPES[30], REAL, np.array([1, 0, -1])), "got no generated slices"),
        (lambda: decide(RECIPES[30], REAL, np.array([1, 0, -1]), REAL[:1]), "got 1 generated slices"),
        (lambda: decide(RECIPES[16], REAL, np.array([1, 0, -1])), "got method 'classifier', expected one of"),
        (lambda: cluster_distance(REAL, REAL, 2, "max"), "rule: got 'max', expected one of"),
        (lambda: attribute(RECIPES[59], REAL), "got k=4 for 3 slices"),
        (lambda: attribute(RECIPES[59], REAL * np.inf), "aim24-t2-60-densenet121-ward: got .* not finite"),
        (lambda: nearest_mean_error(np.ones(2), np.array([1, -1])), "1 slices labelled used and 0 not used"),
        (lambda: classifier_decision(np.ones((2, 3)), ("a", "b", "c"), "a"), "got classes .* expected 'a' and another"),
        (lambda: classifier_decision(np.ones((2, 2)), ("a", "b"), "used"), "expected 'used' and another"),
    ],
)
def test_bad_usage(call, message):
    with pytest.raises(UsageError, match=message):
        call()
