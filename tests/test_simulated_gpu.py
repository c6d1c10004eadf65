"""The tests of GPUs on a simulated one: no tensor is on the wrong device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SIMULATION = HERE.parents[1] / "shared" / "reference" / "simulated_cuda"
NOT_SIMULATED = ("shortage_of_memory", "bits_of_read_only", "a_gpu_is_timed")  # memory; slow there; real clocks


@pytest.mark.skipif(not SIMULATION.is_dir(), reason="no simulation of a GPU beside this checkout")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_tests_of_gpus_pass_on_a_simulated_one():
    paths = os.pathsep.join(map(str, (SIMULATION, HERE)))
    chosen = ["-m", "gpu", "-k", " and ".join(f"not {name}" for name in NOT_SIMULATED)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "simulated_gpu", "-p", "no:xdist", "-o", "addopts="]
    places = [str(HERE / place) for place in ("scoring", "test_gpu.py")]
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["PYTHONPATH"] = paths
    ended = subprocess.run(
        [*command, *chosen, *places], env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=280
    )
    last = ended.stdout.splitlines()[-1] if ended.stdout else ended.stderr[-500:]
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "passed" in last
    assert "failed" not in last
    assert "skipped" not in last
