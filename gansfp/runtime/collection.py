"""The first stage of every job: reads the catalog of DATA, with progress, a record, and its notes in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from gansfp.collection.catalog import Catalog, update_catalog
from gansfp.collection.truth import check_truth_files
from gansfp.device import release_memory
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CollectionConfig:
    """How DATA is read.

    allow_outside: lets a table in DATA name files that are not below it. sixteen_bit: what numbers of 16 bits are where
    files do not tell, one of readings.READ_AS; None is as in an earlier run in WORK, else "auto".
    """

    allow_outside: bool = False
    sixteen_bit: str | None = None


def read_collection(data: str, work: str, config: CollectionConfig) -> Catalog:
    """Reads the catalog of DATA and writes it to WORK. Raises what update_catalog and check_truth_files raise."""
    with Progress("catalog", 0, "images") as progress:
        catalog = update_catalog(
            data, work, allow_outside=config.allow_outside, sixteen_bit=config.sixteen_bit, progress=progress.of
        )
    release_memory()  # of the rows before they were a table
    unreadable = len(catalog.select(status="unreadable"))
    record_stage(work, "catalog", progress.seconds, {"done": len(catalog), "failed": unreadable}, {"data": data})
    for line in catalog.readings():
        log.info("catalog: read as %s", line)
    for note in catalog.notes:
        log.warning("%s", note)
    for finding in catalog.findings:
        log.warning("careful: %s", finding)
    check_truth_files(data, catalog)  # a mistake in them must not show only after hours of search
    return catalog
