"""Features without weights: high-pass slices for membership, residual statistics for attribution.

Both compute batches, on the batch's device. Features are finite for every slice, and do not depend on the other slices
of the batch. Grey levels are 0 to 255.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gansfp.errors import UsageError
from gansfp.images.slices import SIDE
from gansfp.images.views import View, area_matrix, as_bytes, boxes, regions, resample

FLAT = 1e-3  # grey levels, root mean square: smaller differences are rounding errors, not image content
LAGS = 4  # pixels: the autocorrelation's centre is 9x9
RADIAL_BINS, ANGULAR_BINS = 64, 16
LOWEST_ANGULAR = 0.1  # cycles a pixel: lower frequencies show the direction of the body, not of the generator
FLOOR = 0.01  # squared grey levels, added before the logarithm: an eighth of 8-bit rounding noise, which is 1/12
BLOCK = 8
STRIP = 64  # rows or columns whose local means are computed by one product

Shape = tuple[int, int]  # the window and the side of a high-pass slice


def highpass(outputs: Sequence[tuple[int, int, View]], pixels: Tensor, masks: Tensor) -> list[Tensor]:
    """Computes small high-pass slices. What a generator memorises of a slice stays at its position.

    Subtracts the local mean (window x window pixels, borders mirrored) from each slice; this comes before the region of
    the view is cut out, so that the outline of the region leaves no trace. Multiplies by the region, resizes the box of
    the view by area to side x side, subtracts the mean, and scales to norm 1.

    outputs: window (odd, or 0 for the slice itself), side and view of each result. pixels: (n, 256, 256) uint8; masks:
    (n, 256, 256) bool, the lungs. Returns (n, side * side) float32 for each output; rows of zeros for flat slices.
    They agree within 1e-5 of the norm with a computation in float64. Raises UsageError for a window that is even or not
    in 3 to 255, and for a side outside 1 to 256.
    """
    for window, side, _ in outputs:
        _check_shape(window, side)
    slices = pixels.float()
    with torch.autocast(slices.device.type, enabled=False):
        whole = [output for output in outputs if output[2].region == "all"]
        masked = [output for output in outputs if output[2].region != "all"]
        small = dict(zip(whole, _of_whole_slices([(window, side) for window, side, _ in whole], slices), strict=True))
        small |= dict(zip(masked, _of_regions(masked, slices, masks), strict=True))
    return [_normalised(small[output]) for output in outputs]


def _check_shape(window: int, side: int) -> None:
    if window != 0 and not (window % 2 == 1 and 3 <= window < SIDE):
        raise UsageError(f"high-pass window: got {window!r}, expected 0 (the slice itself) or an odd number, 3 to 255")
    if not 1 <= side <= SIDE:
        raise UsageError(f"high-pass side: got {side!r}, expected 1 to {SIDE} pixels")


def _of_whole_slices(shapes: Sequence[Shape], slices: Tensor) -> list[Tensor]:
    """Computes high-pass slices (n, side, side) of whole slices S, as products with matrices. One serves all shapes.

    With the matrix A that resizes one axis by area, and the same matrix B after a local mean, the result is
    A S A' - B S B'. Both terms are large where the slice is bright, so that little would be left of the digits of their
    difference. With D = A - B it is the sum of two small terms, D S A' + B S D'.
    """
    if not shapes:
        return []
    needed = tuple(dict.fromkeys([*((0, side) for _, side in shapes), *shapes]))
    sides = [side for _, side in needed]
    stacked = _stacked_matrices(needed, slices.device)
    matrices = dict(zip(needed, stacked.split(sides), strict=True))
    # Without its mean, a flat slice is 0 exactly. All slices stand side by side: one large product is the fastest.
    centred = (slices - slices.mean((1, 2), keepdim=True)).transpose(0, 1).reshape(SIDE, -1)
    products = [product.reshape(-1, SIDE) for product in (stacked @ centred).split(sides)]
    product_of = dict(zip(needed, products, strict=True))
    results = []
    for window, side in shapes:
        of_area, of_detail = product_of[0, side], product_of[window, side]
        result = of_detail @ matrices[0, side].T
        if window:
            result = torch.addmm(result, of_area - of_detail, matrices[window, side].T)
        results.append(result.reshape(side, -1, side).transpose(0, 1))
    return results


@cache
def _stacked_matrices(shapes: tuple[Shape, ...], device: torch.device) -> Tensor:
    """Returns (sum of all sides, 256): what resizes one axis by area, for windows after a local mean is subtracted."""
    matrices = []
    for window, side in shapes:
        area = area_matrix(side, device).double()
        matrices.append(area - area @ (_window_counts(window, device).double() / window) if window else area)
    return torch.cat(matrices).float()


def _of_regions(outputs: Sequence[tuple[int, int, View]], slices: Tensor, masks: Tensor) -> list[Tensor]:
    """Computes high-pass slices (n, side, side) of a region. Outputs share the local mean, which needs full size."""
    details = {
        window: slices - _local_mean(slices, window) if window else slices
        for window in dict.fromkeys(window for window, _, _ in outputs)
    }
    shown = {
        (window, view): details[window] * as_bytes(regions(masks, view))
        for window, view in dict.fromkeys((window, view) for window, _, view in outputs)
    }
    return [_resized(shown[window, view], view, side, masks) for window, side, view in outputs]


def _resized(shown: Tensor, view: View, side: int, masks: Tensor) -> Tensor:
    """Resizes what a view shows, by area."""
    if view.crop:
        return resample(shown, boxes(masks, view), side, "area")
    area = _stacked_matrices(((0, side),), shown.device)  # one matrix for all slices
    return area @ shown @ area.T


def _normalised(small: Tensor) -> Tensor:
    """Subtracts the mean of (n, side, side) and scales to norm 1: (n, side * side); zeros for flat slices."""
    side, small = small.shape[1], small.flatten(1)
    small = small - small.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(small, dim=1, keepdim=True)
    return torch.where(norms > FLAT * side, small / norms.clamp(min=FLAT), 0.0)


def _local_mean(slices: Tensor, window: int) -> Tensor:
    """Computes the mean of each pixel's window, borders mirrored. slices: (n, 256, 256) float32."""
    counts, half = _window_counts(window, slices.device), window // 2
    # The sums are whole numbers below 2^24 where the grey levels are whole numbers, which float32 holds exactly.
    rows = slices.reshape(-1, SIDE)
    across, down = torch.empty_like(rows), torch.empty_like(slices)
    # For each strip, the pixels that its windows contain.
    strips = [(slice(i, i + STRIP), slice(max(0, i - half), i + STRIP + half)) for i in range(0, SIDE, STRIP)]
    for strip, near in strips:
        torch.mm(rows[:, near], counts[strip, near].T, out=across[:, strip])
    for strip, near in strips:
        torch.matmul(counts[strip, near], across.view_as(slices)[:, near], out=down[:, strip])
    return down / window**2


