"""The slices that a benchmark embeds: a pool of drawn or real ones, and collections that link to it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from gansfp.cores import cores
from gansfp.images.slices import ENDINGS
from gansfp.simulation.phantom import draw_patient, draw_slice

DRAWN = 32  # slices that are drawn; the others are these, moved and with other noise
MOVED = 8  # pixels by which they are moved, at most
CLASS = os.path.join("attribution", "train", "slices")  # the folder of the slices in a DATA


def draw_slices(folder: str, count: int, seed: int = 0) -> None:
    """Writes `count` different slices of the phantom as PNG files. Most of them are variants of a few drawn ones."""
    rng = np.random.default_rng(seed)
    drawn = [draw_slice(draw_patient(rng), rng.uniform(0.2, 0.8), rng) for _ in range(min(DRAWN, count))]
    os.makedirs(folder)

    def write(number: int) -> None:
        slice_rng = np.random.default_rng([seed, number])
        pixels = np.roll(drawn[number % len(drawn)], slice_rng.integers(-MOVED, MOVED + 1, 2), (0, 1)).astype(np.int16)
        pixels += slice_rng.integers(-1, 2, pixels.shape, np.int16) * (pixels > 0)
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        picture.save(os.path.join(folder, f"{number:07}.png"), compress_level=1)

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(write, range(count)))


def image_files(folder: str) -> list[str]:
    """Returns the image files below a folder, by the endings of their names, sorted."""
    return sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS)


def link_images(folder: str, images: list[str]) -> None:
    """Makes a folder of links to images of the user, which gives them names in one order."""
    os.makedirs(folder)
    for number, path in enumerate(images):
        os.symlink(os.path.abspath(path), os.path.join(folder, f"{number:07}{Path(path).suffix}"))


def link_collection(pool: str, data: str, count: int) -> None:
    """Makes a DATA of `count` links to the files of `pool`. Where the pool has fewer files, it repeats them."""
    folder = os.path.join(data, CLASS)
    os.makedirs(folder)
    names = sorted(os.listdir(pool))
    for number in range(count):
        name = names[number % len(names)]
        os.symlink(os.path.join(pool, name), os.path.join(folder, f"slice_{number:07}{Path(name).suffix}"))
