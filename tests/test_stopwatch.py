"""gansfp.stopwatch: the seconds of each step."""

import time

import pytest
import torch

from gansfp.stopwatch import Stopwatch


def test_seconds_are_added_up_by_step():
    ticks = iter([0.0, 1.0, 3.0, 3.5])
    watch = Stopwatch(clock=lambda: next(ticks))
    for step in ("decode", "mask", "decode"):
        watch.mark(step)
    assert watch.seconds() == {"decode": 1.5, "mask": 2.0}


def test_waiting_does_not_count_by_default():
    watch = Stopwatch()
    time.sleep(0.2)
    watch.mark("waited")
    assert watch.seconds()["waited"] < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_is_timed_by_its_events():
    x = torch.ones(4096, 4096, device="cuda")
    watch = Stopwatch("cuda")
    for _ in range(20):
        x = x @ x / 4096
    watch.mark("forward")
    torch.cuda.synchronize()
    assert watch.seconds()["forward"] > 1e-4
