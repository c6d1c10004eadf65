"""Trained networks on disk: FOLDER/model.safetensors and FOLDER/model.json, and FOLDER/state.pt while training runs.

model.json is written last: a folder that has it is whole. It holds the identity (what was trained on what), the
settings, and how training went. Nothing here is unpickled.
"""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import safetensors.torch
import torch

from gansfp import store
from gansfp.errors import UsageError, WeightsError

log = logging.getLogger(__name__)


def write_model(folder: str, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Writes a trained network, model.json last. Raises DataError."""
    store.write_bytes_atomically(store.join(folder, "model.safetensors"), safetensors.torch.save(tensors))
    store.write_bytes_atomically(store.join(folder, "model.json"), json.dumps(facts, indent=1).encode())


def read_facts(folder: str) -> dict[str, Any] | None:
    """What FOLDER/model.json holds; None where no network is there. Raises WeightsError where it cannot be read."""
    place = store.join(folder, "model.json")
    if not store.exists(place):
        return None
    try:
        facts = json.loads(store.read_bytes(place))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{place}: cannot be read ({store.one_line(error)})") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("identity"), dict):
        raise WeightsError(f"{place}: says nothing of a trained network, expected what jobs.train writes")
    return facts


def read_model(folder: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What model.json holds, and the tensors. Raises WeightsError where either cannot be had."""
    facts = read_facts(folder)
    if facts is None:
        begun = store.exists(state_place(folder))
        what = (
            "whose training has not ended; run it again" if begun else "expected a folder that jobs.train has written"
        )
        raise WeightsError(f"trained network: got {folder!r}, {what}")
    place = store.join(folder, "model.safetensors")
    try:
        return facts, safetensors.torch.load(store.read_bytes(place))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{place}: cannot be read ({store.one_line(error)})") from error


def read_finished(folder: str, told: dict[str, Any]) -> dict[str, Any] | None:
    """What model.json holds; None where training has not ended. Raises UsageError where it was told otherwise."""
    facts = read_facts(folder)
    if facts is not None:
        _check_same({name: facts.get(name) for name in told}, told, folder)
    return facts


def read_state(folder: str, told: dict[str, Any]) -> dict[str, Any] | None:
    """What the last epoch wrote; None where nothing is, or nothing that is whole."""
    place = state_place(folder)
    if not store.exists(place):
        return None
    try:
        found = torch.load(io.BytesIO(store.read_bytes(place)), map_location="cpu", weights_only=True)
        before = json.loads(found["told"])
    except Exception as error:  # a broken file raises whatever its bytes lead the parser to
        log.warning("%s: cannot be read (%s); training begins anew", place, store.one_line(error))
        return None
    _check_same(before, told, folder)
    return found


def write_state(folder: str, told: dict[str, Any], content: dict[str, Any]) -> None:
    """Writes what the next epoch starts from: tensors, numbers and lists of them. Raises DataError."""
    sink = io.BytesIO()
    torch.save({"told": json.dumps(told, sort_keys=True)} | content, sink)
    store.write_bytes_atomically(state_place(folder), sink.getvalue())


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: str) -> None:
    """Raises UsageError where a folder holds a network of other examples, another architecture or other settings."""
    before, now = json.loads(json.dumps(before)), json.loads(json.dumps(now))
    for part in now:
        then, wanted = before.get(part) or {}, now[part]
        for name in sorted(then.keys() | wanted.keys()):
            if then.get(name) != wanted.get(name):
                raise UsageError(
                    f"{folder}: holds a network trained with {name} {_short(then.get(name))}, got "
                    f"{_short(wanted.get(name))}; name another folder or remove this one"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def state_place(folder: str) -> str:
    """The file of a training that has not ended."""
    return store.join(folder, "state.pt")
