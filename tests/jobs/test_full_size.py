"""The audit at full size, on a toy challenge: not how large anything is, but that every figure is there."""

import json

import pytest

from gansfp.errors import GansfpError, UsageError
from jobs import benchmark
from jobs.benchmarks import full_size
from jobs.benchmarks.full_size import PLACE, Audit, PeakMemory


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_its_table_and_its_json_hold_every_figure(challenge, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(full_size, "EVERY", 0.5)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{PLACE.begin}\nold\n{PLACE.end}\nafter\n")
    options = "--backbones highpass-w15-32 --views full --max-actors 1 --max-trials 1 --permutations 50"
    places = ["--data", str(challenge), "--out", str(tmp_path), "--readme", str(readme)]
    benchmark.main(["--full-size", "--audit-options", options, *places])
    table = (tmp_path / "full-size.md").read_text()
    assert capsys.readouterr().out == table
    assert table.partition("\n")[2].strip() in readme.read_text()
    report = json.loads((tmp_path / "full-size.json").read_text())
    assert f"cpu: {report['machine']['cpu']}" in table
    rows = {row["name"]: row for row in report["rows"]}
    value = {name: row["value"] for name, row in rows.items()}
    assert rows["start to finish"]["note"] == f"jobs.audit {options}"
    for stage in (
        "catalog",
        "embed-membership",
        "search-membership",
        "embed-attribution",
        "search-attribution",
        "final",
    ):
        assert 0 <= value[stage] < value["start to finish"]
    assert value["embed-attribution: 48 slices"] == pytest.approx(48 / value["embed-attribution"])
    assert any(name.startswith("search-membership: ") and rows[name]["unit"] == "trials/min" for name in rows)
    driver, worker, workers, together = (
        value[f"peak memory: {part}"] for part in ("driver", "largest worker", "all workers", "all together")
    )
    assert 100 < driver < together
    assert 50 < worker <= workers < together
    assert value["AUC of set warp"] > 0.9
    assert 0 < value["AUC of set clean"] < 1
    assert -1 <= value["ARI of attribution"] <= 1
    assert not any(row["target"] for row in rows.values())  # they are for 50,000 slices


def test_targets_are_for_50000_slices_and_parts_of_a_stage_add_up():
    stages = [
        {"stage": "catalog", "seconds": 5.0, "done": 50_000},
        {"stage": "embed-membership", "seconds": 10.0, "done": 300},
        {"stage": "search-membership", "seconds": 30.0},
        {"stage": "embed-membership", "seconds": 20.0, "done": 300},
        {"stage": "search-membership", "seconds": 90.0},
        {"stage": "embed-membership-networks", "seconds": 10.0, "done": 300},
        {"stage": "search-membership-networks", "seconds": 40.0},
    ]
    metrics = {"membership": {"sets": {"a": {"auc": {"value": 0.98}}, "b": {"cross_validated": {"auc": {"value": 1}}}}}}
    memory = PeakMemory(1_000_000, 2_000_000, 3_000_000, 9_000_000_000)
    rows = {row.name: row for row in full_size._rows(Audit("", 2800.0, memory, stages, {"membership": 8}, metrics))}
    assert rows["embed-membership"].value == 30
    assert rows["embed-membership: 600 slices"].value == 20
    assert rows["search-membership: 8 trials"].value == 3  # over both of its stages
    assert [name for name, row in rows.items() if row.met is False] == [
        "start to finish",
        "peak memory: all together",
        "AUC of set a",
    ]
    assert rows["AUC of set b"].met is True
    with_options = full_size._rows(Audit("--weights w", 2800.0, memory, stages, {"membership": 8}, metrics))
    assert [row.name for row in with_options if row.target] == ["AUC of set a", "AUC of set b"]


def test_an_audit_that_fails_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(GansfpError, match=r"^jobs.audit ended with status 2 and said: error: ") as raised:
        benchmark.main(["--full-size", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="--readme: got"):
        benchmark.main(["--full-size", "--out", str(tmp_path / "out"), "--readme", str(tmp_path / "none")])
