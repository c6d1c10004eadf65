"""Systems from embeddings on disk to files of predictions, against scikit-learn and plain loops, without truth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import adjusted_rand_score

from gansfp.collection.catalog import Catalog, read_catalog
from gansfp.embedding import shards
from gansfp.errors import DataError, UsageError
from gansfp.published.recipes import find
from gansfp.published.systems import (
    DecisionInput,
    Made,
    decision_key,
    folder,
    missing_slices,
    read_made,
    read_predictions,
    run_system,
    select_kinds,
    slice_kinds,
)

IDENTITY = {"backbone": "x", "view": "full", "weights": "", "mask": "", "size": "256", "precision": "float32"}
SOURCE = DecisionInput(identity=IDENTITY)


@pytest.fixture(scope="module")
def catalog(challenge):
    return read_catalog(str(challenge))


@pytest.fixture(scope="module")
def vectors(catalog):
    """A vector for each image: noise around a mean that depends on the image's role."""
    rng = np.random.default_rng(0)
    means = {role: rng.normal(0, 0.4, 12) for role in ("used", "not_used", "unknown", "generated")}
    return {row["image_id"]: means[row["role"]] + rng.normal(0, 1, 12) for row in catalog.table.to_pylist()}


@pytest.fixture(scope="module")
def work(catalog, vectors, tmp_path_factory):
    """WORK with those vectors in two shards. Two slices have no vector because they could not be read."""
    work = str(tmp_path_factory.mktemp("systems"))
    images = catalog.hashes()
    bad = unreadable(catalog)
    names = list(images)
    for half in (names[::2], names[1::2]):
        status = [shards.FAILED if name in bad else "ok" for name in half]
        rows = np.stack([vectors[name] for name in half]).astype(np.float32)
        shards.write_shard(work, IDENTITY, {name: images[name] for name in half}, status, [""] * len(half), rows)
    return work


def unreadable(catalog):
    return {
        catalog.unknown("warp").ids[3],
        catalog.select(task="attribution", split="test").ids[5],
    }


def written(work, number, name):
    """The file in the format of the challenge, read as plain text: {id: value}."""
    (recipe,) = find([number])
    lines = Path(f"{folder(work, recipe)}/{name}.csv").read_text().splitlines()
    return {line.split(",")[0]: int(line.split(",")[1]) for line in lines}


def on_disk(work):
    """All vectors by image id, read with plain pyarrow."""
    vectors = {}
    for path in shards.store.list_files(shards.folder(work, ("x", "full")), ".parquet"):
        for row in pq.read_table(path).to_pylist():
            if row["embedding"] is not None:
                vectors[row["image_id"]] = np.array(row["embedding"], np.float32)
    return vectors


def part(vectors, catalog, *where):
    """The names of these images, and their vectors; images without a vector are left out."""
    images = catalog.select(**dict(zip(("task", "set", "split", "role"), where, strict=False)))
    rows = [row for row in images.table.to_pylist() if row["image_id"] in vectors]
    return [row["name"] for row in rows], np.stack([vectors[row["image_id"]] for row in rows])


