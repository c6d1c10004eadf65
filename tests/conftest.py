"""Fixtures shared by all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from gansfp.simulation.challenge import SimulationConfig, simulate
from tune import search

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
