"""What the report reads of a WORK: searches that a command is writing, and broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from gansfp.errors import DataError
from gansfp.report.audited import read_work
from gansfp.runtime.lock import held


def test_a_search_that_is_being_written_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "search" / "membership"
    folder.mkdir(parents=True)
    (folder / "best.json").write_text("{}")
    with pytest.raises(DataError, match=r"run tune\.search again"):
        read_work(str(tmp_path))
    with held(str(tmp_path), "tune.search"):
        assert read_work(str(tmp_path)).searches == {}
    assert "a command is running, so the page leaves this search out" in caplog.text
