"""Settings of the computing device: batches that fit its memory, its fast precision, the host's memory allocator."""

from __future__ import annotations

import ctypes
import functools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

NATIVE_BFLOAT16 = 8  # CUDA's least compute capability with bfloat16; older GPUs emulate it
# The share of float32's time below which bfloat16 counts as faster. Measured for the layers of _convolution_seconds on
# one Xeon, by the instructions that oneDNN may use: AMX 0.25, AVX512-BF16 without AMX 1.3, AVX512 3.3, AVX2 7.6, each
# within 15 % in 20 measurements while other programs ran. So noise does not change the result, and a rerun has it too.
FASTER = 0.8

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_SHORT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "unable to find an engine",  # cuDNN, where the workspace of no algorithm fits
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_INTERNAL_ERROR",
)

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def in_batches(
    compute: Callable[..., Result], arrays: Sequence[np.ndarray], limit: int, device: str
) -> tuple[list[Result], int]:
    """Computes the arrays in parts of at most `limit` rows; returns the results, and the limit that fitted the memory.

    Out of memory on the device halves the limit. Raises an out-of-memory error only if a single row does not fit.
    """
    parts: list[Result] = []
    start, rows = 0, len(arrays[0])
    while start < rows:
        stop = min(start + limit, rows)
        try:
            parts.append(compute(*(array[start:stop] for array in arrays)))
            start = stop
            continue
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if stop - start == 1 or not is_out_of_memory(error):
                raise
        # This is outside of the handler, because the exception keeps the tensors of the failed batch alive.
        limit = (stop - start) // 2
        log.warning("out of memory on %s: continues with batches of %d slices", device, limit)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return parts, limit


@functools.cache
def is_bfloat16_fast(device: str) -> bool:
    """Returns whether networks are faster in bfloat16 than in float32 on a device: "cpu", "cuda", "cuda:1", ...

    A GPU says so by its compute capability. A CPU is measured, in less than a second, once in a process: its flags do
    not tell. A CPU with AVX512-BF16 that has no AMX, or must not use it, may be slower in bfloat16.
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= NATIVE_BFLOAT16
    exact, half = _convolution_seconds()
    return half < FASTER * exact


@torch.inference_mode()
def _convolution_seconds() -> tuple[float, float]:
    """Times typical layers on this CPU, in float32 and in bfloat16: the least CPU time of three turns each."""
    # CPU time of one thread: other programs, and other numbers of threads, do not change it much.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        layers = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.Conv2d(64, 256, 1))
    layers = layers.to(memory_format=torch.channels_last)
    images = torch.ones(4, 64, 56, 56).contiguous(memory_format=torch.channels_last)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(4):
        for half, of_turns in seconds.items():
            started = time.thread_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                layers(images)
            of_turns.append(time.thread_time() - started)
    torch.set_num_threads(threads)
    return min(seconds[False][1:]), min(seconds[True][1:])  # the first turn also prepares the layers


def in_memory_of(device: str, compute: Callable[[str], Result]) -> Result:
    """Returns compute(device), or compute("cpu") where the memory of a GPU is too short for it."""
    try:
        return compute(device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if device == "cpu" or not is_out_of_memory(error):
            raise
    log.warning("out of memory on %s: computed on the CPU instead", device)
    torch.cuda.empty_cache()  # outside of the handler, because the exception keeps the tensors alive
    return compute("cpu")


def keep_memory() -> None:
    """Makes glibc keep freed memory for the next layer instead of returning it to the kernel. For networks on CPUs.

    By default glibc returns large pieces at once, and the new pages of the next layer took up to a third of a forward
    pass (mobilenetv2, batches of 8: 14.6 ms of CPU time a slice became 8.5, with 2 % more memory). Other C libraries
    are left as they are.
    """
    with suppress(OSError, AttributeError):  # a C library other than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)


def return_memory() -> None:
    """Makes glibc return freed pieces of 4 MB and more at once. For steps with large arrays of many sizes.

    By default it keeps pieces of up to 32 MB once it has seen such a piece freed, and the next arrays fit badly into
    what it keeps. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):  # a C library other than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 1 << 24)
        mallopt(_M_MMAP_THRESHOLD, 1 << 22)


def release_memory() -> None:
    """Gives freed memory back to the system. By default Arrow and glibc keep some of it, more with each trial of a
    process."""
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """True for every error by which PyTorch reports that memory is short.

    Only PyTorch's own allocator raises OutOfMemoryError. Libraries that lack room for a handle or a workspace have
    messages of their own, which may also mean a fault of the device: that shows when one row does not fit either.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _SHORT_OF_MEMORY)


def ieee_float32(device: str) -> AbstractContextManager[None]:
    """Returns a context in which a GPU computes float32 as exactly as a CPU does.

    Without it cuDNN computes convolutions in TensorFloat-32, which has 10 bits of mantissa.
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.startswith("cuda") else nullcontext()
