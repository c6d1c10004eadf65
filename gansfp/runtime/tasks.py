"""Independent calls spread over the cluster, one Ray task each: what fails is told by name, and the others go on."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gansfp.errors import GansfpError
from gansfp.store import one_line

RETRIES = 5  # of a call whose node or process was lost; what the call itself raises is not tried again
LOOK_EVERY = 1.0  # seconds between two looks at what the calls report

Report = Callable[[dict[str, Any]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One call: `function(*arguments)`, with a keyword `report` (a Report) where it `reports`.

    on_device: it takes a GPU, where the cluster has any, and the keyword `device`, "cuda" or "cpu".
    """

    function: Callable[..., Any]
    arguments: Sequence[Any] = ()
    on_device: bool = False
    reports: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a call returned, or in one line why it did not."""

    value: Any = None
    error: str = ""


@dataclass
class _Board:
    """Actor: where calls write what they are at, for the driver to read."""

    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tell(self, name: str, facts: dict[str, Any]) -> None:
        """Keeps the latest facts, and how many times there were any."""
        self.told[name] = {**facts, "reports": self.told.get(name, {}).get("reports", 0) + 1}

    def read(self) -> dict[str, dict[str, Any]]:
        return self.told


def spread(
    calls: Mapping[str, Call], gpus: int, look: Callable[[dict[str, dict[str, Any]]], None] | None = None
) -> Iterator[tuple[str, Outcome]]:
    """Runs the calls and yields the name and outcome of each as it ends. Ray must be up.

    gpus: how many the cluster has; without any, each call has a core and one thread. look: called about every second
    with what the calls last reported, by name.
    """
    board = _start_board() if any(call.reports for call in calls.values()) else None
    waiting = {_submit(name, call, gpus, board): name for name, call in calls.items()}
    try:
        while waiting:
            ended, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK_EVERY)
            if board and look:
                with suppress(ray.exceptions.RayError, TimeoutError):  # it only says how far things are
                    look(ray.get(board.read.remote(), timeout=LOOK_EVERY))
            for reference in ended:
                name = waiting.pop(reference)
                yield name, _outcome(name, reference)
    finally:
        if board:
            ray.kill(board)


def _start_board() -> Any:
    """On this node: it must outlive those that come and go."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _submit(name: str, call: Call, gpus: int, board: Any) -> Any:
    gpu = call.on_device and gpus > 0
    resources = {"num_gpus": 1, "num_cpus": 1} if gpu else {"num_cpus": 1}
    task = ray.remote(_guarded).options(max_retries=RETRIES, name=f"{call.function.__name__} {name}", **resources)
    device = ("cuda" if gpu else "cpu") if call.on_device else ""
    return task.remote(name, call.function, device, board if call.reports else None, *call.arguments)


def _guarded(name: str, function: Callable[..., Any], device: str, board: Any, *arguments: Any) -> tuple[Any, str, str]:
    """The call, in a worker: what it returned, in one line what went wrong, and of a defect the traceback."""
    keywords: dict[str, Any] = {}
    if device:
        import torch

        keywords["device"] = device if torch.cuda.is_available() else "cpu"
        if keywords["device"] == "cpu":
            torch.set_num_threads(1)
    if board:
        keywords["report"] = lambda facts: board.tell.remote(name, facts)
    try:
        return function(*arguments, **keywords), "", ""
    except GansfpError as error:
        return None, str(error), ""
    except Exception as error:  # a defect of one system must not end the others
        return None, f"{type(error).__name__}: {one_line(error)}", traceback.format_exc()


def _outcome(name: str, reference: Any) -> Outcome:
    try:
        value, error, defect = ray.get(reference)
    except ray.exceptions.RayError as lost:
        return Outcome(error=f"its process was lost ({type(lost).__name__}: {one_line(lost)})")
    if defect:
        log.warning("%s failed:\n%s", name, defect.rstrip())
    return Outcome(value, error)
