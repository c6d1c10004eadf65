"""Membership scores: each against a slow plain reference; labels never change the scores of their fold; odd inputs."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring import embedded_set
from gansfp.scoring.clustering_space import ClusteringSpace
from gansfp.scoring.distances import smallest
from gansfp.scoring.embedded_set import TINY, EmbeddedSet
from gansfp.scoring.membership import METHODS, Sweep, check_ks, learns_from_labels, mean_nearest, scores
from gansfp.scoring.projections import pca

METRICS = {"euclidean": "euclidean", "manhattan": "cityblock", "cosine": "cosine"}  # our name and scipy's
SMALL = Sweep(ks=(1, 2, 3, 8, 30), class_ks=(1, 2, 4), neighbours=(1, 3), spans=(1, 4))


def example(metric="euclidean", seed=0, numbers=40, patient=2, generated=30):
    """A set whose generated slices lie near used ones: 8 + 8 labelled, 10 unknown, patients of `patient` slices."""
    rng = np.random.default_rng(seed)
    labels = np.array([USED] * 8 + [NOT_USED] * 8 + [UNKNOWN] * 10)
    real = rng.normal(size=(26, numbers)).astype(np.float32) + 1
    drawn = np.concatenate([real[:8], real[16:21]])[rng.integers(13, size=generated)]
    drawn = (drawn + 0.5 * rng.normal(size=drawn.shape)).astype(np.float32)
    folds = np.where(labels == UNKNOWN, -1, np.arange(26) // 2 % 4)
    axes = pca(np.concatenate([drawn, real]), min(numbers, 20))
    return EmbeddedSet(drawn, real, labels, np.arange(26) // patient, folds, metric, axes=axes)


def scores_of(data, method, sweep=SMALL):
    return [(parameters, score) for parameters, score in scores(data, sweep) if parameters["method"] == method]


def labelled_outside(data, row):
    """The slices whose labels a row's score may use: all labelled slices of other folds."""
    return [i for i in range(len(data.real)) if data.labels[i] != UNKNOWN and data.folds[i] != data.folds[row]]


def between(data, x, y, metric=None):
    return cdist(x.astype(np.float64), y.astype(np.float64), METRICS[metric or data.metric])


@pytest.mark.parametrize("metric", METRICS)
def test_clusters(metric):
    data = example(metric)
    expected = {}
    for linkage in ("ward", "average", "complete", "kmeans"):
        if linkage == "ward" and metric != "euclidean":
            continue
        for k in SMALL.ks:
            if linkage == "kmeans":
                labels = KMeans(k, n_init=1, random_state=0).fit(data.generated).labels_
            else:
                model = AgglomerativeClustering(k, linkage=linkage, metric=metric)
                labels = model.fit(data.generated.astype(np.float64)).labels_
            centres = np.stack([data.generated[labels == c].mean(0, dtype=np.float64) for c in range(k)])
            for row in range(len(data.real)):
                apart = [between(data, data.real[row : row + 1], centre[None])[0, 0] for centre in centres]
                expected.setdefault((linkage, k, "min"), []).append(-min(apart))
                expected.setdefault((linkage, k, "avg"), []).append(-sum(apart) / k)
    rows = scores_of(data, "clusters")
    assert {(p["linkage"], p["k"], p["rule"]) for p, _ in rows} == set(expected)
    for p, score in rows:
        np.testing.assert_allclose(score, expected[p["linkage"], p["k"], p["rule"]], rtol=1e-5, atol=1e-6)


def test_more_clusters_than_slices_are_left_out():
    rows = scores_of(example(generated=5), "clusters")
    assert {p["k"] for p, _ in rows} == {1, 2, 3}
    with pytest.raises(UsageError, match="got 8, expected at most the number of slices to cluster, 5"):
        check_ks((2, 8), 5)
    check_ks((), 0)


