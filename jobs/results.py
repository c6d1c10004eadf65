"""What a search left in WORK, and what the final job writes there: CSV files for the challenge, their Parquet twins."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.catalog import Catalog
from gansfp.errors import DataError
from gansfp.submission import problems, submission

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search left: best.json, and of each set the rows of trials.parquet that did not fail."""

    best: dict[str, Any]
    table: pa.Table

    def rows(self, name: str) -> tuple[list[dict[str, Any]], np.ndarray]:
        """The configurations and the (c, n) scores of a set ("" for attribution)."""
        sets = np.array([value or "" for value in self.table["set"].to_pylist()])
        ok = np.array(self.table["status"].to_pylist()) == "ok"
        part = self.table.filter(pa.array((sets == name) & ok))
        scores = np.stack(part["scores"].combine_chunks().to_numpy(zero_copy_only=False))
        return [json.loads(text) for text in part["configuration"].to_pylist()], scores


def read_search(work: str, task: str) -> Found | None:
    """The search of a task in WORK, or None where there was none. Raises DataError where its files are broken."""
    folder = store.join(work, "search", task)
    if not store.exists(store.join(folder, "best.json")):
        return None
    try:
        best = json.loads(store.read_bytes(store.join(folder, "best.json")))
        return Found(best, store.read_parquet(store.join(folder, "trials.parquet")))
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid and json's errors are ValueErrors
        raise DataError(f"{folder}: cannot be read ({store.one_line(error)}); run tune.search again") from error


def submitted_ids(test: Catalog) -> list[str]:
    """The ids of a CSV: the catalog's, but of a path below DATA the file's name, as the challenge gives them out, if no
    two of the test's images share one."""
    ids, names = test.ids.tolist(), test.column("name").tolist()
    short = [name if image_id.endswith(f"/{name}") else image_id for image_id, name in zip(ids, names, strict=True)]
    return short if len(set(short)) == len(short) else ids


def write_membership(
    work: str, name: str, test: Catalog, answers: dict[str, np.ndarray], nearest: dict[str, list[str]]
) -> None:
    """Writes the decisions of one set, as CSV and as Parquet; a slice that cannot be read is warned of."""
    ids, full = submitted_ids(test), test.ids.tolist()
    for image_id, readable in zip(ids, answers["readable"], strict=True):
        if not readable:
            log.warning("%s, set %s: cannot be read, so it is called not used", image_id, name)
    submit(work, f"membership-{name}.csv", dict(zip(ids, answers["prediction"].tolist(), strict=True)))
    unreadable = ~answers["readable"]
    table = pa.table(
        {
            "image_id": ids,
            "catalog_id": full,
            "score": pa.array(answers["score"], mask=unreadable),
            "probability": pa.array(answers["probability"], mask=unreadable),
            "prediction": pa.array(answers["prediction"], pa.int8()),
            "nearest": pa.array([nearest.get(image_id, []) for image_id in full], pa.list_(pa.string())),
            "group": test.groups().tolist(),
        }
    )
    write_table(work, f"membership-{name}.parquet", table)


def submit(work: str, name: str, values: dict[str, int], binary: bool = True) -> None:
    """Writes a CSV in the challenge's format to WORK/results, checked by its rules."""
    content = submission(values)
    wrong = problems(content, values, binary)
    if wrong:  # a defect of ours: nobody should hand in such a file
        raise AssertionError(f"{name}: {wrong[0]}")
    write_result(work, name, content)


def write_table(work: str, name: str, table: pa.Table) -> None:
    """Writes a Parquet file to WORK/results."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_result(work, name, sink.getvalue())


def write_result(work: str, name: str, content: bytes | pa.Buffer) -> None:
    """Writes a file to WORK/results, whole or not at all."""
    store.write_bytes_atomically(store.join(work, "results", name), content)
