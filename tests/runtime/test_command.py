"""Commands as users mistype them: one line with the value and what to do, exit status 2, and no Ray for it."""

import argparse
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from gansfp.errors import DataError, GansfpError, UsageError, WeightsError
from gansfp.runtime import cluster
from gansfp.runtime.command import Parser, Terminated, run
from gansfp.runtime.options import check_places, names, positive, seed, share
from gansfp.runtime.progress import Progress
from jobs import embed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    """A DATA that is good enough to be looked at; a file of each kind of weights that cannot be had."""
    folder = tmp_path / "data" / "attribution" / "test"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def refused(*arguments):
    """What jobs.embed says, in one line, when it does not even begin."""
    with pytest.raises(GansfpError) as caught:
        embed.main([str(argument) for argument in arguments])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backbones", "resnt50"), "got 'resnt50', expected a timm model"),
        (("--backbones", ","), "got ',', expected names with commas between"),
        (("--views", "inner"), "got 'inner', expected one of"),
        (("--lungs", "unet"), "got 'unet', expected one of"),
        (("--precision", "float16"), "got 'float16', expected one of"),
        (("--gpus-per-actor", "0"), "got '0', expected more than 0"),
        (("--gpus-per-actor", "nan"), "got 'nan', expected more than 0"),
        (("--gpus-per-actor", "two"), "got 'two', expected more than 0"),
        (("--batch", "0"), "got '0', expected a whole number of at least 1"),
        (("--batch", "many"), "got 'many'"),
        (("--gpus", "-1"), "got '-1', expected a whole number of at least 0"),
        (("--weights", "/nowhere/at/all", "--backbones", "test_resnet"), "got '/nowhere/at/all', expected a folder"),
        (("--backbones", "test_resnet:map7@random"), "got feature map 7, expected 0 to 4"),
        (("--backbones", "highpass", "--address", "127.0.0.1:9"), "got '127.0.0.1:9', where no Ray cluster answers"),
        (("--backbones", "highpass", "--address", "ray://h:1"), "got 'ray://h:1', expected host:port"),
        (("--bakbones", "highpass"), "--bakbones"),
    ],
)
def test_bad_options(data, tmp_path, options, said):
    assert said in refused("--data", data, "--work", tmp_path / "work", *options)


def test_places(data, tmp_path):
    highpass = ("--backbones", "highpass")
    assert "'/nowhere/at/all'" in refused("--data", "/nowhere/at/all", "--work", tmp_path / "w", *highpass)
    assert not (tmp_path / "w").exists()
    assert "expected another folder" in refused("--data", data, "--work", f"{data}/", *highpass)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file" / "w") in refused("--data", data, "--work", tmp_path / "file" / "w", *highpass)
    assert "/proc/w" in refused("--data", data, "--work", "/proc/w", *highpass)
    assert "s4" in refused("--data", "s4://bucket/data", "--work", tmp_path / "w", *highpass)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused("--data", tmp_path / "empty", "--work", tmp_path / "w", *highpass)
    assert "--work" in refused("--data", data)
    with pytest.raises(DataError):
        check_places("/nowhere/at/all", str(tmp_path))


def test_an_explicit_backbone_without_weights_is_an_error_a_default_one_is_left_out(
    data, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("gansfp.networks.weights.why_unreachable", lambda _: "no way out")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    places = ("--data", data, "--work", tmp_path / "work", "--weights", tmp_path)
    said = refused(*places, "--backbones", "mobilenetv2_100")
    assert f"put mobilenetv2_100.safetensors (or .pth) into {tmp_path}" in said
    asked = []
    monkeypatch.setattr(embed, "embed", lambda catalog, work, config, *_: asked.append(config.backbones))
    embed.main([str(option) for option in places])
    assert asked == [["lbp"]]
    assert [record.message.split(":")[0] for record in caplog.records if "mobilenetv2_100" in record.message] == [
        "left out"
    ]


def test_an_address_in_the_environment_counts(data, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    said = refused("--data", data, "--work", tmp_path / "w", "--backbones", "highpass")
    assert "RAY_ADDRESS" in said
    assert "127.0.0.1:9" in said


def test_a_cluster_that_does_not_answer_is_known_soon(monkeypatch):
    asked = []

    def no_answer(address, timeout):
        asked.append((address, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr("socket.create_connection", no_answer)
    for address in ("head.example:6379", "[::1]:6379"):
        with pytest.raises(UsageError, match="where no Ray cluster answers"):
            cluster.start_ray(cluster.ClusterConfig(address))
    assert asked == [(("head.example", 6379), 5.0), (("::1", 6379), 5.0)]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UsageError("got 'x'"), 2, "error: got 'x'\n"),
        (WeightsError("no file"), 2, "error: no file\n"),
        (GansfpError("went wrong"), 1, "error: went wrong\n"),
        (KeyboardInterrupt(), 130, "stopped; finished work is kept, run the same command to continue\n"),
        (Terminated(), 143, "stopped; finished work is kept, run the same command to continue\n"),
        (None, 0, ""),
    ],
)
def test_exit_status(error, status, said, capsys):
    def main(_):
        if error:
            raise error

    with pytest.raises(SystemExit) as caught:
        run(main, [])
    assert caught.value.code == status
    assert capsys.readouterr().err == said


def test_a_machine_without_memory_is_one_line(capsys):
    def main(arguments):
        try:
            raise ray.exceptions.OutOfMemoryError("5 worker(s) were killed\nTop 10 memory users: ...")
        except ray.exceptions.OutOfMemoryError as error:
            raise RuntimeError("an actor's future failed") from error

    with pytest.raises(SystemExit) as ended:
        run(main, [])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory is short: Ray ended worker processes")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda _: 1 / 0, [])


def test_from_a_shell(tmp_path):
    """Nothing but the line, within seconds."""
    start = time.monotonic()
    arguments = [
        sys.executable,
        "-m",
        "jobs.embed",
        "--data",
        tmp_path,
        "--work",
        tmp_path / "w",
        "--backbones",
        "nope",
    ]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: backbone: got 'nope', "
        "expected a timm model, MODEL@FOLDER, lbp, lbp-mean, measures, residual, highpass or highpass-wW-SIDE\n"
    )
    assert time.monotonic() - start < 40  # of which all is Python's imports, on a busy machine


