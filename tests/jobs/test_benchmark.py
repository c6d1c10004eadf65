"""The command jobs.benchmark and its table. Not how fast anything is, but that every figure is there and adds up."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gansfp.cores import cores
from gansfp.decision.search_result import Trial
from gansfp.errors import DataError, GansfpError, UsageError
from jobs import benchmark
from jobs.benchmark import BEGIN, END, main
from jobs.benchmarks import search
from jobs.benchmarks.machine import describe_machine
from jobs.benchmarks.measure import Bench, Row, Sizes, Target
from jobs.benchmarks.report import Report
from tune.membership import MEMBERSHIP
from tune.problem import Problem, SearchConfig, read_table


class TestTheCommand:
    @pytest.mark.ray
    @pytest.mark.timeout(300)
    @pytest.mark.long  # it measures everything once; the other tests here cover the measurements one by one
    @pytest.mark.timeout(600)
    def test_its_table_and_its_json_hold_the_same(self, tmp_path, capsys):
        sizes = ["--sweep", "40,64", "--width", "16", "--repeats", "1", "--trials", "2", "--configurations", "40"]
        readme = tmp_path / "README.md"
        readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        main(["--out", str(tmp_path), "--readme", str(readme), "--only", "statistics,sweep,search", *sizes])
        printed, table = capsys.readouterr().out, (tmp_path / "benchmark.md").read_text()
        assert printed == table
        assert readme.read_text() == f"before\n{BEGIN}\n\n{table.removeprefix('# Benchmark').strip()}\n\n{END}\nafter\n"
        report = json.loads((tmp_path / "benchmark.json").read_text())
        assert [row["measurement"] for row in report["rows"]] == ["sweep"] * 2 + ["search"] + ["statistics"] * 4
        for row in report["rows"]:
            assert row["error"] == ""
            assert row["value"] > 0
            assert row["name"] in table
            assert (row["ratio"] is None) == (row["other"] is None)
            if row["ratio"] is not None:
                assert row["ratio"] == pytest.approx(row["value"] / row["other"]) or row["unit"] == "s"
        assert report["sizes"]["sweep"] == [40, 64]
        assert report["machine"]["cores"] == cores()
        assert f"cores: {cores()}" in table
        assert f"torch {report['versions']['torch']}" in table
        search_row = report["rows"][2]
        assert search_row["target"] == {"limit": 200, "at_least": True, "of_value": True}
        assert search_row["met"] == (search_row["value"] >= 200)
        assert "search, 2 trials of 402 configurations" in search_row["name"]  # 67 for each trial and set

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--only", "speed"], "--only: got 'speed', expected some of embedding,passes"),
            (["--only", ","], "got ',', expected names"),
            (["--slices", "0"], "got '0', expected a whole number of at least 1"),
            (["--sweep", "2000,many"], "got 'many', expected a whole number"),
            (["--sweep", "16"], "got '16', expected a whole number of at least 32"),
            (["--data", "/nowhere/at/all"], "--data: got '/nowhere/at/all', a place without images"),
            (["--readme", "/nowhere/at/all"], "--readme: got '/nowhere/at/all', which cannot be read"),
            (["--readme", __file__], f"--readme: expected the lines '{BEGIN[:13]}"),
            (["--quick"], "unrecognized arguments: --quick"),
        ],
    )
    def test_a_mistake_is_one_line(self, options, message, tmp_path):
        with pytest.raises(UsageError) as caught:
            main(["--out", str(tmp_path), *options])
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_folder_that_cannot_be_written_is_reported_first(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be made or written"):
            main(["--out", str(tmp_path / "file")])

    def test_a_mistake_ends_with_status_2(self):
        command = [sys.executable, "-m", "jobs.benchmark", "--only", "speed"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.splitlines() == [
            "error: --only: got 'speed', expected some of "
            "embedding,passes,memory,start,precision,features,sweep,search,statistics"
        ]

    def test_a_measurement_that_fails_is_a_row_and_the_others_run(self, tmp_path, capsys, monkeypatch):
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
        report = Report({"memory_gb": 8}, {"torch": "2"}, "today", 3.0, Sizes(), rows)
        lines = report.markdown().splitlines()
        assert lines[2:4] == ["- memory gb: 8", "- versions: torch 2"]
        assert lines[4:6] == ["- precision of networks: auto", "- measured today, in 3 s"]
        assert lines[9:12] == [
            "| one [1] | 1,234 s | two: 2.35 s | 526 | at least 600 | **no** |",
            "| three [1] | 0.123 s |  |  | at most 15 s | yes |",
            "| four [2] | 12.3 MB |  |  |  |  |",
        ]
        assert lines[13:] == ["1. how", "2. otherwise"]

    def test_it_describes_the_machine(self):
        machine = describe_machine()
        assert machine["cores"] == cores() <= (os.cpu_count() or 1)
        assert 0.1 < machine["memory_gb"] < 1e5
        assert machine["cpu"]


class TestTheSearch:
    def test_a_trial_of_one_configuration_scores_as_the_search_does(self, tmp_path):
        vectors, slices = search._sets()
        one_set = search.MembershipSlices(slices.sets[:1])
        pair = ("highpass", "full")
        trial = Trial(*pair, 0, metric="euclidean")
        problems = [
            kind(
                SearchConfig("membership"),
                MEMBERSHIP,
                str(tmp_path / kind.__name__),
                lambda _: vectors,
                {pair: "key"},
                one_set,
            )
            for kind in (Problem, search.OneConfiguration)
        ]
        for problem in problems:
            list(problem.run([trial], "cpu"))
        all_rows, single = (read_table(problem.place(trial)).to_pylist() for problem in problems)
        assert len(single) == 1
        (same,) = [row for row in all_rows if row["configuration"] == single[0]["configuration"]]
        assert same["scores"] == single[0]["scores"]
        assert len(all_rows) == 75
