"""gansfp.store on any file name: spaces, percent signs, unicode; paths, file:// and s3:// URIs."""

import posixpath
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from urllib.parse import quote

from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from gansfp import store

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
OPTIONS = ["", "?region=eu-west-1", "?region=eu&scheme=http"]
# What means something in paths or URIs is drawn often.
CHARACTERS = st.one_of(st.sampled_from(" %#?&=+:@~.\\'\"é日"), st.characters(exclude_categories=("Cs",)))
FILE_NAMES = st.text(CHARACTERS, min_size=1, max_size=30).filter(
    lambda name: not {"/", "\0"} & set(name) and name not in (".", "..")
)
FOLDERS = st.lists(FILE_NAMES, min_size=1, max_size=4)


@SETTINGS
@given(FOLDERS)
def test_a_local_path_is_the_same_in_every_form(names):
    path = posixpath.join("/", *names)
    assert store.join("/", *names) == store.absolute(path) == path
    assert store.absolute(f"file://{quote(path)}") == store.absolute(f"file://localhost{quote(path)}") == path
    assert store.absolute(Path(path).as_uri()) == path
    file_system, opened_path = store.open_store(path)
    assert isinstance(file_system, fs.LocalFileSystem)
    assert opened_path == path


@SETTINGS
@given(FOLDERS, FOLDERS, st.sampled_from(OPTIONS))
def test_a_uri_is_joined_part_by_part_and_keeps_its_options(first, second, options):
    uri = store.join(f"s3://bucket{options}", *first)
    assert store.absolute(uri) == uri
    assert store.join(uri) == uri
    assert store.join(uri, *second) == store.join(f"s3://bucket/{options}", *first, *second)
    assert uri.endswith(options)
    assert store.is_remote(uri)


class _Bucket:
    """Stands for pyarrow.fs: every URI opens one local folder."""

    def __init__(self, folder):
        self.opened = []
        self.FileSystem = mock.Mock(from_uri=self._from_uri)
        self._file_system = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())

    def _from_uri(self, uri):
        self.opened.append(uri)
        return self._file_system, "bucket"

    def __getattr__(self, name):
        return getattr(fs, name)


@contextmanager
def bucket():
    """s3://bucket stands for a local folder. Yields the folder and the URIs that are opened."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(store, "fs", _Bucket(folder)) as double:
        store._open_root.cache_clear()
        yield Path(folder, "bucket"), double.opened
    store._open_root.cache_clear()


def round_trip(root, names, content):
    """Writes, reads and lists a file below root; names: its folders and its own."""
    uri = store.join(root, *names)
    store.write_bytes_atomically(uri, content)
    assert store.exists(uri)
    assert store.read_bytes(uri) == content
    visible = not names[-1].startswith((".", store.TEMPORARY))
    assert store.list_files(root, recursive=True) == ([uri] if visible else [])
    assert store.list_files(store.join(root, *names[:-1]), names[-1]) == ([uri] if visible else [])
    store.remove(uri)
    assert not store.exists(uri)


@SETTINGS
@given(FOLDERS, st.binary(max_size=20))
def test_local_files_round_trip(names, content):
    with tempfile.TemporaryDirectory() as folder:
        round_trip(folder, names, content)
        store.write_bytes_atomically(Path(folder, *names).as_uri(), content)
        assert Path(folder, *names).read_bytes() == content


@SETTINGS
@given(FOLDERS, st.binary(max_size=20), st.sampled_from(OPTIONS))
def test_remote_files_round_trip(names, content, options):
    with bucket() as (folder, opened):
        round_trip(f"s3://bucket/data{options}", names, content)
        uri = store.join(f"s3://bucket/data{options}", *names)
        assert store.open_store(uri)[1] == posixpath.join("bucket/data", *names)
        store.write_bytes_atomically(uri, content)
        assert Path(folder, "data", *names).read_bytes() == content
        assert opened == [f"s3://bucket{options}"]
