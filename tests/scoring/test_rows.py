"""Rows on disk: they read as an array does, every method gives the same with them, and they take no memory."""

import errno
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from gansfp import rows
from gansfp.errors import DataError
from gansfp.rows import RowsOnDisk, as_slice, between, mapped, parts
from gansfp.scoring import distances, projections
from gansfp.scoring.dendrograms import cluster_centres

X, Y = (np.random.default_rng(seed).normal(2, 1, size=(n, 24)).astype(np.float32) for seed, n in ((0, 90), (1, 70)))


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 8 rows, and blocks of PCA of 16."""
    monkeypatch.setattr(rows, "PART", 8 * 24)
    monkeypatch.setattr(projections, "_BLOCK", 16)


def on_disk(x):
    made = RowsOnDisk(x.shape)
    made[:] = x
    return made


def test_they_read_as_an_array_does():
    stored = on_disk(X)
    assert (stored.shape, len(stored)) == (X.shape, len(X))
    for chosen in (slice(3, 9), slice(None), np.array([5, 2, 5]), slice(88, 200)):
        got = stored[chosen]
        np.testing.assert_array_equal(got, X[chosen])
        got += 1  # a copy, so that the file stays as it is
    np.testing.assert_array_equal(stored[:], X)


def test_what_was_not_written_is_zero():
    stored = RowsOnDisk((4, 3))
    stored[np.array([2, 0])] = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert stored[:].tolist() == [[4, 5, 6], [0, 0, 0], [1, 2, 3], [0, 0, 0]]
    assert RowsOnDisk((0, 3))[:].shape == (0, 3)
    assert RowsOnDisk((3, 0))[:].shape == (3, 0)


def test_a_disk_without_room_is_an_error_with_what_to_do(monkeypatch):
    """Not a signal that ends the process, which is what writing to a file without room gives."""

    def full(file, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stored = RowsOnDisk((1000, 30))
    assert os.fstat(stored._file.fileno()).st_blocks * 512 >= 4 * 1000 * 30
    monkeypatch.setattr(os, "posix_fallocate", full)
    place = re.escape(tempfile.gettempdir())
    with pytest.raises(DataError, match=rf"{place}: cannot hold 120,000 bytes .*No space left .*; set TMPDIR to"):
        RowsOnDisk((1000, 30))
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    assert not RowsOnDisk((4, 3))[:].any()


def test_a_part_is_of_the_same_file():
    stored = on_disk(X)
    for whole in (X, stored):
        part = between(between(whole, 10, 60), 5, 20)
        assert part.shape == (15, 24)
        np.testing.assert_array_equal(part[:], X[15:30])
    stored.part(10, 12)[:] = np.zeros((2, 24), np.float32)
    assert not stored[10:12].any()
    assert stored[12].all()


def test_parts_cover_all_rows_once(small_parts):
    assert [(part.start, part.stop) for part in parts(X)] == [(s, min(s + 8, 90)) for s in range(0, 90, 8)]
    assert list(parts(X[:0])) == []
    assert len(list(parts(np.zeros((3, 10_000), np.float32)))) == 3  # a row that is larger than a part


def test_what_is_computed_from_rows_on_disk_is_on_disk(small_parts):
    made = mapped(on_disk(X), lambda of_part: of_part[:, :3] * 2)
    assert isinstance(made, RowsOnDisk)
    np.testing.assert_array_equal(made[:], X[:, :3] * 2)
    assert isinstance(mapped(X, lambda x: x), np.ndarray)


@pytest.mark.parametrize("metric", distances.METRICS)
def test_distances_are_the_same(metric, small_parts):
    y = Y.copy()
    y[3], y[4] = X[7], X[7] + 1e-4  # near pairs get a second look, also in parts
    y[5] = 0
    expected = distances.pairwise(X, y, metric)
    np.testing.assert_allclose(distances.pairwise(on_disk(X), on_disk(y), metric), expected, rtol=2e-6, atol=1e-6)
    expected = distances.self_distances(y, metric, block=16)
    np.testing.assert_allclose(distances.self_distances(on_disk(y), metric, block=16), expected, rtol=2e-6, atol=1e-6)


def test_nearest_rows_are_the_same(small_parts):
    near, found = distances.nearest(X, Y, 3)
    got_near, got_found = distances.nearest(on_disk(X), on_disk(Y), 3)
    np.testing.assert_array_equal(got_found, found)
    np.testing.assert_array_equal(got_near, near)


@pytest.mark.parametrize("n", [90, 15])
def test_principal_components_are_the_same(n, small_parts):
    expected, got = projections.pca(X[:n], 5), projections.pca(on_disk(X[:n]), 5)
    np.testing.assert_array_equal(got.components, expected.components)
    np.testing.assert_allclose(got.transform(on_disk(X)), expected.transform(X), rtol=1e-5, atol=1e-6)


def test_centres_are_the_same(small_parts):
    labels = np.arange(90) % 4
    np.testing.assert_array_equal(cluster_centres(on_disk(X), labels), cluster_centres(X, labels))


PEAK = """
import pathlib, re, sys
import numpy as np
import torch
from gansfp.device import return_memory
from gansfp.rows import RowsOnDisk, mapped, parts
from gansfp.scoring import distances
from gansfp.scoring.projections import pca

torch.set_num_threads(1)  # as in a trial
return_memory()
x = RowsOnDisk((int(sys.argv[1]), 1024))
for part in parts(x):
    x[part] = np.random.default_rng(part.start).normal(size=(part.stop - part.start, 1024)).astype(np.float32)
axes = pca(x, 200)
mapped(x, axes.transform)
for metric in ("euclidean", "cosine"):
    for _, strip in distances.distance_strips(np.ones((4, 1024), np.float32), x, metric):
        distances.smallest(strip, 5)
distances.nearest(x[:4], x, 3)
# Not getrusage: there the peak of the process that started this one counts too.
print(int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_memory_does_not_grow_with_the_rows():
    peaks = []
    for slices in (9_000, 25_000):  # 37 and 102 MB, several parts each
        ended = subprocess.run(
            [sys.executable, "-c", PEAK, str(slices)], capture_output=True, text=True, timeout=120, check=True
        )
        peaks.append(int(ended.stdout))
    assert peaks[1] < peaks[0] + 20


@pytest.mark.parametrize(
    ("rows", "expected"), [([3, 4, 5], slice(3, 6)), ([0], slice(0, 1)), ([3, 5], None), ([-1, 0], None), ([], None)]
)
def test_rows_that_follow_each_other_are_a_slice(rows, expected):
    numbers = np.array(rows, dtype=np.int64)
    found = as_slice(numbers)
    assert found == expected if expected else found is numbers
    assert np.array_equal(X[found], X[numbers])
    assert np.shares_memory(X[found], X) == bool(expected)
