"""How fast embedding could be here: its parts alone, the same loop without Ray, a user's own loop.

A crew of processes stays up: one single-threaded process a core, or one process where there is a GPU. It repeats one
task for some seconds, then the next. So tasks can be compared in turn, within one run and without start-up.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from gansfp import store
from gansfp.cores import cores
from gansfp.embedding import shards
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.images.grey_levels import AUTO
from gansfp.images.lungs import get_mask
from gansfp.images.slices import SIDE, decode
from gansfp.images.views import get_view
from gansfp.runtime.embedding_blocks import decode_block

if TYPE_CHECKING:
    import torch
    from PIL import Image

MASK = "threshold"
LOADER_BATCH, LOADER_WORKERS = 32, 2  # of a user's own loop
BLOCK = 64  # slices that are decoded, embedded and written at once, as jobs.embed does with some thousand on CPUs
AHEAD = 2  # batches that a worker of a DataLoader prepares in advance, PyTorch's default
ENDLESS = 1 << 30
CHECK = 8  # batches between two looks at the clock: before each look the process must wait for the GPU

Measured = tuple[int, float, Counter[str]]  # slices done, seconds of all of it, seconds of each step
Block = dict[str, np.ndarray]  # the columns of a block of slices, as decode_block gives them


@dataclass(frozen=True)
class Work:
    """What a crew works on. uris: of slices; device: "cpu" or "cuda"; folder: for shards.

    tuned: False for a single process with PyTorch's and the C library's own settings.
    """

    pairs: Sequence[Pair]
    precision: str
    device: str
    batch: int
    uris: Sequence[str]
    folder: str
    tuned: bool = True

    @property
    def mask(self) -> str:
        """The lung mask that these pairs need, "" where they need none."""
        return MASK if any(get_view(view).region != "all" for _, view in self.pairs) else ""


@dataclass
class Rate:
    """Slices a second of all processes together, and how many slices were done; steps: seconds of each step."""

    per_second: float = 0.0
    slices: int = 0
    steps: Counter[str] = field(default_factory=Counter)

    def add(self, slices: int, seconds: float, steps: Counter[str]) -> None:
        """Adds what one process has done."""
        self.per_second += slices / seconds
        self.slices += slices
        self.steps.update(steps)

    def milliseconds(self, step: str) -> float:
        """Returns the milliseconds of one core that the step takes for one slice."""
        return 1000 * self.steps[step] / self.slices


class Crew:
    """Processes that repeat a piece of work for some seconds and report its rate. Use as a context manager."""

    def __init__(self, work: Work) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._members: list[tuple[SpawnProcess, Connection]] = []
        self.work = work
        self.size = cores() if work.device == "cpu" and work.tuned else 1

    def __enter__(self) -> Crew:
        for number in range(self.size):
            pipe, end_of_member = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(end_of_member, self.work, number, self.size))
            process.start()
            end_of_member.close()
            self._members.append((process, pipe))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, pipe in self._members:
            pipe.close()  # a member ends when its pipe ends
            process.join(10)
            if process.is_alive():
                process.kill()

    def rate(self, task: str, seconds: float, members: int | None = None, threads: int = 1) -> Rate:
        """Returns the rate that the first `members` processes (by default all) reach together at a task.

        task: the name of a method of _Member: forward, prepare, loop or loader. Raises GansfpError where one fails.
        """
        chosen = self._members[:members]
        for _, pipe in chosen:
            pipe.send((task, seconds, threads))
        rate = Rate()
        try:
            answers = [pipe.recv() for _, pipe in chosen]
        except EOFError as error:
            raise GansfpError(f"benchmark: a process that measured {task!r} died") from error
        for answer in answers:
            if isinstance(answer, str):
                raise GansfpError(f"benchmark: measuring {task!r} failed: {answer}")
            rate.add(*answer)
        return rate


def _serve(pipe: Connection, work: Work, number: int, size: int) -> None:
    """Runs in a process of a crew: takes tasks from the pipe and answers each with its figures, or with its error."""
    import torch

    member = _Member(work, number, size)
    while True:
        try:
            task, seconds, threads = pipe.recv()
        except EOFError:
            return
        torch.set_num_threads(threads)
        try:
            pipe.send(getattr(member, task)(seconds))
        except Exception as error:  # any failure: the benchmark continues with its next measurement
            pipe.send(f"{type(error).__name__}: {store.one_line(error)}")


class _Member:
    """The tasks of one process of a crew, on its share of the slices."""

    def __init__(self, work: Work, number: int, size: int) -> None:
        from gansfp.device import keep_memory
        from gansfp.embedding.backbones import parse_backbone
        from gansfp.embedding.embedder import EmbedConfig, Embedder, identity, load_all_weights
        from gansfp.embedding.timm_network import TimmNetwork

        if work.device == "cpu" and work.tuned:
            keep_memory()

        self.work, self.uris = work, list(work.uris[number::size]) or list(work.uris)
        config = EmbedConfig(tuple(work.pairs), MASK, work.precision)
        weights = load_all_weights(config.backbones, None)
        self.embedder = Embedder(work.pairs, weights, work.device, work.precision, work.batch)
        self.networks = {
            name: TimmNetwork(parse_backbone(name), weights[parse_backbone(name).network], work.device, work.precision)
            for name in config.backbones
        }
        self.identities = {pair: identity(pair, config, weights) for pair in work.pairs}
        self.folder = os.path.join(work.folder, f"member-{number}")

    def forward(self, seconds: float) -> Measured:
        """Measures the bare networks, once for each pair, on random images that are on the device in their format.

        On a CPU these are the fused networks, the fastest that PyTorch computes without a compiler.
        """
        import torch

        exact = self.work.precision == "float32"
        images = {}
        for network in self.networks.values():
            side = network.preparation.size
            noise = torch.randn(self.work.batch, 3, side, side, device=self.work.device)
            images[side] = noise.contiguous(memory_format=torch.channels_last)

        def step() -> tuple[int, Counter[str]]:
            with torch.inference_mode(), torch.autocast(self.work.device, torch.bfloat16, enabled=not exact):
                for backbone, _ in self.work.pairs:
                    network = self.networks[backbone]
                    network.model(images[network.preparation.size])
            return self.work.batch, Counter()

        return self._repeat(step, seconds)

    def prepare(self, seconds: float) -> Measured:
        """Measures reading, decoding and, where a view needs it, masking."""
        mask = get_mask(self.work.mask) if self.work.mask else None
        uris = cycle(self.uris)

        def step() -> tuple[int, Counter[str]]:
            times = [time.perf_counter()]
            contents = [(uri, store.read_bytes(uri)) for uri in islice(uris, BLOCK)]
            times.append(time.perf_counter())
            slices = [decode(content, uri).pixels for uri, content in contents]
            times.append(time.perf_counter())
            for pixels in slices if mask else ():
                if mask and pixels is not None:
                    mask(pixels)
            times.append(time.perf_counter())
            return BLOCK, Counter(dict(zip(("read", "decode", "mask"), np.diff(times).tolist(), strict=True)))

        return self._repeat(step, seconds)

    def loop(self, seconds: float) -> Measured:
        """Measures everything that jobs.embed does for a slice, with the same functions, in a loop without Ray."""
        blocks = _Blocks(self.uris, self.work.pairs, self.work.mask, max(BLOCK, self.work.batch))
        on_gpu = self.work.device == "cuda"
        decoded = blocks.decoded_elsewhere() if on_gpu else blocks.decoded_here()
        with ThreadPoolExecutor(1) as writer:
            writing: list[Future[None]] = []

            def step() -> tuple[int, Counter[str]]:
                block = next(decoded)
                masks = np.unpackbits(block["mask"], axis=1).reshape(-1, SIDE, SIDE).view(bool)
                vectors = self.embedder(block["pixels"], masks)
                if on_gpu:  # the host writes a block while the device embeds the next one
                    for earlier in writing:
                        earlier.result()
                    writing[:] = [writer.submit(self._write, block, vectors)]
                else:
                    self._write(block, vectors)
                return len(masks), Counter()

            return self._repeat(step, seconds)

    def _write(self, block: Block, vectors: dict[Pair, np.ndarray]) -> None:
        images = dict(zip(block["image_id"].tolist(), block["sha256"].tolist(), strict=True))
        statuses, errors = block["status"].tolist(), block["error"].tolist()
        for pair, of_pair in vectors.items():
            shards.write_shard(self.folder, self.identities[pair], images, statuses, errors, of_pair)

    def loader(self, seconds: float) -> Measured:
        """Measures the loop that a user of PyTorch and timm would write, once for each pair of backbone and view.

        It has a DataLoader with two workers, timm's transform and model, and computes in float32.
        """
        share = seconds / len(self.networks)
        spent = {backbone: self._seconds_a_slice(backbone, share) for backbone in self.networks}
        return 1, sum(spent[backbone] for backbone, _ in self.work.pairs), Counter()

    def _seconds_a_slice(self, backbone: str, seconds: float) -> float:
        """Repeats the user's loop with one backbone for some seconds; returns its seconds for a slice."""
        import timm
        import torch
        from timm.data import create_transform, resolve_model_data_config

        model = timm.create_model(backbone.partition("@")[0], pretrained=False, num_classes=0)
        model = model.eval().to(self.work.device)
        transform = create_transform(**resolve_model_data_config(model), is_training=False)
        batch = LOADER_BATCH if self.work.device == "cpu" else self.work.batch
        images = _Images(list(self.work.uris), transform)
        batches = iter(torch.utils.data.DataLoader(images, batch, num_workers=LOADER_WORKERS))  # type: ignore[arg-type]

        def step() -> tuple[int, Counter[str]]:
            batch = next(batches).to(self.work.device)
            return len(model(batch).cpu().numpy()), Counter()

        with torch.inference_mode():
            for _ in range(AHEAD * LOADER_WORKERS):  # the workers prepared these while the first one was waited for
                step()
            count, spent, _ = self._repeat(step, seconds)
        return spent / count

    def _repeat(self, step: Callable[[], tuple[int, Counter[str]]], seconds: float) -> Measured:
        """Repeats a step for some seconds. The first time does not count, because it takes memory and fills caches."""
        step()
        self._wait()
        started, count, steps = time.perf_counter(), 0, Counter[str]()
        while True:
            for _ in range(CHECK if self.work.device == "cuda" else 1):
                done, parts = step()
                count += done
                steps.update(parts)
            self._wait()
            if (spent := time.perf_counter() - started) >= seconds:
                return count, spent, steps

    def _wait(self) -> None:
        if self.work.device == "cuda":
            import torch

            torch.cuda.synchronize()


