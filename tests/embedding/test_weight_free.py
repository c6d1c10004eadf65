"""Features without weights, compared with scipy and numpy, slice by slice and pixel by pixel or block by block."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

from gansfp.embedding import weight_free
from gansfp.errors import UsageError

FULL = torch.tensor([[0.0, 0.0, 256.0, 256.0]])


def some_slices(n=3):
    """Returns smooth blobs with noise: (n, 256, 256) uint8."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(n, 256, 256))
    blobs = ndimage.gaussian_filter(noise, (0, 9, 9)) * 2500 + 120 + 6 * ndimage.gaussian_filter(noise, (0, 1, 0))
    return torch.from_numpy(blobs.clip(0, 255).astype(np.uint8))


def some_regions(n=3):
    """Returns three regions: the whole slice, two blobs like lungs, and a thin stripe without a whole 8x8 block."""
    regions = torch.ones(3, 256, 256, dtype=torch.bool)
    regions[1] = False
    regions[1, 60:180, 40:110] = True
    regions[1, 70:170, 140:215] = True
    regions[2] = False
    regions[2, 100:105] = True
    return regions[:n]


def odd_slices():
    """Returns slices without anatomy: black, white, constant, one bright pixel, a checkerboard."""
    slices = torch.zeros(5, 256, 256, dtype=torch.uint8)
    slices[1], slices[2], slices[3, 100, 100] = 255, 77, 255
    slices[4, ::2, ::2] = slices[4, 1::2, 1::2] = 255
    return slices


@pytest.mark.parametrize("window", [1, 3, 31, 63, 255])
def test_local_mean_equals_scipy(window):
    slices = some_slices()
    expected = ndimage.uniform_filter(slices.numpy().astype(float), (0, window, window), mode="reflect")
    np.testing.assert_allclose(
        weight_free._local_mean(slices.float(), window), expected, atol=1e-4 if window < 128 else 1e-3
    )


@pytest.mark.parametrize(("window", "side"), [(31, 64), (15, 128), (7, 32), (0, 64), (63, 256)])
def test_highpass_step_by_step(window, side):
    slices, regions = some_slices(), some_regions()
    found = weight_free.highpass(slices, regions, FULL.expand(3, 4), window, side)
    assert found.shape == (3, side * side)
    assert found.dtype == torch.float32
    step = 256 // side
    for pixels, region, row in zip(slices.numpy().astype(float), regions.numpy(), found, strict=True):
        detail = pixels - ndimage.uniform_filter(pixels, window, mode="reflect") if window else pixels
        small = (detail * region).reshape(side, step, side, step).mean((1, 3)).ravel()
        small -= small.mean()
        np.testing.assert_allclose(row, small / np.linalg.norm(small), atol=1e-5)


def test_highpass_crops_to_the_box():
    slices, regions = some_slices(1), some_regions(1)
    found = weight_free.highpass(slices, regions, torch.tensor([[32.0, 64.0, 160.0, 192.0]]), 0, 64)[0]
    small = slices[0, 32:160, 64:192].double().reshape(64, 2, 64, 2).mean((1, 3)).flatten()
    small -= small.mean()
    torch.testing.assert_close(found, (small / small.norm()).float(), atol=1e-5, rtol=0)


def test_the_outline_of_a_region_leaves_no_trace():
    """A slice that is flat at the border of the region is 0 there, also if it changes outside of the region."""
    slices, region = torch.full((1, 256, 256), 100, dtype=torch.uint8), torch.zeros(1, 256, 256, dtype=torch.bool)
    region[0, 96:160, 96:160] = True
    slices[0, 120:136, 120:136] = 200
    small = weight_free.highpass(slices, region, FULL, 15, 256).reshape(256, 256)
    background = small[0, 0]
    torch.testing.assert_close(small[96:100, 96:160], background.expand(4, 64), atol=1e-6, rtol=0)
    assert (small - background).abs().max() > 0.01


@pytest.mark.parametrize("window", [0, 31])
def test_highpass_of_odd_slices_is_finite_and_flat_ones_are_zero(window):
    slices = odd_slices()
    found = weight_free.highpass(slices, torch.ones_like(slices, dtype=torch.bool), FULL.expand(5, 4), window)
    assert found.isfinite().all()
    assert not found[:3].any()
    assert found[3].norm() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("window", "side", "message"), [
    (30, 64, "window: got 30"), (-1, 64, "window: got -1"), (1, 64, "window: got 1,"), (257, 64, "window: got 257"),
    (31, 0, "side: got 0"), (31, 257, "side: got 257"),
])  # fmt: skip
def test_highpass_with_wrong_values(window, side, message):
    with pytest.raises(UsageError, match=message):
        weight_free.highpass(some_slices(1), some_regions(1), FULL, window, side)


def test_median_equals_scipy():
    slices = some_slices()
    expected = ndimage.median_filter(slices.numpy(), (1, 3, 3), mode="nearest")
    assert np.array_equal(weight_free._median3(slices), expected)


