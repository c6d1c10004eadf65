"""Where the attribution's slices lie in two dimensions, for a picture of the clusters: WORK/search/attribution/.

The search writes places.parquet from the embedding of the best configuration. Nothing is decided by it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.decision.stamped import damage_named

FILE = "places.parquet"
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("x", pa.float32()),  # see scoring/neighbourhoods.py
        ("y", pa.float32()),
        ("generator", pa.string()),  # of a known generator's slice; "" for a test slice
    ]
)


def write_places(folder: str, ids: list[str], places: np.ndarray, generators: list[str]) -> None:
    """Writes places.parquet. ids, generators: (n,), as in SCHEMA; places: (n, 2) float32."""
    table = pa.table([ids, places[:, 0], places[:, 1], generators], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.write_bytes_atomically(store.join(folder, FILE), sink.getvalue())


def read_places(folder: str) -> pa.Table | None:
    """The table of SCHEMA; None where an earlier version's search left none. Raises DataError where it is damaged."""
    place = store.join(folder, FILE)
    if not store.exists(place):
        return None
    with damage_named(place):
        return store.read_parquet(place).select(SCHEMA.names)
