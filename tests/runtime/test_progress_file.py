"""WORK/log/progress.json: how far a job is."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from gansfp import store
from gansfp.errors import DataError
from gansfp.runtime import progress_file
from gansfp.runtime.lock import held, is_held
from gansfp.runtime.progress import Progress
from gansfp.runtime.progress_file import ProgressState, read_progress
from jobs import embed

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=timezone.utc)
STATE = ProgressState(
    stage="embed-membership",
    done=1200,
    total=3550,
    unit="slices",
    failed=2,
    reasons="2 empty file",
    rate=41.2,
    seconds=29.1,
    seconds_left=57.3,
    started=NOON,
    finished=False,
    error="",
    job="jobs.audit",
    updated=NOON,
    job_ended=None,
)


@pytest.fixture
def writes(monkeypatch):
    """The states that are written, as they are written."""
    written = []
    write = store.write_bytes_atomically

    def keep(uri, data):
        written.append(ProgressState.from_json(data))
        write(uri, data)

    monkeypatch.setattr(store, "write_bytes_atomically", keep)
    return written


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress_file, "EVERY", 0.01)


def wait_until(work, condition):
    """The first state that satisfies the condition."""
    for _ in range(1000):
        state = read_progress(work)
        if condition(state):
            return state
        time.sleep(0.01)
    raise AssertionError(state)


class TestAJob:
    def test_the_file_follows_it_from_its_start_to_its_end(self, tmp_path, often, monkeypatch):
        work, clock = str(tmp_path), [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        assert read_progress(work) is None
        with held(work, "jobs.audit"):
            state = read_progress(work)
            assert (state.job, state.stage, state.finished, state.job_ended) == ("jobs.audit", "", False, None)
            with Progress("embed", 300) as progress:
                state = read_progress(work)
                assert (state.stage, state.done, state.total, state.unit) == ("embed", 0, 300, "slices")
                assert state.seconds_left is None
                clock[0] = 110  # start-up
                progress.set(100)
                clock[0] = 112
                progress.set(200, 2, "2 empty file")
                state = wait_until(work, lambda state: state.seconds_left is not None)
                assert (state.done, state.failed, state.reasons) == (200, 2, "2 empty file")
                assert (state.rate, state.seconds, state.seconds_left) == (50.0, 12.0, 2.0)
                assert (state.finished, state.error) == (False, "")
                clock[0] = 114
                progress.set(300, 2, "2 empty file")
            state = read_progress(work)
            assert (state.done, state.finished, state.seconds, state.seconds_left) == (300, True, 14.0, 0.0)
            assert state.job_ended is None
            with Progress("search", 0, "trials"):
                assert read_progress(work).stage == "search"
        state = read_progress(work)
        assert (state.job, state.stage, state.finished, state.error) == ("jobs.audit", "search", True, "")
        assert state.started <= state.updated <= state.job_ended

    def test_an_ended_stage_stands_still_and_a_job_that_lives_shows_it(self, tmp_path, often, monkeypatch):
        work = str(tmp_path)
        with held(work, "jobs.embed"):
            with Progress("embed", 3) as progress:
                progress.set(3)
            ended = read_progress(work)
            monkeypatch.setattr(progress_file, "now", lambda: NOON)
            assert wait_until(work, lambda state: state.updated == NOON) == replace(ended, updated=NOON)

    def test_an_error_of_a_stage_and_of_the_job(self, tmp_path):
        work = str(tmp_path)
        with suppress(OSError), held(work, "jobs.embed"):
            with suppress(DataError), Progress("search", 3, "trials") as progress:
                progress.set(1)
                raise DataError("nothing\nto see")
            state = read_progress(work)
            assert (state.done, state.finished, state.error) == (1, False, "DataError: nothing")
            assert state.job_ended is None
            raise OSError(28, "No space left on device", "/x")
        state = read_progress(work)
        assert (state.stage, state.finished, state.error) == ("search", False, "OSError: No space left on device")
        assert state.job_ended

    def test_one_that_got_over_an_error_ended_well(self, tmp_path):
        with held(str(tmp_path), "jobs.reproduce"), pytest.raises(DataError), Progress("train", 3, "epochs"):
            raise DataError("x")
        state = read_progress(str(tmp_path))
        assert (state.finished, state.error) == (True, "")

    def test_ctrl_c(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), held(str(tmp_path), "jobs.embed"), Progress("embed", 3):
            raise KeyboardInterrupt
        state = read_progress(str(tmp_path))
        assert (state.finished, state.error) == (False, "KeyboardInterrupt")
        assert state.job_ended

    def test_killed(self, tmp_path):
        source = """
import os, signal, sys
from gansfp.runtime.lock import held
from gansfp.runtime.progress import Progress
with held(sys.argv[1], "jobs.embed"), Progress("embed", 3):
    os.kill(os.getpid(), signal.SIGKILL)
