"""The weights of timm models: from a folder of files, from timm's download, from a training here, or random."""

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

HUB_TIMEOUT = 8.0  # seconds within which a server must answer, including the name look-up
WEIGHT_ENDINGS = (".safetensors", ".pth")
_AUXILIARY = ("AuxLogits.",)  # torchvision's file of inception_v3 has a second head, which only training uses
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm looks for them


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a network, and their digest, which an embedding's identity contains."""

    network: str  # the name that Backbone.network returns, or the name of a lung mask
    tensors: Mapping[str, torch.Tensor]
    digest: str
    size: int = 0  # pixels a side of the inputs in the training here; 0: timm's own input size


def load_weights(model: str, folder: str | None, random: bool = False, trained: str = "") -> Weights:
    """Loads the weights of a timm model without its classifier.

    They come from `folder`/<model>.safetensors or .pth; if there is no such file, from timm's own download. With
    `random` they are drawn at random, the same for every call with one model. With `trained` they come from that folder
    or URI, where gansfp.training.loop wrote them.

    Raises WeightsError if they cannot be loaded, or if a file holds the weights of another model; the message says
    which file to put where. Random weights never replace missing ones silently. Raises UsageError if `folder` does not
    exist.
    """
    path = None if random or trained else _weights_file(model, folder)
    network_name, size = model, 0
    if trained:
        network_name = f"{model}@{trained}"
        network, size = _trained(model, trained)
    elif random:
        network_name = f"{model}@random"
        network = _random(model)
    elif path:
        network = _from_file(model, path)
    else:
        network = _download(model, folder)
    tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    return Weights(network_name, tensors, digest_of(tensors), size)


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns 16 hexadecimal digits of a hash of the names, shapes, types and bytes of tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def has_fixed_size(model: str) -> bool:
    """True for a model whose position tables fit one input size only: vision transformers."""
    return bool(_config(model).fixed_input_size)


def create(model: str, num_classes: int, size: int = 0, **options: Any) -> torch.nn.Module:
    """Creates a timm model with random weights, for inputs of `size` pixels a side (0: the model's own size)."""
    from gansfp.networks.architectures import timm

    if size and has_fixed_size(model):
        options["img_size"] = size
    return timm.create_model(model, pretrained=False, num_classes=num_classes, **options)


def check_folder(folder: str | None) -> None:
    """Raises UsageError if a folder of weights is given that does not exist."""
    if folder is not None and not os.path.isdir(folder):
        raise UsageError(f"--weights: got {folder!r}, expected a folder of <timm name>{' or '.join(WEIGHT_ENDINGS)}")


