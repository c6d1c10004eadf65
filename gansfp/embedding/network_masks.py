"""Lung masks by networks, many slices at once on a device: a U-Net trained here, or lungmask's published R231.

    unet:FOLDER     what `python -m jobs.train unet` wrote into FOLDER (a path or a URI)
    lungmask        R231 (Hofmanninger et al. 2020, doi 10.1186/s41747-020-00173-2) by the package lungmask

R231 was trained on Hounsfield units. A slice's grey levels are those of the lung window, so its HU are known from -1350
to 150 alone: air, lung and fat are as they were, muscle and bone are all 150 at most, which the network never saw. From
there on all is the package's own, slice by slice: crop to the body, resize, the largest region of each lung.
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
from gansfp.images.lungs import check_mask, is_network
from gansfp.images.slices import SIDE, WINDOW_CENTRE, WINDOW_WIDTH
from gansfp.networks import weights
from gansfp.networks.lung_unet import ARCHITECTURE, LungUnet, read_unet
from gansfp.networks.weights import Weights, digest_of
from gansfp.stopwatch import Stopwatch
from gansfp.store import one_line

R231_FILE = "unet_r231-d5d2fc3d.pth"  # as the package publishes it
CPU_BATCH, GPU_BATCH = 8, 256  # slices on a device at once, unless told otherwise

Tensors = Mapping[str, torch.Tensor]
Predict = Callable[[np.ndarray], np.ndarray]


def load_mask(name: str, folder: str | None) -> Weights:
    """The weights of a mask's network; folder: where R231's file is, None for the package's own download.

    Raises UsageError for a name that no network's mask has, WeightsError, which names the file and where it belongs,
    where the weights cannot be had or are another network's.
    """
    check_mask(name)
    if not is_network(name):
        raise UsageError(f"lung mask {name!r} is no network's, it runs on CPUs, by gansfp.images.lungs")
    tensors = _r231_tensors(folder) if name == "lungmask" else _unet_tensors(name.partition(":")[2])
    return Weights(name, tensors, digest_of(tensors))


@dataclass
class Segmenter:
    """Finds lungs by a network, on one device. Out of memory there halves the batch, for this call and those after it.

    Args:
        name: `unet:FOLDER` or `lungmask`.
        weights: as load_mask gives them.
        device: "cpu", "cuda", "cuda:1", ...
        batch_limit: slices that are on the device at once, at most; None for what suits it.
    """

    name: str
    weights: Weights
    device: str = "cpu"
    batch_limit: int = 0
    seconds: Counter[str] = field(init=False, default_factory=Counter)  # by step, of all calls together
    _predict: Predict = field(init=False)

    def __post_init__(self) -> None:
        self.batch_limit = self.batch_limit or (GPU_BATCH if self.device.startswith("cuda") else CPU_BATCH)
        make = _r231 if self.name == "lungmask" else _unet
        self._predict = make(self.weights.tensors, self.device)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """pixels: (n, 256, 256) uint8. Returns (n, 256, 256) bool, all False where no lungs were found.

        In float32, whatever the precision of embedding. Raises an out-of-memory error only when a single slice is too
        much.
        """
        watch = Stopwatch(self.device)
        parts, self.batch_limit = in_batches(self._predict, (pixels,), self.batch_limit, self.device)
        watch.mark("segment")
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        self.seconds.update(watch.seconds())
        return np.concatenate(parts) if parts else np.zeros((0, SIDE, SIDE), bool)


def _unet_tensors(folder: str) -> Tensors:
    facts, tensors = read_unet(folder)
    found = facts["identity"].get("architecture")
    if found != ARCHITECTURE:
        raise WeightsError(f"unet:{folder}: got a network of architecture {found!r}, expected {ARCHITECTURE!r}")
    return _fitting(LungUnet(), tensors, f"unet:{folder}")


def _unet(tensors: Tensors, device: str) -> Predict:
    network = LungUnet()
    network.load_state_dict(dict(tensors))
    network.eval().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> np.ndarray:
        with ieee_float32(device):
            return (network(torch.from_numpy(pixels).to(device)) > 0).cpu().numpy()

    return predict


def _r231_tensors(folder: str | None) -> Tensors:
    """R231's tensors from `folder`, from what PyTorch has downloaded before, else by a download."""
    url = _package()[0].MODEL_URLS["R231"][0]
    cache = os.path.join(torch.hub.get_dir(), "checkpoints")
    places = [os.path.join(place, R231_FILE) for place in (folder, cache) if place]
    path = next((place for place in places if os.path.isfile(place)), None)
    try:
        if path:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        elif unreachable := weights._unreachable(url):
            raise OSError(unreachable)
        else:
            tensors = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except Exception as error:  # a broken file raises whatever its bytes lead the parser to
        if path:
            raise WeightsError(f"{path}: cannot be read as lungmask's R231 ({one_line(error)[:160]})") from error
        place = f"into {folder}" if folder else "into a folder and name it with --weights"
        raise WeightsError(
            f"lung mask 'lungmask': its weights cannot be downloaded ({one_line(error)[:160]}); put {R231_FILE} "
            f"({url}) {place}"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise WeightsError(f"{path or url}: holds no state dict of tensors, expected lungmask's R231")
    return _fitting(_r231_network(), tensors, path or url)


def _package() -> tuple[Any, Any]:
    """lungmask's modules `mask` and `utils`, silenced. Raises UsageError where the package is not installed."""
    try:
        with warnings.catch_warnings():  # it switches warnings off for the whole process
            from lungmask import mask, utils
    except ImportError as error:
        raise UsageError(f"lung mask 'lungmask': pip install \"gansfp[lungmask]\" ({one_line(error)})") from error
    logging.getLogger("lungmask").setLevel(logging.WARNING)  # it tells of every slice, on standard output
    return mask, utils


def _r231_network() -> torch.nn.Module:
    mask, _ = _package()
    return mask.UNet(n_classes=3, padding=True, depth=5, up_mode="upsample", batch_norm=True, residual=False)


def _r231(tensors: Tensors, device: str) -> Predict:
    """lungmask's own inference (LMInferer), each slice a volume of its own."""
    _, utils = _package()
    network = _r231_network()
    network.load_state_dict(dict(tensors))
    network.eval().to(device)

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> np.ndarray:
        units = pixels.astype(np.float32) * (WINDOW_WIDTH / 255) + (WINDOW_CENTRE - WINDOW_WIDTH / 2)
        seen, boxes = utils.preprocess(units, resolution=[SIDE, SIDE])
        inputs = (torch.from_numpy(seen).clamp_(max=600) + 1024) / 1624
        with ieee_float32(device):
            labels = network(inputs[:, None].float().to(device)).argmax(1).to(torch.uint8).cpu().numpy()
        found = np.zeros(pixels.shape, bool)
        for row, box in enumerate(boxes):
            label = utils.postprocessing(labels[row][None], disable_tqdm=True)[0]
            found[row] = utils.reshape_mask(label, box, (SIDE, SIDE)) > 0
        return found

    return predict


def _fitting(network: torch.nn.Module, tensors: Tensors, source: str) -> Tensors:
    """The tensors in the network's own order, which files do not keep. Raises WeightsError where they are another's: an
    actor that fails as it starts is started again for ever."""
    try:
        network.load_state_dict(dict(tensors))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise WeightsError(f"{source}: these are not the weights of that network (tensors do not fit)") from error
    return {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