class TestMembership:
    @pytest.mark.parametrize("number", [21, 23])
    def test_the_class_of_the_nearest_centre(self, number, catalog, work):
        (recipe,) = find([number])
        run_system(recipe, catalog, work, SOURCE, 0)
        vectors = on_disk(work)
        for name in ("clean", "warp"):
            names, unknown = part(vectors, catalog, "membership", name, "test", "unknown")
            distances = []
            for role in ("used", "not_used"):
                labelled = part(vectors, catalog, "membership", name, "train", role)[1]
                centres = KMeans(recipe.k, n_init=10, random_state=0).fit(labelled).cluster_centers_
                distances.append(np.abs(unknown[:, None] - centres[None]).sum(2).min(1))
            expected = dict(zip(names, (distances[0] < distances[1]).astype(int).tolist(), strict=True))
            predictions = written(work, number, name)
            assert {image: value for image, value in predictions.items() if image in expected} == expected
            assert 0 < sum(predictions.values()) < len(predictions)

    def test_the_half_that_is_nearest_to_clusters_of_the_generated_slices_of_the_test(self, catalog, work):
        (recipe,) = find([32])
        run_system(recipe, catalog, work, SOURCE, 0)
        vectors = on_disk(work)
        for name in ("clean", "warp"):
            generated = part(vectors, catalog, "membership", name, "test", "generated")[1]
            clusters = AgglomerativeClustering(recipe.k, linkage="ward").fit_predict(generated)
            centres = np.stack([generated[clusters == label].mean(0) for label in range(recipe.k)])
            names, unknown = part(vectors, catalog, "membership", name, "test", "unknown")
            distances = np.linalg.norm(unknown[:, None] - centres[None], axis=2).min(1)
            nearest = {names[row] for row in np.argsort(distances)[: len(names) // 2]}
            assert {image for image, value in written(work, 32, name).items() if value} == nearest

    def test_a_slice_that_cannot_be_read_is_not_used(self, catalog, work):
        (recipe,) = find([21])
        run_system(recipe, catalog, work, SOURCE, 0)
        unknown = catalog.unknown("warp")
        predictions = written(work, 21, "warp")
        assert list(predictions) == unknown.column("name").tolist()
        bad = next(name for image, name in zip(unknown.ids, predictions, strict=True) if image in unreadable(catalog))
        assert predictions[bad] == 0
        assert read_predictions(work, recipe, "warp", unknown).tolist() == list(predictions.values())

    def test_what_it_cannot_do_names_the_set(self, catalog, work):
        (recipe,) = find([21])
        keep = ~((catalog.column("set") == "warp") & (catalog.column("role") == "used"))
        with pytest.raises(UsageError, match=r"^set warp: got 0 slices labelled used and 16 not used"):
            run_system(recipe, catalog.where(keep), work, SOURCE, 0)

    def test_fewer_slices_than_clusters_are_said(self, catalog, work):
        (recipe,) = find([26])
        assert "set clean: k_used 16" in run_system(recipe, catalog, work, SOURCE, 0).notes


class TestAttribution:
    @pytest.mark.parametrize("number", [53, 54])
    def test_clusters_of_the_test_and_of_the_known_generators(self, number, catalog, work):
        (recipe,) = find([number])
        run_system(recipe, catalog, work, SOURCE, 0)
        vectors = on_disk(work)
        for name, split, k in (("attribution", "test", 4), ("known", "train", 3)):
            names, x = part(vectors, catalog, "attribution", "", split)
            if recipe.method == "kmeans":
                expected = KMeans(k, n_init=10, random_state=0).fit_predict(x)
            else:
                expected = AgglomerativeClustering(k, linkage="ward").fit_predict(x)
            predictions = written(work, number, name)
            assert adjusted_rand_score(expected, [predictions[image] for image in names]) == pytest.approx(1)
        test = catalog.select(task="attribution", split="test")
        bad = test.column("name")[5]
        predictions = written(work, number, "attribution")
        sizes = np.bincount([value for image, value in predictions.items() if image != bad])
        assert predictions[bad] == np.argmax(sizes) == 0

    def test_the_known_generators_are_clustered_where_the_paper_does(self, catalog, tmp_path, work):
        shutil.copytree(f"{work}/embeddings", tmp_path / "embeddings")
        (recipe,) = find([27])
        run_system(recipe, catalog, str(tmp_path), SOURCE, 0)
        assert not (tmp_path / "results/reproduction/27-goa24-t2-resnet50-gmm-kmeans/known.csv").exists()
        few = catalog.table.filter((catalog.column("task") == "membership") | (catalog.column("split") == "test"))
        (recipe,) = find([53])
        run_system(recipe, Catalog(catalog.data, few), str(tmp_path), SOURCE, 0)
        assert not (tmp_path / "results/reproduction/53-aim24-t2-53-mobilenetv2-kmeans/known.csv").exists()


class TestExistingPredictions:
    def test_predictions_belong_to_their_key(self, catalog, work):
        (recipe,) = find([22])
        made = run_system(recipe, catalog, work, SOURCE, 0)
        assert made.key == decision_key(recipe, catalog, SOURCE, 0)
        assert read_made(work, recipe, made.key) == made
        other_keys = (
            decision_key(recipe, catalog, SOURCE, 1),
            decision_key(recipe, catalog, DecisionInput(identity={**IDENTITY, "weights": "other"}), 0),
            decision_key(recipe, catalog.select(status="ok", set="warp"), SOURCE, 0),
            decision_key(find([23])[0], catalog, SOURCE, 0),
        )
        assert len({made.key, *other_keys}) == 5
        assert all(read_made(work, recipe, key) is None for key in other_keys)
        place = Path(f"{folder(work, recipe)}/made.json")
        incomplete = [{"key": made.key}, {"key": made.key, "seconds": 1, "told": "x"}]
        for broken in ("", "[]", json.dumps({"seconds": 1}), *map(json.dumps, incomplete)):
            place.write_text(broken)
            assert read_made(work, recipe, made.key) is None

    def test_the_shape_of_made_json(self, catalog, work):
        (recipe,) = find([26])
        made = run_system(recipe, catalog, work, SOURCE, 0)
        content = json.loads(Path(f"{folder(work, recipe)}/made.json").read_text())
        assert content == {"key": made.key, "seconds": made.seconds, "told": list(made.notes)}
        assert Made.from_dict(content) == made

    def test_predictions_for_another_number_of_slices(self, catalog, work):
        (recipe,) = find([22])
        run_system(recipe, catalog, work, SOURCE, 0)
        with pytest.raises(DataError, match=r"warp.csv: got 32 lines, expected 144; remove its folder"):
            read_predictions(work, recipe, "warp", catalog.of_set("warp"))


class TestSliceKinds:
    def test_only_what_a_decision_needs(self, catalog):
        selected = {number: select_kinds(catalog, slice_kinds(find([number])[0])) for number in (21, 31, 27, 53)}
        assert set(selected[21].column("role").tolist()) == {"used", "not_used", "unknown"}
        assert set(selected[31].column("role").tolist()) == {"unknown", "generated"}
        assert set(selected[31].column("split").tolist()) == {"test"}
        assert set(selected[27].column("split").tolist()) == {"test"}
        assert len(selected[53]) == len(catalog.select(task="attribution"))

    def test_generated_slices_of_the_training_where_a_set_has_none_in_its_test(self, catalog):
        keep = ~((catalog.column("set") == "warp") & (catalog.column("role") == "generated"))
        keep |= catalog.column("split") == "train"
        selected = select_kinds(catalog.where(keep), slice_kinds(find([31])[0]))
        generated = selected.select(role="generated")
        assert set(generated.select(set="warp").column("split").tolist()) == {"train"}
        assert set(generated.select(set="clean").column("split").tolist()) == {"test"}

    def test_missing_slices(self, catalog):
        assert [missing_slices(task, catalog) for task in ("membership", "attribution")] == ["", ""]
        assert "attribution/test" in missing_slices("attribution", catalog.select(task="membership"))
        assert "test/unknown" in missing_slices("membership", catalog.select(task="attribution"))
