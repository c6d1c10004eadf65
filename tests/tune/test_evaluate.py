"""tune.evaluate: the rows of a trial are complete, say what they are of, and hold what plain code finds."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score, f1_score, roc_auc_score

from gansfp.collection.catalog import read_catalog
from gansfp.decision.thresholds import choose_threshold
from gansfp.errors import DataError, UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring.clustering_space import centres_within, exact_bytes
from gansfp.scoring.membership import MembershipSet, Sweep, scores
from tune.evaluate import (
    SCHEMA,
    AttributionRows,
    SetRows,
    attribution_rows,
    evaluate_attribution,
    evaluate_membership,
    membership_sets,
    square_bytes,
    table,
)

TRIAL = {"backbone": "lbp", "view": "full", "components": 0, "metric": "euclidean"}
SWEEP = Sweep(ks=(2, 3, 8), class_ks=(1, 2), neighbours=(1, 5), spans=(2, 3))


def example(sets=("one", "two")):
    """Vectors of 100 images, and two sets among them whose generated slices lie near their used ones."""
    rng = np.random.default_rng(0)
    vectors, found = rng.normal(size=(100, 20)).astype(np.float32), []
    for number, name in enumerate(sets):
        rows = rng.permutation(50) + 50 * number
        labels = np.array([USED] * 12 + [NOT_USED] * 12 + [UNKNOWN] * 10)
        vectors[rows[34:]] = vectors[rows[:16]] + 0.3 * vectors[rows[34:]]
        folds = np.where(labels == UNKNOWN, -1, np.arange(34) % 4)
        found.append(SetRows(name, rows[34:], rows[:34], labels, np.arange(34).astype(str), folds))
    return vectors, found


def files(folder, paths):
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        data = io.BytesIO()
        Image.new("L", (8, 8), number).save(data, "PNG")
        (folder / path).write_bytes(data.getvalue())
    return read_catalog(str(folder))


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_membership_rows_are_complete(metric):
    vectors, sets = example()
    trial = {**TRIAL, "metric": metric}
    rows = evaluate_membership(trial, vectors, sets, SWEEP, "cpu", 0)
    found = table("membership", trial, rows, time.monotonic() - 2)
    assert found.schema == SCHEMA
    expected = []
    for one in sets:
        data = MembershipSet(
            vectors[one.generated], vectors[one.real], one.labels, one.groups, one.folds, metric, "cpu", 0
        )
        expected += [(one, parameters, score) for parameters, score in scores(data, SWEEP)]
    assert found.num_rows == len(expected)
    for row, (one, parameters, score) in zip(found.to_pylist(), expected, strict=True):
        assert json.loads(row["configuration"]) == {**trial, **parameters}
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
    ks = {(row["linkage"], row["rule"]): set() for row in found.to_pylist() if row["method"] == "clusters"}
    for row in found.to_pylist():
        if row["method"] == "clusters":
            ks[row["linkage"], row["rule"]].add(row["k"])
    linkages = {"average", "complete", "kmeans"} | ({"ward"} if metric == "euclidean" else set())
    assert ks == {(linkage, rule): {2, 3, 8} for linkage in linkages for rule in ("min", "avg")}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_components_are_of_all_slices_of_the_set():
    vectors, sets = example(("one",))
    rows = evaluate_membership({**TRIAL, "components": 3}, vectors, sets, SWEEP, "cpu", 0)
    (one,) = sets
    model = PCA(3, svd_solver="full").fit(vectors[np.concatenate([one.generated, one.real])])
    generated, real = (model.transform(vectors[part]).astype(np.float32) for part in (one.generated, one.real))
    data = MembershipSet(generated, real, one.labels, one.groups, one.folds, "euclidean", "cpu", 0)
    found = {json.dumps({**TRIAL, "components": 3, **p}): score for p, score in scores(data, SWEEP)}
    assert {row["configuration"] for row in rows} == set(found)
    for row in rows:
        if "kmeans" not in row["configuration"]:  # manhattan distances see the signs of axes, starts their last bits
            np.testing.assert_allclose(row["scores"], found[row["configuration"]], rtol=1e-3, atol=1e-4)


def test_a_trial_that_failed_is_one_row():
    found = table("membership", TRIAL, [], time.monotonic(), "UsageError: no").to_pylist()
    assert len(found) == 1
    assert (found[0]["status"], found[0]["error"], found[0]["backbone"]) == ("failed", "UsageError: no", "lbp")
    assert json.loads(found[0]["configuration"]) == TRIAL
    assert found[0]["scores"] is found[0]["auc"] is None


def test_sets_of_a_catalog(tmp_path):
    numbers = range(6)
    catalog = files(
        tmp_path,
        [f"membership/s/train/{role}/{role}{i}.png" for role in ("generated", "used", "not_used") for i in numbers]
        + [f"membership/s/test/unknown/x{i}.png" for i in numbers]
        + ["membership/s/test/generated/h.png"],
    )
    readable = ~np.isin(catalog.ids, ["used3", "x2"])
    (found,) = membership_sets(catalog, readable, 0)
    assert found.name == "s"
    ids = catalog.ids
    assert set(ids[found.generated]) == {*(f"generated{i}" for i in numbers), "h"}
    labels = dict(zip(ids[found.real].tolist(), found.labels.tolist(), strict=True))
    assert labels == {
        **{f"used{i}": USED for i in numbers if i != 3},
        **{f"not_used{i}": NOT_USED for i in numbers},
        **{f"x{i}": UNKNOWN for i in numbers if i != 2},
    }
    assert np.array_equal(found.folds == -1, found.labels == UNKNOWN)
    for fold in set(found.folds[found.folds >= 0].tolist()):
        assert set(found.labels[found.folds == fold].tolist()) == {USED, NOT_USED}
    again = membership_sets(catalog, readable, 0)[0]
    assert np.array_equal(again.folds, found.folds)
    with pytest.raises(DataError, match="membership set 's': got no readable used slices"):
        membership_sets(catalog, ~np.char.startswith(catalog.ids, "used"), 0)
    with pytest.raises(DataError, match="membership set 's': cross-validation in 5 folds needs 2 groups"):
        membership_sets(catalog, ~np.isin(catalog.ids, [f"used{i}" for i in range(5)]), 0)


def test_patients_stay_in_one_fold(tmp_path):
    paths = [f"membership/s/train/{role}/{role}{i}.png" for role in ("generated", "used", "not_used") for i in range(8)]
    (tmp_path / "groups.csv").write_text(
        "image_id,group\n" + "".join(f"{role}{i},{role}{i // 2}\n" for role in ("used", "not_used") for i in range(8))
    )
    catalog = files(tmp_path, paths)
    (found,) = membership_sets(catalog, np.ones(len(catalog), bool), 0)
    for group in set(found.groups.tolist()):
        assert len(set(found.folds[found.groups == group].tolist())) == 1


def attribution():
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(4, 12))
    truth = np.repeat([0, 1, 2, 3], 15)
    known, test = (centres[t] + rng.normal(size=(len(t), 12)) for t in (truth[:45], truth))
    vectors = np.concatenate([known, test]).astype(np.float32)
    names = np.array(["gan", "vae", "flow"])[truth[:45]]
    return vectors, AttributionRows(np.arange(45), names, 45 + np.arange(60)), truth


@pytest.mark.parametrize("components", [0, 0.95])
def test_attribution_rows_are_complete(components):
    vectors, rows, truth = attribution()
    trial = {"backbone": "residual", "view": "full", "components": components, "standardise": False}
    found = table("attribution", trial, evaluate_attribution(trial, vectors, rows, (2, 4, 6, 99), "cpu", 0), 0.0)
    assert found.schema == SCHEMA
    every = found.to_pylist()
    assert len({row["configuration"] for row in every}) == len(every)
    by_clustering = {}
    for row in every:
        assert row["status"] == "ok", row["error"]
        assert row["set"] is None
        configuration = json.loads(row["configuration"])
        assert configuration.items() >= trial.items()
        labels = np.array(row["scores"])
        assert set(labels.tolist()) == set(range(row["k"]))
        assert all(abs(row[name]) <= 1 + 1e-9 for name in ("ari_known", "ari_known_given_k"))
        assert row["k"] == 1 or abs(row["silhouette"]) <= 1  # of one cluster it is not defined
        assert row["chosen_k"] in (True, False)
        if row["chosen_k"]:
            assert len(row["known"]) == 45
        if row["method"] == "kmeans" and row["k"] == 4:
            assert adjusted_rand_score(truth, labels) == 1
        rest = {name: value for name, value in configuration.items() if name != "k"}
        by_clustering.setdefault(json.dumps(rest), []).append(row)
    assert {row["method"] for row in every} == {"hierarchical", "kmeans"} | ({"gmm"} if components else set())
    for sharing in by_clustering.values():
        assert sum(row["chosen_k"] for row in sharing) == 1
        assert len(sharing) == 1 or [row["k"] for row in sharing] == [2, 4, 6]  # 99: fewer slices than that
    assert max(row["ari_known"] for row in every) == 1


def test_attribution_within_a_limit_says_what_stands_for_the_slices():
    vectors, rows, truth = attribution()
    vectors = np.concatenate([vectors] * 3)  # 180 known and test slices, some of them twins
    rows = AttributionRows(*(np.concatenate([part + 105 * i for i in range(3)]) if part.dtype.kind == "i"
                             else np.tile(part, 3) for part in (rows.known, rows.generators, rows.test)))  # fmt: skip
    trial = {"backbone": "residual", "view": "full", "components": 0.95, "standardise": False}
    limit = 3 * exact_bytes(100)
    assert square_bytes(rows) > limit
    found = table("attribution", trial, evaluate_attribution(trial, vectors, rows, (2, 4), "cpu", 0, limit), 0.0)
    for row in found.to_pylist():
        assert row["status"] == "ok", row["error"]
        configuration = json.loads(row["configuration"])
        assert configuration["centres"] <= configuration["sample"] == centres_within(limit // 3)
        assert configuration["known_centres"] <= configuration["known_sample"] == centres_within(limit // 3)
        if row["method"] == "hierarchical" and row["k"] == 4:
            assert adjusted_rand_score(np.tile(truth, 3), row["scores"]) == 1
    assert max(row["ari_known"] for row in found.to_pylist()) == 1


def test_membership_within_a_limit_differs_in_dendrograms_alone():
    vectors, sets = example(("one",))
    exact, near = (
        evaluate_membership(TRIAL, vectors, sets, SWEEP, "cpu", 0, limit) for limit in (10**9, exact_bytes(8))
    )
    assert square_bytes(sets) == exact_bytes(16)
    assert len(exact) > len(near), "more clusters than centres are left out"
    plain = {row["configuration"]: row["scores"].tolist() for row in exact}
    for row in near:
        configuration = json.loads(row["configuration"])
        by_tree = configuration["method"] == "clusters" and configuration["linkage"] != "kmeans"
        assert ("centres" in configuration) == by_tree
        if not by_tree and configuration["method"] != "span":  # whose components are of a part of the slices
            assert row["scores"].tolist() == plain[row["configuration"]]


def test_attribution_needs_fewer_clusters_than_slices():
    vectors, rows, _ = attribution()
    trial = {"backbone": "residual", "view": "full", "components": 0, "standardise": False}
    with pytest.raises(UsageError, match="for 60 test slices, expected fewer clusters than slices"):
        evaluate_attribution(trial, vectors, rows, (60, 61), "cpu", 0)


def test_a_clustering_that_failed_is_one_row_and_the_others_go_on(monkeypatch):
    def broken(space, clustering, ks):
        if clustering.method == "kmeans":
            raise UsageError("too wide")
        return real(space, clustering, ks)

    vectors, rows, _ = attribution()
    real = evaluate_attribution.__globals__["results"]
    monkeypatch.setattr("tune.evaluate.results", broken)
    trial = {"backbone": "residual", "view": "full", "components": 0, "standardise": False}
    found = table("attribution", trial, evaluate_attribution(trial, vectors, rows, (2, 3), "cpu", 0), 0.0).to_pylist()
    failed = [row for row in found if row["status"] == "failed"]
    assert [(row["method"], row["error"], row["k"]) for row in failed] == [("kmeans", "too wide", None)]
    assert len(found) > 4


def test_attribution_rows_of_a_catalog(tmp_path):
    paths = [f"attribution/train/{name}/{name}{i}.png" for name in ("gan", "vae") for i in range(3)]
    catalog = files(tmp_path, [*paths, "attribution/test/t0.png", "attribution/test/t1.png"])
    readable = ~np.isin(catalog.ids, ["gan1", "t1"])
    rows = attribution_rows(catalog, readable)
    named = dict(zip(catalog.ids[rows.known].tolist(), rows.generators.tolist(), strict=True))
    assert named == {"gan0": "gan", "gan2": "gan", "vae0": "vae", "vae1": "vae", "vae2": "vae"}
    assert catalog.ids[rows.test].tolist() == ["t0"]
    with pytest.raises(DataError, match="got 1 known generators, expected 2 or more"):
        attribution_rows(catalog, ~np.char.startswith(catalog.ids, "gan"))
    with pytest.raises(DataError, match="no readable test slices"):
        attribution_rows(catalog, ~np.char.startswith(catalog.ids, "t"))
