"""Features without weights: high-pass slices for membership, residual statistics for attribution.

Both compute batches, on the batch's device. Features are finite for every slice, and do not depend on the other slices
of the batch. Grey levels are 0 to 255.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gansfp.errors import UsageError
from gansfp.images.slices import SIDE
from gansfp.images.views import resample

FLAT = 1e-3  # grey levels, root mean square: smaller differences are rounding errors, not image content
LAGS = 4  # pixels: the autocorrelation's centre is 9x9
RADIAL_BINS, ANGULAR_BINS = 64, 16
LOWEST_ANGULAR = 0.1  # cycles a pixel: lower frequencies show the direction of the body, not of the generator
FLOOR = 0.01  # squared grey levels, added before the logarithm: an eighth of 8-bit rounding noise, which is 1/12
BLOCK = 8


def highpass(pixels: Tensor, regions: Tensor, boxes: Tensor, window: int = 31, side: int = 64) -> Tensor:
    """Computes small high-pass slices. What a generator memorises of a slice stays at its position.

    Subtracts the local mean (window x window pixels, borders mirrored) from each slice; this comes before the region is
    cut out, so that the outline of the region leaves no trace. Multiplies by the region, resizes the box by area to
    side x side, subtracts the mean, and scales to norm 1.

    pixels: (n, 256, 256) uint8 or floating; regions: (n, 256, 256) bool; boxes: (n, 4) y0, x0, y1, x1 pixels;
    window: odd, or 0 for the slice itself. Returns (n, side * side) float32; rows of zeros for flat slices.
    Raises UsageError for a window that is even or not in 3 to 255, and for a side outside 1 to 256.
    """
    if window != 0 and not (window % 2 == 1 and 3 <= window < SIDE):
        raise UsageError(f"high-pass window: got {window!r}, expected 0 (the slice itself) or an odd number, 3 to 255")
    if not 1 <= side <= SIDE:
        raise UsageError(f"high-pass side: got {side!r}, expected 1 to {SIDE} pixels")
    slices = pixels.float()
    detail = slices - _local_mean(slices, window) if window else slices
    small = resample(detail * regions, boxes, side, "area").flatten(1)
    small = small - small.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(small, dim=1, keepdim=True)
    return torch.where(norms > FLAT * side, small / norms.clamp(min=FLAT), 0.0)


def _local_mean(slices: Tensor, window: int) -> Tensor:
    """Computes the mean of each pixel's window, borders mirrored. Running sums make all windows equally fast."""
    half = window // 2
    indices = torch.arange(-half, SIDE + half, device=slices.device)
    mirrored = torch.where(indices < 0, -1 - indices, torch.where(indices < SIDE, indices, 2 * SIDE - 1 - indices))
    for dim in (2, 1):
        # Sums of grey levels are whole numbers, exact in float32 up to 2^24, for windows up to 127 pixels. For larger
        # windows the rounding error is about 1e-4 grey levels.
        sums = F.pad(slices.index_select(dim, mirrored).cumsum(dim), (1, 0) if dim == 2 else (0, 0, 1, 0))
        slices = sums.narrow(dim, window, SIDE) - sums.narrow(dim, 0, SIDE)
    return slices / window**2


