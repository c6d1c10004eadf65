"""What the real slices of a set show by themselves, without any generated slice: WORK/search/membership/real.parquet.

The search writes it from the embeddings, and the final step reads it for the blind control. Of each embedding it holds
a few numbers of each real slice: its leading principal components, or the vector itself where that is as short.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gansfp import store
from gansfp.decision.stamped import read_stamped, write_stamped
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
    write_stamped(store.join(folder, FILE), pa.concat_tables(tables), digest)


def read_real_slices(folder: str, digest: str | None = None) -> dict[str, dict[Pair, np.ndarray]] | None:
    """By set and embedding: (n, d) float32, the real slices in the order of SetIds.real.

    None where there is no file, as an earlier version leaves none, or with `digest` one of another digest. Raises
    DataError where it is damaged.
    """
    table = read_stamped(store.join(folder, FILE), SCHEMA, digest)
    if table is None:
        return None
    # Names in runs: a list of the names of all rows would take more memory than the numbers.
    names = pc.binary_join_element_wise(table["set"], table["backbone"], table["view"], "\0").combine_chunks()
    runs = pc.run_end_encode(names)
    found: dict[str, dict[Pair, np.ndarray]] = {}
    start = 0
    for end, of_run in zip(runs.run_ends.to_pylist(), runs.values.to_pylist(), strict=True):
        name, backbone, view = of_run.split("\0")
        values = table["values"].slice(start, end - start).combine_chunks().flatten().to_numpy()
        found.setdefault(name, {})[backbone, view] = values.reshape(end - start, -1)
        start = end
    return found
