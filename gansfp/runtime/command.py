"""What every command has in common: options named once, errors in one line, exit statuses."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from gansfp.errors import GansfpError, UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the value, and exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `kill`, `ray job stop` and schedulers send it: it ends a run as Ctrl-C does."""


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs an entry point and ends the process: 0 when it is done, the error's own status and one line when it is not.

    gansfp's log goes to standard error line by line; what other libraries have to say comes with --verbose. Only
    gansfp's own errors are a user's mistake; anything else is a defect and keeps its traceback.
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
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt as stop:
        print("stopped; what is finished is kept, the same command goes on from there", file=sys.stderr, flush=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))
    sys.exit(0)