def translate(tensors: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Applies timm's own translation of a checkpoint to a model: older names, position tables of another input size."""
    filter_fn = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return dict(filter_fn(tensors, network)) if filter_fn else tensors


def _random(model: str, size: int = 0) -> torch.nn.Module:
    """Creates the model with random weights, the same for the same name. The global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(model.encode()).digest()[:4], "little"))
        return create(model, 0, size).eval()


def _trained(model: str, folder: str) -> tuple[torch.nn.Module, int]:
    """Returns the model with the weights of a classifier that was trained here, and the size of its inputs."""
    from gansfp.networks.model_files import identity_of, read_model

    content, tensors = read_model(folder)
    backbone, size = identity_of(content).get("backbone"), identity_of(content).get("size")
    if backbone != model or not isinstance(size, int):
        raise WeightsError(
            f"{folder}: holds no trained {model!r}: got backbone {backbone!r} and size {size!r} in its model.json; "
            f"name the folder of a classifier of {model!r}"
        )
    network = _random(model, size)
    _fill(network, tensors, folder, model)
    return network, size


def _from_file(model: str, path: str) -> torch.nn.Module:
    network = _random(model)
    _fill(network, _read(path, model), path, model)
    return network


def _weights_file(model: str, folder: str | None) -> str | None:
    check_folder(folder)
    paths = [os.path.join(folder, _file(model) + ending) for ending in WEIGHT_ENDINGS] if folder else []
    return next((path for path in paths if os.path.isfile(path)), None)


def _file(model: str) -> str:
    """Returns the name, without its ending, of the file that holds a model's weights."""
    from gansfp.networks.architectures import FILES

    return FILES.get(model, model)


def _read(path: str, model: str) -> dict[str, torch.Tensor]:
    """Returns the state dict in a file. Code in a pickle is never run."""
    from gansfp.networks.architectures import timm

    try:
        state = timm.models.load_state_dict(path, use_ema=False, weights_only=True)
    except Exception as error:  # the parser raises many types of errors on a damaged file
        reason = f"{type(error).__name__}: {one_line(error)[:160]}"
        raise WeightsError(f"{path}: cannot be read as weights of {model} ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict of tensors, expected the weights of timm's {model}")
    return state


def _fill(network: torch.nn.Module, state: dict[str, torch.Tensor], source: str, model: str) -> None:
    """Loads a state dict into its model. It must hold all tensors of the model, and no others but the classifier's."""
    try:
        state = without_head(translate(state, network), model)
        missing, unexpected = network.load_state_dict(state, strict=False)
    except Exception as error:  # other sizes raise RuntimeError; translating another model's tensors raises anything
        raise WeightsError(f"{source}: these are not the weights of timm's {model} (tensors do not fit)") from error
    if missing or unexpected:
        counts = f"{len(missing)} tensors missing, {len(unexpected)} unknown, e.g. {[*missing, *unexpected][0]!r}"
        raise WeightsError(f"{source}: these are not the weights of timm's {model} ({counts})")


def without_head(tensors: Mapping[str, torch.Tensor], model: str) -> dict[str, torch.Tensor]:
    """Returns a timm model's tensors without those of its classifier."""
    heads = _config(model).classifier
    heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
    head_prefixes = (*_AUXILIARY, *(f"{head}." for head in heads))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(head_prefixes)}


def _config(model: str) -> Any:
    """Returns timm's pretrained configuration of a model, an empty one for a model without weights."""
    from gansfp.networks.architectures import timm

    return timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()


def _download(model: str, folder: str | None) -> torch.nn.Module:
    """Returns the model with timm's own weights: from the cache on disk, or downloaded if the server can be reached."""
    import huggingface_hub

    from gansfp.networks.architectures import timm

    config = _config(model)
    place = f"into {folder}" if folder else "into a folder and name it with --weights"
    remedy = f"put {_file(model)}.safetensors (or .pth) {place}, or use {model}@random"
    if not config.has_weights:
        raise WeightsError(f"backbone {model!r}: timm has no weights for it; {remedy}")
    if config.hf_hub_id:
        for name in (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES:
            cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name)
            if isinstance(cached, str):  # asking the hub first would take minutes without a connection
                return _from_file(model, cached)
    unreachable = why_unreachable(huggingface_hub.constants.ENDPOINT if config.hf_hub_id else str(config.url))
    try:
        if unreachable:
            raise OSError(unreachable)
        return timm.create_model(model, pretrained=True, num_classes=0).eval()
    except Exception as error:  # the hub's client, urllib and sockets raise different types of errors
        reason = one_line(error)[:160]
        raise WeightsError(f"backbone {model!r}: its weights cannot be downloaded ({reason}); {remedy}") from error


@lru_cache(maxsize=16)  # several backbones wait for one server only once
def why_unreachable(address: str) -> str:
    """Returns the reason why no server at `address` answers in time, or "" if one answers, even with an error.

    Asks in a thread of its own, because the look-up of a name has no time limit: download clients try for minutes.
    """
    reason = [f"no answer from {address} in {HUB_TIMEOUT:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT).close()
            reason[0] = ""
        except urllib.error.HTTPError:
            reason[0] = ""
        except OSError as error:
            reason[0] = f"no answer from {address}: {one_line(error)}"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT)
    return reason[0]
