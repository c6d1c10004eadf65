"""The acceptance on a GPU: its steps have budgets, a step that fails is recorded, and the whole of it at toy size."""

import json
import os
import subprocess
import time

import pytest
from processes import alive, descendants

from gansfp.errors import DataError, GansfpError, UsageError
from jobs import benchmark
from jobs.benchmarks import gpu_acceptance
from jobs.benchmarks.gpu_acceptance import STEPS, AcceptanceSizes, Place, Step, accept


def read(out) -> dict:
    return json.loads((out / "gpu_acceptance.json").read_text())


def test_it_takes_25_minutes_at_most():
    assert sum(step.budget for step in STEPS) <= 25 * 60


def test_a_step_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    seen = []

    def fail(place):
        seen.append(read(tmp_path)["steps"])
        raise GansfpError("a reason\nand more")

    def defect(place):
        raise ZeroDivisionError("a defect")

    steps = [Step("first", 5, lambda place: {"figure": 1.5}), Step("bad", 5, fail), Step("worse", 5, defect)]
    steps.append(Step("last", 5, lambda place: {"remaining": place.deadline - time.monotonic() > 4 * 10}))
    results = accept(AcceptanceSizes.tiny(), str(tmp_path), steps)
    content = read(tmp_path)
    assert [(step["name"], step["error"]) for step in content["steps"]] == [
        ("first", ""), ("bad", "a reason"), ("worse", "a defect"), ("last", ""),
    ]  # fmt: skip
    assert content["steps"][3]["facts"] == {"remaining": True}
    assert not content["passed"]
    assert content["machine"]["cores"]
    assert [step["name"] for step in seen[0]] == ["first"]  # the file is there before the end
    assert [result.error for result in results] == [step["error"] for step in content["steps"]]


def test_a_command_ends_with_the_time_of_its_step(tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text(
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.pause()'])\n"
        "time.sleep(600)\n"
    )
    place = Place(str(tmp_path), AcceptanceSizes.tiny(), time.monotonic() + 3)
    before = descendants(os.getpid())
    started = {}
    watch = gpu_acceptance._end

    def end(process):
        started.update(descendants(os.getpid()))
        watch(process)

    monkeypatch.setattr(gpu_acceptance, "_end", end)
    with pytest.raises(GansfpError, match="sleeper was stopped at the end of the step's time"):
        place.run("sleeper", environment={"PYTHONPATH": str(tmp_path)})
    assert len(started.keys() - before.keys()) == 2
    assert alive({pid: at for pid, at in started.items() if pid not in before}) == []


def test_a_command_that_fails_says_its_last_line(tmp_path):
    place = Place(str(tmp_path), AcceptanceSizes.tiny(), time.monotonic() + 60)
    (tmp_path / "failing.py").write_text("print('first')\nraise SystemExit('the reason')\n")
    with pytest.raises(GansfpError, match="failing ended with status 1 and said: the reason"):
        place.run("failing", environment={"PYTHONPATH": str(tmp_path)})
    assert place.run("failing", environment={"PYTHONPATH": str(tmp_path)}, expected=(1,)).startswith("first")


def test_without_a_gpu_it_is_not_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(benchmark, "accept", lambda sizes, out: accept(sizes, out, STEPS[:1]))
    with pytest.raises(GansfpError, match=r"device: not accepted, .*gpu_acceptance.json"):
        benchmark.main(["--gpu-acceptance", "--out", str(tmp_path)])
    assert "PyTorch finds no GPU" in read(tmp_path)["steps"][0]["error"]


def test_leftovers_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "1234, 500 MiB\n"))
    with pytest.raises(GansfpError, match="still hold memory of the GPU: 1234, 500 MiB"):
        gpu_acceptance.look_for_leftovers(Place(str(tmp_path), AcceptanceSizes()))


def test_a_place_that_cannot_be_written_is_told_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((DataError, UsageError), match="file"):
        accept(AcceptanceSizes.tiny(), str(tmp_path / "file" / "out"))


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_all_steps_at_toy_size_on_cpus(tmp_path):
    results = accept(AcceptanceSizes.tiny(), str(tmp_path))
    assert {result.name: result.error for result in results} == {step.name: "" for step in STEPS}
    facts = {step["name"]: step["facts"] for step in read(tmp_path)["steps"]}
    assert max(facts["pipeline"]["largest_differences"].values()) < 1e-5
    assert all(facts["search"]["membership"]["same_configuration"].values())
    assert facts["training"]["killed_in_the_middle"]
