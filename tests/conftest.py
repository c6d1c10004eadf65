"""Fixtures shared by all tests."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ray
import torch
from threadpoolctl import threadpool_limits

from gansfp.decision.search_result import Trial
from gansfp.embedding.shards import Pair
from gansfp.runtime.cluster import start_ray
from gansfp.runtime.progress import Progress
from gansfp.simulation.challenge import SimulationConfig, simulate
from tune import search
from tune.problem import Problem, Vectors

ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ  # processes that run tests at the same time
if ONE_OF_SEVERAL:
    torch.set_num_threads(1)  # the processes share the cores
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, so that all machines test the same, unless the tests of GPUs are asked for."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real slices, masks and weights beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside this checkout")
    return SHARED


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills once for all processes of a test run; the others wait for it."""
    root = tmp_path_factory.getbasetemp()
    if ONE_OF_SEVERAL:
        root = root.parent
    folder, mark = root / name, root / f"{name}-is-made"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mark.exists():
            make(folder)
            mark.touch()
    return folder


@pytest.fixture(scope="session")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA: a small simulated challenge with truth, sets `warp` (leaks) and `clean` (does not)."""

    def make(folder: Path) -> None:
        simulate(SimulationConfig.tiny(), str(folder), progress=lambda line: None)

    return made_once(tmp_path_factory, "challenge", make)


@pytest.fixture(scope="session")
def searched(challenge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """WORK of that challenge after both searches, on two weight-free embeddings; Ray stays up for the whole session."""

    def make(work: Path) -> None:
        for task, backbones in (("membership", "highpass-w15-32,highpass-w0-32"), ("attribution", "residual")):
            arguments = ["--data", str(challenge), "--work", str(work), "--task", task, "--backbones", backbones]
            search.main([*arguments, "--views", "full"])

    work = made_once(tmp_path_factory, "searched", make)
    start_ray()
    yield work
    ray.shutdown()


@pytest.fixture
def serial_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a search's trials in this process, one after the other, where Ray Tune is not what is tested."""

    def run_trials(
        problem: Problem, todo: Sequence[Trial], total: int, pairs: Sequence[Pair], progress: Progress
    ) -> list[Trial]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with threadpool_limits(1):  # as in a worker: sums over several threads differ in their last bits
            for trial in todo:
                for _ in problem.run([trial], "cpu"):
                    progress.add(1)
        torch.set_num_threads(threads)
        return list(todo)

    def for_each_pair(
        problem: Problem, pairs: Sequence[Pair], compute: Callable[[Pair, Vectors], object]
    ) -> list[object]:
        return [compute(pair, problem.vectors_of(pair)) for pair in pairs]

    monkeypatch.setattr(search, "run_trials", run_trials)
    monkeypatch.setattr(search, "for_each_pair", for_each_pair)
