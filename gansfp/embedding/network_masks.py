"""Lung masks by networks, many slices at once on a device: a U-Net trained here, or lungmask's published R231.

    unet:FOLDER     the network that `python -m jobs.train unet` wrote into FOLDER (a path or a URI)
    lungmask        R231 (Hofmanninger et al. 2020, doi 10.1186/s41747-020-00173-2) from the package lungmask

R231 was trained on Hounsfield units (HU). The grey levels of a slice are those of the lung window, so only HU from
-1350 to 150 are known: air, lung and fat are unchanged, but muscle and bone are at most 150, which the network never
saw in training. The remaining steps are those of the package, slice by slice: crop to the body, resize, keep the
largest region of each lung.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gansfp.device import ieee_float32, in_batches
from gansfp.errors import UsageError, WeightsError
from gansfp.images.grey_levels import WINDOW_CENTRE, WINDOW_WIDTH
from gansfp.images.lungs import MASK_NAMES, MASKS, check_mask, is_network, mask_kind
from gansfp.images.slices import SIDE
from gansfp.networks import weights
from gansfp.networks.lung_unet import ARCHITECTURE, LungUnet, read_unet
from gansfp.networks.model_files import identity_of
from gansfp.networks.weights import Weights, digest_of
from gansfp.stopwatch import Stopwatch
from gansfp.store import one_line

R231_FILE = "unet_r231-d5d2fc3d.pth"  # the name under which the package publishes it
CPU_BATCH, GPU_BATCH = 8, 256  # slices on a device at once, unless the caller sets another limit

Tensors = Mapping[str, torch.Tensor]
Predict = Callable[[np.ndarray], np.ndarray]  # (n, 256, 256) uint8 -> (n, 256, 256) bool


@dataclass
class Segmenter:
    """Segments lungs with a network on one device. Out of memory halves the batch, for this call and those after it.

    Args:
        name: `unet:FOLDER` or `lungmask`.
        weights: the result of load_mask.
        device: "cpu", "cuda", "cuda:1", ...
        batch_limit: the largest number of slices that are on the device at once; 0 for the device's default.
    """

    name: str
    weights: Weights
    device: str = "cpu"
    batch_limit: int = 0
    seconds: Counter[str] = field(init=False, default_factory=Counter)  # by step, of all calls together
    _predict: Predict = field(init=False)

    def __post_init__(self) -> None:
        self.batch_limit = self.batch_limit or (GPU_BATCH if self.device.startswith("cuda") else CPU_BATCH)
        self._predict = KINDS[mask_kind(self.name)].predictor(self.weights.tensors, self.device)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """pixels: (n, 256, 256) uint8. Returns (n, 256, 256) bool, all False where no lungs were found.

        Computes in float32, whatever the precision of the embedding. Raises an out-of-memory error only if a single
        slice does not fit.
        """
        watch = Stopwatch(self.device)
        parts, self.batch_limit = in_batches(self._predict, (pixels,), self.batch_limit, self.device)
        watch.mark("segment")
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        self.seconds.update(watch.seconds())
        return np.concatenate(parts) if parts else np.zeros((0, SIDE, SIDE), bool)


def _load_unet(name: str, _folder: str | None) -> Tensors:
    """Loads the tensors of a U-Net. Its own folder is in its name."""
    content, tensors = read_unet(name.partition(":")[2])
    architecture = identity_of(content).get("architecture")
    if architecture != ARCHITECTURE:
        raise WeightsError(
            f"{name}: got a network of architecture {architecture!r}, expected {ARCHITECTURE!r}; train it again"
        )
    return _checked(LungUnet(), tensors, name)


def _unet_predictor(tensors: Tensors, device: str) -> Predict:
    network = LungUnet()
    network.load_state_dict(dict(tensors))
    network.eval().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> np.ndarray:
        with ieee_float32(device):
            return (network(torch.from_numpy(pixels).to(device)) > 0).cpu().numpy()

    return predict


def _load_r231(_name: str, folder: str | None) -> Tensors:
    """Loads R231's tensors: from `folder`, else from PyTorch's cache of downloads, else by a download."""
    url = _package()[0].MODEL_URLS["R231"][0]
    cache = os.path.join(torch.hub.get_dir(), "checkpoints")
    paths = [os.path.join(place, R231_FILE) for place in (folder, cache) if place]
    path = next((path for path in paths if os.path.isfile(path)), None)
    try:
        if path:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        elif unreachable := weights.why_unreachable(url):
            raise OSError(unreachable)
        else:
            tensors = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except Exception as error:  # the parser raises many types of errors on a damaged file
        if path:
            raise WeightsError(f"{path}: cannot be read as lungmask's R231 ({one_line(error)[:160]})") from error
        place = f"into {folder}" if folder else "into a folder and name it with --weights"
        raise WeightsError(
            f"lung mask 'lungmask': its weights cannot be downloaded ({one_line(error)[:160]}); put {R231_FILE} "
            f"({url}) {place}"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise WeightsError(f"{path or url}: holds no state dict of tensors, expected lungmask's R231")
    return _checked(_r231_network(), tensors, path or url)


def _package() -> tuple[Any, Any]:
    """Returns lungmask's modules `mask` and `utils`, silenced. Raises UsageError if the package is not installed."""
    try:
        with warnings.catch_warnings():  # the package switches warnings off for the whole process
            from lungmask import mask, utils
    except ImportError as error:
        raise UsageError(
            f"lung mask 'lungmask': needs a package; run pip install \"gansfp[lungmask]\" ({one_line(error)})"
        ) from error
    logging.getLogger("lungmask").setLevel(logging.WARNING)  # it logs every slice, on standard output
    return mask, utils


