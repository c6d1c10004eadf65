"""The whole of it from the command line, on a small challenge with bad images, and on real slices."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import status_of

from gansfp.collection.catalog import read_catalog
from gansfp.decision.decide import FinalConfig
from gansfp.decision.reports import Metrics, RunReport
from gansfp.embedding.embedder import EmbedConfig
from gansfp.errors import DataError
from gansfp.report.options import ReportConfig
from gansfp.runtime.cluster import ClusterConfig
from gansfp.runtime.collection import CollectionConfig
from gansfp.runtime.embedding import Workers
from jobs import audit
from jobs.audit import AuditConfig
from tune.problem import SearchConfig
from tune.search import SearchInputs

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path = ROOT, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.audit", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def bad_images(challenge, tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A copy of the challenge with one bad image of each kind, and which they are."""
    data = tmp_path_factory.mktemp("bad") / "data"
    shutil.copytree(challenge, data)
    unknown = sorted((data / "membership/warp/test/unknown").iterdir())
    bad = {
        "truncated": unknown[0],
        "empty": unknown[1],
        "text": sorted((data / "membership/warp/train/used").iterdir())[0],
        "bomb": sorted((data / "membership/warp/train/generated").iterdir())[0],
        "unreachable": sorted((data / "attribution/train/eigen").iterdir())[0],
    }
    bad["truncated"].write_bytes(bad["truncated"].read_bytes()[:3000])
    bad["empty"].write_bytes(b"")
    bad["text"].write_text("this is not a picture\n")
    Image.new("L", (12000, 12000)).save(bad["bomb"], "PNG")
    bad["unreachable"].unlink()
    bad["unreachable"].symlink_to(data / "nowhere.png")
    return data, bad


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_here", "serial_trials")  # test_full_size.py audits in a process of its own, with Ray Tune
def test_bad_images_are_named_and_everybody_else_has_predictions(bad_images, tmp_path, capfd, caplog):
    data, bad = bad_images
    options = ["--backbones", "highpass-w15-32", "--views", "full", "--permutations", "60", "--max-actors", "1"]
    status = status_of(audit.main, ["--data", str(data), "--work", str(tmp_path / "work"), *options])
    done = capfd.readouterr()
    said = done.err + caplog.text
    assert status == 0, said
    assert "Traceback" not in said
    assert "membership, set warp: did these slices train the generator?" in done.out
    metrics = json.loads((tmp_path / "work/results/metrics.json").read_text())
    reasons = {row["image_id"].rsplit("/")[-1]: row["reason"] for row in metrics["run"]["bad_images"]}
    assert set(reasons) == {path.stem for path in bad.values()}
    assert all(reasons.values())
    lines = (tmp_path / "work/results/membership-warp.csv").read_text().splitlines()
    told = dict(line.split(",") for line in lines)
    assert set(told) == {path.stem for path in (data / "membership/warp/test/unknown").iterdir()}
    assert told[bad["truncated"].stem] == told[bad["empty"].stem] == "0"
    for kind in ("truncated", "empty"):
        assert f"{bad[kind].stem}, set warp: cannot be read" in said
    catalog = pq.read_table(tmp_path / "work/catalog.parquet").to_pydict()
    assert catalog["status"].count("unreadable") >= 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere", "--work", "w"], "nowhere"),
        (["--data", "d"], "--work: got none"),
        (["--data", "d", "--work", "w", "--backbones", "resnet5000"], "resnet5000"),
        (["--data", "d", "--work", "w", "--views", "inside"], "inside"),
        (["--data", "d", "--work", "w", "--algo", "luck"], "luck"),
        (["--data", "d", "--work", "w", "--decide", "2"], "2"),
        (["--data", "d", "--work", "w", "--lungs", "magic"], "magic"),
        (["--data", ".", "--work", "/proc/gansfp"], "/proc/gansfp"),
        (["--data", ".", "--work", "."], "which is --data"),
        (["--data", ".", "--work", "w"], "no images found"),
        (["--data", "d", "--work", "w", "--weights", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_usage_is_one_line_with_the_value(arguments, said, tmp_path, monkeypatch, capsys):
    from gansfp.runtime.command import run as run_job

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_job(audit.main, arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.long  # an acceptance run of minutes; the simulated challenge covers the same code in `make test`
@pytest.mark.parametrize("weights", [False, True])
def test_real_slices(weights, shared, tmp_path):
    """What the project promises on the shared challenge: the leaks are found, the generators told apart; with networks
    and without."""
    options = ["--weights", str(shared / "weights")] if weights else []
    done = run("--data", str(shared / "challenge"), "--work", str(tmp_path / "work"), *options, timeout=880)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "work/results/metrics.json").read_text())
    for name, least in (("warp", 0.99), ("glo", 0.90)):
        report = metrics["membership"]["sets"][name]
        assert report["auc"]["value"] >= least
        assert report["p_value"] < 0.01
        assert report["p_value_selected"] < 0.01
    assert metrics["attribution"]["ari"]["value"] >= 0.95
    assert metrics["attribution"]["p_value"] < 0.01


@pytest.mark.parametrize("folder", ["attribution/test", "attribution/train/eigen"])
def test_attribution_without_what_it_needs_does_not_stop_membership(challenge, folder, tmp_path, caplog):
    shutil.copytree(challenge, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / folder)
    assert audit.tasks_of(read_catalog(str(tmp_path / "data"))) == ["membership"]
    assert "attribution is left out" in caplog.text


FREE, NETWORK = ("highpass", "full"), ("mobilenetv2_100@random", "lungs")


class TestFromCheapToDear:
    @pytest.fixture
    def inputs(self):
        return {
            "membership": SearchInputs(EmbedConfig((FREE, NETWORK, ("lbp", "full"))), {}),
            "attribution": SearchInputs(EmbedConfig((NETWORK,)), {}),
        }

    @pytest.fixture
    def run_audit(self, inputs, challenge, tmp_path, monkeypatch):
        """Runs the audit with nothing embedded, searched or decided; returns what would have been, in its order."""
        done = []

        def embed_and_search(catalog, work, config, of_task, workers, cluster):
            done.append((config.task, of_task.embedding.pairs, of_task.stage))

        def decide(data, work, config, catalog, tasks, pending, report):
            assert report == config_of_report
            done.append((tuple(tasks), list(pending)))
            return Metrics(RunReport(0, 1, {}, pending=pending))

        monkeypatch.setattr(audit, "check_embedding_sizes", lambda *_: None)  # it would run the networks
        monkeypatch.setattr(audit.ray, "is_initialized", lambda: False)
        monkeypatch.setattr(audit.ray, "shutdown", lambda: done.append(("Ray ended",)))
        monkeypatch.setattr(audit, "embed_and_search", embed_and_search)
        monkeypatch.setattr(audit, "decide", decide)
        searches = {task: SearchConfig(task) for task in inputs}
        config_of_report = ReportConfig("none")
        of_run = Workers(), ClusterConfig(), CollectionConfig(), config_of_report
        config = AuditConfig(str(challenge), str(tmp_path), searches, FinalConfig(), *of_run)

        def run(chosen):
            audit.audit(config, chosen)
            return done

        return run

    def test_a_provisional_answer_comes_before_the_networks(self, inputs, run_audit, capsys):
        everything = inputs["membership"].embedding.pairs
        assert run_audit(inputs) == [
            ("membership", (FREE, ("lbp", "full")), ""),
            (("membership",), ["mobilenetv2_100@random"]),
            ("membership", everything, "-networks"),
            ("attribution", (NETWORK,), "-networks"),
            ("Ray ended",),
            (("membership", "attribution"), []),
        ]
        assert capsys.readouterr().out.startswith("PROVISIONAL: without mobilenetv2_100@random, ")

    def test_the_ray_of_a_caller_goes_on(self, inputs, run_audit, monkeypatch):
        monkeypatch.setattr(audit.ray, "is_initialized", lambda: True)
        assert ("Ray ended",) not in run_audit(inputs)

    @pytest.mark.parametrize("pairs", [(FREE,), (NETWORK,)])
    def test_there_is_one_answer_where_all_costs_alike(self, pairs, run_audit, capsys):
        chosen = {task: SearchInputs(EmbedConfig(pairs), {}) for task in ("membership", "attribution")}
        assert [step for step in run_audit(chosen) if len(step) == 2] == [(("membership", "attribution"), [])]
        assert "PROVISIONAL" not in capsys.readouterr().out

    def test_a_search_that_was_stopped_while_it_wrote_is_searched_again(self, inputs, run_audit, monkeypatch):
        def broken(work, task):
            raise DataError(f"{work}/search/{task}: cannot be read")

        monkeypatch.setattr(audit, "read_search", broken)
        assert [step[0] for step in run_audit(inputs) if len(step) == 3] == ["membership", "membership", "attribution"]

    def test_there_is_no_provisional_answer_after_a_search_of_everything(self, inputs, run_audit, monkeypatch):
        found = SimpleNamespace(pairs=[FREE, NETWORK, ("lbp", "full")])
        monkeypatch.setattr(audit, "read_search", lambda work, task: found)
        assert [step for step in run_audit(inputs) if len(step) == 2] == [(("membership", "attribution"), [])]
