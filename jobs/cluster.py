"""Where the work runs: a Ray of this machine's own, or a cluster somebody named."""

from __future__ import annotations

import argparse
import logging
import os

import ray
from ray.data import DataContext

from gansfp.errors import UsageError


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """--address and --verbose, for every command that runs on Ray."""
    parser.add_argument("--address", help="a Ray cluster (default: RAY_ADDRESS, else Ray is started on this machine)")
    parser.add_argument("--verbose", action="store_true", help="show what Ray itself has to say")


def start_ray(address: str | None = None, verbose: bool = False) -> None:
    """Connects to `address` or RAY_ADDRESS, or starts Ray on this machine, on loopback and without a dashboard.

    Does nothing where this process is connected already (a job that calls another). Raises UsageError for a cluster
    that does not answer.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    logging.getLogger("ray.data").setLevel(logging.INFO if verbose else logging.ERROR)
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # Ray hides the GPUs from CPU tasks by itself only under the old rule; under the new one it warns at every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options = {"include_dashboard": False} if address == "local" else {}
    level = logging.INFO if verbose else logging.ERROR
    try:
        ray.init(address=address, logging_level=level, log_to_driver=verbose, configure_logging=verbose, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"--address {address!r}: no Ray cluster answers there ({reason})") from error
