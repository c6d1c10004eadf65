"""The record of a run: one JSON line for each stage that ran, in WORK/log/stages.jsonl."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
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
    work: str,
    stage: str,
    seconds: float,
    facts: Mapping[str, object],
    configuration: Mapping[str, object] | None = None,
) -> None:
    """Adds the line of a stage that has just ended: `facts` (counts and the like) and its configuration.

    Raises DataError where WORK cannot be written.
    """
    started = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    record = {
        "stage": stage,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        **facts,
        "configuration": configuration or {},
        "versions": versions(),
    }
    place = _place(work)
    # The whole file is written again: object stores cannot append, and so a line is there whole or not at all.
    earlier = store.read_bytes(place) if store.exists(place) else b""
    store.write_bytes_atomically(place, earlier + json.dumps(record).encode() + b"\n")


@dataclass(frozen=True)
class StageRecord:
    """The latest line of a stage. left_out: what the default set of backbones lacks, a line each; values: all of it."""

    stage: str
    seconds: float
    left_out: tuple[str, ...]
    values: Mapping[str, Any]


def read_records(work: str) -> dict[str, StageRecord]:
    """The latest line of each stage of this WORK, by stage. A damaged line is reported and left out."""
    place = _place(work)
    if not store.exists(place):
        return {}
    records: dict[str, StageRecord] = {}
    for number, line in enumerate(store.read_bytes(place).splitlines(), start=1):
        record = _parse(line)
        if record is None:
            log.warning("%s: line %d is damaged and left out", place, number)
        else:
            records[record.stage] = record
    return dict(sorted(records.items()))


def _parse(line: bytes) -> StageRecord | None:
    try:
        values = json.loads(line)
        return StageRecord(values["stage"], values["seconds"], tuple(values.get("left_out", ())), values)
    except (ValueError, TypeError, KeyError, AttributeError):  # no JSON, or other JSON
        return None


def _place(work: str) -> str:
    return store.join(work, "log", "stages.jsonl")