def test_values():
    assert names(" a, b,,a ") == ("a", "b")
    assert positive("3") == 3
    assert share("0.25") == 0.25
    assert seed("0") == 0
    wrong = ((names, " , "), (positive, "-1"), (positive, "1.5"), (share, "1.5"), (share, "-1"))
    for parse, text in (*wrong, (seed, "-1"), (seed, "x"), (seed, str(2**32))):
        with pytest.raises(argparse.ArgumentTypeError, match="got "):
            parse(text)
    with pytest.raises(UsageError, match="--help"):
        Parser(prog="p").parse_args(["--nothing"])


class TestProgress:
    def test_lines_of_a_log(self, capsys, monkeypatch):
        clock = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        with Progress("embed", 1000) as progress:
            clock[0] = 110  # start-up
            progress.add(100)
            clock[0] = 112
            progress.add(100, 1)  # too soon for a line
            clock[0] = 120
            progress.add(300, 1)
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            "embed: 100/1,000 slices",
            "embed: 500/1,000 slices, 40/s, 0:12 left, 2 failed",
            "embed: 500 slices in 20.0 s (40/s once running), 2 failed",
        ]

    def test_a_log_without_news_says_so(self, capsys, monkeypatch):
        monkeypatch.setattr("gansfp.runtime.progress.LOG_EVERY", 0.01)
        monkeypatch.setattr("gansfp.runtime.progress.STILL_EVERY", 0.05)
        told = ""
        with Progress("embed", 10):
            for _ in range(1000):
                time.sleep(0.01)
                if told := capsys.readouterr().err:
                    break
        assert told.startswith("embed: 0/10 slices, 0:00 since the start\n")

    def test_a_live_line_leaves_nothing_behind(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with Progress("search", 2, "trials") as progress:
            progress.set(1)
        written = capsys.readouterr().err
        assert "\rsearch: 0/2 trials, starting" in written
        assert written.rpartition("\r")[2].startswith("search: 1 trials in")

    def test_a_live_line_never_wraps(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", "40")
        with Progress("embed", 200) as progress:
            monkeypatch.setattr("gansfp.runtime.progress.LIVE_EVERY", 0)
            progress.set(20, 3, "2 empty file, 1 not a PNG, JPEG, TIFF or DICOM file")
        written = capsys.readouterr().err
        assert "\rembed: 20/200 slices, 3 failed (2 empty" in written
        drawn = written.rpartition("\r")[0].split("\r")
        assert max(len(line) for line in drawn) == 39

    def test_nothing_to_do_says_nothing(self, capsys):
        with Progress("embed", 0):
            pass
        assert capsys.readouterr().err == ""

    def test_an_error_is_not_called_done(self, capsys):
        with pytest.raises(DataError), Progress("embed", 5):
            raise DataError("no room")
        assert " in " not in capsys.readouterr().err


def test_verbose_lets_others_speak(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    cluster.start_ray(cluster.ClusterConfig(verbose=True))
    assert logging.getLogger("ray").level == logging.INFO
    cluster.start_ray()
    assert logging.getLogger("ray").level == logging.CRITICAL


def test_gpus_are_those_that_are_there_or_asked_for(monkeypatch):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 4.0})
    assert [cluster.usable_gpus(asked) for asked in (None, 0, 8)] == [4, 0, 8]
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    assert [cluster.usable_gpus(asked) for asked in (None, 0, 8)] == [0, 0, 8]


@pytest.mark.parametrize("gpus", [{}, {"GPU": 1.0}])
def test_more_gpus_than_a_ray_on_this_machine_has_are_refused(monkeypatch, gpus):
    """No more will come, and the work would wait for them."""
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, **gpus})
    with pytest.raises(UsageError, match=rf"--gpus: got 2, this machine has {len(gpus)}; leave it out, or give the"):
        cluster.start_ray(cluster.ClusterConfig("local", gpus=2))
    cluster.start_ray(cluster.ClusterConfig("local", gpus=len(gpus)))
    monkeypatch.setattr(cluster, "_check_answers", lambda address: None)
    cluster.start_ray(cluster.ClusterConfig("127.0.0.1:6379", gpus=2))  # that cluster may start them


def test_relative_places_are_refused_in_a_submitted_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    check_places("data", "work")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match="--data: got 'data' in a submitted job, expected an absolute path or a URI"):
        check_places("data", "work")
    check_places(str(tmp_path / "data"), str(tmp_path / "work"))