"""
        subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=False)
        state = read_progress(str(tmp_path))
        assert (state.stage, state.finished, state.error, state.job_ended) == ("embed", False, "", None)
        assert is_held(str(tmp_path)) is False

    def test_a_command_says_what_it_failed_of(self, tmp_path):
        work = str(tmp_path / "work")
        (tmp_path / "data").mkdir()
        with pytest.raises(DataError) as caught:
            embed.main(["--data", str(tmp_path / "data"), "--work", work, "--backbones", "lbp", "--views", "full"])
        state = read_progress(work)
        assert (state.job, state.stage, state.error) == ("jobs.embed", "catalog", f"DataError: {caught.value}")

    def test_without_one_nothing_is_written(self, tmp_path, monkeypatch, writes):
        monkeypatch.chdir(tmp_path)
        with held(str(tmp_path / "work"), "jobs.embed"):
            pass
        del writes[:]
        with Progress("validate", 3, "packs") as progress:
            progress.set(3)
        assert writes == []
        assert os.listdir(tmp_path) == ["work"]

    def test_within_another(self, tmp_path):
        with held(str(tmp_path / "a"), "a"):
            with held(str(tmp_path / "b"), "b"), Progress("of b", 1):
                pass
            with Progress("of a", 1):
                pass
        assert [read_progress(str(tmp_path / name)).stage for name in "ab"] == ["of a", "of b"]


class TestWriting:
    def test_news_are_not_written_one_by_one(self, tmp_path, writes, monkeypatch):
        monkeypatch.setattr(progress_file, "EVERY", 60)
        with held(str(tmp_path), "jobs.embed"), Progress("embed", 10_000) as progress:
            for _ in range(10_000):
                progress.add(1)
        assert [(state.stage, state.done) for state in writes] == [("", 0), ("embed", 0), *[("embed", 10_000)] * 2]

    def test_an_object_store_is_written_less_often(self, tmp_path, monkeypatch):
        monkeypatch.setattr(progress_file, "EVERY", 0.01)
        monkeypatch.setattr(progress_file, "EVERY_REMOTE", 60)
        work = "mock://bucket/a work"
        assert read_progress(work) is None
        with held(work, "jobs.embed"):
            with Progress("embed", 3) as progress:
                progress.set(2)
                time.sleep(0.1)
                assert read_progress(work).done == 0
                monkeypatch.setattr(progress_file, "now", lambda: NOON)
            assert read_progress(work).done == 2
        state = read_progress(work)
        assert (state.job, state.job_ended) == ("jobs.embed", NOON)
        assert [path.rpartition("/")[2] for path in store.list_files(work, recursive=True)] == ["progress.json"]

    def test_it_is_whole_whenever_it_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(progress_file, "EVERY", 0.0001)
        place, end = tmp_path / "log" / "progress.json", time.monotonic() + 0.3
        with held(str(tmp_path), "jobs.embed"), Progress("embed", 3):
            while time.monotonic() < end:
                ProgressState.from_json(place.read_bytes())
        assert os.listdir(place.parent) == ["progress.json"]

    def test_where_it_fails_the_job_goes_on_and_says_so_once(self, tmp_path, often, monkeypatch, caplog):
        (tmp_path / "log" / "progress.json").mkdir(parents=True)
        tried = []
        monkeypatch.setattr(progress_file, "now", lambda: tried.append(1) or NOON)
        with held(str(tmp_path), "jobs.embed"), Progress("embed", 3) as progress:
            for _ in range(1000):
                if len(tried) > 10:
                    break
                time.sleep(0.01)
            progress.set(3)
        assert len(tried) > 10
        assert progress.done == 3
        (warning,) = caplog.records
        assert warning.levelname == "WARNING"
        assert "how far the job is cannot be looked up" in warning.message
        assert "log/progress.json: cannot be written" in warning.message
        with pytest.raises(ZeroDivisionError), held(str(tmp_path), "jobs.embed"), Progress("embed", 3):
            raise ZeroDivisionError  # the job's own error is not hidden

    def test_no_defect_of_it_stops_the_job(self, tmp_path, monkeypatch, caplog):
        def breaks(*_):
            raise RuntimeError("unheard of")

        monkeypatch.setattr(store, "write_bytes_atomically", breaks)
        with held(str(tmp_path), "jobs.embed"), Progress("embed", 3):
            pass
        assert caplog.text.count("unheard of") == 1


class TestReading:
    def test_what_was_written_is_read(self):
        for state in (STATE, replace(STATE, seconds_left=None, job_ended=NOON, rate=3)):
            assert ProgressState.from_json(state.to_json()) == state
        values = json.loads(STATE.to_json())
        assert values["updated"] == "2026-01-02T12:00:00+00:00"
        assert values["job_ended"] is None
        assert ProgressState.from_json(json.dumps({**values, "of a later version": 1})) == STATE

    @pytest.mark.parametrize(
        "changes",
        [
            {"done": "1200"},
            {"done": None},
            {"total": 3.5},
            {"job": 1},
            {"rate": "fast"},
            {"finished": "yes"},
            {"started": 5},
            {"updated": "noon"},
            {"updated": "2026-01-02T12:00:00"},
            {"updated": None},
            {"job_ended": "never"},
        ],
    )
    def test_a_value_of_another_kind(self, changes):
        values = json.loads(STATE.to_json())
        with pytest.raises(ValueError, match=r"is|has|Invalid"):
            ProgressState.from_json(json.dumps({**values, **changes}))

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\0", b"[" * 100_000, STATE.to_json().encode()[:-20]]
    )
    def test_a_damaged_file_is_named(self, content, tmp_path, caplog):
        (tmp_path / "log").mkdir()
        (tmp_path / "log" / "progress.json").write_bytes(content)
        assert read_progress(str(tmp_path)) is None
        assert f"{tmp_path}/log/progress.json: is damaged" in caplog.text
        assert len(caplog.records) == 1

    def test_what_is_no_such_file(self, tmp_path, caplog):
        (tmp_path / "log" / "progress.json").mkdir(parents=True)
        assert read_progress(str(tmp_path)) is None
        assert "cannot be read (Is a directory)" in caplog.text

    def test_a_file_that_is_too_large(self, tmp_path, caplog):
        (tmp_path / "log").mkdir()
        (tmp_path / "log" / "progress.json").write_bytes(b" " * (progress_file.MAX_BYTES + 1))
        assert read_progress(str(tmp_path)) is None
        assert "cannot be read" in caplog.text
