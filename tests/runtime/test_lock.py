"""One run at a time on a WORK, by processes of their own."""

import fcntl
import os
import re
import subprocess
import sys

import pytest

from gansfp.errors import DataError
from gansfp.runtime import lock
from gansfp.runtime.lock import held, is_held

HOLD = """
import sys
from gansfp.runtime.lock import held
with held(sys.argv[1], "jobs.embed"):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "w")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_works_there(tmp_path, holder):
    with pytest.raises(DataError) as refused, held(str(tmp_path / "w"), "tune.search"):
        pass
    expected = rf"{tmp_path}/w: is in use by jobs\.embed \(process {holder.pid} on .+, since 20\d\d-.+ UTC\); wait .*"
    assert re.fullmatch(expected, str(refused.value))


def test_the_lock_is_gone_with_its_process(tmp_path, holder):
    holder.kill()
    holder.wait()
    for _ in range(2):  # and with its context
        with held(str(tmp_path / "w"), "tune.search"):
            pass


def test_other_folders_and_stores_are_free(tmp_path, holder):
    with held(str(tmp_path / "other"), "jobs.embed"), held("mock://bucket/work", "jobs.embed"):
        pass


def test_what_killed_runs_left_unfinished_goes(tmp_path):
    left = [tmp_path / name for name in ("_tmp-0123456789ab-c.part", "embeddings/lbp/full/_tmp-0123456789ab-s.part")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    with held(str(tmp_path), "jobs.embed"):
        assert not any(path.exists() for path in left)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="the work folder cannot be made"), held(str(tmp_path / "file" / "w"), "x"):
        pass


def test_whether_it_is_held_can_be_asked(tmp_path, holder):
    work = str(tmp_path / "w")
    assert is_held(work) is True
    holder.kill()
    holder.wait()
    assert is_held(work) is False
    with held(work, "jobs.embed"):  # this process holds it
        assert is_held(work) is True
    assert is_held(str(tmp_path / "new")) is False
    assert not (tmp_path / "new").exists()
    assert is_held("mock://bucket/work") is None
    (tmp_path / "file").write_text("")
    assert is_held(str(tmp_path / "file")) is None


def test_a_run_that_begins_while_another_asks_is_not_refused(tmp_path, monkeypatch):
    with held(str(tmp_path), "jobs.embed"):
        pass
    asking = open(tmp_path / ".lock", "rb")  # noqa: SIM115  # closed below, and with it the lock
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr(lock.time, "sleep", lambda _: asking.close())
    with held(str(tmp_path), "jobs.embed"):
        assert asking.closed
