"""gansfp.runtime.tasks, as far as it needs no Ray: what a task asks for, and GPUs that CUDA does not have."""

import logging

import pytest
import torch

from gansfp.runtime import tasks


def test_the_process_of_a_task_with_a_gpu_ends_with_the_task():
    assert tasks._remote(gpu=True)._max_calls == 1
    assert tasks._remote(gpu=False)._max_calls == 0


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_that_cuda_does_not_have_is_said_once(monkeypatch, caplog, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    tasks._warn_of_no_cuda.cache_clear()
    returned = tasks._run_call("name", lambda device: device, "cuda", None)
    assert returned == tasks._Returned(device, no_cuda=not there)
    monkeypatch.setattr(tasks.ray, "get", lambda _: returned)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tasks._outcome("name", None).value == device
    assert caplog.text.count("CUDA finds none") == (not there)
