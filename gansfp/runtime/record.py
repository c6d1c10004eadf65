"""What each stage did: one JSON line for each stage run in WORK/log/stages.jsonl."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from gansfp import store

LIBRARIES = ("gansfp", "ray", "torch", "timm", "scikit-learn", "scipy", "numpy", "pyarrow", "pillow")

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that make the figures."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def record_stage(
    work: str, stage: str, seconds: float, facts: Mapping[str, object], configuration: Mapping[str, object] | None = None
) -> None:
    """Adds the line of a stage that has just ended. Raises DataError where WORK cannot be written."""
    started = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    told = {
        "stage": stage,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        **facts,
        "configuration": configuration or {},
        "versions": versions(),
    }
    place = _place(work)
    # Written anew: object stores cannot append, and a line is there whole or not at all.
    earlier = store.read_bytes(place) if store.exists(place) else b""
    store.write_bytes_atomically(place, earlier + json.dumps(told).encode() + b"\n")


def read_records(work: str) -> dict[str, dict[str, Any]]:
    """The latest line of each stage of this WORK, by stage; a damaged line is said and passed over."""
    place = _place(work)
    if not store.exists(place):
        return {}
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(store.read_bytes(place).splitlines(), start=1):
        record = _parse(line)
        if record is None:
            log.warning("%s: line %d is damaged and left out", place, number)
        else:
            records[record["stage"]] = record
    return dict(sorted(records.items()))


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"stage", "seconds"} <= record.keys() else None


def _place(work: str) -> str:
    return store.join(work, "log", "stages.jsonl")
