"""What the real slices of a set show by themselves, without any generated slice: WORK/search/membership/real.parquet.

The search writes it from the embeddings, and the final step reads it for the blind control. Of each embedding it holds
a few numbers of each real slice: its leading principal components, or the vector itself where that is as short.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.decision.nearest_slices import DIGEST
from gansfp.embedding.shards import Pair

FILE = "real.parquet"
SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("backbone", pa.string()),
        ("view", pa.string()),
        ("values", pa.list_(pa.float32())),  # of one real slice; the slices are in the order of SetIds.real
    ]
)

OfSets = dict[str, np.ndarray]  # by set: (n, d) float32, the real slices in the order of SetIds.real


def write_real_slices(folder: str, of_pairs: Mapping[Pair, OfSets], digest: str) -> None:
    """Writes real.parquet. digest: of what the numbers were computed from."""
    tables = [
        pa.table([[name] * len(values), *([part] * len(values) for part in pair), list(values)], schema=SCHEMA)
        for pair, of_sets in of_pairs.items()
        for name, values in of_sets.items()
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables).replace_schema_metadata({DIGEST: digest.encode()}), sink)
    store.write_bytes_atomically(store.join(folder, FILE), sink.getvalue())


def read_real_slices(folder: str, digest: str | None = None) -> dict[str, dict[Pair, np.ndarray]] | None:
    """By set and embedding: (n, d) float32, the real slices in the order of SetIds.real.

    None where there is no file, as an earlier version leaves none, or with `digest` one of another digest. Raises
    OSError and ValueError where it cannot be read.
    """
    place = store.join(folder, FILE)
    if not store.exists(place):
        return None
    table = store.read_parquet(place)
    if digest is not None and (table.schema.metadata or {}).get(DIGEST, b"").decode() != digest:
        return None
    names = list(zip(*(table[column].to_pylist() for column in ("set", "backbone", "view")), strict=True))
    starts = [row for row, name in enumerate(names) if not row or name != names[row - 1]]
    found: dict[str, dict[Pair, np.ndarray]] = {}
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
        name, backbone, view = names[start]
        values = table["values"].slice(start, end - start).combine_chunks().flatten().to_numpy()
        found.setdefault(name, {})[backbone, view] = values.reshape(end - start, -1)
    return found
