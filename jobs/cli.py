"""What every command has in common: options named once, errors in one line, exit statuses."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from gansfp import store
from gansfp.errors import DataError, GansfpError, UsageError


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


def add_outside_option(parser: argparse.ArgumentParser) -> None:
    """--allow-outside, for every command that reads DATA."""
    parser.add_argument(
        "--allow-outside", action="store_true", help="let a table in DATA name files that are not below it"
    )


def check_places(data: str, work: str) -> None:
    """What can be said of DATA and WORK at once. Raises DataError where DATA is missing or WORK cannot be written,
    UsageError where they are one folder, or in a submitted job relative paths: those end in Ray's copy of the checkout.
    """
    for name, place in (("--data", data), ("--work", work)):
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not (store.is_remote(place) or os.path.isabs(place)):
            raise UsageError(f"{name}: got {place!r} in a submitted job, expected an absolute path or a URI")
    if store.absolute(data) == store.absolute(work):
        raise UsageError(f"--work: got {work!r}, which is --data, expected another folder")
    if not store.exists(data):
        raise DataError(f"--data: got {data!r}, where nothing is; expected a folder or a URI with images")
    store.check_writable(work)


def count(text: str, least: int = 0) -> int:
    """An option's value that must be a whole number of at least `least`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least {least}")
    return value


def positive(text: str) -> int:
    """An option's value that must be a whole number of at least 1."""
    return count(text, least=1)


def seed(text: str) -> int:
    """An option's value that every random generator takes: a whole number that 32 bits hold."""
    value = count(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number below {2**32}")
    return value


def share(text: str) -> float:
    """An option's value that is a share of a device: more than 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0 and at most 1, such as 0.5")
    return value


def names(text: str) -> tuple[str, ...]:
    """An option's value that is a list of names with commas between."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected names with commas between")
    return found