@dataclass
class _Blocks:
    """An endless dataset of PyTorch: blocks of slices as decode_block makes them; the slices repeat."""

    uris: list[str]
    pairs: Sequence[Pair]
    mask: str
    size: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> Block:
        places = range(number * self.size, (number + 1) * self.size)
        uris = [self.uris[place % len(self.uris)] for place in places]
        names = np.array([f"slice_{place}" for place in places], object)
        where = {"uri": np.array(uris), "frame": np.zeros(len(uris), int), "rule": np.full(len(uris), AUTO)}
        return decode_block({"image_id": names, **where, "sha256": names}, self.pairs, self.mask)

    def decoded_here(self) -> Iterator[Block]:
        """Decodes each block in this process, when it is asked for."""
        return (self[number] for number in range(ENDLESS))

    def decoded_elsewhere(self) -> Iterator[Block]:
        """Decodes blocks in processes on all other cores. Leaves out those that were ready when the first one came."""
        from torch.utils.data import DataLoader

        workers = max(1, cores() - 1)
        loader: Iterable[Block] = DataLoader(self, None, num_workers=workers, collate_fn=_unchanged)  # type: ignore
        return islice(iter(loader), AHEAD * workers, None)


def _unchanged(block: Block) -> Block:
    return block


@dataclass
class _Images:
    """An endless dataset of PyTorch for a user's own loop; the slices repeat."""

    uris: list[str]
    transform: Callable[[Image.Image], torch.Tensor]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> torch.Tensor:
        from PIL import Image

        return self.transform(Image.open(self.uris[number % len(self.uris)]).convert("RGB"))
