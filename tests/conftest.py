"""Fixtures shared by all tests."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from threadpoolctl import threadpool_limits

from gansfp.decision.search_result import Trial
from gansfp.embedding.shards import Pair
from gansfp.runtime.progress import Progress
from gansfp.simulation.challenge import SimulationConfig, simulate
from tune import search
from tune.problem import Problem

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real slices, masks and weights beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA: a small simulated challenge with truth, sets `warp` (leaks) and `clean` (does not)."""
    out = tmp_path_factory.mktemp("challenge") / "data"
    simulate(SimulationConfig.tiny(), str(out), progress=lambda line: None)
    return out


@pytest.fixture(scope="session")
def searched(challenge: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """WORK of that challenge after both searches, on two weight-free embeddings; Ray stays up for the whole session."""
    work = tmp_path_factory.mktemp("searched") / "work"
    for task, backbones in (("membership", "highpass-w15-32,highpass-w0-32"), ("attribution", "residual")):
        arguments = ["--data", str(challenge), "--work", str(work), "--task", task, "--backbones", backbones]
        search.main([*arguments, "--views", "full"])
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
                problem.run(trial, "cpu")
                progress.add(1)
        torch.set_num_threads(threads)
        return list(todo)

    def for_each_pair(problem: Problem, pairs: Sequence[Pair], compute: Callable[[np.ndarray], object]) -> list[object]:
        return [compute(problem.vectors_of(pair)) for pair in pairs]

    monkeypatch.setattr(search, "run_trials", run_trials)
    monkeypatch.setattr(search, "for_each_pair", for_each_pair)
