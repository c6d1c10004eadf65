"""Settings of the computing device: batches that fit its memory, exact float32, the host's memory allocator."""

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


def is_out_of_memory(error: BaseException) -> bool:
    """True for every error by which PyTorch reports that memory is short.

    cuBLAS without room for its workspace, and the host's allocator, do not raise OutOfMemoryError.
    """
    messages = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in messages)


def ieee_float32(device: str) -> AbstractContextManager[None]:
    """Returns a context in which a GPU computes float32 as exactly as a CPU does.

    Without it cuDNN computes convolutions in TensorFloat-32, which has 10 bits of mantissa.
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.startswith("cuda") else nullcontext()
