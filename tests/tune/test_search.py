"""The search: complete, resumable, blind to the truth, and the same again for the same seed."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

from gansfp.collection.catalog import read_catalog
from gansfp.decision.search_result import Trial
from gansfp.embedding.embedder import EmbedConfig
from gansfp.errors import DataError, GansfpError, UsageError
from gansfp.labels import UNKNOWN
from gansfp.runtime.progress import Progress
from gansfp.scoring.membership import learns_from_labels
from tune import search
from tune.membership import MembershipSlices
from tune.options import choose_pairs
from tune.problem import Problem, SearchConfig
from tune.search import best_rows
from tune.trials import run_trials

PAIR = ("highpass-w15-32", "full")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def run(data: Path, work: Path, task: str = "membership", *more: str) -> None:
    backbones = {"membership": "highpass-w15-32", "attribution": "residual"}[task]
    search.main(["--data", str(data), "--work", str(work), "--task", task, "--backbones", backbones, *more])


def problem_of(data: Path, work: Path) -> Problem:
    """The membership search's problem on the embeddings that are there."""
    inputs = search.SearchInputs(EmbedConfig((PAIR,)), {})
    images = read_catalog(str(data)).select(task="membership")
    return search._problem(images, str(work), SearchConfig("membership"), inputs)[0]


def rows(work: Path, task: str) -> list[dict]:
    table = pq.read_table(work / "search" / task / "trials.parquet").drop_columns(["seconds"])
    return sorted(table.to_pylist(), key=lambda row: (row["set"] or "", row["configuration"]))


def with_embeddings(searched: Path, work: Path) -> Path:
    """A WORK that has the embeddings, and no search."""
    shutil.copytree(searched / "embeddings", work / "embeddings")
    return work


def without_truth(data: Path, out: Path) -> Path:
    shutil.copytree(data, out)
    removed = list(out.rglob("truth.csv"))
    assert len(removed) == 3
    for path in removed:
        path.unlink()
    return out


