"""Where the work runs: a Ray of this machine's own, or a cluster somebody named."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_default_system_temp_dir
from ray._private import ray_constants
from ray.data import DataContext

from gansfp.errors import UsageError
from gansfp.quiet import discard_stderr
from gansfp.store import one_line

CONNECT_TIMEOUT = 5.0  # seconds in which a cluster must answer
PACKAGES = ("gansfp", "jobs", "tune")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterConfig:
    """Which Ray a command uses.

    address: of a cluster; None: RAY_ADDRESS, or a Ray that starts on this machine. gpus: how many GPUs to plan for,
    also those that an autoscaler has yet to start; None: those that the cluster has now. verbose: show Ray's messages.
    """

    address: str | None = None
    gpus: int | None = None
    verbose: bool = False


def start_ray(cluster: ClusterConfig = ClusterConfig()) -> None:
    """Connects to the cluster's address, or starts Ray on this machine, on loopback and without a dashboard.

    Does nothing where this process is connected already (a job that calls another). Raises UsageError for a cluster
    that does not answer.
    """
    verbose = cluster.verbose
    context = DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    level = logging.INFO if verbose else logging.CRITICAL  # what ends a run comes as an exception, once
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(level)
    if ray.is_initialized():
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    # Ray hides the GPUs from CPU tasks by itself only under the old rule; under the new one it warns at every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not verbose:  # Ray's core calls every actor pool of Ray Data an error (issue 53727), and no logger can stop it
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray._private.worker.print_to_stdstream = _tell  # it would go to standard output, where results are
    options: dict[str, Any] = {}
    if address == "local":
        options = {"include_dashboard": False, "_temp_dir": _own_folder()}
    else:
        _check_answers(address)
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # `ray job submit` brings the code itself
            root = Path(__file__).parents[2]
            options["runtime_env"] = {"py_modules": [str(root / name) for name in PACKAGES]}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Ray's core, as it starts, writes to file descriptor 2, although it was told to be quiet.
        with nullcontext() if verbose else discard_stderr(), _on_loopback() if address == "local" else nullcontext():
            ray.init(address=address, logging_level=level, log_to_driver=verbose, configure_logging=verbose, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(_no_cluster(address, one_line(error))) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints its stack and aborts, its processes left behind


def _own_folder() -> str:
    """Where a Ray that starts here keeps logs, sockets and spilled slices: below a folder that only its user may enter.

    Ray's own place, /tmp/ray, is open to everybody. Raises UsageError where another user has taken the folder's name.
    """
    with suppress(OSError):  # the token is written there, readable by all who may enter; Ray says where it cannot
        os.makedirs(os.path.expanduser("~/.ray"), mode=0o700, exist_ok=True)
    folder = os.path.join(get_default_system_temp_dir(), f"gansfp-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UsageError(f"{folder}: got a folder that others may enter, expected one of yours alone; remove it")
    return os.path.join(folder, "ray")  # Ray opens this one to everybody


def _tell(data: Any, ignore_prefix: bool) -> None:
    """Of what Ray reports of tasks and nodes, which it does again by itself, the one thing worth knowing."""
    if any("has been marked dead" in line for line in data["lines"]):
        log.warning("a node of the cluster was lost; what it was doing is done again on others")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts here is 127.0.0.1 to itself, and its processes listen there alone; else on every interface.

    This is Ray's own switch, which is off on macOS and Windows; a loopback `_node_ip_address` it would replace.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def usable_gpus(asked: int | None = None) -> int:
    """The GPUs to plan for: those asked for, which an autoscaler may have yet to start, or those of the cluster now."""
    return int(ray.cluster_resources().get("GPU", 0)) if asked is None else asked


def _check_answers(address: str) -> None:
    """Raises UsageError unless something listens at host:port; Ray itself would try for a minute."""
    if address.startswith("ray://"):
        raise UsageError(
            f"--address: got {address!r}, expected host:port on a node of the cluster, or use `ray job submit`"
        )
    match = re.fullmatch(r"\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)", address)
    if match is None:
        return
    try:
        socket.create_connection((match["host"], int(match["port"])), CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise UsageError(_no_cluster(address, one_line(error))) from error


def _no_cluster(address: str, reason: str) -> str:
    return f"--address (or RAY_ADDRESS): got {address!r}, where no Ray cluster answers ({reason})"
