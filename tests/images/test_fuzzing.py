"""Damaged files of every format: never an exception, never much time or memory, always the same result again."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGEST = 1024  # MB that one process may grow by, whatever it reads

pytest.importorskip("pydicom")
pytest.importorskip("nibabel")


def fuzz(first: int, count: int, folder: Path) -> dict[str, object]:
    """Reads damaged files in a process of its own, which a decoder may crash."""
    command = [sys.executable, "tests/fuzzing.py", str(first), str(count), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *_, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"ended with {done.returncode} after {last!r}: {done.stderr[-2000:]}"
    assert done.stderr == ""  # decoders write nothing
    return json.loads(last)


def check(results: list[dict[str, object]], count: int) -> None:
    assert not [line for result in results for line in result["wrong"]]
    assert max(result["grown"] for result in results) < LARGEST
    # The damage must leave some files readable, or it tests no more than the magic numbers.
    assert sum(result["decoded"] for result in results) > count / 8


@pytest.mark.slow
def test_500_damaged_files(tmp_path):
    check([fuzz(0, 500, tmp_path / "files")], 500)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_10_000_damaged_files(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda part: fuzz(part * 1000, 1000, tmp_path / str(part)), range(10)))
    check(results, 10_000)
