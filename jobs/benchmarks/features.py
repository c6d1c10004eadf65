"""How fast features without weights are on one core: beside the loop a user writes with scipy, and beside a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch
from PIL import Image
from scipy import fft, ndimage
from torch.utils.flop_counter import FlopCounterMode

from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import Embedder
from gansfp.embedding.shards import Pair
from gansfp.embedding.weight_free import FLOOR
from gansfp.errors import GansfpError
from gansfp.images.lungs import threshold_mask
from gansfp.images.slices import Source, load_all
from gansfp.images.views import boxes, get_view, regions
from gansfp.runtime.embedding import CPU_BATCH
from jobs.benchmarks.measure import Bench, Row, Target
from jobs.benchmarks.slices import image_files
from tune.membership import MEMBERSHIP

HIGHPASS: tuple[Pair, ...] = tuple(
    pair for pair in MEMBERSHIP.default_pairs if parse_backbone(pair[0]).kind.name == "highpass"
)
RESIDUAL: Pair = ("residual", "full")
SLICES = 64  # that are computed again and again; their pixels and results do not fit a core's caches
PRODUCT = 1024  # rows and columns of a product that shows how fast a core multiplies
BLOCK = 8  # pixels a side of a block of the DCT
UNIT = "slices/s of a core"

Work = Callable[[], int]  # does something for some slices and returns how many these are
View = tuple[np.ndarray, tuple[float, ...]]  # the region (256, 256) of a view of one slice, and its box y0, x0, y1, x1


def features(bench: Bench) -> list[Row]:
    """Measures the `highpass` pairs of the membership search together, and `residual`, each on one core."""
    found = load_all([Source(path) for path in image_files(bench.slices(bench.sizes.slices))[:SLICES]])
    slices = [slice_.pixels for slice_ in found if slice_.pixels is not None]
    if not slices:
        raise GansfpError("no slice could be read")
    pixels, masks = np.stack(slices), np.stack([threshold_mask(slice_) for slice_ in slices])
    with _one_thread():
        return [*_highpass_rows(pixels, masks, bench), *_residual_rows(pixels, masks, bench)]


def _highpass_rows(pixels: np.ndarray, masks: np.ndarray, bench: Bench) -> list[Row]:
    square, views = torch.randn(PRODUCT, PRODUCT), [_views(mask) for mask in masks]
    embed = _embedding(HIGHPASS, pixels, masks)
    with FlopCounterMode(display=False) as counter:
        count = embed()
    # The same number of multiplications as in all matrix products of a slice.
    products = counter.get_total_flops() / count / (2 * PRODUCT**3)

    def scipy() -> int:
        return len([plain_highpass(*one) for one in zip(pixels[:CPU_BATCH], views, strict=False)])

    def multiply() -> int:
        torch.mm(square, square)
        return 1

    rates = _rates(bench, {"ours": embed, "scipy": scipy, "bound": multiply})
    rates["bound"] /= products
    note = (
        f"{len(HIGHPASS)} pairs in batches of {CPU_BATCH}; bound: the {2 * products * PRODUCT**3 / 1e6:.0f} million "
        f"operations of their matrix products, at the rate of one product of {PRODUCT} x {PRODUCT} matrices in float32"
    )
    name = f"highpass, the {len(HIGHPASS)} of the membership search"
    return _rows(name, rates, note, Target(200, of_value=True))


def _residual_rows(pixels: np.ndarray, masks: np.ndarray, bench: Bench) -> list[Row]:
    images, basis = torch.from_numpy(pixels[:CPU_BATCH]).float(), torch.randn(BLOCK**2, BLOCK**2)
    tiles = images.reshape(len(images), -1, BLOCK**2)

    def scipy() -> int:
        return len([plain_residual(slice_) for slice_ in pixels[:CPU_BATCH]])

    def transform() -> int:
        for _ in range(2):
            torch.fft.rfft2(images)
        torch.matmul(tiles, basis)
        return len(images)

    rates = _rates(bench, {"ours": _embedding([RESIDUAL], pixels, masks), "scipy": scipy, "bound": transform})
    note = f"batches of {CPU_BATCH}; bound: its two Fourier transforms and its DCT alone"
    return _rows("residual", rates, note)


def _rows(name: str, rates: Mapping[str, float], note: str, target: Target | None = None) -> list[Row]:
    """Returns the rate beside those of the bound and of a loop with scipy."""
    ours, bound, scipy = rates["ours"], rates["bound"], rates["scipy"]
    return [
        Row("features", name, ours, UNIT, "(a) the bound", bound, ours / bound, target, note),
        Row("features", name, ours, UNIT, "(b) a loop with scipy and Pillow", scipy, ours / scipy, note=note),
    ]


def _embedding(pairs: Sequence[Pair], pixels: np.ndarray, masks: np.ndarray) -> Work:
    """Returns what embeds all slices by these pairs, as an actor of jobs.embed does on a core."""
    embedder = Embedder(pairs, {}, batch_limit=CPU_BATCH)

    def embed() -> int:
        embedder(pixels, masks)
        return len(pixels)

    return embed


def _rates(bench: Bench, works: Mapping[str, Work]) -> dict[str, float]:
    """Returns slices a second of CPU time of each work: the median of turns, in which all follow each other."""
    for work in works.values():
        work()  # the first time does not count, because it takes memory and fills caches
    turns = [
        {name: _rate(work, bench.sizes.seconds) for name, work in works.items()} for _ in range(bench.sizes.repeats)
    ]
    return {name: median(turn[name] for turn in turns) for name in works}


def _rate(work: Work, seconds: float) -> float:
    """Repeats the work for some seconds; returns the slices done in a second in which this thread had a core."""
    count, started, until = 0, time.thread_time(), time.monotonic() + seconds
    while not count or time.monotonic() < until:
        count += work()
    return count / (time.thread_time() - started)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets PyTorch compute with one thread, as in an actor of jobs.embed on a CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _views(mask: np.ndarray) -> dict[str, View]:
    """Returns the views of a slice that HIGHPASS needs, which a user's loop gets for nothing."""
    views = {}
    for name in dict(pair[::-1] for pair in HIGHPASS):
        view, of_mask = get_view(name), mask[None]
        views[name] = regions(of_mask, view)[0], tuple(boxes(torch.from_numpy(of_mask), view)[0].tolist())
    return views


