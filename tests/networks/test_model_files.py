"""Model files: what is written is read back; other settings, and damaged files, are errors in one line."""

import pytest
import safetensors.torch
import torch

from gansfp.errors import UsageError, WeightsError
from gansfp.networks.model_files import read_finished, read_model, read_state, write_model, write_state

CONFIGURATION = {"identity": {"kind": "plane"}, "settings": {"epochs": 6}}
TENSORS = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}


def test_what_is_written_is_read(tmp_path):
    write_model(str(tmp_path), CONFIGURATION, TENSORS)
    content, tensors = read_model(str(tmp_path))
    assert content == CONFIGURATION
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == set(TENSORS)
    assert read_finished(str(tmp_path), CONFIGURATION) == CONFIGURATION


def test_state_is_tensors_and_numbers(tmp_path):
    assert read_state(str(tmp_path), CONFIGURATION) is None
    write_state(str(tmp_path), CONFIGURATION, {"network": TENSORS, "state": {"epoch": 3, "history": [{"loss": 0.5}]}})
    state = read_state(str(tmp_path), CONFIGURATION)
    assert state["state"] == {"epoch": 3, "history": [{"loss": 0.5}]}
    assert torch.equal(state["network"]["weight"], TENSORS["weight"])
    with pytest.raises(UsageError, match="trained with epochs 6, got 7"):
        read_state(str(tmp_path), CONFIGURATION | {"settings": {"epochs": 7}})
    with pytest.raises(WeightsError, match="has not ended"):
        read_model(str(tmp_path))


def test_folders_without_a_network(tmp_path):
    with pytest.raises(WeightsError, match=r"expected a folder that jobs\.train has written"):
        read_model(str(tmp_path))
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(WeightsError, match="has no 'identity' entry; expected a model"):
        read_model(str(tmp_path))
    (tmp_path / "model.json").write_text('{"identity": {}}')
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read"):
        read_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"1234567890")
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read"):
        read_model(str(tmp_path))
