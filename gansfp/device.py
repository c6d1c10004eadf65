"""What depends on the device that computes: batches that fit its memory, exact float32, the host's allocator."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TypeVar

import numpy as np
import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def in_batches(
    compute: Callable[..., Result], arrays: Sequence[np.ndarray], limit: int, device: str
) -> tuple[list[Result], int]:
    """What `compute` gives for the arrays, in parts of at most `limit` rows; and the limit that held.

    Out of memory on the device halves it. Raises an out-of-memory error only when a single row is too much.
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
        # Outside the handler: the exception would keep the failed batch's tensors alive.
        limit = (stop - start) // 2
        log.warning("out of memory on %s: going on with batches of %d slices", device, limit)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return parts, limit


def keep_memory() -> None:
    """Lets this process keep what one layer has freed for the next one, where its C library is glibc; for CPUs.

    By default glibc hands large pieces back to the kernel at once, and the fresh pages of the next layer took up to a
    third of a forward pass (mobilenetv2, batches of 8: 14.6 ms of CPU a slice became 8.5, with 2 % more memory).
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the ways in which PyTorch says so: cuBLAS without room for its workspace and the host's allocator do not
    raise OutOfMemoryError."""
    told = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in told)


def ieee_float32(device: str) -> AbstractContextManager[None]:
    """A context in which float32 is computed on a GPU as on a CPU.

    TensorFloat-32, which cuDNN takes for convolutions otherwise, has 10 bits of mantissa.
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.startswith("cuda") else nullcontext()
