"""nearest.parquet: the generated slices that are nearest to each real slice, as a membership search leaves them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gansfp import store
from gansfp.decision.stamped import read_stamped, write_stamped
from gansfp.embedding.shards import Pair

NEAREST_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("backbone", pa.string()),
        ("view", pa.string()),
        ("image_id", pa.string()),  # of a real slice
        ("nearest", pa.list_(pa.string())),  # image ids of the nearest generated slices of its set
    ]
)
FILE = "nearest.parquet"


def write_nearest(folder: str, parts: Sequence[pa.Table], digest: str) -> None:
    """Writes nearest.parquet from tables of NEAREST_SCHEMA. digest: of what they were computed from."""
    write_stamped(store.join(folder, FILE), pa.concat_tables([NEAREST_SCHEMA.empty_table(), *parts]), digest)


def read_nearest(folder: str, digest: str | None = None) -> pa.Table | None:
    """The table that write_nearest wrote; None where there is none, or with `digest` one of another digest. Raises
    DataError where it is damaged."""
    return read_stamped(store.join(folder, FILE), NEAREST_SCHEMA, digest)


def nearest_table(
    name: str, pair: Pair, real: Sequence[str], generated: Sequence[str], nearest: np.ndarray
) -> pa.Table:
    """The table of NEAREST_SCHEMA of one set in one embedding.

    real, generated: ids of its slices; nearest: (n, m) rows among the generated slices, of those nearest to each real
    slice.
    """
    offsets = pa.array(np.arange(len(real) + 1, dtype=np.int32) * nearest.shape[1])
    ids = pa.ListArray.from_arrays(offsets, pa.array(generated).take(pa.array(nearest.ravel())))
    of_set, backbone, view = (pa.repeat(value, len(real)) for value in (name, *pair))
    return pa.table([of_set, backbone, view, pa.array(real), ids], schema=NEAREST_SCHEMA)