@cache
def _window_counts(window: int, device: torch.device) -> Tensor:
    """Returns (256, 256): how often each pixel of one axis, a column, is in the window of a pixel, a row."""
    half = window // 2
    indices = torch.arange(SIDE)[:, None] + torch.arange(-half, half + 1)
    mirrored = torch.where(indices < 0, -1 - indices, torch.where(indices < SIDE, indices, 2 * SIDE - 1 - indices))
    return torch.zeros(SIDE, SIDE).scatter_add_(1, mirrored, torch.ones(SIDE, window)).to(device)


def residual(views: Sequence[View], pixels: Tensor, masks: Tensor) -> list[Tensor]:
    """Computes statistics of a slice without its content: traces of a generator's upsampling and filters.

    There are two residuals, neither resized: the slice minus its 3x3 median (Marra et al. 2019; it is not linear and
    removes the edges of the body), and the slice minus its 3x3 mean (it is linear and only whitens the spectrum, so
    edges leak less). Both are multiplied by the view's region and a Hann window. The 183 columns are:

    - 40: autocorrelation of the median residual within 4 pixels, divided by that at lag 0; only one half, because it is
      symmetric: (0, 1) to (0, 4), then rows 1 to 4 with columns -4 to 4 (Corvi et al. 2023);
    - 64: log power of the mean residual by spatial frequency, 0 to 1/2 cycles a pixel (Durall et al. 2020);
    - 16: log power of the median residual by direction, frequencies from 0.1 cycles a pixel;
    - 63: log energy of the mean residual's 8x8 block DCT coefficients without the constant one (Frank et al. 2020), row
      by row, over the blocks within the region, or over all blocks if none is within it.

    Powers are divided by the area of the region, weighted by the squared window. pixels: (n, 256, 256) uint8; masks:
    (n, 256, 256) bool, the lungs. Returns (n, 183) float32 for each view.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        slices = pixels.float()
        by_mean, by_median = slices - _mean3(pixels), slices - _median3(pixels).float()
        energies = _block_energies(by_mean)
        return [_statistics(by_mean, by_median, energies, regions(masks, view)) for view in views]


def _statistics(by_mean: Tensor, by_median: Tensor, energies: Tensor, region: Tensor) -> Tensor:
    """Computes the columns of `residual` for one view from both residuals, (n, 256, 256), and _block_energies."""
    device = region.device
    window = _hann(device) * as_bytes(region).float()
    area = torch.linalg.vector_norm(window, dim=(1, 2)).square()[:, None].clamp(min=1.0)
    mean_power, median_power = _power(by_mean * window), _power(by_median * window)
    radial, angular = _spectral_bins(device)
    parts = [
        _autocorrelation(median_power, area),
        torch.log(mean_power.flatten(1) @ radial / area + FLOOR),
        torch.log(median_power.flatten(1) @ angular / area + FLOOR),
        torch.log(_means_in_region(energies, region) + FLOOR),
    ]
    return torch.cat(parts, 1)


def _mean3(slices: Tensor) -> Tensor:
    """Computes the 3x3 mean of uint8 grey levels, borders replicated, as float32."""
    padded = _replicated(slices).short()  # a sum of nine is at most 2,295
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]).float() / 9


def _replicated(slices: Tensor) -> Tensor:
    """Repeats the border pixels of the slices once on every side."""
    rows = torch.cat([slices[:, :1], slices, slices[:, -1:]], 1)
    return torch.cat([rows[:, :, :1], rows, rows[:, :, -1:]], 2)


def _median3(slices: Tensor) -> Tensor:
    """Computes the 3x3 median, borders replicated, for any dtype.

    Each column of three is sorted once for the three windows that contain it. The median of nine is the median of three
    numbers: the largest minimum, the median of the medians, and the smallest maximum of the columns (Smith 1996).
    """
    padded = _replicated(slices)
    low, high = _sorted2(padded[:, :-2], padded[:, 1:-1])
    middle, high = _sorted2(high, padded[:, 2:])
    low, middle = _sorted2(low, middle)
    largest_low = torch.maximum(torch.maximum(low[:, :, :-2], low[:, :, 1:-1]), low[:, :, 2:])
    smallest_high = torch.minimum(torch.minimum(high[:, :, :-2], high[:, :, 1:-1]), high[:, :, 2:])
    middle = _median_of(middle[:, :, :-2], middle[:, :, 1:-1], middle[:, :, 2:])
    return _median_of(largest_low, middle, smallest_high)


def _sorted2(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(a, b), torch.maximum(a, b)


def _median_of(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    low, high = _sorted2(a, b)
    return torch.maximum(low, torch.minimum(high, c))


def _power(images: Tensor) -> Tensor:
    """Computes the power spectrum, (n, 256, 129): the half plane of rfft2. See _half_plane_weights."""
    spectrum = torch.fft.rfft2(images)
    return spectrum.real.square() + spectrum.imag.square()


def _half_plane_weights() -> Tensor:
    """Returns (129,): how often each column of the half plane of rfft2 occurs in the whole plane."""
    return torch.tensor([1.0] + [2.0] * (SIDE // 2 - 1) + [1.0])


def _autocorrelation(power: Tensor, area: Tensor) -> Tensor:
    """Computes (n, 40): one half of the centre of the power's inverse transform, divided by the value at lag 0."""
    cosines, sines, down = _waves(power.device)
    # A few lags need two thin products instead of a transform: cos(y + x) = cos y cos x - sin y sin x.
    values = (torch.cos(down) @ (power @ cosines) - torch.sin(down) @ (power @ sines)).flatten(1) / area
    # At lag 0 this is 256 * 256 times the residual's mean square, which is 0 for flat slices.
    return values[:, LAGS + 1 :] / values[:, LAGS : LAGS + 1].clamp(min=FLAT**2 * SIDE**2)


