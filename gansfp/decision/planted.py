"""Planted copies of not-used slices, from which decision/power.py learns how large a leak would have been seen:
WORK/search/membership/planted.parquet.

The search deforms and blends labelled not-used slices, as a generator would that copies its training slices, and
measures in several embeddings how near the copies lie. The final step reads the distances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

from gansfp import store
from gansfp.decision.stamped import read_stamped, write_stamped

FILE = "planted.parquet"
FEWEST_PATIENTS = 12  # who are copied: simulated audits take some to fit, the others to judge
SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("space", pa.string()),
        ("logarithm", pa.bool_()),
        ("row", pa.int32()),  # of the slice in SetIds.real
        ("partner", pa.int32()),  # the row of the slice that is blended into its copy
        ("blend", pa.float64()),  # the share of the partner
        ("near_generated", pa.list_(pa.float32())),
        ("near_real", pa.list_(pa.float32())),
        ("to_copies", pa.list_(pa.float32())),  # in the order of the rows
    ]
)


@dataclass(frozen=True, eq=False)
class Space:
    """Distances in one embedding, all float32.

    name: of the embedding and what is done with it. logarithm: whether scores are logarithms of distances.
    near_generated, near_real: (n, m) of each slice to the nearest generated slices and to the nearest real slices of
    other patients, rising; to_copies: (n, n) of each slice to the copy of each.
    """

    name: str
    logarithm: bool
    near_generated: np.ndarray
    near_real: np.ndarray
    to_copies: np.ndarray


@dataclass(frozen=True, eq=False)
class Planted:
    """The planted copies of one set. rows, partners: (n,) of SetIds.real, as in SCHEMA. blend: the share of the partner
    in each copy."""

    rows: np.ndarray
    partners: np.ndarray
    spaces: Sequence[Space]
    blend: float


def write_planted(folder: str, of_sets: Mapping[str, Planted], digest: str) -> None:
    """Writes planted.parquet. digest: of what the distances were computed from."""
    tables = [SCHEMA.empty_table()]
    for name, planted in of_sets.items():
        for space in planted.spaces:
            n = len(planted.rows)
            columns = [[name] * n, [space.name] * n, [space.logarithm] * n, planted.rows, planted.partners]
            columns += [[planted.blend] * n]
            columns += [list(part) for part in (space.near_generated, space.near_real, space.to_copies)]
            tables.append(pa.table(columns, schema=SCHEMA))
    write_stamped(store.join(folder, FILE), pa.concat_tables(tables), digest)


def read_planted(folder: str, digest: str | None = None) -> dict[str, Planted] | None:
    """The planted copies by set. None where there is no file, one of another version, or with `digest` one of another
    digest. Raises DataError where it is damaged."""
    table = read_stamped(store.join(folder, FILE), SCHEMA, digest)
    if table is None:
        return None
    names = list(zip(table["set"].to_pylist(), table["space"].to_pylist(), strict=True))
    starts = [row for row, name in enumerate(names) if not row or name != names[row - 1]]
    found: dict[str, Planted] = {}
    spaces: defaultdict[str, list[Space]] = defaultdict(list)
    for start, end in pairwise([*starts, len(names)]):
        part, (name, space) = table.slice(start, end - start), names[start]
        if name not in found:
            rows, partners = part["row"].to_numpy(), part["partner"].to_numpy()
            found[name] = Planted(rows, partners, [], part["blend"][0].as_py())
        distances = (_matrix(part[column]) for column in ("near_generated", "near_real", "to_copies"))
        spaces[name].append(Space(space, part["logarithm"][0].as_py(), *distances))
    return {name: replace(planted, spaces=spaces[name]) for name, planted in found.items()}


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
