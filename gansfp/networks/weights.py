"""A network's weights: from a folder of files, from timm's own source, trained here, or random where asked for."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from gansfp.errors import UsageError, WeightsError
from gansfp.store import one_line

HUB_TIMEOUT = 8.0  # seconds in which a hub must have answered, name look-up included
WEIGHT_ENDINGS = (".safetensors", ".pth")
_AUXILIARY = ("AuxLogits.",)  # torchvision's inception_v3 has a second head in its file, which serves training alone
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm looks for them


@dataclass(frozen=True, eq=False)
class Weights:
    """A network's tensors and the digest that stands for them in an embedding's identity."""

    network: str  # as Backbone.network names it
    tensors: Mapping[str, torch.Tensor]
    digest: str
    size: int = 0  # pixels a side of the inputs that it was trained on here; 0: as timm prepares them


def load_weights(model: str, folder: str | None, random: bool = False, trained: str = "") -> Weights:
    """The weights of a timm model without its classifier: from `folder`/<model>.safetensors or .pth, else by timm's own
    download; with `random` drawn anew, always the same for one model; with `trained` from that folder or URI, as
    gansfp.training.loop wrote them.

    Raises WeightsError, which names the file to put and where, when they cannot be had, and when a file is not of this
    model: never a silent random start. Raises UsageError for a folder that is not there.
    """
    path = None if random or trained else _weights_file(model, folder)
    name, size = model, 0
    if trained:
        name = f"{model}@{trained}"
        network, size = _trained(model, trained)
    elif random:
        name = f"{model}@random"
        network = _empty(model)
    elif path:
        network = _empty(model)
        _fill(network, _read(path, model), path, model)
    else:
        network = _download(model, folder)
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    return Weights(name, tensors, digest_of(tensors), size)


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """What stands for tensors on the CPU: 16 hexadecimal digits of their names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def has_fixed_size(model: str) -> bool:
    """True for a model whose position tables belong to one input size: vision transformers."""
    return bool(_config(model).fixed_input_size)


def create(model: str, num_classes: int, size: int = 0, **options: Any) -> torch.nn.Module:
    """A timm model with random weights, for inputs of `size` pixels a side (0: its own)."""
    from gansfp.networks.architectures import timm

    if size and has_fixed_size(model):
        options["img_size"] = size
    return timm.create_model(model, pretrained=False, num_classes=num_classes, **options)


def check_folder(folder: str | None) -> None:
    """Raises UsageError where a folder of weights is named that is not there."""
    if folder is not None and not os.path.isdir(folder):
        raise UsageError(f"--weights: got {folder!r}, expected a folder of <timm name>{' or '.join(WEIGHT_ENDINGS)}")


def translate(tensors: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """timm's own translation of a checkpoint to a model: older names, position tables of another input size."""
    filter_fn = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return dict(filter_fn(tensors, network)) if filter_fn else tensors


def _empty(model: str, size: int = 0) -> torch.nn.Module:
    """The model with its random start, the same for the same name, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(model.encode()).digest()[:4], "little"))
        return create(model, 0, size).eval()


def _trained(model: str, folder: str) -> tuple[torch.nn.Module, int]:
    """The model with the weights of a classifier that was trained here, and the size of its inputs."""
    from gansfp.networks.model_files import read_model

    facts, tensors = read_model(folder)
    found, size = facts["identity"].get("backbone"), facts["identity"].get("size")
    if found != model or not isinstance(size, int):
        said = f"backbone {found!r}, size {size!r}"
        raise WeightsError(f"{folder}: holds no trained {model!r}, its model.json says {said}")
    network = _empty(model, size)
    _fill(network, tensors, folder, model)
    return network, size


def _weights_file(model: str, folder: str | None) -> str | None:
    check_folder(folder)
    paths = [os.path.join(folder, _file(model) + ending) for ending in WEIGHT_ENDINGS] if folder else []
    return next((path for path in paths if os.path.isfile(path)), None)


def _file(model: str) -> str:
    """The name, without ending, of the file that holds a model's weights."""
    from gansfp.networks.architectures import FILES

    return FILES.get(model, model)


def _read(path: str, model: str) -> dict[str, torch.Tensor]:
    """The state dict in a file; code in a pickle is never run."""
    from gansfp.networks.architectures import timm

    try:
        state = timm.models.load_state_dict(path, use_ema=False, weights_only=True)
    except Exception as error:  # a broken file raises whatever its bytes lead the parser to
        reason = f"{type(error).__name__}: {one_line(error)[:160]}"
        raise WeightsError(f"{path}: cannot be read as weights of {model} ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict of tensors, expected the weights of timm's {model}")
    return state


def _fill(network: torch.nn.Module, state: dict[str, torch.Tensor], source: str, model: str) -> None:
    """Loads a state dict that must be this model's: all its tensors, none of another's but the classifier's."""
    try:
        state = without_head(translate(state, network), model)
        missing, unexpected = network.load_state_dict(state, strict=False)
    except Exception as error:  # sizes that differ: RuntimeError; a translation that meets another model: anything
        raise WeightsError(f"{source}: these are not the weights of timm's {model} (tensors do not fit)") from error
    if missing or unexpected:
        found = f"{len(missing)} tensors missing, {len(unexpected)} unknown, e.g. {[*missing, *unexpected][0]!r}"
        raise WeightsError(f"{source}: these are not the weights of timm's {model} ({found})")


def without_head(tensors: Mapping[str, torch.Tensor], model: str) -> dict[str, torch.Tensor]:
    """A timm model's tensors but for those of its classifier."""
    heads = _config(model).classifier
    heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
    left_out = (*_AUXILIARY, *(f"{head}." for head in heads))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}


def _config(model: str) -> Any:
    """timm's pretrained configuration of a model; one without weights has an empty one."""
    from gansfp.networks.architectures import timm

    return timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()


def _download(model: str, folder: str | None) -> torch.nn.Module:
    """The model as timm's own source gives it, after a quick look whether there is a way out at all."""
    import huggingface_hub

    from gansfp.networks.architectures import timm

    config = _config(model)
    place = f"into {folder}" if folder else "into a folder and name it with --weights"
    remedy = f"put {_file(model)}.safetensors (or .pth) {place}, or ask for {model}@random"
    if not config.has_weights:
        raise WeightsError(f"backbone {model!r}: timm has no weights for it; {remedy}")
    if config.hf_hub_id:
        for name in (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES:
            cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name)
            if isinstance(cached, str):  # without asking the hub, which takes minutes where there is no way out
                network = _empty(model)
                _fill(network, _read(cached, model), cached, model)
                return network
    unreachable = _unreachable(huggingface_hub.constants.ENDPOINT if config.hf_hub_id else str(config.url))
    try:
        if unreachable:
            raise OSError(unreachable)
        return timm.create_model(model, pretrained=True, num_classes=0).eval()
    except Exception as error:  # the hub's client, urllib and sockets each have errors of their own
        reason = one_line(error)[:160]
        raise WeightsError(f"backbone {model!r}: its weights cannot be downloaded ({reason}); {remedy}") from error


@lru_cache(maxsize=16)  # so that several backbones wait once
def _unreachable(address: str) -> str:
    """Why no server answers at `address` in time, whatever its answer; "" where one does.

    In a thread of its own, because looking up a name has no time limit: download clients try for minutes.
    """
    found = [f"no answer from {address} in {HUB_TIMEOUT:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT).close()
            found[0] = ""
        except urllib.error.HTTPError:
            found[0] = ""
        except OSError as error:
            found[0] = f"no answer from {address}: {one_line(error)}"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT)
    return found[0]
