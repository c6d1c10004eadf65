"""Trained networks on disk: FOLDER/model.safetensors and FOLDER/model.json, and FOLDER/state.pt while training runs.

model.json is written last, so a folder that has it is complete. It holds the identity (which network was trained on
which examples), the settings, and the course of the training. No file is unpickled.

The configuration of a training is the part of model.json that decides its result: {"identity": ..., "settings": ...}.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping

import safetensors.torch
import torch

from gansfp import store
from gansfp.errors import UsageError, WeightsError

SHOWN = 60  # characters of a value in an error message
_CONFIGURATION = "told"  # the name that state.pt has for the configuration

log = logging.getLogger(__name__)


def write_model(folder: str, content: Mapping[str, object], tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a trained network: its tensors, then `content` as model.json. Raises DataError."""
    store.write_bytes_atomically(store.join(folder, "model.safetensors"), safetensors.torch.save(dict(tensors)))
    store.write_bytes_atomically(store.join(folder, "model.json"), json.dumps(content, indent=1).encode())


def read_facts(folder: str) -> Mapping[str, object] | None:
    """Returns the content of FOLDER/model.json; None if there is none. Raises WeightsError if it cannot be read."""
    place = store.join(folder, "model.json")
    if not store.exists(place):
        return None
    try:
        content = json.loads(store.read_bytes(place))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{place}: cannot be read ({store.one_line(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("identity"), dict):
        raise WeightsError(f"{place}: has no 'identity' entry; expected a model.json written by jobs.train")
    return content


def identity_of(content: Mapping[str, object]) -> Mapping[str, object]:
    """Returns the identity in the content of a model.json."""
    identity = content["identity"]
    assert isinstance(identity, Mapping)  # read_facts has checked it
    return identity


def read_model(folder: str) -> tuple[Mapping[str, object], dict[str, torch.Tensor]]:
    """Returns the content of model.json, and the tensors. Raises WeightsError if one of them is missing or damaged."""
    content = read_facts(folder)
    if content is None:
        reason = "expected a folder that jobs.train has written"
        if store.exists(state_place(folder)):
            reason = "whose training has not ended; run it again"
        raise WeightsError(f"trained network: got {folder!r}, {reason}")
    place = store.join(folder, "model.safetensors")
    try:
        return content, safetensors.torch.load(store.read_bytes(place))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{place}: cannot be read ({store.one_line(error)})") from error


def read_finished(folder: str, configuration: Mapping[str, Mapping[str, object]]) -> Mapping[str, object] | None:
    """Returns the content of model.json; None if the training has not ended.

    Raises UsageError if the network in the folder was trained with another configuration.
    """
    content = read_facts(folder)
    if content is not None:
        _check_same({part: content.get(part) for part in configuration}, configuration, folder)
    return content


def read_state(folder: str, configuration: Mapping[str, Mapping[str, object]]) -> Mapping[str, object] | None:
    """Returns the content that write_state wrote last; None if there is none, or only a damaged file.

    Raises UsageError if the state belongs to a training with another configuration.
    """
    place = state_place(folder)
    if not store.exists(place):
        return None
    try:
        state = torch.load(io.BytesIO(store.read_bytes(place)), map_location="cpu", weights_only=True)
        earlier = json.loads(state[_CONFIGURATION])
    except Exception as error:  # the parser raises many types of errors on a damaged file
        log.warning("%s: cannot be read (%s); the training starts again", place, store.one_line(error))
        return None
    _check_same(earlier, configuration, folder)
    return state


def write_state(folder: str, configuration: Mapping[str, Mapping[str, object]], content: Mapping[str, object]) -> None:
    """Writes the state from which the next epoch starts: tensors, numbers and lists of them. Raises DataError."""
    sink = io.BytesIO()
    torch.save({_CONFIGURATION: json.dumps(configuration, sort_keys=True)} | dict(content), sink)
    store.write_bytes_atomically(state_place(folder), sink.getvalue())


def state_place(folder: str) -> str:
    """Returns the place of the state of a training that has not ended."""
    return store.join(folder, "state.pt")


def _check_same(earlier: Mapping[str, object], configuration: Mapping[str, Mapping[str, object]], folder: str) -> None:
    """Raises UsageError if a folder holds a network of other examples, another architecture or other settings."""
    before, now = json.loads(json.dumps(earlier)), json.loads(json.dumps(configuration))  # as JSON keeps them
    for part in now:
        earlier_values, values = before.get(part) or {}, now[part]
        for name in sorted(earlier_values.keys() | values.keys()):
            if earlier_values.get(name) != values.get(name):
                raise UsageError(
                    f"{folder}: holds a network trained with {name} {_short(earlier_values.get(name))}, got "
                    f"{_short(values.get(name))}; name another folder or remove this one"
                )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < SHOWN else f"{text[: SHOWN - 3]}..."
