"""Predictions of a trained classifier, and the loading of its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from gansfp.device import ieee_float32
from gansfp.errors import WeightsError
from gansfp.networks.model_files import identity_of, read_model
from gansfp.networks.weights import create, has_fixed_size, translate, without_head
from gansfp.training.examples import LabelledSlices, Masker, masker_of, read_blocks
from gansfp.training.heads import HEADS, Head, InputTransform

log = logging.getLogger(__name__)


def predict(
    folder: str, slices: LabelledSlices, device: str, batch: int = 256, masker: Masker | None = None
) -> np.ndarray:
    """Returns the class probabilities of slices, (n, classes) float32; NaN for slices that cannot be read.

    folder: as ClassifierTraining.run left it; its model.json names the classes. The labels of the slices are not used.
    The slices are read while the network computes, `batch` at a time. masker: for masks that a network makes, a
    gansfp.embedding.network_masks.Segmenter. Raises WeightsError where the folder holds no classifier, UsageError where
    a masker is necessary and missing.
    """
    content, tensors = read_model(folder)
    identity = cast(Mapping[str, Any], identity_of(content))
    if identity.get("kind") != "classifier":
        raise WeightsError(f"{folder}: got a network of kind {identity.get('kind')!r}, expected a classifier")
    head, classes = HEADS[identity["head"]], len(identity["classes"])
    network = create(identity["backbone"], head.outputs(classes), identity["size"])
    load_tensors(network, tensors, identity["backbone"], headless=False)
    network = network.eval().to(device).to(memory_format=torch.channels_last)
    input_transform = InputTransform(identity["backbone"], identity["size"], identity["view"])
    if identity["mask"] and not masker:
        masker = masker_of(identity["mask"])
    probabilities = np.full((len(slices), classes), np.nan, np.float32)
    for block in read_blocks(slices, batch):
        for line in block.errors:
            log.warning("left out: %s", line)
        if block.rows:
            masks = masker(block.pixels) if masker else None
            probabilities[block.rows] = _probabilities(network, head, input_transform, block.pixels, masks, device)
    return probabilities


@torch.inference_mode()
def _probabilities(
    network: torch.nn.Module,
    head: Head,
    input_transform: InputTransform,
    pixels: np.ndarray,
    masks: np.ndarray | None,
    device: str,
) -> np.ndarray:
    """Returns the probabilities of slices that are in memory, (n, classes) float32, computed in float32 everywhere."""
    masks_on_device = None if masks is None else torch.from_numpy(masks).to(device)
    inputs = input_transform(torch.from_numpy(pixels).to(device), masks_on_device)
    with ieee_float32(device):
        return head.probabilities(network(inputs).float()).cpu().numpy()


def load_tensors(
    network: torch.nn.Module, tensors: dict[str, torch.Tensor], backbone: str, headless: bool = True
) -> None:
    """Loads tensors into a network. headless: the tensors of its head may be missing.

    Raises WeightsError where other tensors are missing, or where a tensor does not belong to the network.
    """
    fitting = translate(tensors, network) if has_fixed_size(backbone) else tensors
    missing, unexpected = network.load_state_dict(fitting, strict=False)
    needed = without_head(network.state_dict(), backbone) if headless else network.state_dict()
    if unexpected or needed.keys() & set(missing):
        raise WeightsError(f"weights of {backbone!r}: {[*missing, *unexpected][0]!r} does not fit the network")
