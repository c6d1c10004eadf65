"""The grey levels that baselines decide by: read once, and again where a file could not be read."""

import numpy as np
import pytest
from runs import small_catalog

from gansfp.runtime.tasks import Outcome
from jobs.reproduction import baselines
from jobs.reproduction.baselines import UNREADABLE, read_grey_levels


def test_a_file_that_could_not_be_read_is_read_by_the_next_command(tmp_path, monkeypatch):
    asked = []

    def run_calls(calls, gpus):
        for name, call in calls.items():
            asked.append(len(call.arguments[0]))
            yield name, Outcome(call.function(*call.arguments))

    monkeypatch.setattr(baselines, "run_calls", run_calls)
    catalog = small_catalog(tmp_path / "data", [f"membership/s/train/used/u{number}.png" for number in range(4)])
    hashes = catalog.hashes()
    file, away = (tmp_path / place for place in ("data/membership/s/train/used/u2.png", "u2.png"))

    def read():
        return read_grey_levels(catalog, ["membership"], str(tmp_path / "work"), lambda: 0)

    file.rename(away)  # a share that is not mounted, say
    first = read()
    assert np.isnan(first[hashes["u2"]]).all()
    assert first[hashes["u2"]] == UNREADABLE
    away.rename(file)
    again = read()
    assert again[hashes["u2"]][0] == pytest.approx(2, abs=0.5)
    assert {key: value for key, value in again.items() if key != hashes["u2"]} == {
        key: value for key, value in first.items() if key != hashes["u2"]
    }
    assert read() == again
    assert asked == [4, 1]
