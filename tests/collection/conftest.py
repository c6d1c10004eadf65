"""Fixtures of the tests of the collection."""

import pytest
from pyarrow import fs

from gansfp import store


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """s3://bucket stands for a local folder, which is returned; a store has no links and no change times."""

    class Fake:
        @staticmethod
        def from_uri(uri):
            return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket"

    class Module:
        FileSystem = Fake

        def __getattr__(self, name):
            return getattr(fs, name)

    monkeypatch.setattr(store, "fs", Module())
    store._open_root.cache_clear()
    yield tmp_path / "bucket"
    store._open_root.cache_clear()
