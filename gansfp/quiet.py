"""Silence for libraries in C and C++, which write to file descriptor 2 and know nothing of Python's sys.stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def discard_stderr() -> Iterator[None]:
    """Discards what this process writes to file descriptor 2 inside the block, also where the block raises.

    It concerns the whole process: what other threads write to the descriptor meanwhile is lost as well. Text that
    Python has buffered before is written first.
    """
    sys.stderr.flush()
    stderr_copy, null_device = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_device, 2)
        yield
    finally:
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
        os.close(null_device)