def residual(pixels: Tensor, regions: Tensor) -> Tensor:
    """Computes statistics of a slice without its content: traces of a generator's upsampling and filters.

    There are two residuals, neither resized: the slice minus its 3x3 median (Marra et al. 2019; it is not linear and
    removes the edges of the body), and the slice minus its 3x3 mean (it is linear and only whitens the spectrum, so
    edges leak less). Both are multiplied by the region and a Hann window. The 183 columns are:

    - 40: autocorrelation of the median residual within 4 pixels, divided by that at lag 0; only one half, because it is
      symmetric: (0, 1) to (0, 4), then rows 1 to 4 with columns -4 to 4 (Corvi et al. 2023);
    - 64: log power of the mean residual by spatial frequency, 0 to 1/2 cycles a pixel (Durall et al. 2020);
    - 16: log power of the median residual by direction, frequencies from 0.1 cycles a pixel;
    - 63: log energy of the mean residual's 8x8 block DCT coefficients without the constant one (Frank et al. 2020), row
      by row, over the blocks within the region, or over all blocks if none is within it.

    Powers are divided by the area of the region, weighted by the squared window. pixels: (n, 256, 256) uint8 or
    floating; regions: (n, 256, 256) bool. Returns (n, 183) float32.
    """
    slices, region = pixels.float(), regions.float()
    device = slices.device
    window = _hann(device) * region
    area = window.square().sum((1, 2), keepdim=True).clamp(min=1.0)
    with torch.autocast(device.type, enabled=False):
        mean_residual = slices - F.avg_pool2d(_replicated(slices), 3, stride=1)
        mean_power = _power(mean_residual * window) / area
        median_power = _power((slices - _median3(pixels).float()) * window) / area
        radial, angular = _spectral_bins(device)
        parts = [
            _autocorrelation(median_power),
            torch.log(mean_power.flatten(1) @ radial + FLOOR),
            torch.log(median_power.flatten(1) @ angular + FLOOR),
            torch.log(_block_energies(mean_residual, regions) + FLOOR),
        ]
    return torch.cat(parts, 1)


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
    """Computes the power spectrum, (n, 256, 129): the half plane of rfft2, which also counts the other half."""
    spectrum = torch.view_as_real(torch.fft.rfft2(images)).square().sum(-1)
    spectrum[:, :, 1:-1] *= 2
    return spectrum


def _autocorrelation(power: Tensor) -> Tensor:
    """Computes (n, 40): one half of the centre of the power's inverse transform, divided by the value at lag 0."""
    columns = torch.arange(power.shape[2], device=power.device)
    lags = torch.arange(-LAGS, LAGS + 1, device=power.device)
    turns = 2 * math.pi / SIDE
    # A few lags need two thin products instead of a transform: cos(y + x) = cos y cos x - sin y sin x.
    across = turns * columns[:, None] * lags
    down = turns * torch.arange(SIDE, device=power.device) * lags[LAGS:, None]
    values = torch.cos(down) @ (power @ torch.cos(across)) - torch.sin(down) @ (power @ torch.sin(across))
    values = values.flatten(1)
    # At lag 0 this is 256 * 256 times the residual's mean square, which is 0 for flat slices.
    return values[:, LAGS + 1 :] / values[:, LAGS : LAGS + 1].clamp(min=FLAT**2 * SIDE**2)


def _block_energies(images: Tensor, regions: Tensor) -> Tensor:
    """Computes (n, 63): mean squares of the 8x8 block DCT coefficients without the first, over blocks in the region."""
    blocks = SIDE // BLOCK
    inside = regions.reshape(-1, blocks, BLOCK, blocks, BLOCK).all(4).all(2).flatten(1)
    shares = (inside | ~inside.any(1, keepdim=True)).float()
    shares = shares / shares.sum(1, keepdim=True)
    tiles = images.reshape(-1, blocks, BLOCK, blocks, BLOCK).transpose(2, 3).reshape(-1, blocks**2, BLOCK**2)
    energies = (tiles @ _dct_basis(images.device)).square()
    return (shares[:, None] @ energies)[:, 0, 1:]


@cache
def _spectral_bins(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns two matrices that average a power spectrum (256 * 129) by frequency (64) and by direction (16).

    Each column is one bin.
    """
    down, across = torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None]
    frequency = torch.hypot(down, across).flatten()
    direction = (torch.atan2(down, across) / math.pi + 0.5).flatten()  # 0 to 1, half a turn
    weight = torch.full((SIDE, SIDE // 2 + 1), 2.0)
    weight[:, [0, -1]] = 1.0
    averages = []
    for position, lowest, bins in ((2 * frequency, 0.0, RADIAL_BINS), (direction, LOWEST_ANGULAR, ANGULAR_BINS)):
        chosen = (frequency > lowest) & (frequency < 0.5)
        of_bin = F.one_hot((position * bins).long().clamp(max=bins - 1), bins).float() * chosen[:, None]
        # The power already counts the omitted half plane, so the mean only divides by the weights.
        averages.append(of_bin / (of_bin * weight.flatten()[:, None]).sum(0).clamp(min=1.0))
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
