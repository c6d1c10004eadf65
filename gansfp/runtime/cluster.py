"""The Ray cluster on which the work runs: one that starts on this machine, or one that the user names."""

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

KEPT_IDLE = 30_000  # milliseconds: between two tasks of a slow network lie ten seconds
CONNECT_TIMEOUT = 5.0  # seconds in which a Ray cluster must answer
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

    Does nothing where this process is connected already (a job that calls another). Raises UsageError for a Ray cluster
    that does not answer, and for more GPUs than this machine has where Ray starts here.
    """
    verbose = cluster.verbose
    context = DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    level = logging.INFO if verbose else logging.CRITICAL  # an error that ends a run arrives as an exception
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(level)
    if ray.is_initialized():
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    # With 0 Ray hides GPUs from CPU tasks itself, and does not warn of the other rule at every start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not verbose:  # Ray's core logs every actor pool of Ray Data as an error (issue 53727), which no logger can stop
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        ray._private.worker.print_to_stdstream = _log_lost_node  # else Ray writes to standard output, where results are
    # Ray ends a worker that was idle for a second and starts another for the next task, which takes 1.5 s of a core.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(KEPT_IDLE))
    options: dict[str, Any] = {}  # of ray.init
    if address == "local":
        options = {"include_dashboard": False, "_temp_dir": _own_folder()}
    else:
        _check_answers(address)
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # `ray job submit` ships the code itself
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
        signal.signal(
            signal.SIGTERM, on_sigterm
        )  # Ray's own handler prints its stack and aborts, and leaves its processes behind
    if address == "local" and cluster.gpus and cluster.gpus > usable_gpus():  # work would wait for them for ever
        raise UsageError(
            f"--gpus: got {cluster.gpus}, this machine has {usable_gpus()}; leave it out, or give the --address of a "
            "cluster that starts GPUs"
        )


def _own_folder() -> str:
    """Returns the folder for logs, sockets and spilled slices of a Ray that starts here; only its user may enter it.

    Ray's own place, /tmp/ray, is open to everybody. Raises UsageError where another user owns a folder of that name.
    """
    with suppress(OSError):  # Ray writes the token there, readable by all who may enter; Ray reports where it cannot
        os.makedirs(os.path.expanduser("~/.ray"), mode=0o700, exist_ok=True)
    folder = os.path.join(get_default_system_temp_dir(), f"gansfp-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UsageError(
            f"{folder}: got a folder that other users may enter, expected one that only you may enter; remove it"
        )
    return os.path.join(folder, "ray")  # Ray opens this one to everybody


def _log_lost_node(data: Any, ignore_prefix: bool) -> None:
    """Logs a lost node, and drops Ray's other messages: Ray repeats lost tasks itself."""
    if any("has been marked dead" in line for line in data["lines"]):
        log.warning("a node of the Ray cluster was lost; its work is repeated on other nodes")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Makes a Ray that starts in this context listen on 127.0.0.1 only; otherwise it listens on every interface.

    This is Ray's own switch, which is off on macOS and Windows. Ray would replace a `_node_ip_address` of 127.0.0.1.
    """
    setting, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = setting


def usable_gpus(asked: int | None = None) -> int:
    """Returns the GPUs to plan for: those asked for, which may start later, or those of now."""
    return int(ray.cluster_resources().get("GPU", 0)) if asked is None else asked


def _check_answers(address: str) -> None:
    """Raises UsageError unless something listens at host:port; Ray itself tries for a minute."""
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