def test_distances_for_clustering_are_gone_when_other_scores_are_computed(monkeypatch):
    made = []

    class Watched(ClusteringSpace):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(embedded_set, "ClusteringSpace", Watched)
    data = example()
    assert any(parameters["method"] == "clusters" for parameters, _ in scores(data, SMALL))
    list(scores(data, replace(SMALL, methods=("clusters",))))
    gc.collect()
    assert [reference() for reference in made] == [None, None]


def test_kmeans_per_class():
    data = example()
    assert scores_of(example("cosine"), "kmeans_per_class") == []
    rows = scores_of(data, "kmeans_per_class")
    assert [p["k"] for p, _ in rows] == [1, 2, 4]
    for p, score in rows:
        assert p["metric"] == "manhattan"
        for row in range(len(data.real)):
            near = {}
            for label in (USED, NOT_USED):
                members = data.real[[i for i in labelled_outside(data, row) if data.labels[i] == label]]
                centres = KMeans(p["k"], n_init=1, random_state=0).fit(members).cluster_centers_
                near[label] = between(data, data.real[row : row + 1], centres, "manhattan").min()
            assert score[row] == pytest.approx(near[NOT_USED] - near[USED], abs=1e-4)


def test_equal_classes_give_every_slice_a_score_of_0():
    real = np.array([[0, 1], [5, 1], [0, 1], [5, 1], [2, 2]], np.float32)
    data = EmbeddedSet(NORMAL[:3, :2], real, np.array([1, 1, 0, 0, -1]), np.arange(5), np.array([0, 1, 0, 1, -1]))
    ((_, score),) = scores_of(data, "kmeans_per_class", Sweep(class_ks=(1,)))
    assert score.tolist() == [0] * 5


@pytest.mark.parametrize("metric", METRICS)
def test_two_means(metric):
    data = example(metric, seed=3)
    ((_, score),) = scores_of(data, "two_means")
    model = KMeans(2, n_init=10, random_state=0).fit(data.real)
    apart = between(data, data.real, model.cluster_centers_)
    for row in range(len(data.real)):
        judges = labelled_outside(data, row)
        share = [np.mean([data.labels[i] for i in judges if model.labels_[i] == c] or [0]) for c in (0, 1)]
        used = int(share[1] >= share[0])
        assert score[row] == pytest.approx(apart[row, 1 - used] - apart[row, used], abs=1e-5)
        if metric == "euclidean":  # then the sign is the cluster
            assert (score[row] > 0) == (model.labels_[row] == used)


def mean_of_nearest(distances, m):
    return float(np.mean(sorted(distances)[:m]))


@pytest.mark.parametrize("metric", METRICS)
def test_nearest_and_contrast(metric):
    data = example(metric)
    to_generated, to_real = between(data, data.real, data.generated), between(data, data.real, data.real)
    others = data.groups[:, None] != data.groups[None, :]
    contrast = {p["neighbours"]: s for p, s in scores_of(data, "contrast")}
    scored = {(p["neighbours"], p["reference"]): s for p, s in scores_of(data, "nearest")}
    for m in SMALL.neighbours:
        for row in range(len(data.real)):
            near = mean_of_nearest(to_generated[row], m)
            real = mean_of_nearest(to_real[row, others[row]], m)
            reference = [i for i in labelled_outside(data, row) if data.labels[i] == NOT_USED and others[row, i]]
            unused = mean_of_nearest(to_real[row, reference], m)
            assert scored[m, "none"][row] == pytest.approx(-np.log(near), abs=1e-5)
            assert scored[m, "real"][row] == pytest.approx(np.log(real / near), abs=1e-5)
            assert scored[m, "not_used"][row] == pytest.approx(np.log(unused / near), abs=1e-5)
            assert contrast[m][row] == pytest.approx(unused - near, abs=1e-4)


