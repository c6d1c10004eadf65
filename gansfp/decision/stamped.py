"""Files of WORK/search that carry a digest of what they were computed from.

A search that goes on sees by the digest whether such a file is still true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.errors import DataError

_KEY = b"gansfp_digest"  # in the metadata of a table


def write_stamped(place: str, table: pa.Table, digest: str) -> None:
    """Writes a table with its digest. place: the file's path or URI."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_KEY: digest.encode()}), sink)
    store.write_bytes_atomically(place, sink.getvalue())


def read_stamped(place: str, schema: pa.Schema, digest: str | None = None) -> pa.Table | None:
    """The table that write_stamped wrote; None where there is no file, one of other columns, as another version writes
    them, or with `digest` one of another digest. Raises DataError where it is damaged."""
    if not store.exists(place):
        return None
    with damage_named(place):
        table = store.read_parquet(place)
    written = (table.schema.metadata or {}).get(_KEY, b"").decode()
    return table if table.schema.names == schema.names and digest in (None, written) else None


@contextmanager
def damage_named(place: str) -> Iterator[None]:
    """Turns what reading a damaged file of the search raises into a DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"{place}: cannot be read ({store.one_line(error)}); run tune.search again") from error


def is_current(read: Callable[[str, str], object | None], folder: str, digest: str) -> bool:
    """Whether a file of this digest is there. A damaged one is not, so that the search writes it again."""
    try:
        return read(folder, digest) is not None
    except DataError:
        return False
