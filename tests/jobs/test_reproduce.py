"""The published systems on a small collection: every row has scores or a reason, and nothing is done twice."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray
import timm
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, adjusted_rand_score, f1_score

from gansfp.collection.catalog import read_catalog
from gansfp.device import is_bfloat16_fast
from gansfp.embedding import shards
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights
from gansfp.errors import UsageError
from gansfp.networks import weights
from gansfp.published import rules
from gansfp.published.recipes import RECIPES, find
from gansfp.runtime import tasks as spreading
from gansfp.runtime.tasks import Call, run_calls
from jobs import reproduce
from jobs.reproduction import predictions, trainings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# One system of each kind: with frozen embeddings, for both tasks; with classifiers that decide, that embed, and that
# get enlarged slices; with autoencoders.
CHOSEN = "22,45,54,5,16,17,37,38"
BASELINES = {
    "membership": ["all used", "random", "bytes", "mean grey", "grey levels"],
    "attribution": ["one cluster", "random", "bytes", "mean grey", "grey levels"],
}
FEW = ["--max-actors", "1"]  # each actor takes seconds to start
SMALL = ["--random-weights", "--max-steps", "1", "--input-size", "32", "--batch-size", "8", *FEW]


@pytest.fixture(scope="module", autouse=True)
def no_way_out():
    """Weights that are not a file cannot be loaded, as on a machine without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "why_unreachable", lambda address: "no way out")
        patch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
        yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of weights: those of mobilenetv2_100, drawn at random."""
    out = tmp_path_factory.mktemp("weights")
    network = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=0)
    save_file(network.state_dict(), out / "mobilenetv2_100.safetensors")
    return out


@pytest.fixture(scope="module")
def arguments(challenge, folder, tmp_path_factory):
    """DATA, WORK and the weights."""
    work = tmp_path_factory.mktemp("reproduce") / "work"
    return ["--data", str(challenge), "--work", str(work), "--weights", str(folder)]


@pytest.fixture(scope="module")
def without_all_weights(arguments):
    """The rows of a run in which some weights are missing."""
    reproduce.main(["--systems", "45,54,59,7", *FEW, *arguments])
    return read(arguments)


@pytest.fixture(scope="module")
def done(without_all_weights, arguments):
    """The rows of a run in which random weights replace missing ones."""
    reproduce.main(["--systems", CHOSEN, *SMALL, *arguments])
    return read(arguments)


def work_of(arguments):
    return Path(arguments[3])


def read(arguments):
    """The rows of reproduction.csv, by the id of the system or by task and name of the baseline."""
    with (work_of(arguments) / "results/reproduction.csv").open(newline="") as file:
        return {f"{row['task']} {row['name']}" if not row["id"] else row["id"]: row for row in csv.DictReader(file)}


def predicted(arguments, number, name):
    """The file that a system wrote, read as plain text: {id: value}."""
    place = next((work_of(arguments) / "results/reproduction").glob(f"{number}-*")) / f"{name}.csv"
    return {line.split(",")[0]: int(line.split(",")[1]) for line in place.read_text().splitlines()}


def truth(challenge, place, column):
    with (challenge / place / "truth.csv").open(newline="") as file:
        return {row["image_id"].rsplit("/", 1)[-1]: row[column] for row in csv.DictReader(file)}


@pytest.mark.slow
class TestTheTable:
    def test_every_row_has_scores_and_there_are_baselines(self, done):
        names = {f"{task} {name}" for task, of in BASELINES.items() for name in of}
        assert set(done) == {*CHOSEN.split(","), *names}
        for row in done.values():
            assert row["status"] == "ok", row["error"]
            low, value, high = (float(row[name]) for name in ("low", "reproduced", "high"))
            assert low <= value <= high
            assert float(row["chance"]) == pytest.approx(2 / 3 if row["task"] == "membership" else 0, abs=1e-4)

    def test_scores_are_those_of_the_files(self, done, challenge, arguments):
        for number in ("22", "5", "16", "17", "37", "38"):
            scores = []
            for name in ("clean", "warp"):
                predictions = predicted(arguments, number, name)
                used = truth(challenge, f"membership/{name}/test", "used")
                assert set(predictions) == set(used)
                pairs = np.array([(int(used[image]), value) for image, value in predictions.items()]).T
                scores.append(f1_score(*pairs, zero_division=0))
                assert float(done[number][f"f1_{name}"]) == pytest.approx(scores[-1], abs=1e-5)
                assert float(done[number][f"accuracy_{name}"]) == pytest.approx(accuracy_score(*pairs), abs=1e-5)
            assert float(done[number]["reproduced"]) == pytest.approx(np.mean(scores), abs=1e-5)
        true_generators = truth(challenge, "attribution/test", "generator")
        for number in ("45", "54"):
            clusters = predicted(arguments, number, "attribution")
            ari = adjusted_rand_score([true_generators[image] for image in clusters], list(clusters.values()))
            assert float(done[number]["reproduced"]) == pytest.approx(ari, abs=1e-5)
        for number in ("45", "54"):
            clusters = predicted(arguments, number, "known")
            paths = [next((challenge / "attribution/train").glob(f"*/{image}.png")) for image in clusters]
            ari = adjusted_rand_score([path.parent.name for path in paths], list(clusters.values()))
            assert float(done[number]["reproduced_known"]) == pytest.approx(ari, abs=1e-5)

    def test_published_scores_and_assumptions(self, done):
        for number in CHOSEN.split(","):
            (recipe,) = find([number])
            score = recipe.published["test_f1_mean" if recipe.task == "membership" else "test_ari"]
            assert done[number]["published"] == ("" if np.isnan(score) else f"{score:.6g}")
            assert done[number]["assumed"] == "; ".join(recipe.assumed)
        assert done["54"]["published_known"] == "0.99"

    def test_notes_name_the_differences_from_the_published_system(self, done):
        assert done["54"]["notes"] == ""
        assert done["22"]["notes"] == "random weights"
        assert done["5"]["notes"] == "random starting weights; scaled down: 1 steps, 32 px, batches of 8"
        assert done["16"]["notes"] == "random super-resolution; scaled down: 1 steps, 32 px, batches of 8"
        assert "stage 'COVID-19 CT' skipped: no data is named" in done["17"]["notes"]

    def test_baselines(self, done, challenge):
        assert float(done["membership all used"]["reproduced"]) == pytest.approx(2 / 3, abs=1e-4)
        assert float(done["attribution one cluster"]["reproduced"]) == 0
        assert float(done["attribution bytes"]["reproduced"]) > 0.2


@pytest.mark.slow
class TestInputsOfSystems:
    def test_frozen_systems_decide_by_the_embeddings(self, done, challenge, arguments, folder):
        """Recipe 54's clusters and recipe 22's decisions, computed again from the shards."""
        catalog, work = read_catalog(str(challenge)), str(work_of(arguments))
        for number in ("54", "22"):
            (recipe,) = find([number])
            backbone = recipe.backbone if number == "54" else f"{recipe.backbone}@random"
            config = EmbedConfig((), precision="bfloat16" if is_bfloat16_fast("cpu") else "float32")
            embedding = identity((backbone, "full"), config, load_all_weights([backbone], str(folder)))
            for name in ("attribution",) if number == "54" else ("clean", "warp"):
                rows = catalog.select(task=recipe.task, set="" if number == "54" else name).table.to_pylist()
                rows = [row for row in rows if row["role"] != "generated" or row["split"] == "test"]
                rows = [row for row in rows if number == "54" or row["role"] != "generated"]
                images = {row["image_id"]: row["sha256"] for row in rows if number != "54" or row["split"] == "test"}
                vectors = shards.read_embeddings(work, embedding, images).vectors
                predictions = list(predicted(arguments, number, name).values())
                if number == "54":
                    labels = rules.attribute(recipe, vectors).labels
                    assert adjusted_rand_score(labels, predictions) == 1
                else:
                    labels = [{"used": 1, "not_used": 0, "unknown": -1}[row["role"]] for row in rows]
                    decision = rules.decide(recipe, vectors, np.array(labels))
                    assert decision.prediction[np.array(labels) == -1].tolist() == predictions

    def test_systems_that_share_a_training_share_its_network(self, done, arguments):
        """38 uses the autoencoders of 37, one for each set; 17 has a network for each set; 5 and 16 have one each."""
        names = sorted(path.name.rpartition("-")[0] for path in (work_of(arguments) / "models").iterdir())
        assert names == [*["autoencoder"] * 2, *["conv5"] * 2, "densenet121", "mobilenetv2_100"]

    def test_only_needed_embeddings_are_computed(self, done, arguments):
        names = {path.name for path in (work_of(arguments) / "embeddings").iterdir() if "@%2F" not in path.name}
        assert names == {"lbp", "mobilenetv2_100:224", "resnet50:224@random"}


@pytest.mark.slow
class TestResuming:
    def test_missing_weights_fail_only_their_rows_and_the_file_is_named(self, without_all_weights, folder):
        rows = without_all_weights
        assert {number: rows[number]["status"] for number in ("45", "54", "59", "7")} == {
            "45": "ok",
            "54": "ok",
            "59": "failed",
            "7": "failed",
        }
        for number in ("59", "7"):
            assert f"put densenet121.safetensors (or .pth) into {folder}" in rows[number]["error"]
            assert rows[number]["reproduced"] == ""

    def test_nothing_is_done_twice(self, done, arguments, monkeypatch, capsys):
        work = work_of(arguments)
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
        for module, name in ((predictions, "start_ray"), (trainings, "run_calls"), (predictions, "run_calls")):
            monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was done again"))
        reproduce.main(["--systems", CHOSEN, *SMALL, *arguments])
        assert read(arguments) == done
        after = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
        changed = {path.relative_to(work).as_posix() for path in after if after[path] != before.get(path)}
        assert {name for name in changed if name.startswith(("embeddings", "models", "results/reproduction/"))} == set()

    def test_without_truth_there_are_predictions_and_a_system_that_breaks_is_a_row(
        self, done, arguments, challenge, tmp_path
    ):
        shutil.copytree(challenge, tmp_path / "data", ignore=shutil.ignore_patterns("truth.csv"))
        shutil.rmtree(tmp_path / "data/membership/warp/train/used")
        without_truth = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
        reproduce.main(["--systems", "45,37", *SMALL, *without_truth])
        rows = read(without_truth)
        assert rows["37"]["error"] == "set warp: got 0 slices labelled used and 16 not used, expected some of both"
        assert rows["membership bytes"]["error"].startswith("set warp: ")
        assert rows["45"]["status"] == rows["attribution bytes"]["status"] == "no truth"
        assert rows["45"]["reproduced"] == rows["45"]["low"] == ""
        assert rows["45"]["reproduced_known"] == done["45"]["reproduced_known"]  # known from the folders
        assert predicted(without_truth, 45, "attribution") == predicted(arguments, 45, "attribution")


class TestTheCommand:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--systems", "61"], "system: got '61', expected an id from 1 to 60"),
            (["--systems", "aim24-t2-54-mobilenet"], "aim24-t2-54-mobilenetv2-ward"),
            (["--lungs", "magic"], "magic"),
            (["--precision", "double"], "double"),
            (["--input-size", "16"], "--input-size: got 16, expected 32 to 1024 pixels"),
            (["--weights", "no/such/folder"], "no/such/folder"),
            (["--readme", "/nowhere/at/all"], "--readme: got '/nowhere/at/all', which cannot be read"),
            (["--readme", __file__], "--readme: expected the lines"),
            (["--max-steps", "0"], "got '0', expected a whole number of at least 1"),
        ],
    )
    def test_a_mistake_is_one_line(self, options, message, tmp_path):
        with pytest.raises(UsageError) as caught:
            reproduce.main(["--data", "d", "--work", str(tmp_path / "w"), *options])
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.slow
    def test_the_readme_holds_the_table(self, done, arguments, tmp_path, capsys):
        readme = tmp_path / "README.md"
        begin, end = reproduce.PLACE.begin, reproduce.PLACE.end
        readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
        reproduce.main(["--systems", CHOSEN, *SMALL, *arguments, "--readme", str(readme)])
        table = (work_of(arguments) / "results/reproduction.md").read_text()
        assert capsys.readouterr().out == table
        assert readme.read_text() == f"before\n{begin}\n\n{table.partition(chr(10))[2].strip()}\n\n{end}\nafter\n"
        assert f"Written by `python -m jobs.reproduce --systems {CHOSEN}" in table
        assert "they show that the system runs, and say nothing about the published one" in table

    @pytest.mark.slow
    def test_slices_are_enlarged_without_a_network_on_request(self, done, arguments, tmp_path):
        options = ["--data", arguments[1], "--work", str(tmp_path), "--weights", arguments[5], *SMALL[1:]]
        reproduce.main(["--systems", "16", *options, "--upscaler", "bicubic"])
        row = read(options)["16"]
        assert (row["status"], row["comparable"]) == ("ok", "no")
        assert "bicubic, no super-resolution" in row["notes"]

    @pytest.mark.slow
    def test_the_stage_is_recorded(self, done, arguments):
        lines = (work_of(arguments) / "log/stages.jsonl").read_text().splitlines()
        records = [line for line in map(json.loads, lines) if line["stage"] == "reproduce"]
        assert records[0]["failed"] == 2
        assert records[-1]["configuration"]["systems"] == [recipe.name for recipe in find(CHOSEN.split(","))]


@pytest.mark.slow
class TestSpread:
    def test_each_call_has_its_outcome(self, done, caplog):
        def gives(value):
            return value + 1

        def refuses():
            raise UsageError("not this")

        def breaks():
            raise ValueError("two\nlines")

        def dies():
            os._exit(1)

        def trains(rounds, device, report):
            for number in range(rounds):
                report({"epoch": number})
            return device

        calls = {
            "gives": Call(gives, (1,)),
            "refuses": Call(refuses),
            "breaks": Call(breaks),
            "dies": Call(dies),
            "trains": Call(trains, (3,), on_device=True, reports=True),
        }
        reports = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spreading, "RETRIES", 0)
            outcomes = dict(run_calls(calls, 0, reports.append))
        assert outcomes["gives"].value == 2
        assert outcomes["refuses"].error == "not this"
        assert outcomes["breaks"].error == "ValueError: two"
        assert "Traceback" in caplog.text  # only for the defect
        assert caplog.text.count("Traceback") == 1
        assert outcomes["dies"].error.startswith("its process was lost")
        assert outcomes["trains"].value == "cpu"
        assert all(report["trains"].reports <= 3 for report in reports if "trains" in report)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_systems_have_scores(challenge, tmp_path):
    options = ["--data", str(challenge), "--work", str(tmp_path), *SMALL]
    reproduce.main(options)
    rows = read(options)
    assert {row["status"] for row in rows.values()} == {"ok"}, [row for row in rows.values() if row["error"]]
    assert len(rows) == len(RECIPES) + 10


@pytest.mark.long  # an acceptance run; the small challenge covers the same code in `make test`
@pytest.mark.timeout(600)
def test_real_slices(shared, tmp_path):
    """The published scores of MobileNetV2 are reached on the shared challenge."""
    options = ["--data", str(shared / "challenge"), "--work", str(tmp_path), "--weights", str(shared / "weights")]
    reproduce.main(["--systems", "53,54", *options])
    assert all(float(read(options)[number]["reproduced"]) >= 0.9 for number in ("53", "54"))
