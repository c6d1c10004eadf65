"""The measurements of embedding in jobs.benchmark, and the slices that they use: every figure is there and adds up."""

import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import end_all_from

from gansfp.collection.catalog import Catalog
from gansfp.cores import cores
from gansfp.embedding.embedder import EmbedConfig
from gansfp.errors import GansfpError
from gansfp.images.lungs import threshold_mask
from gansfp.images.slices import load
from gansfp.runtime.embedding_blocks import STEPS
from jobs.benchmark import measure
from jobs.benchmarks import embedding
from jobs.benchmarks.embedding import Turn, where_time_goes
from jobs.benchmarks.limits import Crew, Rate, Work, _Blocks
from jobs.benchmarks.measure import Bench, Sizes
from jobs.benchmarks.runs import EmbedRecord, Memory, Run
from jobs.benchmarks.slices import CLASS, draw_slices

TINY = Sizes(
    pairs=(("test_resnet@random", "full"), ("test_resnet@random", "lungs")),
    small_pairs=(("test_resnet@random", "full"), ("test_resnet@random", "lungs")),
    precision="float32",
    slices=8,
    repeats=1,
    seconds=0.2,
)


@pytest.fixture
def tiny(tmp_path):
    return Bench(TINY, str(tmp_path))


def rate(per_second: float, slices: int = 100, **milliseconds: float) -> Rate:
    return Rate(per_second, slices, Counter({step: value * slices / 1000 for step, value in milliseconds.items()}))


def run_of(slices: int, embedding: float, **work_seconds: float) -> Run:
    steps = {step: work_seconds.get(step, 0.0) for step in STEPS}
    return Run(slices, 0.0, 0.0, embedding, record=EmbedRecord(slices, steps, "forward") if work_seconds else None)


class TimedCrew:
    """A crew that returns fixed rates and measures nothing."""

    size = 2

    def __init__(self, work: Work) -> None:
        assert len(work.uris) == 16 * TINY.slices

    def __enter__(self) -> "TimedCrew":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rate(self, task: str, seconds: float, members: int | None = None, threads: int = 1) -> Rate:
        rates = {"forward": rate(10), "prepare": rate(50, decode=2.0, mask=1.0, read=0.1), "loop": rate(8)}
        return rates.get(task, rate(2))


class TestTheFigures:
    def test_the_steady_rate_leaves_start_up_apart(self):
        runs = [run_of(100, 11.0), run_of(400, 14.0), run_of(1600, 26.0)]
        assert Turn(runs).rate == pytest.approx(100)

    def test_on_a_cpu_all_steps_share_the_cores(self):
        turn = Turn([], together=rate(100), alone=rate(80), prepare=rate(1, decode=2.0, mask=3.0, read=9.0))
        core_seconds = 0.002 + 0.003 + cores() / 100
        assert turn.bound("cpu") == pytest.approx(cores() / core_seconds)

    def test_on_a_gpu_the_bound_is_the_slower_of_the_gpu_and_the_cores(self):
        turn = Turn([], together=rate(100), prepare=rate(1, decode=2.0, mask=3.0))
        assert turn.bound("cuda") == pytest.approx(min(100, cores() / 0.005))
        slow = replace(turn, prepare=rate(1, decode=2000.0))
        assert slow.bound("cuda") == pytest.approx(cores() / 2)

    def test_where_time_goes_adds_up_to_all_cores(self):
        run = run_of(1000, 1.0, decode=2.0, forward=6.0, write=0.5)
        few, many = replace(run_of(100, 1.0), cpu=3.0), replace(run_of(600, 1.0), cpu=23.0)
        alone = Turn([few, run, many], together=rate(100), prepare=rate(1, decode=1.0, read=0.5))
        *rows, cpu = where_time_goes(run, 0.010, alone)
        assert sum(row.value for row in rows) == pytest.approx(10)
        assert {row.name.split(": ")[1]: row.value for row in rows}["decode"] == pytest.approx(2)
        assert {row.name.split(": ")[1]: row.ratio for row in rows}["decode"] == pytest.approx(2)
        assert rows[-1].value == pytest.approx(1.5)
        assert "binds is forward" in rows[-1].note
        assert cpu.value == pytest.approx(40)
        assert cpu.other == pytest.approx(1 + 10)

    def test_a_run_without_a_record_is_an_error(self):
        with pytest.raises(GansfpError, match="no record of its work_seconds"):
            where_time_goes(run_of(1000, 1.0), 0.01, Turn([]))


