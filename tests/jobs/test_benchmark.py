"""The benchmark: not how fast anything is, but that every figure is there, adds up, and says what it is."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gansfp.collection.catalog import Catalog
from gansfp.embedding.embedder import EmbedConfig
from gansfp.errors import DataError, GansfpError, UsageError
from gansfp.images.lungs import threshold_mask
from gansfp.images.slices import load
from gansfp.runtime.embedding_blocks import STEPS
from jobs import benchmark
from jobs.benchmark import BEGIN, END, machine, main, markdown, measure
from jobs.benchmarks import embedding, search
from jobs.benchmarks.embedding import Round, where_time_goes
from jobs.benchmarks.limits import Crew, Rate, Work, _Blocks
from jobs.benchmarks.measure import CLASS, Bench, Row, Sizes, Target, cores, draw_slices
from jobs.benchmarks.runs import Memory, Run

TINY = Sizes(
    pairs=(("test_resnet@random", "full"), ("test_resnet@random", "lungs")),
    small_pairs=(("test_resnet@random", "full"), ("test_resnet@random", "lungs")),
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
    return Run(
        slices, 0.0, 0.0, embedding, record={"work_seconds": steps, "bottleneck": "forward"} if work_seconds else {}
    )


class TimedCrew:
    """A crew that knows its rates."""

    size = 2

    def __init__(self, work: Work) -> None:
        assert len(work.uris) == 16 * TINY.slices

    def __enter__(self) -> "TimedCrew":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rate(self, task: str, seconds: float, members: int | None = None, threads: int = 1) -> Rate:
        known = {"forward": rate(10), "prepare": rate(50, decode=2.0, mask=1.0, read=0.1), "loop": rate(8)}
        return known.get(task, rate(2))


class TestTheCommand:
    @pytest.mark.ray
    @pytest.mark.timeout(300)
    def test_its_table_and_its_json_hold_the_same(self, tmp_path, capsys):
        sizes = ["--sweep", "40,64", "--width", "16", "--repeats", "1", "--trials", "2", "--configurations", "40"]
        readme = tmp_path / "README.md"
        readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        main(["--out", str(tmp_path), "--readme", str(readme), "--only", "statistics,sweep,search", *sizes])
        printed, table = capsys.readouterr().out, (tmp_path / "benchmark.md").read_text()
        assert printed == table
        assert readme.read_text() == f"before\n{BEGIN}\n\n{table.removeprefix('# Benchmark').strip()}\n\n{END}\nafter\n"
        told = json.loads((tmp_path / "benchmark.json").read_text())
        assert [row["measurement"] for row in told["rows"]] == ["sweep"] * 2 + ["search"] + ["statistics"] * 4
        for row in told["rows"]:
            assert row["error"] == ""
            assert row["value"] > 0
            assert row["name"] in table
            assert (row["ratio"] is None) == (row["other"] is None)
            if row["ratio"] is not None:
                assert row["ratio"] == pytest.approx(row["value"] / row["other"]) or row["unit"] == "s"
        assert told["sizes"]["sweep"] == [40, 64]
        assert told["machine"]["cores"] == cores()
        assert f"cores: {cores()}" in table
        assert f"torch {told['versions']['torch']}" in table
        search = told["rows"][2]
        assert search["target"] == {"limit": 200, "at_least": True, "of_value": True}
        assert search["met"] == (search["value"] >= 200)
        assert "search, 2 trials of 402 configurations" in search["name"]  # 67 of the sweep for each trial and set

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--only", "speed"], "--only: got 'speed', expected some of embedding,passes"),
            (["--only", ","], "got ',', expected names"),
            (["--slices", "0"], "got '0', expected a whole number of at least 1"),
            (["--sweep", "2000,many"], "got 'many', expected a whole number"),
            (["--sweep", "16"], "got '16', expected a whole number of at least 32"),
            (["--data", "/nowhere/at/all"], "--data: got '/nowhere/at/all', where no images are"),
            (["--readme", "/nowhere/at/all"], "--readme: got '/nowhere/at/all', which cannot be read"),
            (["--readme", __file__], f"--readme: expected the lines '{BEGIN[:13]}"),
            (["--quick"], "unrecognized arguments: --quick"),
        ],
    )
    def test_a_mistake_is_one_line(self, options, said, tmp_path):
        with pytest.raises(UsageError) as caught:
            main(["--out", str(tmp_path), *options])
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_place_that_cannot_be_written_is_told_first(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be made or written"):
            main(["--out", str(tmp_path / "file")])

    def test_a_mistake_ends_with_status_2(self):
        command = [sys.executable, "-m", "jobs.benchmark", "--only", "speed"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.splitlines() == [
            "error: --only: got 'speed', expected some of embedding,passes,memory,start,sweep,search,statistics"
        ]

    def test_a_measurement_that_fails_is_a_row_and_the_others_go_on(self, tmp_path, capsys, monkeypatch):
        def broken(bench: Bench) -> list[Row]:
            raise ValueError("no | room\nfor it")

        monkeypatch.setitem(benchmark.MEASUREMENTS, "sweep", broken)
        monkeypatch.setitem(benchmark.MEASUREMENTS, "search", lambda bench: [Row("search", "search", 3.0, "s")])
        with pytest.raises(GansfpError, match=r"^sweep: could not be measured") as caught:
            main(["--out", str(tmp_path), "--only", "search,sweep"])
        assert caught.value.exit_status == 1
        table = (tmp_path / "benchmark.md").read_text()
        assert "| sweep | failed: no / room |  |  |  |  |" in table
        assert "| search | 3.00 s |  |  |  |  |" in table
        assert capsys.readouterr().out == table
        assert json.loads((tmp_path / "benchmark.json").read_text())["rows"][0]["error"] == "no | room"

    def test_what_is_needed_where_there_is_no_memory_to_read_is_said(self, tiny):
        tiny.runs.append([run_of(8, 1.0), run_of(32, 2.0), run_of(128, 3.0)])
        (row,) = measure(tiny, ["memory"])
        assert row.error == "memory is read from /proc, which this system does not have"


class TestTheTable:
    def test_a_target_is_of_the_ratio_or_of_the_value(self):
        row = Row("x", "x", value=10.0, ratio=0.5, target=Target(0.5))
        assert row.met is True
        assert replace(row, target=Target(0.6)).met is False
        assert replace(row, target=Target(0.6, at_least=False)).met is True
        assert replace(row, target=Target(9, at_least=False, of_value=True)).met is False
        assert replace(row, target=Target(10, of_value=True)).met is True
        assert replace(row, target=None).met is None
        assert replace(row, ratio=None).met is None

    def test_its_cells(self):
        rows = [
            Row("x", "one", 1234.5, "s", "two", 2.345, 526.4, Target(600), note="how"),
            Row("x", "three", 0.12345, "s", target=Target(15, at_least=False, of_value=True), note="how"),
            Row("x", "four", 12.34, "MB", note="otherwise"),
        ]
        told = {"machine": {"memory_gb": 8}, "versions": {"torch": "2"}, "measured": "today", "seconds": 3.0}
        lines = markdown(told, rows).splitlines()
        assert lines[2:5] == ["- memory gb: 8", "- versions: torch 2", "- measured today, in 3 s"]
        assert lines[8:11] == [
            "| one [1] | 1,234 s | two: 2.35 s | 526 | at least 600 | **no** |",
            "| three [1] | 0.123 s |  |  | at most 15 s | yes |",
            "| four [2] | 12.3 MB |  |  |  |  |",
        ]
        assert lines[12:] == ["1. how", "2. otherwise"]

    def test_it_says_what_machine_it_is(self):
        found = machine()
        assert found["cores"] == cores() <= (os.cpu_count() or 1)
        assert 0.1 < found["memory_gb"] < 1e5
        assert found["cpu"]


class TestTheFigures:
    def test_the_steady_rate_leaves_start_up_apart(self):
        runs = [run_of(100, 11.0), run_of(400, 14.0), run_of(1600, 26.0)]
        assert Round(runs).rate == pytest.approx(100)

    def test_the_bound_shares_the_cores_among_all_that_must_be_done(self):
        one = Round([], together=rate(100), alone=rate(80), prepare=rate(1, decode=2.0, mask=3.0, read=9.0))
        a_slice = 0.002 + 0.003 + cores() / 100
        assert one.bound("cpu") == pytest.approx(cores() / a_slice)

    def test_on_a_gpu_the_bound_is_the_slower_of_the_gpu_and_the_cores(self):
        one = Round([], together=rate(100), prepare=rate(1, decode=2.0, mask=3.0))
        assert one.bound("cuda") == pytest.approx(min(100, cores() / 0.005))
        slow = replace(one, prepare=rate(1, decode=2000.0))
        assert slow.bound("cuda") == pytest.approx(cores() / 2)

    def test_where_time_goes_adds_up_to_all_cores(self):
        run = run_of(1000, 1.0, decode=2.0, forward=6.0, write=0.5)
        few, many = replace(run_of(100, 1.0), cpu=3.0), replace(run_of(600, 1.0), cpu=23.0)
        alone = Round([few, run, many], together=rate(100), prepare=rate(1, decode=1.0, read=0.5))
        *rows, cpu = where_time_goes(run, 0.010, alone)
        assert sum(row.value for row in rows) == pytest.approx(10)
        assert {row.name.split(": ")[1]: row.value for row in rows}["decode"] == pytest.approx(2)
        assert {row.name.split(": ")[1]: row.ratio for row in rows}["decode"] == pytest.approx(2)
        assert rows[-1].value == pytest.approx(1.5)
        assert "binds is forward" in rows[-1].note
        assert cpu.value == pytest.approx(40)
        assert cpu.other == pytest.approx(1 + 10)

    def test_a_run_without_a_record_is_told(self):
        with pytest.raises(GansfpError, match="no record of its work_seconds"):
            where_time_goes(run_of(1000, 1.0), 0.01, Round([]))

    def test_a_trial_of_one_configuration_scores_as_the_search_does(self, tmp_path, monkeypatch):
        vectors, sets = search._sets()
        monkeypatch.setattr(search.ray, "get", lambda kept: kept)
        trial = {"backbone": "highpass", "view": "full", "components": 0, "metric": "euclidean"}
        pair = ("highpass", "full")
        config = search.trials.SearchConfig("membership")
        made = [
            kind(config, str(tmp_path / kind.__name__), {pair: vectors}, {pair: "key"}, sets[:1])
            for kind in (search.trials.Problem, search.OneConfiguration)
        ]
        monkeypatch.setattr("tune.trials.ray.get", lambda kept: kept)
        for problem in made:
            problem.run(trial, "cpu")
        whole, single = (search.trials.read_table(problem.place(trial)).to_pylist() for problem in made)
        assert len(single) == 1
        (same,) = [row for row in whole if row["configuration"] == single[0]["configuration"]]
        assert same["scores"] == single[0]["scores"]
        assert len(whole) == 67


class TestTheSlices:
    def test_drawn_slices_differ_and_show_lungs(self, tmp_path):
        draw_slices(str(tmp_path / "drawn"), 40)
        files = sorted((tmp_path / "drawn").iterdir())
        assert len({path.read_bytes() for path in files}) == 40
        pixels = [load(str(path)).pixels for path in files]
        assert all(one.shape == (256, 256) for one in pixels)
        assert np.mean([threshold_mask(one).any() for one in pixels]) > 0.8

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
        found = list(Path(bench.slices(8), CLASS).iterdir())
        assert len(found) == 8
        assert len({path.read_bytes() for path in found}) == 3


class TestEmbedding:
    @pytest.mark.timeout(200)
    def test_a_crew_reports_rates_and_its_own_errors(self, tiny):
        folder = Path(tiny.slices(8), CLASS)
        work = Work(TINY.pairs, "bfloat16", "cpu", 4, [str(path) for path in sorted(folder.iterdir())], tiny.folder)
        with Crew(work) as crew:
            rates = {task: crew.rate(task, 0.1, members=1) for task in ("forward", "prepare", "loop", "loader")}
            assert all(found.per_second > 0 for found in rates.values())
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
        passed_by = 2 * max(1, cores() - 1)
        here, elsewhere = blocks[passed_by], next(blocks.decoded_elsewhere())
        assert here["image_id"].tolist() == elsewhere["image_id"].tolist()
        assert isinstance(elsewhere["pixels"], np.ndarray)
        np.testing.assert_array_equal(here["pixels"], elsewhere["pixels"])

    @pytest.mark.ray
    @pytest.mark.timeout(300)
    def test_a_run_is_watched_from_outside(self, tiny):
        run = embedding.run_embed(tiny.slices(8), TINY.pairs, "bfloat16", 8)
        assert run.slices == run.record["done"] == 8
        assert run.whole > run.first_shard > 0
        assert run.whole > run.embedding > 0
        assert run.record["work_seconds"]["forward"] > 0
        assert run.cpu > 1
        peaks = run.memory
        assert peaks.workers > peaks.worker > 50e6
        assert peaks.driver > 50e6
        assert 8 * 65_536 < peaks.store < 100e6  # each slice was in it
        assert peaks.driver < peaks.together <= peaks.driver + peaks.workers + peaks.store

    def test_every_figure_of_embedding_is_there(self, tiny, monkeypatch):
        turns: list[tuple[int, ...]] = []

        def runs(bench: Bench, factors: tuple[int, ...]) -> list[Run]:
            turns.append(factors)
            store = {1: 10, 4: 15, 16: 20}
            memory = [Memory(100_000_000, 500_000_000, 300_000_000, store[n], 600_000_000 + store[n]) for n in factors]
            seconds = {"forward": 0.1, "decode": 0.05}
            found = [run_of(n * 8, 10 + n, **seconds) for n in factors]
            return [replace(run, memory=m, first_shard=7.5, whole=30.0) for run, m in zip(found, memory, strict=True)]

        monkeypatch.setattr(embedding, "run_all", runs)
        monkeypatch.setattr(embedding, "Crew", TimedCrew)
        rows = measure(Bench(replace(TINY, repeats=2), tiny.folder), ["embedding", "memory", "start"])
        assert turns == [(1, 16), (1, 4, 16)]
        assert [row.error for row in rows] == [""] * len(rows)
        rate = [row for row in rows if row.measurement == "embedding"]
        assert [row.against[:3] for row in rate] == ["(a)", "(b)", "(c)", ""]
        assert [row.value for row in rate] == pytest.approx([8, 8, 8, 30])
        assert all(row.ratio == pytest.approx(row.value / row.other) for row in rate[:3])
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
            Round([run_of(8, 5.0), run_of(32, 6.0), run_of(128, 4.9)]).rate  # noqa: B018

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

    def test_a_run_that_fails_says_what_the_command_said(self, tiny):
        data = tiny.slices(8)
        with pytest.raises(GansfpError, match=r"ended with status 2 and said: error: backbone: got 'resnt'"):
            embedding.run_embed(data, (("resnt", "full"),), "bfloat16", 8)
