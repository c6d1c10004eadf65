"""What each stage did, kept in WORK/log/<stage>.json for the final report: seconds, counts, what was left out."""

from __future__ import annotations

import json
from typing import Any

from gansfp import store


def record_stage(work: str, stage: str, seconds: float, facts: dict[str, Any] | None = None) -> None:
    """Writes what a stage did; a later run of the same stage replaces it."""
    told = {"stage": stage, "seconds": round(seconds, 2), **(facts or {})}
    store.write_bytes_atomically(store.join(work, "log", f"{stage}.json"), json.dumps(told).encode())


def read_records(work: str) -> dict[str, dict[str, Any]]:
    """What the stages of this WORK did, by stage."""
    places = store.list_files(store.join(work, "log"), ".json")
    records = [json.loads(store.read_bytes(place)) for place in places]
    return {record["stage"]: record for record in sorted(records, key=lambda r: r["stage"])}
