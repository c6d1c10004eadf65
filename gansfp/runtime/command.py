"""The frame of every command: its parser, its log, its errors in one line, its exit status."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from gansfp.errors import GansfpError, UsageError

SHORT_OF_MEMORY = (
    "memory is short: Ray ended worker processes before the machine had none left; end other programs, or use a "
    "machine with more memory, and run the same command again: finished work is kept"
)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, with the value, and exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, which `kill`, `ray job stop` and schedulers send; it ends a run as Ctrl-C does."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs an entry point and ends the process: with status 0, or with one line and the error's own status.

    gansfp's log goes to standard error. The messages of other libraries are shown with --verbose only. An error class
    of gansfp means a mistake that the user can correct; any other error is a defect of gansfp and keeps its traceback.
    """
    verbose = "--verbose" in (sys.argv if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(message)s", stream=sys.stderr)
    for package in ("__main__", "gansfp", "jobs", "tune"):
        logging.getLogger(package).setLevel(logging.INFO)
    if not verbose and not sys.warnoptions:
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main(arguments)
    except GansfpError as error:
        _end_with(error)
    except KeyboardInterrupt as stop:
        print("stopped; finished work is kept, run the same command to continue", file=sys.stderr, flush=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))
    except Exception as error:
        if _is_short_of_memory(error):
            _end_with(GansfpError(SHORT_OF_MEMORY))
        raise
    sys.exit(0)


def _end_with(error: GansfpError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(error.exit_status)


def _is_short_of_memory(error: BaseException | None) -> bool:
    """Whether Ray ended worker processes because a machine had hardly any memory left. Other libraries' errors, such as
    Ray Tune's, may stand before Ray's own."""
    while error is not None:
        if (type(error).__module__, type(error).__name__) == ("ray.exceptions", "OutOfMemoryError"):
            return True
        error = error.__cause__ or error.__context__
    return False
