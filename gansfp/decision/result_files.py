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
from gansfp.collection.catalog import Catalog
from gansfp.collection.submission import problems, submission
from gansfp.errors import DataError

FACTS = {"task", "best", "search", "identities", "unreadable", "ids", "digest"}  # what best.json must hold

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search left: best.json, and the file of all configurations, whose scores are read a set at a time."""

    best: dict[str, Any]
    trials: pq.ParquetFile

    def rows(self, name: str) -> tuple[list[dict[str, Any]], np.ndarray]:
        """The configurations that did not fail and the (c, n) float64 scores of a set ("" for attribution)."""
        configurations, scores = [], []
        for group in range(self.trials.num_row_groups):
            part = self.trials.read_row_group(group, ["set", "status", "configuration", "scores"])
            here = np.array([value or "" for value in part["set"].to_pylist()]) == name
            part = part.filter(pa.array(here & (np.array(part["status"].to_pylist()) == "ok")))
            configurations += [json.loads(text) for text in part["configuration"].to_pylist()]
            if len(part):
                scores.append(np.stack(part["scores"].combine_chunks().to_numpy(zero_copy_only=False)))
        return configurations, np.concatenate(scores, dtype=np.float64)

    def known(self) -> list[list[int] | None]:
        """The known slices' clusters of every configuration, in the order of the file; None where there are none."""
        return self.trials.read(["known"])["known"].to_pylist()


def read_search(work: str, task: str) -> Found | None:
    """The search of a task in WORK, or None where there was none. Raises DataError where its files are broken."""
    folder = store.join(work, "search", task)
    if not store.exists(store.join(folder, "best.json")):
        return None
    try:
        best = json.loads(store.read_bytes(store.join(folder, "best.json")))
        trials = store.open_parquet(pa.BufferReader(store.read_bytes(store.join(folder, "trials.parquet"))))
        if not isinstance(best, dict) or not best.keys() >= FACTS or "max_memory" not in best["search"]:
            raise ValueError("best.json is that of another version")
        return Found(best, trials)
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