class TestMemory:
    def test_it_tells_workers_from_the_command_and_keeps_peaks(self):
        worker = "bash -c 'exec -a ray::Worker sleep 60' & "
        memory, cpu = Memory(), dict[int, float]()
        command = subprocess.Popen(["bash", "-c", f"{worker}{worker}wait"])
        try:
            deadline = time.monotonic() + 30
            while memory.workers <= memory.worker and time.monotonic() < deadline:
                memory.look(command.pid, cpu)
                time.sleep(0.01)
        finally:
            end_all_from(command.pid)
            command.wait()
        assert memory.workers > memory.worker > 0
        assert memory.together >= memory.driver + memory.worker
        assert memory.driver > 0
        assert memory.store == 0
        assert len(cpu) == 3
        peaks = replace(memory)
        memory.look(command.pid, cpu)
        assert memory == peaks


class TestTheSlices:
    def test_drawn_slices_differ_and_show_lungs(self, tmp_path):
        draw_slices(str(tmp_path / "drawn"), 40)
        files = sorted((tmp_path / "drawn").iterdir())
        assert len({path.read_bytes() for path in files}) == 40
        pixels = [load(str(path)).pixels for path in files]
        assert all(slice_.shape == (256, 256) for slice_ in pixels)
        assert np.mean([threshold_mask(slice_).any() for slice_ in pixels]) > 0.8

    def test_a_collection_has_as_many_as_asked(self, tiny):
        for count in (8, 128):
            folder = Path(tiny.slices(count), CLASS)
            assert len(list(folder.iterdir())) == count
            assert load(str(next(folder.iterdir()))).status == "ok"
        assert tiny.slices(8) == tiny.slices(8)

    def test_real_slices_are_taken_again_where_there_are_few(self, tmp_path):
        draw_slices(str(tmp_path / "real" / "patient"), 3)
        (tmp_path / "real" / "notes.txt").write_text("no image")
        (tmp_path / "scratch").mkdir()
        bench = Bench(TINY, str(tmp_path / "scratch"), str(tmp_path / "real"))
        files = list(Path(bench.slices(8), CLASS).iterdir())
        assert len(files) == 8
        assert len({path.read_bytes() for path in files}) == 3