@cache
def _waves(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns cosines and sines by lag across, (129, 9), weighted for the whole plane, and phases down, (5, 256)."""
    lags, turns = torch.arange(-LAGS, LAGS + 1), 2 * math.pi / SIDE
    across = turns * torch.arange(SIDE // 2 + 1)[:, None] * lags
    down = turns * torch.arange(SIDE) * lags[LAGS:, None]
    weights = _half_plane_weights()[:, None]
    return (weights * torch.cos(across)).to(device), (weights * torch.sin(across)).to(device), down.to(device)


def _block_energies(images: Tensor) -> Tensor:
    """Computes (n, 1024, 64): squares of the coefficients of the DCT of each 8x8 block."""
    blocks = SIDE // BLOCK
    tiles = images.reshape(-1, blocks, BLOCK, blocks, BLOCK).transpose(2, 3).reshape(-1, blocks**2, BLOCK**2)
    return (tiles @ _dct_basis(images.device)).square()


def _means_in_region(energies: Tensor, region: Tensor) -> Tensor:
    """Computes (n, 63): means of _block_energies without the first, over the blocks in the region, or over all."""
    blocks = SIDE // BLOCK
    inside = as_bytes(region).reshape(-1, blocks, BLOCK, SIDE).amin(2).reshape(-1, blocks**2, BLOCK).amin(2)
    shares = (inside.bool() | ~inside.any(1, keepdim=True).bool()).float()
    shares = shares / shares.sum(1, keepdim=True)
    return (shares[:, None] @ energies)[:, 0, 1:]


@cache
def _spectral_bins(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns two matrices that average a power spectrum (256 * 129) by frequency (64) and by direction (16).

    Each column is one bin.
    """
    down, across = torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None]
    frequency = torch.hypot(down, across).flatten()
    direction = (torch.atan2(down, across) / math.pi + 0.5).flatten()  # 0 to 1, half a turn
    weight = _half_plane_weights().expand(SIDE, -1).reshape(-1, 1)
    averages = []
    for position, lowest, bins in ((2 * frequency, 0.0, RADIAL_BINS), (direction, LOWEST_ANGULAR, ANGULAR_BINS)):
        chosen = (frequency > lowest) & (frequency < 0.5)
        of_bin = F.one_hot((position * bins).long().clamp(max=bins - 1), bins).float() * chosen[:, None] * weight
        averages.append(of_bin / of_bin.sum(0).clamp(min=1.0))
    return averages[0].to(device), averages[1].to(device)


@cache
def _dct_basis(device: torch.device) -> Tensor:
    """Returns (64, 64): the orthonormal two-dimensional DCT-II of an 8x8 block, one column for each coefficient."""
    steps = torch.arange(BLOCK, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * steps + 1) * steps[:, None] / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return torch.kron(basis, basis).T.float().to(device)


def _hann(device: torch.device) -> Tensor:
    """Returns a Hann window of the slice's size, which reduces the leakage of the borders."""
    window = torch.hann_window(SIDE, periodic=False, device=device)
    return window[:, None] * window
