"""One row of a search, and trials.parquet: the table that all rows make."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gansfp.decision.search_result import Configuration, Trial

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("set", pa.string()),
        ("configuration", pa.string()),  # all choices, as JSON
        ("backbone", pa.string()),
        ("view", pa.string()),
        ("components", pa.float64()),
        ("method", pa.string()),
        ("linkage", pa.string()),
        ("metric", pa.string()),
        ("k", pa.int64()),
        ("rule", pa.string()),
        ("status", pa.string()),  # ok or failed
        ("error", pa.string()),
        ("auc", pa.float64()),  # membership: cross-validated on the labelled slices
        ("f1", pa.float64()),
        ("balanced_accuracy", pa.float64()),
        ("ari_known", pa.float64()),  # attribution: on the known generators, their number estimated
        ("ari_known_given_k", pa.float64()),  # the same with their number given
        ("silhouette", pa.float64()),  # of the test slices
        ("margin", pa.float64()),  # on known generators: silhouettes of the cuts made less those of the cuts rejected
        ("chosen_k", pa.bool_()),  # whether the configuration itself chooses this number of clusters
        ("seconds", pa.float64()),  # of the whole trial; all its rows have the same value
        ("scores", pa.list_(pa.float32())),  # membership: of every real slice; attribution: the test slices' clusters
        ("known", pa.list_(pa.int64())),  # attribution, chosen_k: the known slices' clusters, found in the same way
    ]
)
LONG_COLUMNS = ("scores", "known")
TO_REPEAT = b"gansfp_to_repeat"  # in the metadata of a trial's table: it failed, but may not fail again


@dataclass(frozen=True, eq=False)
class Row:
    """What one configuration came to, by the columns of SCHEMA; None where a task has no such column.

    scores: (n,) float32; known: (m,) int64.
    """

    configuration: Configuration
    set: str | None = None
    method: str | None = None
    linkage: str | None = None
    metric: str | None = None
    k: int | None = None
    rule: str | None = None
    status: str = "ok"
    error: str = ""
    auc: float | None = None
    f1: float | None = None
    balanced_accuracy: float | None = None
    ari_known: float | None = None
    ari_known_given_k: float | None = None
    silhouette: float | None = None
    margin: float | None = None
    chosen_k: bool | None = None
    scores: np.ndarray | None = None
    known: np.ndarray | None = None


def trial_table(
    task: str, trial: Trial, rows: Sequence[Row], started: float, error: str = "", to_repeat: bool = False
) -> pa.Table:
    """The rows of one trial as a table of SCHEMA. A trial that failed is one row with its error.

    started: the time.monotonic() at which the trial started. to_repeat: whether the next command runs the trial again.
    """
    if error:
        rows = [Row(Configuration(trial.as_dict()), status="failed", error=error)]
    of_trial = {
        "task": task,
        "backbone": trial.backbone,
        "view": trial.view,
        "components": float(trial.components),
        "seconds": time.monotonic() - started,
    }
    records = [{**vars(row), **of_trial, "configuration": row.configuration.to_json()} for row in rows]
    return pa.Table.from_pylist(records, schema=SCHEMA.with_metadata({TO_REPEAT: b""} if to_repeat else None))