def plain_highpass(pixels: np.ndarray, views: Mapping[str, View]) -> dict[Pair, np.ndarray]:
    """Computes HIGHPASS for one slice as a user would: a filter of scipy and a resize of Pillow for each pair."""
    slice_, found = pixels.astype(np.float32), {}
    for pair in HIGHPASS:
        backbone, (region, (y0, x0, y1, x1)) = parse_backbone(pair[0]), views[pair[1]]
        window, side = backbone.window, backbone.size
        detail = slice_ - ndimage.uniform_filter(slice_, window, mode="reflect") if window else slice_
        image = Image.fromarray(detail * region).resize((side, side), Image.Resampling.BOX, (x0, y0, x1, y1))
        small = np.asarray(image).ravel()
        small = small - small.mean()
        found[pair] = small / max(float(np.linalg.norm(small)), 1e-9)
    return found


def plain_residual(pixels: np.ndarray) -> np.ndarray:
    """Computes `residual` for one whole slice as a user would, with numpy and scipy: (183,)."""
    slice_, side = pixels.astype(np.float32), len(pixels)
    hann = np.outer(np.hanning(side), np.hanning(side)).astype(np.float32)
    by_mean = slice_ - ndimage.uniform_filter(slice_, 3, mode="nearest")
    by_median = slice_ - ndimage.median_filter(slice_, 3, mode="nearest")
    area = (hann**2).sum()
    mean_power, median_power = (np.abs(fft.fft2(image * hann)) ** 2 / area for image in (by_mean, by_median))
    correlation = fft.ifft2(median_power).real
    lags = [(0, x) for x in range(1, 5)] + [(y, x) for y in range(1, 5) for x in range(-4, 5)]
    down, across = fft.fftfreq(side)[:, None], fft.fftfreq(side)[None]
    frequency = np.hypot(down, across)
    radial = _bin_means(mean_power, (128 * frequency).astype(int), (frequency > 0) & (frequency < 0.5), 64)
    half = (frequency > 0.1) & (frequency < 0.5) & (across >= 0)
    direction = (16 * (np.arctan2(down, across) / np.pi + 0.5)).astype(int).clip(0, 15)
    angular = _bin_means(median_power, direction, half, 16, np.where(across == 0, 1.0, 2.0) + 0 * down)
    blocks = by_mean.reshape(side // BLOCK, BLOCK, side // BLOCK, BLOCK)
    energies = (fft.dctn(blocks, axes=(1, 3), norm="ortho") ** 2).mean((0, 2)).ravel()[1:]
    logarithms = np.log(np.concatenate([radial, angular, energies]) + FLOOR)
    return np.concatenate([[correlation[lag] / correlation[0, 0] for lag in lags], logarithms])


def _bin_means(
    power: np.ndarray, bins: np.ndarray, chosen: np.ndarray, count: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the mean of the power in each of `count` bins, over the chosen places."""
    of_place = np.ones(power.shape) if weights is None else weights
    sums = np.bincount(bins[chosen], (of_place * power)[chosen], count)
    return sums / np.bincount(bins[chosen], of_place[chosen], count)