class TestEmbedding:
    @pytest.mark.timeout(200)
    @pytest.mark.slow
    def test_a_crew_reports_rates_and_its_own_errors(self, tiny):
        folder = Path(tiny.slices(8), CLASS)
        work = Work(TINY.pairs, "bfloat16", "cpu", 4, [str(path) for path in sorted(folder.iterdir())], tiny.folder)
        with Crew(work) as crew:
            rates = {task: crew.rate(task, 0.1, members=1) for task in ("forward", "prepare", "loop", "loader")}
            assert all(rate.per_second > 0 for rate in rates.values())
            assert set(rates["prepare"].steps) == {"read", "decode", "mask"}
            assert all(rates["prepare"].milliseconds(step) > 0 for step in ("read", "decode", "mask"))
            for path in folder.iterdir():
                path.unlink()
            with pytest.raises(GansfpError, match="measuring 'prepare' failed: FileNotFoundError"):
                crew.rate("prepare", 0.1)
        assert list(Path(tiny.folder, "member-0", "embeddings", "test_resnet@random", "lungs").iterdir())

    def test_blocks_decoded_elsewhere_are_those_decoded_here(self, tiny):
        uris = [str(path) for path in sorted(Path(tiny.slices(8), CLASS).iterdir())]
        blocks = _Blocks(uris, TINY.pairs, "threshold", 4)
        left_out = 2 * max(1, cores() - 1)
        here, elsewhere = blocks[left_out], next(blocks.decoded_elsewhere())
        assert here["image_id"].tolist() == elsewhere["image_id"].tolist()
        assert isinstance(elsewhere["pixels"], np.ndarray)
        np.testing.assert_array_equal(here["pixels"], elsewhere["pixels"])

    @pytest.mark.ray
    @pytest.mark.timeout(300)
    @pytest.mark.slow
    def test_a_run_is_watched_from_outside(self, tiny):
        run = embedding.run_embed(tiny.slices(8), TINY.pairs, "bfloat16", 8)
        assert run.slices == run.record.done == 8
        assert run.whole > run.first_shard > 0
        assert run.whole > run.embedding > 0
        assert run.record.work_seconds["forward"] > 0
        assert run.record.bottleneck in STEPS
        assert run.cpu > 1
        peaks = run.memory
        assert peaks.workers > peaks.worker > 50e6
        assert peaks.driver > 50e6
        assert 8 * 65_536 < peaks.store < 100e6  # each slice was in it
        assert peaks.driver < peaks.together <= peaks.driver + peaks.workers + peaks.store

    def test_every_figure_of_embedding_is_there(self, tiny, monkeypatch):
        turns: list[tuple[int, ...]] = []

        def run_all(bench: Bench, factors: tuple[int, ...]) -> list[Run]:
            turns.append(factors)
            store = {1: 10, 4: 15, 16: 20}
            memory = [Memory(100_000_000, 500_000_000, 300_000_000, store[n], 600_000_000 + store[n]) for n in factors]
            seconds = {"forward": 0.1, "decode": 0.05}
            runs = [run_of(n * 8, 10 + n, **seconds) for n in factors]
            return [replace(run, memory=m, first_shard=7.5, whole=30.0) for run, m in zip(runs, memory, strict=True)]

        monkeypatch.setattr(embedding, "run_all", run_all)
        monkeypatch.setattr(embedding, "Crew", TimedCrew)
        rows = measure(Bench(replace(TINY, repeats=2), tiny.folder), ["embedding", "memory", "start"])
        assert turns == [(1, 16), (1, 4, 16)]
        assert [row.error for row in rows] == [""] * len(rows)
        rates = [row for row in rows if row.measurement == "embedding"]
        assert [row.against[:3] for row in rates] == ["(a)", "(b)", "(c)", ""]
        assert [row.value for row in rates] == pytest.approx([8, 8, 8, 30])
        assert all(row.ratio == pytest.approx(row.value / row.other) for row in rates[:3])
        steps = [row.name for row in rows if row.measurement == "time"]
        assert steps[:-2] == [f"of a slice: {step}" for step in STEPS]
        memory = {row.name.split(": ")[1]: row for row in rows if row.measurement == "memory"}
        assert memory["driver"].value == pytest.approx(100)
        assert memory["object store"].ratio == pytest.approx(2)
        assert memory["driver, workers and object store"].met is True
        assert rows[-1].value == 7.5
        assert rows[-1].met is True

    def test_runs_that_cannot_be_told_apart_give_no_rate(self):
        with pytest.raises(GansfpError, match=r"no longer than .* --slices"):
            Turn([run_of(8, 5.0), run_of(32, 6.0), run_of(128, 4.9)]).rate  # noqa: B018

    def test_passes_are_timed_without_their_start(self, tiny, monkeypatch):
        clock = [0.0]

        def embed(catalog: Catalog, work: str, config: EmbedConfig, weights: object) -> None:
            clock[0] += 5 + len(catalog) * (0.5 + 0.25 * len(config.pairs))  # decoding is shared

        monkeypatch.setattr(embedding, "embed", embed)
        monkeypatch.setattr(embedding.time, "monotonic", lambda: clock[0])
        for name in ("start_ray", "ray.shutdown"):
            monkeypatch.setattr(f"jobs.benchmarks.embedding.{name}", lambda *_: None)
        (row,) = embedding.passes(tiny)
        more = (embedding.PASSES - 1) * TINY.slices
        assert row.value == pytest.approx(more * 1.0)
        assert row.other == pytest.approx(more * 0.75 * 2)
        assert row.met is True

    def test_a_run_that_fails_repeats_the_commands_last_line(self, tiny):
        data = tiny.slices(8)
        with pytest.raises(GansfpError, match=r"ended with status 2 and said: error: backbone: got 'resnt'"):
            embedding.run_embed(data, (("resnt", "full"),), "bfloat16", 8)

    def test_a_system_without_proc_is_an_error_that_says_so(self, tiny):
        tiny.runs.append([run_of(8, 1.0), run_of(32, 2.0), run_of(128, 3.0)])
        (row,) = measure(tiny, ["memory"])
        assert row.error == "memory is read from /proc, which this system does not have"
