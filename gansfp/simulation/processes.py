"""Processes that draw and generate the slices of a large challenge side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np  # noqa: F401  its BLAS must be loaded when _prepare limits the threads
from threadpoolctl import threadpool_limits

from gansfp.cores import cores
from gansfp.errors import DataError

_PICTURES_EACH = 500  # a process takes seconds to start, which fewer pictures do not pay back


@contextmanager
def processes(pictures: int) -> Iterator[Executor | None]:
    """Yields a pool of processes for a challenge of so many pictures, one a core at most; None for a small challenge.

    They are started afresh (spawn), because a copy of a process with running threads may hang. Raises DataError in the
    block where one of them was ended from outside.
    """
    count = min(cores(), pictures // _PICTURES_EACH)
    if count < 2:
        yield None
        return
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_prepare) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise DataError(
                "a process that simulates slices was ended from outside, by Linux perhaps because memory was short; "
                "ask for fewer slices, or free memory"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _prepare() -> None:
    """Prepares a process of the pool: one thread for BLAS; it ends with Ctrl-C without a word, and with its parent."""
    threadpool_limits(1, user_api="blas")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
