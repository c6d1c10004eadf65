"""Differences between used and not-used slices that are no leak: another scanner, table, window, file or source."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from gansfp.decision.blind import SOURCE
from gansfp.embedding.measures import BRIGHTNESS, FILES, NOISE, POSITION

Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Bias:
    """A difference that grows with a strength, which each patient has.

    kinds: what the verdict may call it. change: of a slice (256, 256) float32, by a strength. usual, spread: mean and
    standard deviation of the used patients' strengths; those of the not-used are `apart` spreads higher. change is None
    where patients are chosen by what their slices show.
    """

    kinds: tuple[str, ...]
    change: Change | None
    usual: float = 0.0
    spread: float = 1.0
    apart: float = 1.8


def _noise(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    return picture + rng.normal(0, max(strength, 0.0), picture.shape)


def _brightness(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    return picture + strength


def _position(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    del rng
    return ndimage.shift(picture, (-strength, 0), order=1, mode="nearest")


def _file_format(picture: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A JPEG from before, of a quality that falls with the strength."""
    del rng
    file = io.BytesIO()
    quality = int(np.clip(95 - strength, 20, 95))
    Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32)


BIASES: dict[str, Bias] = {
    "noise": Bias((NOISE,), _noise, usual=5, spread=2.0, apart=2.0),
    "brightness": Bias((BRIGHTNESS,), _brightness, usual=0, spread=12),
    "position": Bias((POSITION,), _position, usual=0, spread=8),
    "file format": Bias((FILES, NOISE), _file_format, usual=15, spread=12),
    "source": Bias((SOURCE, NOISE, BRIGHTNESS, POSITION), None),
}


def apply(bias: Bias, pixels: np.ndarray, strengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns slices (n, 256, 256) uint8 changed by their strengths (n,)."""
    if bias.change is None:
        return pixels
    changed = np.empty_like(pixels)
    for row, (picture, strength) in enumerate(zip(pixels, strengths, strict=True)):
        of_slice = bias.change(picture.astype(np.float32), float(strength), rng)
        changed[row] = np.clip(np.rint(of_slice), 0, 255)
    return changed
