"""The final job: the challenge's files, figures with their chance levels, and the slices that cannot be read."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score, f1_score, roc_auc_score

from gansfp.collection.catalog import Catalog, update_catalog
from gansfp.decision.decide import FinalConfig
from gansfp.decision.reports import Metrics
from gansfp.decision.result_files import submitted_ids
from gansfp.decision.summary import summary
from gansfp.errors import DataError, UsageError
from jobs import final, simulate
from tune import search

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
FIGURES = {"accuracy", "precision", "recall", "specificity", "f1", "kappa", "auc", "tpr_at_fpr_0.01", "tpr_at_fpr_0.1"}


def decide(data: Path, work: Path, config: FinalConfig) -> Metrics:
    """The final step as the job runs it."""
    return final.decide(str(data), str(work), config, update_catalog(str(data), str(work)))


@pytest.fixture(scope="module")
def work(decided) -> Path:
    return decided


@pytest.fixture(scope="module")
def metrics(work) -> dict:
    return json.loads((work / "results/metrics.json").read_text())


def read_csv(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert len({line[0] for line in lines}) == len(lines)
    return dict(lines)


def test_csv_files_are_as_the_challenge_wants_them(challenge, work):
    for name in ("clean", "warp"):
        told = read_csv(work / f"results/membership-{name}.csv")
        there = {path.stem for path in (challenge / f"membership/{name}/test/unknown").iterdir()}
        assert set(told) == there
        assert set(told.values()) <= {"0", "1"}
    clusters = read_csv(work / "results/attribution.csv")
    assert set(clusters) == {path.stem for path in (challenge / "attribution/test").glob("*.png")}
    assert all(value.isdigit() for value in clusters.values())


def test_figures_are_those_of_the_files(challenge, work, metrics):
    for name in ("clean", "warp"):
        truth = {i: int(u) for i, u in list(csv.reader((challenge / f"membership/{name}/test/truth.csv").open()))[1:]}
        told = read_csv(work / f"results/membership-{name}.csv")
        table = pq.read_table(work / f"results/membership-{name}.parquet").to_pydict()
        score = dict(zip(table["image_id"], table["score"], strict=True))
        ids = list(truth)
        report = metrics["membership"]["sets"][name]
        assert set(report) >= FIGURES | {
            "p_value",
            "p_value_selected",
            "f1_all_used",
            "n",
            "n_groups",
            "configuration",
            "tried",
        }
        used = [truth[i] for i in ids]
        assert report["f1"]["value"] == pytest.approx(f1_score(used, [int(told[i]) for i in ids]))
        assert report["auc"]["value"] == pytest.approx(roc_auc_score(used, [score[i] for i in ids]))
        assert report["f1_all_used"] == pytest.approx(2 / 3)
        assert report["n"] == len(ids)
        assert report["n_groups"] < len(ids), "groups.csv was not heeded"
        assert all(report[figure]["chance"] is not None for figure in FIGURES)
    values = [metrics["membership"]["sets"][name]["f1"]["value"] for name in ("clean", "warp")]
    assert metrics["membership"]["mean_f1"]["value"] == pytest.approx(np.mean(values))
    truth = dict(list(csv.reader((challenge / "attribution/test/truth.csv").open()))[1:])
    clusters = read_csv(work / "results/attribution.csv")
    ari = adjusted_rand_score([truth[i] for i in truth], [clusters[i] for i in truth])
    assert metrics["attribution"]["ari"]["value"] == pytest.approx(ari)
    assert metrics["attribution"]["clusters"] == len(set(clusters.values()))


def test_the_leak_is_found_and_its_absence_is_not_called_one(metrics):
    leaking, clean = (metrics["membership"]["sets"][name] for name in ("warp", "clean"))
    assert leaking["auc"]["value"] > 0.9
    assert leaking["p_value_selected"] < 0.05
    assert clean["p_value_selected"] > 0.05
    assert set(clean["cross_validated"]) >= FIGURES | {"p_value", "p_value_selected"}


def test_without_truth_too_attribution_pays_for_the_search(work, metrics):
    table = pq.read_table(work / "search/attribution/trials.parquet", columns=["chosen_k"])
    chosen = sum(value is True for value in table["chosen_k"].to_pylist())
    assert metrics["attribution"]["cross_validated"]["tried"] == chosen > 1


def test_nearest_generated_slices_are_generated_slices_of_the_set(challenge, work):
    table = pq.read_table(work / "results/membership-warp.parquet").to_pydict()
    assert set(table) >= {"image_id", "score", "prediction", "nearest", "group"}
    for near in table["nearest"]:
        assert len(near) == 3
        assert all((challenge / f"{image_id}.png").exists() and "/generated/" in image_id for image_id in near)


def test_a_search_of_an_earlier_version_is_completed_and_gives_the_same(challenge, searched, metrics, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(searched, work)
    (work / "search/membership/nearest.parquet").unlink()
    place = work / "search/attribution/best.json"
    best = json.loads(place.read_text())
    del best["names"]
    place.write_text(json.dumps(best))
    trials = {path: path.stat().st_mtime_ns for path in (work / "search").rglob("trials/*.parquet")}
    assert trials
    final.main(["--data", str(challenge), "--work", str(work), "--permutations", "200"])
    again = json.loads((work / "results/metrics.json").read_text())
    assert again | {"run": 0} == metrics | {"run": 0}
    assert trials == {path: path.stat().st_mtime_ns for path in (work / "search").rglob("trials/*.parquet")}


def test_the_final_step_reads_no_embeddings(challenge, searched, metrics, tmp_path):
    shutil.copytree(searched, tmp_path / "work")
    shutil.rmtree(tmp_path / "work/embeddings")
    again = json.loads(json.dumps(decide(challenge, tmp_path / "work", FinalConfig(permutations=200)).as_dict()))
    assert again | {"run": 0} == metrics | {"run": 0}


def test_the_same_seed_gives_the_same(challenge, searched, work, metrics, tmp_path):
    shutil.copytree(searched, tmp_path / "work")
    again = json.loads(json.dumps(decide(challenge, tmp_path / "work", FinalConfig(permutations=200)).as_dict()))
    for one in (again, metrics):
        one["run"].pop("seconds")
    assert again == metrics
    for name in ("membership-warp.csv", "membership-clean.csv", "attribution.csv"):
        assert (tmp_path / "work/results" / name).read_bytes() == (work / "results" / name).read_bytes()


def test_without_truth_the_figures_are_cross_validated(challenge, searched, tmp_path):
    shutil.copytree(challenge, tmp_path / "data")
    for path in (tmp_path / "data").rglob("truth.csv"):
        path.unlink()
    shutil.copytree(searched, tmp_path / "work")
    metrics = decide(tmp_path / "data", tmp_path / "work", FinalConfig(permutations=100))
    values = metrics.as_dict()
    for report in (*values["membership"]["sets"].values(), values["attribution"]):
        assert not set(report) & (FIGURES | {"ari", "p_value"})
        assert "p_value" in report["cross_validated"]
    assert "mean_f1" not in values["membership"]
    assert "cross-validated (the test has no truth)" in summary(metrics)


def test_stack_and_best_and_every_rule(challenge, searched, tmp_path):
    shutil.copytree(searched, tmp_path / "work")
    unknown = 32
    for combine, rule, called in (
        ("best", "median", unknown // 2),
        ("stack", 0.25, unknown // 4),
        ("stack", "f1", None),
    ):
        metrics = decide(challenge, tmp_path / "work", FinalConfig(combine, rule, 100))
        assert metrics.membership.sets["warp"].decision.combine == combine
        told = read_csv(tmp_path / "work/results/membership-warp.csv")
        if called is not None:
            assert list(told.values()).count("1") == called


@pytest.mark.usefixtures("serial_trials")
def test_an_unknown_slice_that_cannot_be_read_is_not_used_and_warned_of(challenge, tmp_path, caplog):
    data, work = tmp_path / "data", tmp_path / "work"
    shutil.copytree(challenge, data)
    bad = sorted((data / "membership/warp/test/unknown").iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:2000])
    drawn = sorted((data / "attribution/test").glob("*.png"))[0]
    drawn.write_bytes(b"")
    for task, backbone in (("membership", "highpass-w15-32"), ("attribution", "residual")):
        search.main(["--data", str(data), "--work", str(work), "--task", task, "--backbones", backbone])
    metrics = decide(data, work, FinalConfig(permutations=100))
    assert read_csv(work / "results/membership-warp.csv")[bad.stem] == "0"
    assert f"{bad.stem}, set warp: cannot be read" in caplog.text
    assert drawn.stem in read_csv(work / "results/attribution.csv")
    table = pq.read_table(work / "results/membership-warp.parquet").to_pydict()
    assert table["score"][table["image_id"].index(bad.stem)] is None
    bad_images = metrics.as_dict()["run"]["bad_images"]
    reasons = {row["image_id"].rsplit("/")[-1]: row["reason"] for row in bad_images}
    assert set(reasons) == {bad.stem, drawn.stem}
    assert all(reasons.values())
    assert "2 images could not be read" in summary(metrics)


def test_the_search_of_a_task_that_is_gone_is_left_alone(challenge, searched, tmp_path):
    shutil.copytree(challenge, tmp_path / "data")
    shutil.copytree(searched, tmp_path / "work")
    shutil.rmtree(tmp_path / "data/attribution")
    metrics = decide(tmp_path / "data", tmp_path / "work", FinalConfig(permutations=20))
    assert set(metrics.membership.sets) == {"clean", "warp"}
    assert metrics.attribution is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("membership/a/test/unknown/x", "x"), ("membership/a/test/unknown/y", "y")], ["x", "y"]),
        ([("P1_s3", "0001"), ("P2_s1", "0002")], ["P1_s3", "P2_s1"]),  # a table's own ids stay
        ([("u/one/x", "x"), ("u/two/x", "x")], ["u/one/x", "u/two/x"]),
    ],
)
def test_the_ids_of_a_csv(rows, said):
    ids, names = zip(*rows, strict=True)
    assert submitted_ids(Catalog("d", pa.table({"image_id": ids, "name": names}))) == said


class TestRefusals:
    def test_no_search(self, challenge, tmp_path):
        with pytest.raises(DataError, match=r"got no search to apply.*run tune.search first"):
            final.main(["--data", str(challenge), "--work", str(tmp_path / "work")])

    def test_data_that_changed_since_the_search(self, challenge, searched, tmp_path):
        shutil.copytree(challenge, tmp_path / "data")
        shutil.copytree(searched, tmp_path / "work")
        next((tmp_path / "data/membership/warp/test/unknown").iterdir()).unlink()
        with pytest.raises(DataError):
            decide(tmp_path / "data", tmp_path / "work", FinalConfig())

    def test_an_image_or_a_group_that_changed_since_the_search(self, challenge, searched, tmp_path):
        data, work = tmp_path / "data", tmp_path / "work"
        shutil.copytree(challenge, data)
        shutil.copytree(searched, work)
        groups = (data / "groups.csv").read_text()
        (data / "groups.csv").write_text(groups.replace("patient_", "case_"))
        with pytest.raises(DataError, match="membership images, classes or groups changed since the search"):
            decide(data, work, FinalConfig())
        (data / "groups.csv").write_text(groups)
        one, other, *_ = sorted((data / "membership/warp/test/unknown").iterdir())
        one.write_bytes(other.read_bytes())
        with pytest.raises(DataError, match="membership images, classes or groups changed since the search"):
            decide(data, work, FinalConfig())

    @pytest.mark.parametrize("content", ["{", "", "{}", "[1]", '{"best": {}, "search": {}}'])
    def test_a_search_that_is_broken(self, challenge, searched, tmp_path, content):
        shutil.copytree(searched, tmp_path / "work")
        (tmp_path / "work/search/attribution/best.json").write_text(content)
        with pytest.raises(DataError, match=r"search/attribution: cannot be read .*; run tune.search again"):
            decide(challenge, tmp_path / "work", FinalConfig())

    @pytest.mark.parametrize(
        "arguments", [["--check", "x.csv"], ["--data", "d"], ["--decide", "luck", "--data", "d", "--work", "w"]]
    )
    def test_options(self, arguments):
        with pytest.raises(UsageError):
            final.main(arguments)


def test_check_says_what_is_wrong_with_anybodys_file(challenge, work, tmp_path, capsys):
    ids = str(challenge / "membership/warp/test/unknown")
    final.main(["--check", str(work / "results/membership-warp.csv"), "--ids", ids])
    assert "valid, 32 ids, each once" in capsys.readouterr().out
    bad = tmp_path / "bad.csv"
    bad.write_text("image_id,used\n" + (work / "results/membership-warp.csv").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "jobs.final", "--check", str(bad), "--ids", ids],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "line 1" in done.stderr


def test_simulate_refuses_a_folder_that_is_not_empty(challenge):
    with pytest.raises((UsageError, DataError)):
        simulate.main(["--out", str(challenge)])
