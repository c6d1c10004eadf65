"""Commands as a shell starts them, and what they leave on disk."""

import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from processes import descendants, end, end_all_from
from threadpoolctl import threadpool_limits

from gansfp.collection.catalog import Catalog, read_catalog
from gansfp.decision.search_result import Trial
from gansfp.embedding import shards
from gansfp.embedding.shards import Pair
from gansfp.runtime.command import run as run_command
from gansfp.runtime.progress import Progress
from gansfp.simulation.phantom import draw_patient, draw_slice
from tune import search
from tune.problem import Problem, Vectors

ROOT = Path(__file__).parents[1]


def draw(folder: Path, n: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(n):
        pixels = draw_slice(draw_patient(rng), rng.uniform(0.3, 0.7), rng)
        Image.fromarray(pixels).save(folder / f"{folder.name}_{number:03}.png")


def spoil(folder: Path) -> dict[str, str]:
    """Adds one bad image of each kind. Returns the text that its reason must contain, by id."""
    whole = next(folder.glob("*.png")).read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "text.png").write_text("this is no image")
    bomb = bytearray(whole)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the header, which has a checksum
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bytes(bomb))
    (folder / "dangling.png").symlink_to("/nowhere/at/all.png")
    reasons = {"truncated": "trunc", "nothing": "empty", "text": "not a DICOM", "bomb": "60000"}
    return reasons | {"dangling": "No such file"}


def rows_on_disk(work: Path, pair: tuple[str, str]) -> list[str]:
    """The image ids of every row of a pair, by plain pyarrow."""
    place = Path(shards.folder(str(work), pair))
    return [
        i for path in place.glob("*.parquet") for i in pq.read_table(path, columns=["image_id"])["image_id"].to_pylist()
    ]


def status_of(main: Callable[[Sequence[str] | None], None], arguments: list[str]) -> int:
    """Runs a command in this process, where it uses the Ray that is up, as a shell runs it. Returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        run_command(main, arguments)
    return int(ended.value.code)


@contextmanager
def trials_in_this_process() -> Iterator[None]:
    """Runs a search's trials in this process, one after the other."""

    def run_trials(
        problem: Problem, todo: Sequence[Trial], total: int, pairs: Sequence[Pair], progress: Progress
    ) -> list[Trial]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with threadpool_limits(1):  # as in a worker: sums over several threads differ in their last bits
            for trial in todo:
                for _ in problem.run([trial], "cpu"):
                    progress.add(1)
        torch.set_num_threads(threads)
        return list(todo)

    def for_each_pair(
        problem: Problem, pairs: Sequence[Pair], compute: Callable[[Pair, Vectors], object]
    ) -> list[object]:
        return [compute(pair, problem.vectors_of(pair)) for pair in pairs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "run_trials", run_trials)
        patch.setattr(search, "for_each_pair", for_each_pair)
        yield


class Running:
    """A command while it runs. Use as a context manager: whatever it started ends with the test."""

    def __init__(self, command: list[str], log: Path, **options: object) -> None:
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True, **options
            )
        self._below: dict[int, str] = {}

    @property
    def said(self) -> str:
        """What it wrote to standard output and standard error."""
        return self._log.read_text()

    def wait_until(self, happened: Callable[[], object], seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"ended before what was waited for:\n{self.said}"
            assert time.monotonic() < deadline, f"nothing in {seconds} s:\n{self.said}"
            time.sleep(0.01)

    def below(self) -> dict[int, str]:
        """The processes that it started: start times by process id."""
        self._below |= descendants(self.process.pid)
        return self._below

    def kill(self) -> None:
        """As `kill -9` does: what it started is left to itself."""
        self.below()
        self.process.kill()
        self.process.wait()

    def ended(self, seconds: float = 200) -> int:
        """Its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.said}") from None

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self.below()
        if self.process.poll() is None:
            end_all_from(self.process.pid)
        self.process.wait()
        end(self._below)


def small_catalog(folder: Path, paths: list[str]) -> Catalog:
    """The catalog of tiny images at these paths below a folder, each of another grey level."""
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / path, "PNG")
    return read_catalog(str(folder))