def plain_residual(pixels, region):
    """Computes the columns of weight_free.residual for one slice by their definitions."""
    pixels = pixels.astype(float)
    hann = np.outer(np.hanning(256), np.hanning(256)) * region
    area = (hann**2).sum()
    by_median = (pixels - ndimage.median_filter(pixels, 3, mode="nearest")) * hann
    by_mean = pixels - ndimage.uniform_filter(pixels, 3, mode="nearest")
    lags = [(0, dx) for dx in range(1, 5)] + [(dy, dx) for dy in range(1, 5) for dx in range(-4, 5)]
    zero = (by_median**2).sum()
    correlations = [(by_median * np.roll(by_median, (-dy, -dx), (0, 1))).sum() / zero for dy, dx in lags]
    down, across = np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256), indexing="ij")
    frequency = np.hypot(down, across)
    power = np.abs(np.fft.fft2(by_mean * hann)) ** 2 / area
    inner = frequency < 0.5
    radial = [
        np.log(power[inner & (frequency > 0) & ((frequency * 128).astype(int) == k)].mean() + weight_free.FLOOR)
        for k in range(64)
    ]
    power = np.abs(np.fft.fft2(by_median)) ** 2 / area
    # Half of the plane is enough, and defines the angle of a direction.
    half = inner & (frequency > 0.1) & ((across > 0) | (across == 0))
    angle = ((np.arctan2(down, across) / np.pi + 0.5) * 16).astype(int).clip(0, 15)
    weight = np.where(across == 0, 1.0, 2.0)
    angular = [
        np.log(np.average(power[half & (angle == k)], weights=weight[half & (angle == k)]) + weight_free.FLOOR)
        for k in range(16)
    ]
    places = [(r, c) for r in range(0, 256, 8) for c in range(0, 256, 8)]
    inside = [(r, c) for r, c in places if region[r : r + 8, c : c + 8].all()] or places
    blocks = np.mean([fft.dctn(by_mean[r : r + 8, c : c + 8], norm="ortho") ** 2 for r, c in inside], 0)
    return np.concatenate([correlations, radial, angular, np.log(blocks.ravel()[1:] + weight_free.FLOOR)])


def test_residual_equals_its_definitions():
    slices, regions = some_slices(), some_regions()
    found = weight_free.residual(slices, regions)
    assert found.shape == (3, 183)
    assert found.dtype == torch.float32
    for i in range(3):
        expected = plain_residual(slices[i].numpy(), regions[i].numpy())
        np.testing.assert_allclose(found[i], expected, atol=2e-3, rtol=1e-3)


def test_residual_of_odd_slices_is_finite_and_constant_ones_are_alike():
    slices = odd_slices()
    for regions in (torch.ones_like(slices, dtype=torch.bool), torch.zeros_like(slices, dtype=torch.bool)):
        found = weight_free.residual(slices, regions)
        assert found.isfinite().all()
        torch.testing.assert_close(found[0], found[2], atol=1e-4, rtol=0)


def test_rows_do_not_depend_on_the_batch():
    slices, regions = some_slices(), some_regions()
    boxes = torch.tensor([[0.0, 0.0, 256.0, 256.0], [30.5, 20.0, 210.5, 200.0], [0.0, 0.0, 256.0, 256.0]])
    together = weight_free.highpass(slices, regions, boxes), weight_free.residual(slices, regions)
    for i in range(3):
        row = slice(i, i + 1)
        alone = (
            weight_free.highpass(slices[row], regions[row], boxes[row]),
            weight_free.residual(slices[row], regions[row]),
        )
        for of_batch, of_slice in zip(together, alone, strict=True):
            torch.testing.assert_close(of_slice[0], of_batch[i], atol=1e-5, rtol=1e-5)


def test_autocast_changes_nothing():
    slices, regions = some_slices(), some_regions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = weight_free.highpass(slices, regions, FULL.expand(3, 4)), weight_free.residual(slices, regions)
    assert torch.equal(inside[0], weight_free.highpass(slices, regions, FULL.expand(3, 4)))
    assert torch.equal(inside[1], weight_free.residual(slices, regions))


@pytest.mark.slow
def test_residual_separates_generators(shared):
    """Four generators, one of them unknown; the adjusted Rand index must be at least 0.97."""
    folder = shared / "challenge" / "attribution" / "test"
    with open(folder / "truth.csv", newline="") as file:
        truth = {row["image_id"]: row["generator"] for row in csv.DictReader(file)}
    pixels = np.stack([np.asarray(Image.open(folder / f"{name}.png").convert("L")) for name in truth])
    slices = torch.from_numpy(pixels)
    found = torch.cat([weight_free.residual(s, torch.ones_like(s, dtype=torch.bool)) for s in slices.split(16)])
    whitened = PCA(0.95, random_state=0).fit_transform(StandardScaler().fit_transform(found))
    for method in (AgglomerativeClustering(4), KMeans(4, n_init=10, random_state=0)):
        assert adjusted_rand_score(list(truth.values()), method.fit_predict(whitened)) >= 0.97