@pytest.mark.slow
class TestMembership:
    def test_there_is_a_row_for_every_configuration_of_every_set(self, searched):
        found = rows(searched, "membership")
        assert len({(row["set"], row["configuration"]) for row in found}) == len(found)
        assert {row["set"] for row in found} == {"clean", "warp"}
        assert {row["status"] for row in found} == {"ok"}
        methods = {"clusters", "kmeans_per_class", "two_means", "nearest", "contrast", "reverse", "span", "whitened"}
        assert {row["method"] for row in found} == methods
        assert {row["linkage"] for row in found if row["method"] == "clusters"} == {
            "ward",
            "average",
            "complete",
            "kmeans",
        }
        assert {row["rule"] for row in found if row["method"] == "clusters"} == {"min", "avg"}
        assert all(np.isfinite(row["scores"]).all() for row in found)

    def test_the_auc_of_a_row_is_that_of_its_labelled_scores(self, searched):
        best = json.loads((searched / "search/membership/best.json").read_text())
        for row in rows(searched, "membership")[::50]:
            labels = np.array(best["ids"]["sets"][row["set"]]["labels"])
            known = labels != UNKNOWN
            assert row["auc"] == pytest.approx(roc_auc_score(labels[known], np.array(row["scores"])[known]))

    def test_the_best_is_the_best_and_finds_the_leak(self, searched):
        best = json.loads((searched / "search/membership/best.json").read_text())
        found = rows(searched, "membership")
        for name in ("clean", "warp"):
            free = [r for r in found if r["set"] == name and not learns_from_labels(json.loads(r["configuration"]))]
            assert best["best"][name]["auc"] == max(row["auc"] for row in free)
        assert best["best"]["warp"]["auc"] > 0.95

    @pytest.mark.usefixtures("serial_trials")
    def test_a_second_run_repeats_no_trial(self, challenge, searched, caplog):
        files = {path: path.stat().st_mtime_ns for path in (searched / "search/membership/trials").iterdir()}
        before = rows(searched, "membership")
        backbones = "highpass-w15-32,highpass-w0-32"
        caplog.set_level("INFO")
        search.main(
            ["--data", str(challenge), "--work", str(searched), "--task", "membership", "--backbones", backbones]
        )
        assert files == {path: path.stat().st_mtime_ns for path in (searched / "search/membership/trials").iterdir()}
        assert "4 of 4 trials are there already" in caplog.text
        assert f"set warp: best of {sum(row['set'] == 'warp' for row in before)}: AUC" in caplog.text
        assert rows(searched, "membership") == before

    @pytest.mark.usefixtures("serial_trials")
    def test_a_lost_trial_is_run_again_and_gives_the_same(self, challenge, searched, tmp_path):
        work = tmp_path / "work"
        shutil.copytree(searched, work)
        lost = sorted((work / "search/membership/trials").iterdir())[1]
        lost.unlink()
        backbones = "highpass-w15-32,highpass-w0-32"
        search.main(["--data", str(challenge), "--work", str(work), "--task", "membership", "--backbones", backbones])
        assert lost.exists()
        assert rows(work, "membership") == rows(searched, "membership")

    @pytest.mark.usefixtures("serial_trials")
    @pytest.mark.parametrize("share", [0, 0.5])
    def test_a_truncated_trial_is_named_and_run_again(self, challenge, searched, tmp_path, caplog, share):
        work = tmp_path / "work"
        shutil.copytree(searched, work)
        broken = sorted((work / "search/membership/trials").iterdir())[1]
        os.truncate(broken, int(broken.stat().st_size * share))
        backbones = "highpass-w15-32,highpass-w0-32"
        search.main(["--data", str(challenge), "--work", str(work), "--task", "membership", "--backbones", backbones])
        assert f"{broken}: damaged" in caplog.text
        assert rows(work, "membership") == rows(searched, "membership")

    def test_a_trial_that_cannot_be_written_is_not_called_done(self, challenge, searched, tmp_path):
        work = tmp_path / "work"
        shutil.copytree(searched, work)
        trials = work / "search/membership/trials"
        shutil.rmtree(trials)
        trials.write_text("a file in the way")
        with pytest.raises(DataError, match=r"search/membership/trials/.*: cannot be written"):
            run(challenge, work)

    @pytest.mark.usefixtures("serial_trials")
    def test_the_truth_is_never_seen(self, challenge, searched, tmp_path):
        blind = without_truth(challenge, tmp_path / "data")
        run(blind, tmp_path / "work")
        seeing = [row for row in rows(searched, "membership") if row["backbone"] == "highpass-w15-32"]
        assert rows(tmp_path / "work", "membership") == seeing

    @pytest.mark.usefixtures("serial_trials")
    def test_a_part_of_the_grid(self, challenge, searched, tmp_path):
        run(challenge, with_embeddings(searched, tmp_path / "work"), "membership", "--max-trials", "1", "--k", "2,4")
        found = rows(tmp_path / "work", "membership")
        assert len({row["components"] for row in found}) == 1
        assert {row["k"] for row in found if row["method"] == "clusters"} == {2, 4}

    def test_optuna_draws_the_same_again(self, challenge, searched, tmp_path):
        drawn = []
        for name in ("a", "b"):
            work = with_embeddings(searched, tmp_path / name)
            run(challenge, work, "membership", "--algo", "optuna", "--max-trials", "10", "--seed", "1")
            drawn.append(rows(tmp_path / name, "membership"))
        assert drawn[0] == drawn[1]
        assert len({row["components"] for row in drawn[0]}) >= 1

    def test_a_trial_that_fails_is_a_row_and_the_others_go_on(self, challenge, searched):
        problem = problem_of(challenge, searched)
        trial = Trial(*PAIR, 5000, metric="euclidean")
        assert list(problem.run([trial], "cpu")) == [-1.0]
        (row,) = pq.read_table(problem.place(trial)).to_pylist()
        assert row["status"] == "failed"
        assert "PCA components: got 5000" in row["error"]

    def test_a_trial_without_room_on_a_gpu_runs_on_the_cpu(self, challenge, searched, tmp_path, monkeypatch):
        problem = replace(problem_of(challenge, searched), folder=str(tmp_path))
        evaluate, devices = MembershipSlices.evaluate, []

        def on_a_full_gpu(slices, trial, vectors, options):
            devices.append(options.device)
            if options.device == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return evaluate(slices, trial, vectors, options)

        monkeypatch.setattr(MembershipSlices, "evaluate", on_a_full_gpu)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        assert next(problem.run([Trial(*PAIR, 0, metric="euclidean")], "cuda")) > 0.8
        assert devices == ["cuda", "cpu"]


