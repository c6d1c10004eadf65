"""tune.attribution: the rows of a trial are complete, say what they are of, and hold what plain code finds."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from runs import small_catalog
from sklearn.metrics import adjusted_rand_score

from gansfp.decision.search_result import BestRow, Configuration, SearchResult, Trial
from gansfp.errors import DataError, UsageError
from gansfp.scoring.attribution import COVARIANCES, INITS, LINKAGES
from gansfp.scoring.clustering_space import centres_within, exact_bytes
from gansfp.scoring.membership import Sweep
from tune import attribution
from tune.attribution import AttributionSlices, clusterings_of, find_slices
from tune.problem import Sweeps, TrialOptions
from tune.rows import SCHEMA, trial_table


def options(*ks):
    return TrialOptions(Sweeps(Sweep(), ks))


def example():
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(4, 12))
    truth = np.repeat([0, 1, 2, 3], 15)
    known, test = (centres[t] + rng.normal(size=(len(t), 12)) for t in (truth[:45], truth))
    vectors = np.concatenate([known, test]).astype(np.float32)
    names = np.array(["gan", "vae", "flow"])[truth[:45]]
    return vectors, AttributionSlices(np.arange(45), names, 45 + np.arange(60)), truth


@pytest.mark.parametrize("components", [0, 0.95])
def test_attribution_rows_are_complete(components):
    vectors, slices, truth = example()
    trial = Trial("residual", "full", components, standardise=False)
    table = trial_table("attribution", trial, slices.evaluate(trial, vectors, options(2, 4, 6, 99)), 0.0)
    assert table.schema == SCHEMA
    every = table.to_pylist()
    assert len({row["configuration"] for row in every}) == len(every)
    by_clustering = {}
    for row in every:
        assert row["status"] == "ok", row["error"]
        assert row["set"] is None
        configuration = json.loads(row["configuration"])
        assert configuration.items() >= trial.as_dict().items()
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
    vectors, slices, truth = example()
    vectors = np.concatenate([vectors] * 3)  # 180 known and test slices, some of them twins
    known, test = (np.concatenate([rows + 105 * copy for copy in range(3)]) for rows in (slices.known, slices.test))
    slices = AttributionSlices(known, np.tile(slices.generators, 3), test)
    trial = Trial("residual", "full", 0.95, standardise=False)
    limit = 3 * exact_bytes(100)
    assert slices.square_bytes() > limit
    rows = slices.evaluate(trial, vectors, replace(options(2, 4), limit=limit))
    table = trial_table("attribution", trial, rows, 0.0)
    for row in table.to_pylist():
        assert row["status"] == "ok", row["error"]
        configuration = json.loads(row["configuration"])
        assert configuration["centres"] <= configuration["sample"] == centres_within(limit // 3)
        assert configuration["known_centres"] <= configuration["known_sample"] == centres_within(limit // 3)
        if row["method"] == "hierarchical" and row["k"] == 4:
            assert adjusted_rand_score(np.tile(truth, 3), row["scores"]) == 1
    assert max(row["ari_known"] for row in table.to_pylist()) == 1


def test_attribution_needs_fewer_clusters_than_slices():
    vectors, slices, _ = example()
    with pytest.raises(UsageError, match="for 60 test slices, expected fewer clusters than slices"):
        slices.evaluate(Trial("residual", "full", 0, standardise=False), vectors, options(60, 61))


def test_a_clustering_that_failed_is_one_row_and_the_others_go_on(monkeypatch):
    def broken(space, clustering, ks):
        if clustering.method == "kmeans":
            raise UsageError("too wide")
        return real(space, clustering, ks)

    vectors, slices, _ = example()
    real = attribution.results
    monkeypatch.setattr(attribution, "results", broken)
    rows = slices.evaluate(Trial("residual", "full", 0, standardise=False), vectors, options(2, 3))
    failed = [row for row in rows if row.status == "failed"]
    assert [(row.method, row.error, row.k) for row in failed] == [("kmeans", "too wide", None)]
    assert len(rows) > 4


def test_attribution_rows_of_a_catalog(tmp_path):
    paths = [f"attribution/train/{name}/{name}{i}.png" for name in ("gan", "vae") for i in range(3)]
    catalog = small_catalog(tmp_path, [*paths, "attribution/test/t0.png", "attribution/test/t1.png"])
    readable = ~np.isin(catalog.ids, ["gan1", "t1"])
    slices = find_slices(catalog, readable, 0)
    named = dict(zip(catalog.ids[slices.known].tolist(), slices.generators.tolist(), strict=True))
    assert named == {"gan0": "gan", "gan2": "gan", "vae0": "vae", "vae1": "vae", "vae2": "vae"}
    assert catalog.ids[slices.test].tolist() == ["t0"]
    with pytest.raises(DataError, match="got 1 known generators, expected 2 or more"):
        find_slices(catalog, ~np.char.startswith(catalog.ids, "gan"), 0)
    with pytest.raises(DataError, match="no readable test slices"):
        find_slices(catalog, ~np.char.startswith(catalog.ids, "t"), 0)


def test_shortcuts_are_looked_for_again_where_more_known_slices_can_be_read(tmp_path, monkeypatch):
    vectors, slices, _ = example()
    images, read = SimpleNamespace(ids=np.arange(105).astype(str)), []
    monkeypatch.setattr(attribution, "read_known", lambda images, rows, generators: read.append(len(rows)))
    choices = {"backbone": "lbp", "view": "full", "components": 0, "standardise": False}
    for known in (slices.known[:-1], slices.known, slices.known):
        some = AttributionSlices(known, slices.generators[: len(known)], slices.test)
        best = {"": BestRow(0, Configuration(choices), {})}
        result = SearchResult("attribution", best, 1, 0, {}, {}, {}, some.ids(images), "digest of the catalog")
        rows = SimpleNamespace(of_row=lambda row: np.zeros(len(slices.test)))
        search = SimpleNamespace(result=result, folder=str(tmp_path), rows=lambda name: rows)  # noqa: B023
        some.leave_for_final(search, lambda pairs, look: [look(pairs[0], vectors)], images)
    assert read == [44, 45]


@pytest.mark.parametrize("components", [0, 0.95])
def test_clusterings_of_a_trial(components):
    found = clusterings_of(Trial("residual", "full", components, standardise=True), seed=7)
    assert len(set(found)) == len(found)
    assert {c.linkage for c in found if c.method == "hierarchical"} <= set(LINKAGES)
    assert any(c.method == "kmeans" for c in found)
    mixtures = [c for c in found if c.method == "gmm"]
    assert bool(mixtures) == bool(components)  # a mixture of thousands of numbers has nothing to rest on
    assert {c.covariance for c in mixtures} <= set(COVARIANCES)
    assert {c.init for c in mixtures} <= set(INITS)
    assert {(c.components, c.standardise, c.seed) for c in found} == {(components, True, 7)}
