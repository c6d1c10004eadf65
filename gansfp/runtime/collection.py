"""The first stage of every job: reads the catalog of DATA, with progress, a record, and its notes in the log."""

from __future__ import annotations

import logging

from gansfp.collection.catalog import Catalog, update_catalog
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage

log = logging.getLogger(__name__)


def read_collection(data: str, work: str, allow_outside: bool) -> Catalog:
    """Reads the catalog of DATA and writes it to WORK. Raises what update_catalog raises."""
    with Progress("catalog", 0, "images") as progress:
        catalog = update_catalog(data, work, allow_outside=allow_outside, progress=progress.of)
    unreadable = len(catalog.select(status="unreadable"))
    record_stage(work, "catalog", progress.seconds, {"done": len(catalog), "failed": unreadable}, {"data": data})
    for note in catalog.notes:
        log.warning("%s", note)
    return catalog
