"""A pytest plugin: the tests of GPUs run on a simulated CUDA device, which computes on the CPU.

It needs `simcuda`, a tensor that says cuda:0 and refuses to meet tensors of the CPU as a GPU does, and adds what
gansfp's newer code asks of CUDA. So a tensor on the wrong device is found without a GPU; wrong numbers of a real GPU,
its memory and its speed are not.
"""

import contextlib
from types import SimpleNamespace

import simcuda  # type: ignore[import-not-found]
import torch

simcuda.log_places = False
simcuda.install()


class Stream:
    """Does at once what a GPU queues."""

    def __init__(self, *_: object) -> None: ...

    def wait_stream(self, other: object) -> None: ...


class Event(simcuda.Event):  # type: ignore[misc]
    """Is there as soon as it is recorded."""

    def synchronize(self) -> None: ...


torch.cuda.Stream, torch.cuda.Event = Stream, Event
torch.cuda.current_stream = lambda *_: Stream()
torch.cuda.stream = lambda _: contextlib.nullcontext()
torch.Tensor.record_stream = lambda *_: None
torch.Tensor.is_pinned = lambda *_: True
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.get_device_properties = lambda *_: SimpleNamespace(total_memory=80_000_000_000, name="simulated")
torch.cuda.max_memory_allocated = lambda *_: 1
_empty = torch.empty
torch.empty = lambda *shape, pin_memory=False, **options: _empty(*shape, **options)
