"""The log of stage runs in WORK."""

import json

from gansfp.runtime.record import read_records, record_stage


def test_every_run_leaves_a_line_and_the_latest_of_a_stage_counts(tmp_path):
    record_stage(str(tmp_path), "embed", 2.0, {"done": 5}, {"precision": "float32"})
    record_stage(str(tmp_path), "catalog", 1.0, {"images": 7})
    record_stage(str(tmp_path), "embed", 3.0, {"done": 1})
    lines = [json.loads(line) for line in (tmp_path / "log" / "stages.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["embed", "catalog", "embed"]
    assert lines[0]["configuration"] == {"precision": "float32"}
    assert lines[0]["seconds"] == 2.0
    assert lines[0]["started"].endswith("+00:00")
    assert "torch" in lines[0]["versions"]
    records = read_records(str(tmp_path))
    assert list(records) == ["catalog", "embed"]
    assert records["embed"].values["done"] == 1


def test_no_log_is_no_records(tmp_path):
    assert read_records(str(tmp_path)) == {}


def test_a_damaged_line_is_named_and_the_others_count(tmp_path, caplog):
    record_stage(str(tmp_path), "embed", 2.0, {"done": 5})
    with open(tmp_path / "log" / "stages.jsonl", "a") as log:
        log.write('{"stage": "cat\n[1]\n')
    record_stage(str(tmp_path), "final", 3.0, {})
    assert list(read_records(str(tmp_path))) == ["embed", "final"]
    assert caplog.text.count("is damaged and left out") == 2
