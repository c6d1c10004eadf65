"""What the report reads of a WORK, finished or not. It computes and decides nothing."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from gansfp import store
from gansfp.collection.catalog import Catalog, read_previous
from gansfp.decision.search_result import Search, read_search
from gansfp.errors import DataError
from gansfp.runtime.lock import is_held
from gansfp.runtime.progress_file import ProgressState, read_progress
from gansfp.runtime.record import StageRecord, read_records

TASKS = ("membership", "attribution")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AuditedWork:
    """A WORK and what lies in it.

    metrics: metrics.json, empty where the final step has not run. catalog: None where no job has read DATA. searches:
    by task. progress: of the job that runs or was killed; None where the audit is finished, so that the page of a
    finished audit is always the same. killed: the job has ended without saying so.
    """

    work: str
    metrics: Mapping[str, Any]
    catalog: Catalog | None
    searches: Mapping[str, Search] = field(default_factory=dict)
    records: Mapping[str, StageRecord] = field(default_factory=dict)
    progress: ProgressState | None = None
    killed: bool = False

    @property
    def run(self) -> Mapping[str, Any]:
        """How the figures came about; empty where there are none."""
        return self.metrics.get("run", {})

    @property
    def sets(self) -> Mapping[str, Any]:
        """The membership sets of metrics.json, by name."""
        return self.metrics.get("membership", {}).get("sets", {})

    @property
    def attribution(self) -> Mapping[str, Any]:
        """The attribution of metrics.json; empty where there is none."""
        return self.metrics.get("attribution", {})

    @property
    def finished(self) -> bool:
        """Whether the final step has answered with all that the search was to try."""
        return bool(self.metrics) and not self.run.get("pending")

    def table(self, name: str) -> pa.Table | None:
        """A Parquet file of WORK/results; None where it is missing or cannot be read, which is logged."""
        place = store.join(self.work, "results", name)
        if not store.exists(place):
            return None
        try:
            return store.read_parquet(place)
        except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
            log.warning("%s: cannot be read (%s); the report leaves it out", place, store.one_line(error))
            return None

    def lines(self, name: str) -> list[dict[str, str]]:
        """The lines of a CSV file of WORK/results with a header; none where it is missing."""
        place = store.join(self.work, "results", name)
        if not store.exists(place):
            return []
        return list(csv.DictReader(io.StringIO(store.read_bytes(place).decode(), newline="")))


def read_work(work: str, catalog: Catalog | None = None) -> AuditedWork:
    """Reads a WORK. catalog: of DATA as it is now; None takes the one that the audit left.

    Raises DataError where there is nothing that a job has written, or where a file of it is broken.
    """
    if catalog is None:
        table = read_previous(work)
        catalog = Catalog("", table) if table is not None else None
    metrics = _metrics(work)
    searches = {task: search for task in TASKS if (search := _search(work, task))}
    records, progress = read_records(work), read_progress(work)
    if not (metrics or catalog or searches or records or progress):
        raise DataError(f"{work}: got nothing to report, expected a folder that jobs.audit or tune.search has written")
    read = AuditedWork(work, metrics, catalog, searches, records)
    if read.finished or progress is None:
        return read
    killed = progress.job_ended is None and is_held(work) is False
    return replace(read, progress=progress, killed=killed)


def _search(work: str, task: str) -> Search | None:
    """The search of a task; None also where a command is writing it."""
    try:
        return read_search(work, task)
    except DataError as error:
        if not is_held(work):
            raise
        log.warning("%s; a command is running, so the page leaves this search out", error)
        return None


def _metrics(work: str) -> Mapping[str, Any]:
    place = store.join(work, "results", "metrics.json")
    if not store.exists(place):
        return {}
    try:
        metrics = json.loads(store.read_bytes(place))
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: cannot be read ({store.one_line(error)}); run jobs.final again") from error
    if not isinstance(metrics, dict) or "run" not in metrics:
        raise DataError(f"{place}: is no metrics.json of this version; run jobs.final again")
    return metrics
