"""gansfp.device: how a device is asked for its fast precision, and how shortage of memory is recognised."""

from contextlib import contextmanager

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from gansfp import device
from gansfp.published import superresolution
from gansfp.training import autoencoder, heads, prediction


@pytest.fixture(autouse=True)
def forgotten():
    device.is_bfloat16_fast.cache_clear()
    yield
    device.is_bfloat16_fast.cache_clear()


@pytest.mark.parametrize(("seconds", "fast"), [((1.0, 0.25), True), ((1.0, 0.95), False), ((1.0, 7.6), False)])
def test_a_cpu_is_measured(monkeypatch, seconds, fast):
    monkeypatch.setattr(device, "_convolution_seconds", lambda: seconds)
    assert device.is_bfloat16_fast("cpu") is fast


def test_the_measurement_leaves_threads_and_random_numbers_as_they_were():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert min(device._convolution_seconds()) > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_a_gpu_says_it(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
    assert device.is_bfloat16_fast("cuda:1") is fast


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_shortage_of_memory_has_many_messages(message):
    assert device.is_out_of_memory(RuntimeError(message))


def test_other_errors_are_no_shortage_of_memory():
    assert device.is_out_of_memory(torch.OutOfMemoryError("any message"))
    assert not device.is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not device.is_out_of_memory(ValueError("shape"))


def test_released_memory_is_no_longer_arrows():
    table = pa.table({"number": np.zeros(1 << 21)}).take(np.arange(1 << 21))
    pool = pa.default_memory_pool()
    held, resident = pool.bytes_allocated(), psutil.Process().memory_info().rss
    del table
    device.release_memory()
    assert pool.bytes_allocated() < held
    assert psutil.Process().memory_info().rss < resident - (1 << 23)


def test_float32_on_a_gpu_is_not_tensorfloat_32():
    before = torch.backends.cudnn.allow_tf32
    with device.ieee_float32("cuda:0"):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


PIXELS = np.zeros((1, 256, 256), np.uint8)
LINEAR = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("module", "compute"),
    [
        (superresolution, lambda: superresolution.Upscaler(superresolution.load_upscaler("esrgan@random", None, 1))),
        (autoencoder, lambda: lambda pixels: autoencoder._error_images(autoencoder.Autoencoder(64), pixels, 64, "cpu")),
        (
            prediction,
            lambda: (
                lambda pixels: prediction._probabilities(
                    LINEAR, heads.HEADS["linear"], heads.InputTransform("resnet10t", 32, "full"), pixels, None, "cpu"
                )
            ),
        ),
    ],
)
def test_what_is_decided_by_small_differences_is_computed_in_exact_float32(monkeypatch, module, compute):
    inside = []

    @contextmanager
    def record(name):
        inside.append(name)
        yield
        inside.append("end")

    monkeypatch.setattr(module, "ieee_float32", record)
    function = compute()
    function(PIXELS[:, :32, :32] if module is superresolution else PIXELS)
    assert inside == ["cpu", "end"]
