"""gansfp.store: paths and URIs, files that are written completely or not at all, errors in one line."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from gansfp import store
from gansfp.errors import DataError, UsageError


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """s3://bucket stands for a local folder. Yields the folder and the URIs that are opened."""
    opened = []

    def from_uri(uri):
        opened.append(uri)
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket"

    class Fake:
        FileSystem = type("FileSystem", (), {"from_uri": staticmethod(from_uri)})

        def __getattr__(self, name):
            return getattr(fs, name)

    monkeypatch.setattr(store, "fs", Fake())
    store._open_root.cache_clear()
    yield tmp_path / "bucket", opened
    store._open_root.cache_clear()


def test_absolute_and_join(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store.absolute("a/../b/") == str(tmp_path / "b")
    assert store.absolute("file:///a%20b/c") == store.absolute("file://localhost/a%20b/c") == "/a b/c"
    assert store.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert store.absolute("gs://bucket/x/?anonymous=true") == "gs://bucket/x?anonymous=true"
    assert store.join("/a", "b c", "d.png") == "/a/b c/d.png"
    assert store.join("file:///a", "b#c.png") == "/a/b#c.png"
    assert store.join("s3://bucket/x?region=eu", "b c/", "100%#.png") == "s3://bucket/x/b%20c/100%25%23.png?region=eu"


@pytest.mark.parametrize(
    "uri", ["", "file://tmp/x", "s3://key:secret@bucket/x", "ftp://host/x", "s4://bucket/x", "s3://[/x"]
)
def test_bad_uris_are_usage_errors_in_one_line(uri):
    with pytest.raises(UsageError) as caught:
        store.open_store(uri)
    assert "\n" not in str(caught.value)
    assert "secret@" not in str(caught.value)
    if "secret" not in uri:
        assert uri.removesuffix("/x") in str(caught.value)


def test_s3_and_gs_are_understood():
    home, path = store.open_store("s3://bucket/a%20b/c?region=eu-west-1")
    assert isinstance(home, fs.S3FileSystem)
    assert path == "bucket/a b/c"
    assert store.open_store("s3://bucket/other?region=eu-west-1")[0] is home
    home, path = store.open_store("gs://anonymous@bucket/x")
    assert isinstance(home, fs.GcsFileSystem)
    assert path == "bucket/x"


def test_local_bytes_round_trip(tmp_path):
    uri = store.join(str(tmp_path), "new", "folder", "a b.bin")
    assert not store.exists(uri)
    store.write_bytes_atomically(uri, b"one")
    store.write_bytes_atomically(f"file://{tmp_path}/new/folder/a%20b.bin", pa.py_buffer(b"two"))
    assert store.read_bytes(uri) == b"two"
    assert os.listdir(tmp_path / "new" / "folder") == ["a b.bin"]
    assert store.exists(str(tmp_path / "new"))
    with pytest.raises(FileNotFoundError):
        store.read_bytes(str(tmp_path / "nothing"))


def test_remote_bytes_round_trip(bucket):
    folder, opened = bucket
    uri = store.join("s3://bucket/data?region=eu", "a b", "c#?.bin")
    store.write_bytes_atomically(uri, b"one")
    assert (folder / "data" / "a b" / "c#?.bin").read_bytes() == b"one"
    assert store.read_bytes(uri) == b"one"
    assert store.list_files("s3://bucket/data?region=eu", recursive=True) == [uri]
    store.check_writable("s3://bucket/work?region=eu")
    assert store.list_files("s3://bucket/work?region=eu") == []
    assert opened == ["s3://bucket?region=eu"]  # one client for the bucket, not one for each file


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")

    class Full(fs.LocalFileSystem):
        def move(self, src, dest):
            assert Path(src).name.startswith(store.TEMPORARY)
            assert Path(src).read_bytes() == b"new"
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_LOCAL", Full())
    with pytest.raises(DataError, match="No space left on device"):
        store.write_bytes_atomically(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_list_files(tmp_path):
    for name in ("b.parquet", "a.parquet", "a.csv", ".hidden.parquet", "_tmp-1-c.parquet", "sub/d.parquet"):
        store.write_bytes_atomically(str(tmp_path / name), b"")
    files = store.list_files(str(tmp_path), ".parquet")
    assert files == [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    assert store.list_files(str(tmp_path), ".parquet", recursive=True) == [*files, str(tmp_path / "sub" / "d.parquet")]
    assert store.list_files(str(tmp_path / "nothing")) == []
    with pytest.raises(DataError, match="cannot be listed"):
        store.list_files(str(tmp_path / "a.csv"))


def test_old_unfinished_files_are_removed(tmp_path):
    names = ("_tmp-0123456789ab-a.parquet.part", "sub/_tmp-fedcba987654-b.json.part", "_tmp-probe-0123456789ab")
    kept_names = ("a.parquet", "_tmp-mine.txt", "sub/b.json", "sub/_tmp-0123456789ab-young.part")
    for name in (*names, *kept_names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
        if "young" not in name:
            os.utime(tmp_path / name, (0, time.time() - 2 * store.UNFINISHED_FOR))
    assert store.clear_unfinished(str(tmp_path)) == len(names) - 1
    assert store.clear_unfinished(str(tmp_path), recursive=True) == 1
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept_names)
    assert store.clear_unfinished(str(tmp_path / "nothing")) == 0


def test_check_writable(tmp_path):
    store.check_writable(str(tmp_path / "new" / "work"))
    assert os.listdir(tmp_path / "new" / "work") == []
    (tmp_path / "file").write_text("")
    for work in (tmp_path / "file", tmp_path / "file" / "work", Path("/proc/gansfp")):
        with pytest.raises(DataError) as caught:
            store.check_writable(str(work))
        assert str(caught.value).startswith(f"{work}: the work folder cannot be made or written")
        assert "\n" not in str(caught.value)


def test_read_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbfimage_id , group\r\n0001, a \r\n\r\n"x,y",b\r\n')
    assert store.read_csv(str(path), ("image_id", "group")) == {"image_id": ["0001", "x,y"], "group": ["a", "b"]}
    with pytest.raises(DataError, match="no column 'used', its first line is 'image_id,group'"):
        store.read_csv(str(path), ("used",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column 'image_id'"),
        (b"image_id,used\na\n", "row 2 has 1 values, expected 2: 'a'"),
        (b"image_id\n\xff\xfe\n", "cannot be read as a CSV file"),
        (b'image_id\n"a\n', "cannot be read as a CSV file"),
        (None, "No such file"),
    ],
)
def test_read_csv_of_a_bad_file(tmp_path, content, message):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        store.read_csv(str(path), ("image_id",))
    assert "\n" not in str(caught.value)


def test_remove_accepts_files_folders_and_missing_paths(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("file", "below", "nothing"):
        store.remove(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf_8_are_one_line(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xe9tude.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"whose name is not UTF-8 \(.*\\xe9tude.png\); rename it"):
        store.list_files(str(tmp_path))
