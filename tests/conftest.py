"""Fixtures shared by all tests."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from runs import trials_in_this_process
from threadpoolctl import threadpool_limits

from gansfp.collection.catalog import update_catalog
from gansfp.decision.decide import FinalConfig
from gansfp.runtime.cluster import start_ray
from gansfp.simulation.challenge import SimulationConfig, simulate
from jobs import final
from tune import search

ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ  # processes that run tests at the same time
if ONE_OF_SEVERAL:
    torch.set_num_threads(1)  # the processes share the cores
    threadpool_limits(1)  # for good: it is no context here
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs, so that all machines test the same, unless the tests of GPUs are asked for; keeps Ray's workers."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Ray ends idle workers beyond one a core, and the next step imports PyTorch anew, which is most of a test's time.
    os.environ.setdefault("RAY_num_workers_soft_limit", str(max(6, os.cpu_count() or 1)))


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


@pytest.fixture(scope="session")
def decided(challenge: Path, searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that WORK after the final step; tests that change it make a copy of their own."""

    def make(work: Path) -> None:
        shutil.copytree(searched, work)
        catalog = update_catalog(str(challenge), str(work))
        final.decide(str(challenge), str(work), FinalConfig(permutations=200), catalog)

    return made_once(tmp_path_factory, "decided", make)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray for all tests of a file that run commands in this process: each start of one takes seconds."""
    started = not ray.is_initialized()
    start_ray()
    yield
    if started:
        ray.shutdown()


@pytest.fixture
def serial_trials() -> Iterator[None]:
    """Runs a search's trials in this process, one after the other, where Ray Tune is not what is tested."""
    with trials_in_this_process():
        yield
