"""tune.membership: the rows of a trial are complete, say what they are of, and hold what plain code finds."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from runs import small_catalog
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from gansfp.decision.search_result import Trial
from gansfp.decision.thresholds import choose_threshold
from gansfp.errors import DataError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring.clustering_space import exact_bytes
from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.scoring.membership import Sweep, scores
from gansfp.scoring.projections import pca
from tune import membership
from tune.left_for_final import left_by
from tune.membership import MembershipSlices, find_sets
from tune.problem import Sweeps, TrialOptions
from tune.rows import SCHEMA, trial_table
from tune.set_slices import USUAL_SHARE, SetSlices

SWEEP = Sweep(ks=(2, 3, 8), class_ks=(1, 2), neighbours=(1, 5), spans=(2, 3))
OPTIONS = TrialOptions(Sweeps(SWEEP, ()))


def example(sets=("one", "two")):
    """Vectors of 100 images, and sets among them whose generated slices lie near their used ones."""
    rng = np.random.default_rng(0)
    vectors, found = rng.normal(size=(100, 20)).astype(np.float32), []
    for number, name in enumerate(sets):
        rows = rng.permutation(50) + 50 * number
        labels = np.array([USED] * 12 + [NOT_USED] * 12 + [UNKNOWN] * 10)
        vectors[rows[34:]] = vectors[rows[:16]] + 0.3 * vectors[rows[34:]]
        folds = np.where(labels == UNKNOWN, -1, np.arange(34) % 4)
        found.append(SetSlices(name, rows[34:], rows[:34], labels, np.arange(34).astype(str), folds))
    return vectors, MembershipSlices(tuple(found))


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_membership_rows_are_complete(metric):
    vectors, slices = example()
    trial = Trial("lbp", "full", 0, metric=metric)
    rows = slices.evaluate(trial, vectors, OPTIONS)
    table = trial_table("membership", trial, rows, time.monotonic() - 2)
    assert table.schema == SCHEMA
    expected = []
    for one in slices.sets:
        parts = vectors[one.generated], vectors[one.real]
        # Whitened scores read the axes.
        axes = pca(np.concatenate(parts), USUAL_SHARE, at_least=300) if metric == "euclidean" else None
        data = EmbeddedSet(*parts, one.labels, one.groups, one.folds, metric, "cpu", 0, axes=axes)
        expected += [(one, parameters, score) for parameters, score in scores(data, SWEEP)]
    assert any("whitened" in parameters for _, parameters, _ in expected) == (metric == "euclidean")
    assert table.num_rows == len(expected)
    for row, (one, parameters, score) in zip(table.to_pylist(), expected, strict=True):
        assert json.loads(row["configuration"]) == {**trial.as_dict(), **parameters}
        assert {name: row[name] for name in ("task", "set", "backbone", "view", "components")} == {
            "task": "membership", "set": one.name, "backbone": "lbp", "view": "full", "components": 0
        }  # fmt: skip
        for name in ("method", "linkage", "k", "rule"):
            assert row[name] == parameters.get(name)
        assert (row["status"], row["error"]) == ("ok", "")
        assert row["seconds"] >= 2
        assert row["scores"] == score.astype(np.float32).tolist()
        labelled = one.labels != UNKNOWN
        assert row["auc"] == pytest.approx(roc_auc_score(one.labels[labelled], score[labelled]))
        decided = np.zeros(34, int)
        for fold in range(4):
            others, here = labelled & (one.folds != fold), one.folds == fold
            decided[here] = score[here] >= choose_threshold(score[others], one.labels[others], "balanced_accuracy")
        assert row["f1"] == pytest.approx(f1_score(one.labels[labelled], decided[labelled]))
        balanced = balanced_accuracy_score(one.labels[labelled], decided[labelled])
        assert row["balanced_accuracy"] == pytest.approx(balanced)
    ks = {(row["linkage"], row["rule"]): set() for row in table.to_pylist() if row["method"] == "clusters"}
    for row in table.to_pylist():
        if row["method"] == "clusters":
            ks[row["linkage"], row["rule"]].add(row["k"])
    linkages = {"average", "complete", "kmeans"} | ({"ward"} if metric == "euclidean" else set())
    assert ks == {(linkage, rule): {2, 3, 8} for linkage in linkages for rule in ("min", "avg")}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_components_are_of_all_slices_of_the_set():
    vectors, slices = example(("one",))
    trial = Trial("lbp", "full", 3, metric="euclidean")
    rows = slices.evaluate(trial, vectors, OPTIONS)
    (one,) = slices.sets
    model = PCA(3, svd_solver="full").fit(vectors[np.concatenate([one.generated, one.real])])
    generated, real = (model.transform(vectors[part]).astype(np.float32) for part in (one.generated, one.real))
    data = EmbeddedSet(generated, real, one.labels, one.groups, one.folds, "euclidean", "cpu", 0)
    expected = {json.dumps({**trial.as_dict(), **p}): score for p, score in scores(data, SWEEP)}
    assert {row.configuration.to_json() for row in rows} == set(expected)
    for row in rows:
        text = row.configuration.to_json()
        if "kmeans" not in text:  # manhattan distances depend on the signs of the axes
            np.testing.assert_allclose(row.scores, expected[text], rtol=1e-3, atol=1e-4)


def test_sets_of_a_catalog(tmp_path):
    numbers = range(6)
    catalog = small_catalog(
        tmp_path,
        [f"membership/s/train/{role}/{role}{i}.png" for role in ("generated", "used", "not_used") for i in numbers]
        + [f"membership/s/test/unknown/x{i}.png" for i in numbers]
        + ["membership/s/test/generated/h.png"],
    )
    readable = ~np.isin(catalog.ids, ["used3", "x2"])
    (of_set,) = find_sets(catalog, readable, 0).sets
    assert of_set.name == "s"
    ids = catalog.ids
    assert set(ids[of_set.generated]) == {*(f"generated{i}" for i in numbers), "h"}
    labels = dict(zip(ids[of_set.real].tolist(), of_set.labels.tolist(), strict=True))
    assert labels == {
        **{f"used{i}": USED for i in numbers if i != 3},
        **{f"not_used{i}": NOT_USED for i in numbers},
        **{f"x{i}": UNKNOWN for i in numbers if i != 2},
    }
    assert np.array_equal(of_set.folds == -1, of_set.labels == UNKNOWN)
    for fold in set(of_set.folds[of_set.folds >= 0].tolist()):
        assert set(of_set.labels[of_set.folds == fold].tolist()) == {USED, NOT_USED}
    again = find_sets(catalog, readable, 0).sets[0]
    assert np.array_equal(again.folds, of_set.folds)
    with pytest.raises(DataError, match="membership set 's': got no readable used slices"):
        find_sets(catalog, ~np.char.startswith(catalog.ids, "used"), 0)
    with pytest.raises(DataError, match="membership set 's': cross-validation in 5 folds needs 2 groups"):
        find_sets(catalog, ~np.isin(catalog.ids, [f"used{i}" for i in range(5)]), 0)


@pytest.mark.parametrize("slice_", ["generated5", "used3", "not_used2", "x2"])
def test_a_slice_that_became_readable_makes_other_trials(tmp_path, slice_):
    paths = [f"train/{role}/{role}{i}.png" for role in ("generated", "used", "not_used") for i in range(6)]
    paths += [f"test/unknown/x{i}.png" for i in range(6)]
    catalog = small_catalog(tmp_path, [f"membership/s/{path}" for path in paths])
    every = np.ones(len(catalog), bool)
    fingerprints = [find_sets(catalog, readable, 0).fingerprint(catalog) for readable in (catalog.ids != slice_, every)]
    assert fingerprints[0] != fingerprints[1]
    assert fingerprints[1] == find_sets(catalog, every, 0).fingerprint(catalog)


def test_patients_stay_in_one_fold(tmp_path):
    paths = [f"membership/s/train/{role}/{role}{i}.png" for role in ("generated", "used", "not_used") for i in range(8)]
    (tmp_path / "groups.csv").write_text(
        "image_id,group\n" + "".join(f"{role}{i},{role}{i // 2}\n" for role in ("used", "not_used") for i in range(8))
    )
    catalog = small_catalog(tmp_path, paths)
    (of_set,) = find_sets(catalog, np.ones(len(catalog), bool), 0).sets
    for group in set(of_set.groups.tolist()):
        assert len(set(of_set.folds[of_set.groups == group].tolist())) == 1


def test_membership_within_a_limit_differs_in_dendrograms_alone():
    vectors, slices = example(("one",))
    trial = Trial("lbp", "full", 0, metric="euclidean")
    exact, near = (slices.evaluate(trial, vectors, replace(OPTIONS, limit=limit)) for limit in (10**9, exact_bytes(8)))
    assert slices.square_bytes() == exact_bytes(16)
    assert len(exact) > len(near), "more clusters than centres are left out"
    plain = {row.configuration.to_json(): row.scores.tolist() for row in exact}
    for row in near:
        choices = row.configuration.choices
        by_tree = choices["method"] == "clusters" and choices["linkage"] != "kmeans"
        assert ("centres" in choices) == by_tree
        if not by_tree and choices["method"] != "span":  # whose components are of a part of the slices
            assert row.scores.tolist() == plain[row.configuration.to_json()]


@pytest.mark.parametrize("components", [0, 0.9, 0.99])
def test_a_trial_gives_the_same_rows_whatever_trials_ran_before_it(components, monkeypatch):
    monkeypatch.setattr(membership, "MAX_COORDINATES", 10)
    monkeypatch.setattr(membership, "LEADING", 5)
    vectors, slices = example()
    trial = Trial("lbp", "full", components, metric="euclidean")
    alone, after = (replace(OPTIONS, axes={}) for _ in range(2))
    for other in (0.5, 0, 0.95):
        slices.evaluate(Trial("lbp", "full", other, metric="euclidean"), vectors, after)
    assert set(after.axes) == {"one", "two"}
    for row, again in zip(slices.evaluate(trial, vectors, alone), slices.evaluate(trial, vectors, after), strict=True):
        assert row.configuration == again.configuration
        assert row.configuration.choices["kmeans_components"] >= 5
        assert row.scores.tolist() == again.scores.tolist()


def test_kmeans_along_the_leading_components_finds_the_same_clusters(monkeypatch):
    """Centres are means of the slices themselves, so scores differ only where a slice changes its cluster."""
    rng = np.random.default_rng(3)
    centres = 3 * rng.normal(size=(8, 60))
    vectors = (centres[rng.integers(8, size=400)] + rng.normal(size=(400, 60))).astype(np.float32)
    labels = np.array([USED] * 40 + [NOT_USED] * 40 + [UNKNOWN] * 20)
    folds = np.where(labels == UNKNOWN, -1, np.arange(100) % 4)
    of_set = SetSlices("s", np.arange(100, 400), np.arange(100), labels, np.arange(100).astype(str), folds)
    sweep = Sweep(methods=("clusters", "two_means"), linkages=("kmeans",), ks=(4, 8))
    options, trial = TrialOptions(Sweeps(sweep, ())), Trial("lbp", "full", 0, metric="euclidean")
    every = MembershipSlices((of_set,)).evaluate(trial, vectors, options)
    monkeypatch.setattr(membership, "MAX_COORDINATES", 10)
    monkeypatch.setattr(membership, "LEADING", 12)
    leading = MembershipSlices((of_set,)).evaluate(trial, vectors, replace(options, axes={}))
    assert all(row.configuration.choices["kmeans_components"] >= 12 for row in leading)
    for row, other in zip(every, leading, strict=True):
        assert np.corrcoef(row.scores, other.scores)[0, 1] > 0.98, row.configuration


def test_a_trial_that_failed_is_one_row():
    trial = Trial("lbp", "full", 0, metric="euclidean")
    (row,) = trial_table("membership", trial, [], time.monotonic(), "UsageError: no").to_pylist()
    assert (row["status"], row["error"], row["backbone"]) == ("failed", "UsageError: no", "lbp")
    assert json.loads(row["configuration"]) == trial.as_dict()
    assert row["scores"] is row["auc"] is None


def test_the_nearest_generated_slices_by_plain_distances():
    vectors, slices = example()
    nearest = left_by(("lbp", "full"), vectors, slices.sets, {}, ("lbp", "outer")).nearest
    for of_set in slices.sets:
        for image, rows in zip(of_set.real, nearest[of_set.name], strict=True):
            distances = np.linalg.norm(vectors[of_set.generated] - vectors[image], axis=1)
            assert rows.tolist() == np.argsort(distances, kind="stable")[:3].tolist()