def test_mean_nearest_leaves_out_infinite_distances():
    apart = np.array([[1, np.inf, 3], [np.inf, np.inf, 2], [np.inf] * 3, [4, 2, 1]], np.float32)
    assert mean_nearest(smallest(apart, 2), 2).tolist() == [2, 2, 3, 1.5], (
        "the third row has no finite distance: the largest of all"
    )
    assert mean_nearest(smallest(apart, 9), 9).tolist() == pytest.approx([2, 2, 4, 7 / 3])
    assert mean_nearest(np.full((2, 2), np.inf), 1).tolist() == [1, 1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_reverse_is_above_zero_for_what_the_rule_calls_used(metric, seed):
    data = example(metric, seed, patient=1)
    ((_, score),) = scores_of(data, "reverse")
    called = {int(np.argmin(row)) for row in between(data, data.generated, data.real)}
    assert set(np.flatnonzero(score > 0).tolist()) == called
    assert len(called) < len(score)


def test_reverse_compares_patients():
    data = example(patient=2)
    ((_, score),) = scores_of(data, "reverse")
    apart = between(data, data.generated, data.real)
    for i in range(len(data.real)):
        rival = apart[:, data.groups != data.groups[i]].min(1)
        assert score[i] == pytest.approx(np.log(rival / apart[:, i]).max(), abs=1e-5)


def test_span():
    data = example(numbers=50)
    rows = scores_of(data, "span")
    assert [p["span"] for p, _ in rows] == [1, 4]
    for p, score in rows:
        model = PCA(p["span"], svd_solver="full").fit(data.generated.astype(np.float64))
        outside = data.real - model.inverse_transform(model.transform(data.real))
        share = np.square(outside).sum(1) / np.square(data.real - model.mean_).sum(1)
        np.testing.assert_allclose(score, -np.log(share), rtol=1e-4, atol=1e-5)
    assert scores_of(example("cosine"), "span") == []
    assert scores_of(example(generated=2), "span") == []


@pytest.mark.parametrize("numbers", [50, 12])
def test_spans_of_a_generator_that_repeats_itself_end_with_its_slices(numbers):
    data = example(numbers=numbers, generated=40)
    data = replace(data, generated=data.generated[np.arange(40) % 8])
    found = {p["span"]: score for p, score in scores_of(data, "span", replace(SMALL, spans=(4, 7, 10, 11)))}
    exact = PCA(7, svd_solver="full").fit(data.generated.astype(np.float64))
    outside = data.real - exact.inverse_transform(exact.transform(data.real))
    share = np.square(outside).sum(1) / np.square(data.real - exact.mean_).sum(1)
    for span in (7, 10, 11):
        np.testing.assert_allclose(found[span], -np.log(share), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[4], found[7])


@pytest.mark.parametrize("metric", METRICS)
def test_a_folds_own_labels_never_change_its_scores(metric):
    data = example(metric)
    before = [score for _, score in scores(data, SMALL)]
    changed = np.zeros(len(before), bool)
    for fold in range(4):
        of_fold = data.folds == fold
        flipped = np.where(of_fold, 1 - data.labels, data.labels)
        assert (flipped != data.labels).sum() == 4
        other = replace(data, labels=flipped)
        after = list(scores(other, SMALL))
        assert len(after) == len(before)
        for i, (score_before, (parameters, score_after)) in enumerate(zip(before, after, strict=True)):
            assert np.array_equal(score_before[of_fold], score_after[of_fold]), parameters
            changed[i] |= not np.array_equal(score_before, score_after)
    learns = [learns_from_labels(parameters) for parameters, _ in scores(data, SMALL)]
    assert changed.tolist() == learns  # configurations that learn change, and the others do not


def test_methods_order_and_names():
    data = example()
    every = [parameters for parameters, _ in scores(data, SMALL)]
    assert list(dict.fromkeys(p["method"] for p in every)) == list(METHODS) == list(Sweep().methods)
    # the trials of a search are named after the default, so neither its names nor their order may change
    assert Sweep().methods == (
        *("clusters", "kmeans_per_class", "two_means"),
        *("nearest", "contrast", "reverse", "span", "whitened"),
    )
    assert len({str(sorted(p.items())) for p in every}) == len(every)
    chosen = Sweep(methods=("span", "reverse"), spans=(3,))
    assert [p["method"] for p, _ in scores(data, chosen)] == ["span", "reverse"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("magic",)}, "method: got 'magic', expected one of"),
        ({"linkages": ("ward", "x")}, "linkage: got 'x', expected one of"),
        ({"ks": (2, 0)}, "k: got 0, expected at least 1"),
        ({"class_ks": (0,)}, "k: got 0"),
        ({"neighbours": (-1,)}, "neighbours: got -1"),
        ({"spans": (0,)}, "span: got 0"),
    ],
)
def test_unknown_values_of_a_sweep_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Sweep(**change)