@pytest.mark.slow
class TestFaults:
    """Two trials, of which the one with principal components goes wrong."""

    def search(self, kind, challenge, searched, work, monkeypatch):
        """The search where trials are run by a problem of that kind; it finds no trial in `work` at first."""
        plain = search._problem

        def problem(images, _, config, inputs):
            found, identities, unreadable = plain(images, str(searched), config, inputs)
            fields = {
                name: getattr(found, name) for name in ("config", "task", "vectors_of", "keys", "slices", "width")
            }
            return kind(folder=str(work), **fields), identities, unreadable

        monkeypatch.setattr(search, "_problem", problem)
        inputs = search.SearchInputs(EmbedConfig((PAIR,)), {})
        return search.search(read_catalog(str(challenge)), str(work), SearchConfig("membership"), inputs)

    @pytest.mark.usefixtures("serial_trials")
    def test_whatever_a_trial_raises_is_a_row_with_the_reason(self, challenge, searched, tmp_path, monkeypatch, caplog):
        class Failing(MembershipSlices):
            def evaluate(self, trial, vectors, options):
                if trial.components:
                    raise MemoryError("Unable to allocate 7 EiB")
                return super().evaluate(trial, vectors, options)

        def problem(slices, **fields):
            return Problem(slices=Failing(slices.sets), **fields)

        result = self.search(problem, challenge, searched, tmp_path, monkeypatch)
        assert result.failed == 1
        assert result.best["warp"].columns["auc"] > 0.9
        table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
        (failed,) = [row for row in table if row["status"] == "failed"]
        assert failed["error"] == "MemoryError: Unable to allocate 7 EiB"
        assert json.loads(failed["configuration"])["components"] == 0.95
        assert "1 configurations failed, e.g. MemoryError: Unable to allocate 7 EiB" in caplog.text

    def test_a_worker_that_the_system_ends_loses_its_trial_alone(self, challenge, searched, tmp_path, monkeypatch):
        killed = tmp_path / "killed"

        class Deadly(Problem):
            def run(self, trials, device):
                if trials[0].components and not killed.exists():
                    killed.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield from super().run(trials, device)

        with pytest.raises(GansfpError, match="1 of 2 trials did not end; run the command again"):
            self.search(Deadly, challenge, searched, tmp_path, monkeypatch)
        (finished,) = (tmp_path / "trials").iterdir()
        before = finished.stat().st_mtime_ns
        monkeypatch.undo()
        result = self.search(Deadly, challenge, searched, tmp_path, monkeypatch)
        assert result.failed == 0
        assert finished.stat().st_mtime_ns == before
        undisturbed = [row for row in rows(searched, "membership") if row["backbone"] == "highpass-w15-32"]
        table = pq.read_table(tmp_path / "trials.parquet").drop_columns(["seconds"]).to_pylist()
        assert sorted(table, key=lambda row: (row["set"], row["configuration"])) == undisturbed


@pytest.mark.slow
class TestAttribution:
    def test_every_clustering_at_every_k_and_the_generators_found_again(self, searched):
        found = rows(searched, "attribution")
        silhouette = [row for row in found if json.loads(row["configuration"]).get("count") == "silhouette"]
        assert {row["k"] for row in silhouette} == set(range(2, 13))
        assert {row["method"] for row in silhouette} == {"hierarchical", "kmeans", "gmm"}
        chosen = [row for row in found if row["chosen_k"]]
        assert all(len(row["known"]) == 24 for row in chosen)
        best = json.loads((searched / "search/attribution/best.json").read_text())
        assert best["best"][""]["ari_known"] == max(row["ari_known"] for row in chosen) == 1.0

    @pytest.mark.usefixtures("serial_trials")
    def test_the_truth_is_never_seen(self, challenge, searched, tmp_path):
        run(without_truth(challenge, tmp_path / "data"), tmp_path / "work", "attribution")
        assert rows(tmp_path / "work", "attribution") == rows(searched, "attribution")