def _r231_network() -> torch.nn.Module:
    mask, _ = _package()
    return mask.UNet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)


def _r231_predictor(tensors: Tensors, device: str) -> Predict:
    """Returns lungmask's own inference (LMInferer), for which each slice is a volume of its own."""
    _, utils = _package()
    network = _r231_network()
    network.load_state_dict(dict(tensors))
    network.eval().to(device)

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> np.ndarray:
        units = pixels.astype(np.float32) * (WINDOW_WIDTH / 255) + (WINDOW_CENTRE - WINDOW_WIDTH / 2)
        cropped, boxes = utils.preprocess(units, resolution=[SIDE, SIDE])
        inputs = (torch.from_numpy(cropped).clamp_(max=600) + 1024) / 1624
        with ieee_float32(device):
            labels = network(inputs[:, None].float().to(device)).argmax(1).to(torch.uint8).cpu().numpy()
        masks = np.zeros(pixels.shape, bool)
        for row, box in enumerate(boxes):
            label = utils.postprocessing(labels[row][None], disable_tqdm=True)[0]
            masks[row] = utils.reshape_mask(label, box, (SIDE, SIDE)) > 0
        return masks

    return predict


def _checked(network: torch.nn.Module, tensors: Tensors, source: str) -> Tensors:
    """Returns the tensors in the network's own order, which files do not keep.

    Raises WeightsError for the tensors of another network, before Ray starts an actor: Ray restarts an actor that fails
    at its start without end.
    """
    try:
        network.load_state_dict(dict(tensors))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise WeightsError(f"{source}: these are not the weights of that network (tensors do not fit)") from error
    return {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}


@dataclass(frozen=True)
class NetworkMask:
    """One kind of network masks.

    Args:
        load_tensors: (mask name, the user's folder of weights or None) -> the tensors of the network, checked.
        predictor: (tensors, device) -> a function from slices to masks.
    """

    load_tensors: Callable[[str, str | None], Tensors]
    predictor: Callable[[Tensors, str], Predict]


KINDS: dict[str, NetworkMask] = {  # by the kind in the mask's name, see gansfp.images.lungs.mask_kind
    "lungmask": NetworkMask(_load_r231, _r231_predictor),
    "unet": NetworkMask(_load_unet, _unet_predictor),
}


def load_mask(name: str, folder: str | None) -> Weights:
    """Loads the weights of a mask's network. folder: where R231's file is, None for the package's own download.

    Raises UsageError for the name of a mask without a network. Raises WeightsError if the weights cannot be loaded or
    belong to another network; the message names the file and its place.
    """
    check_mask(name)
    if not is_network(name):
        expected = [other for other in MASK_NAMES if other not in MASKS]
        raise UsageError(f"lung mask: got {name!r}, which runs on CPUs without weights, expected one of {expected}")
    tensors = KINDS[mask_kind(name)].load_tensors(name, folder)
    return Weights(name, tensors, digest_of(tensors))