LABELS, FOLDS = np.array([1, 0, 1, 0, -1]), np.array([0, 0, 1, 1, -1])
NORMAL = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)


def odd(**changes):
    rows = {"generated": NORMAL[:4], "real": NORMAL[4:], "labels": LABELS, "groups": np.arange(5), "folds": FOLDS}
    return EmbeddedSet(**{**rows, **changes})


ODD = {
    "two of each class": {},
    "no unknown": {"real": NORMAL[4:8], "labels": LABELS[:4], "folds": FOLDS[:4], "groups": np.arange(4)},
    "two generated": {"generated": NORMAL[:2]},
    "one patient": {"groups": np.zeros(5, int)},
    "no groups": {"groups": np.array([""] * 5)},
    "copies": {"generated": NORMAL[4:8]},
    "all the same": {"generated": np.ones((4, 6), np.float32), "real": np.ones((5, 6), np.float32)},
    "all zero": {"generated": np.zeros((4, 6), np.float32), "real": np.zeros((5, 6), np.float32)},
    "generated all the same": {"generated": NORMAL[:1].repeat(4, 0)},
    "real all the same": {"real": NORMAL[4:5].repeat(5, 0)},
    "one number": {"generated": NORMAL[:4, :1], "real": NORMAL[4:, :1]},
    "large": {"generated": 1e15 * NORMAL[:4], "real": 1e15 * NORMAL[4:]},
    "small": {"generated": 1e-15 * NORMAL[:4], "real": 1e-15 * NORMAL[4:]},
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("error")
def test_every_score_is_finite(name, metric):
    data = odd(**ODD[name], metric=metric)
    every = list(scores(data, Sweep(ks=(1, 2, 4), class_ks=(1, 2), spans=(1, 2))))
    methods = {"clusters", "two_means", "nearest", "contrast", "reverse"}
    assert methods | ({"kmeans_per_class"} if metric == "euclidean" else set()) <= {p["method"] for p, _ in every}
    for parameters, score in every:
        assert score.shape == data.labels.shape
        assert score.dtype == np.float64
        assert np.isfinite(score).all(), parameters


def test_slices_without_a_group_are_compared_with_each_other():
    assert np.isfinite(odd(groups=np.array([""] * 5)).to_real(5)[0]).sum() == 20
    assert np.isfinite(odd(groups=np.array(["a", "a", "", "", ""])).to_real(5)[0]).sum() == 18


def test_a_copy_scores_above_all():
    data = odd(generated=np.concatenate([NORMAL[4:5], NORMAL[:3]]))
    for parameters, score in scores(data, Sweep(methods=("nearest", "reverse"), neighbours=(1,))):
        assert score.argmax() == 0, parameters
        assert score[0] > -np.log(TINY) / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([1, 1, 1, 1, -1])}, "used and not used slices outside of every fold"),
        ({"labels": np.array([1, 1, 0, 0, -1])}, "used and not used slices outside of every fold"),
        ({"folds": np.array([0, 0, 0, 0, -1])}, "used and not used slices outside of every fold"),
        ({"folds": np.array([0, 0, 1, 1, 1])}, "folds that do not fit the labels"),
        ({"folds": np.array([0, 0, 1, -1, -1])}, "folds that do not fit the labels"),
        ({"generated": NORMAL[:1]}, "got 1 generated slices, expected at least 2"),
        ({"generated": np.where(NORMAL[:4] > 1, np.nan, NORMAL[:4])}, "not finite"),
        ({"real": np.where(NORMAL[4:] > 1, np.inf, NORMAL[4:])}, "not finite"),
    ],
)
def test_sets_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        odd(**changes)
