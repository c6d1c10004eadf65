"""Runs independent calls on the Ray cluster, one Ray task each; one that fails does not stop the others."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gansfp.errors import GansfpError
from gansfp.runtime.worker_errors import as_text, from_text
from gansfp.store import one_line

RETRIES = 5  # of a call whose node or process was lost; a call that raises is not repeated
LOOK_EVERY = 1.0  # seconds between two readings of the calls' reports

Facts = Mapping[str, float | str]  # what a call reports
Report = Callable[[Facts], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One call: `function(*arguments)`, with a keyword `report` (a Report) if it `reports`.

    on_device: the call gets a GPU, if there are any, and the keyword `device`, "cuda" or "cpu".
    """

    function: Callable[..., Any]
    arguments: Sequence[Any] = ()
    on_device: bool = False
    reports: bool = False


@dataclass(frozen=True)
class Outcome:
    """The value that a call returned, or in one line why it failed."""

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Progressed:
    """What a call has reported: its latest facts, and how many times it has reported."""

    facts: Facts
    reports: int


@dataclass
class _Board:
    """Actor: calls write their reports here, and the driver reads them."""

    latest: dict[str, Progressed] = field(default_factory=dict)

    def write(self, name: str, facts: Facts) -> None:
        """Keeps the latest facts, and counts the reports."""
        before = self.latest[name].reports if name in self.latest else 0
        self.latest[name] = Progressed(facts, before + 1)

    def read(self) -> dict[str, Progressed]:
        return self.latest


@dataclass(frozen=True)
class _Returned:
    """What a worker hands over: the value, or the text of an error.

    defect: whether gansfp did not expect the error. no_cuda: whether Ray gave the call a GPU that CUDA does not have.
    """

    value: Any = None
    error: str = ""
    defect: bool = False
    no_cuda: bool = False


def run_calls(
    calls: Mapping[str, Call], gpus: int, on_reports: Callable[[dict[str, Progressed]], None] | None = None
) -> Iterator[tuple[str, Outcome]]:
    """Runs the calls and yields the name and outcome of each as it ends. Ray must be up.

    gpus: of the Ray cluster; without any, each call gets a core and one thread. on_reports: called about every second
    with the latest reports by name.
    """
    board = _start_board() if any(call.reports for call in calls.values()) else None
    running = {_submit(name, call, gpus, board): name for name, call in calls.items()}
    try:
        while running:
            ended, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_EVERY)
            if board and on_reports:
                with suppress(ray.exceptions.RayError, TimeoutError):  # reports only say how far the calls are
                    on_reports(ray.get(board.read.remote(), timeout=LOOK_EVERY))
            for reference in ended:
                name = running.pop(reference)
                yield name, _outcome(name, reference)
    finally:
        if board:
            ray.kill(board)


def _start_board() -> Any:
    """Starts the board on this node, because other nodes come and go."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=this_node).remote()


def _submit(name: str, call: Call, gpus: int, board: Any) -> Any:
    gpu = call.on_device and gpus > 0
    device = ("cuda" if gpu else "cpu") if call.on_device else ""
    task = _remote(gpu).options(name=f"{call.function.__name__} {name}")
    return task.remote(name, call.function, device, board if call.reports else None, *call.arguments)


def _remote(gpu: bool) -> Any:
    """Returns _run_call as a Ray function, with a core and, if asked for, a GPU.

    Ray ends the process of a task with a GPU after the task, but only where the GPU is an argument of ray.remote and
    not of .options. Otherwise the process would keep its memory of the GPU while it waits, and a process that has used
    one GPU cannot change to another.
    """
    return ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=RETRIES)(_run_call)


def _run_call(name: str, function: Callable[..., Any], device: str, board: Any, *arguments: Any) -> _Returned:
    """Runs a call in a worker. It returns an error instead of raising it, because Ray would repeat the task."""
    keywords: dict[str, object] = {}
    no_cuda = False
    if device:
        import torch

        no_cuda = device == "cuda" and not torch.cuda.is_available()
        keywords["device"] = "cpu" if no_cuda else device
        if keywords["device"] == "cpu":
            torch.set_num_threads(1)
    if board:
        keywords["report"] = lambda facts: board.write.remote(name, facts)
    try:
        return _Returned(function(*arguments, **keywords), no_cuda=no_cuda)
    except GansfpError as error:
        return _Returned(error=as_text(error))
    except Exception as error:  # a defect in one call must not end the others
        return _Returned(error=f"{traceback.format_exc()}{type(error).__name__}: {one_line(error)}", defect=True)


def _outcome(name: str, reference: Any) -> Outcome:
    try:
        returned = ray.get(reference)
    except ray.exceptions.RayError as lost:
        return Outcome(error=f"its process was lost ({type(lost).__name__}: {one_line(lost)})")
    if returned.no_cuda:
        _warn_of_no_cuda()
    if returned.defect:
        trace, _, line = returned.error.rstrip().rpartition("\n")
        log.warning("%s failed:\n%s", name, trace.rstrip())
        return Outcome(error=line)
    return Outcome(returned.value, str(from_text(returned.error) or ""))


@functools.cache  # once in a process
def _warn_of_no_cuda() -> None:
    log.warning("the Ray cluster declares GPUs where CUDA finds none: tasks there use one core, slowly")
