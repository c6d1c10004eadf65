"""The lock on WORK: one run at a time; a second run is refused and told who holds the lock.

Two runs would do the same work twice and delete each other's shards. The lock is a kernel lock on WORK/.lock. It
disappears with the process that holds it, however that process ends, so nobody has to remove it by hand. Object stores
have no such lock: there two runs do the work twice, and both give correct results.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import IO

from gansfp import store
from gansfp.errors import DataError
from gansfp.runtime.progress_file import ProgressFile

NAME = ".lock"
# The folders of WORK in which killed runs may leave unfinished files.
WRITTEN = ("embeddings", "enlarged", "models", "search", "results", "log")
ASKING = 0.05  # seconds in which `is_held` has long given the lock back

log = logging.getLogger(__name__)


@contextmanager
def held(work: str, command: str) -> Iterator[None]:
    """Holds the lock on WORK, and keeps WORK/log/progress.json, as long as the context lasts. Makes the folder.

    Raises DataError where another process holds it, here or on another machine that shares the folder.
    """
    if store.is_remote(work):
        with ProgressFile(work, command):
            yield
        return
    folder = store.absolute(work)
    place = os.path.join(folder, NAME)
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(place, "a+", encoding="utf-8")  # noqa: SIM115  # closed below, and with it the lock
    except OSError as error:
        raise DataError(f"{work}: the work folder cannot be made or written ({store.one_line(error)})") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            raise DataError(
                f"{work}: is in use by {file.read() or 'another run'}; wait until it ends, or stop it"
            ) from None
        except OSError as error:
            log.warning("%s: cannot be locked (%s); make sure that no other run uses it", work, store.one_line(error))
        since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        with suppress(OSError):  # on a full disk the lock holds, but names nobody
            os.ftruncate(file.fileno(), 0)
            os.write(
                file.fileno(), f"{command} (process {os.getpid()} on {socket.gethostname()}, since {since})".encode()
            )
        store.clear_unfinished(folder)
        for name in WRITTEN:
            store.clear_unfinished(os.path.join(folder, name), recursive=True)
        with ProgressFile(folder, command):
            yield


def is_held(work: str) -> bool | None:
    """Returns whether a process holds the lock on WORK, here or on another machine that shares the folder. Changes
    nothing. Returns None where that cannot be told: object stores have no lock, nor have some file systems."""
    if store.is_remote(work):
        return None
    try:
        with open(os.path.join(store.absolute(work), NAME), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


def _lock(file: IO[str]) -> None:
    """Raises BlockingIOError where another process holds the lock, for longer than `is_held` does to ask."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(ASKING)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