class TestRefusals:
    def test_k_above_the_number_of_slices(self, challenge, tmp_path):
        with pytest.raises(UsageError, match=r"k: got 500, expected at most .* 80"):
            run(challenge, tmp_path, "membership", "--k", "2,500")

    @pytest.mark.parametrize("k", ["two", "0"])
    def test_k_that_is_no_number_of_clusters(self, challenge, tmp_path, k):
        with pytest.raises(UsageError, match="--k: got"):
            run(challenge, tmp_path, "membership", "--k", k)

    @pytest.mark.parametrize(
        "more",
        [
            ("--task", "guess"),
            ("--algo", "luck"),
            ("--gpus-per-trial", "0"),
            ("--max-trials", "0"),
            ("--max-memory", "0.01"),
            ("--max-memory", "nan"),
        ],
    )
    def test_other_values(self, challenge, tmp_path, more):
        with pytest.raises(UsageError, match="got "):
            run(challenge, tmp_path, "membership", *more)

    def test_a_training_class_that_is_missing(self, challenge, tmp_path):
        shutil.copytree(challenge, tmp_path / "data")
        shutil.rmtree(tmp_path / "data/membership/warp/train/used")
        with pytest.raises(DataError, match=r"set 'warp': got no readable used slices, expected some in train/used"):
            run(tmp_path / "data", tmp_path / "work")

    def test_too_few_labelled_slices_are_told_before_anything_is_embedded(self, challenge, tmp_path):
        shutil.copytree(challenge, tmp_path / "data")
        for path in sorted((tmp_path / "data/membership/warp/train/used").iterdir())[1:]:
            path.unlink()
        with pytest.raises(DataError, match=r"set 'warp': cross-validation .* needs 2 groups"):
            run(tmp_path / "data", tmp_path / "work")
        assert not (tmp_path / "work/embeddings").exists()

    def test_a_task_without_images(self, challenge, tmp_path):
        shutil.copytree(challenge, tmp_path / "data")
        shutil.rmtree(tmp_path / "data/attribution")
        with pytest.raises(DataError, match="got no attribution images"):
            run(tmp_path / "data", tmp_path / "work", "attribution")

    def test_one_known_generator(self, challenge, tmp_path):
        shutil.copytree(challenge, tmp_path / "data")
        shutil.rmtree(tmp_path / "data/attribution/train/eigen")
        with pytest.raises(DataError, match="got 1 known generators, expected 2 or more"):
            run(tmp_path / "data", tmp_path / "work", "attribution")


def test_the_default_leaves_out_what_cannot_be_had_and_says_so(tmp_path):
    pairs, left_out = choose_pairs("membership", (), (), str(tmp_path))
    assert ("highpass-w15-64", "full") in pairs
    assert not any("densenet121" in backbone for backbone, _ in pairs)
    assert any("densenet121.safetensors" in line for line in left_out)
    assert choose_pairs("membership", ("lbp",), ("outer",), None) == ([("lbp", "outer")], [])


@pytest.mark.slow
def test_best_rows_without_a_row_that_worked(searched):
    table = pq.read_table(searched / "search/membership/trials.parquet")
    failed = table.set_column(table.schema.get_field_index("status"), "status", [["failed"] * len(table)])
    with pytest.raises(DataError, match="every trial failed"):
        best_rows(failed)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grid", "optuna"])
def test_a_search_that_is_stopped_is_not_called_done(algorithm, challenge, searched, monkeypatch):
    found = problem_of(challenge, searched)
    problem = replace(found, config=SearchConfig("membership", algorithm, gpus=0))
    monkeypatch.setattr("tune.trials.tune.Tuner.fit", lambda _: None)  # what Tune does when a worker is killed
    with pytest.raises(GansfpError, match="2 of 2 trials did not end; run the command again"):
        run_trials(problem, [Trial(*PAIR, 0), Trial(*PAIR, 0.95)], 2, [PAIR], Progress("search", 2))
