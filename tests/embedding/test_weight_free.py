"""Features without weights, compared with scipy and numpy, slice by slice and pixel by pixel or block by block."""

import csv
import itertools

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
from gansfp.images.views import VIEWS, boxes, regions


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


@pytest.mark.parametrize("window", [1, 3, 31, 63, 127, 129, 255])
def test_local_mean_equals_scipy(window):
    slices = some_slices()
    expected = ndimage.uniform_filter(slices.numpy().astype(float), (0, window, window), mode="reflect")
    np.testing.assert_allclose(weight_free._local_mean(slices.float(), window), expected, atol=1e-4)


def plain_highpass(window, side, view, pixels, mask):
    """Computes weight_free.highpass for one slice by its definition, in float64."""
    pixels = pixels.astype(float)
    detail = pixels - ndimage.uniform_filter(pixels, window, mode="reflect") if window else pixels
    region = {"all": np.ones_like(mask), "lungs": mask, "outer": ~mask}[view.region if mask.any() else "all"]
    y0, x0, y1, x1 = boxes(torch.from_numpy(mask)[None], view)[0].tolist()
    small = parts(y0, y1, side) @ (detail * region) @ parts(x0, x1, side).T
    small = (small - small.mean()).ravel()
    norm = np.linalg.norm(small)
    return small / norm if norm > weight_free.FLAT * side else np.zeros_like(small)


def parts(start, end, side):
    """Returns (side, 256): the share of each pixel in the mean of each equal part of start to end."""
    edges, shares = np.linspace(start, end, side + 1), np.zeros((side, 256))
    for row, (low, high) in enumerate(itertools.pairwise(edges)):
        for pixel in range(256):
            shares[row, pixel] = max(0.0, min(high, pixel + 1) - max(low, pixel)) / (high - low)
    return shares


SHAPES = [(0, 64), (7, 64), (31, 64), (63, 64), (7, 32), (15, 128), (3, 16), (255, 100), (0, 1), (5, 256)]
HIGHPASS = [
    *((*shape, VIEWS["full"]) for shape in SHAPES),
    *((15, 64, view) for view in VIEWS.values()),
    *((window, 32, VIEWS["lungs"]) for window in (0, 31)),
]


def test_highpass_equals_its_definition():
    """All outputs together, of slices with many, few and no lungs, within 1e-5 of the norm."""
    slices, masks = some_slices(), some_regions()
    masks[0] = False
    found = weight_free.highpass(HIGHPASS, slices, masks)
    for (window, side, view), vectors in zip(HIGHPASS, found, strict=True):
        assert (vectors.shape, vectors.dtype) == ((3, side * side), torch.float32)
        for row, vector in enumerate(vectors):
            expected = plain_highpass(window, side, view, slices[row].numpy(), masks[row].numpy())
            assert np.linalg.norm(vector.numpy() - expected) < 1e-5, (window, side, view.name, row)


def test_little_detail_on_a_bright_slice_keeps_its_digits():
    ramp = np.round(np.linspace(200, 255, 256)) + np.zeros((256, 1))
    found = weight_free.highpass(
        [(3, 16, VIEWS["full"])], torch.from_numpy(ramp.astype(np.uint8))[None], some_regions(1)
    )
    expected = plain_highpass(3, 16, VIEWS["full"], ramp, np.zeros(ramp.shape, bool))
    assert np.linalg.norm(found[0][0].numpy() - expected) < 1e-5


def test_the_outline_of_a_region_leaves_no_trace():
    """A slice that is flat at the border of the region is 0 there, also if it changes outside of the region."""
    slices, region = torch.full((1, 256, 256), 100, dtype=torch.uint8), torch.zeros(1, 256, 256, dtype=torch.bool)
    region[0, 96:160, 96:160] = True
    slices[0, 120:136, 120:136] = 200
    small = weight_free.highpass([(15, 256, VIEWS["lungs_uncropped"])], slices, region)[0].reshape(256, 256)
    background = small[0, 0]
    torch.testing.assert_close(small[96:100, 96:160], background.expand(4, 64), atol=1e-6, rtol=0)
    assert (small - background).abs().max() > 0.01


def test_highpass_of_odd_slices_is_finite_and_flat_ones_are_zero():
    slices, no_lungs = odd_slices(), torch.zeros(5, 256, 256, dtype=torch.bool)
    outputs = [*HIGHPASS, *((window, 60, VIEWS["full"]) for window in (0, 15, 127, 255))]
    for output, found in zip(outputs, weight_free.highpass(outputs, slices, no_lungs), strict=True):
        assert found.isfinite().all()
        assert not found[:3].any(), output
    found = weight_free.highpass([(window, 64, VIEWS["full"]) for window in (0, 31)], slices, no_lungs)
    assert [vectors[3].norm().item() for vectors in found] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(("window", "side", "message"), [
    (30, 64, "window: got 30"), (-1, 64, "window: got -1"), (1, 64, "window: got 1,"), (257, 64, "window: got 257"),
    (31, 0, "side: got 0"), (31, 257, "side: got 257"),
])  # fmt: skip
def test_highpass_with_wrong_values(window, side, message):
    with pytest.raises(UsageError, match=message):
        weight_free.highpass([(window, side, VIEWS["full"])], some_slices(1), some_regions(1))


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


def test_mean_equals_scipy():
    expected = ndimage.uniform_filter(some_slices().numpy().astype(float), (0, 3, 3), mode="nearest")
    np.testing.assert_allclose(weight_free._mean3(some_slices()), expected, atol=1e-4)


def test_residual_equals_its_definitions():
    slices, masks = some_slices(), some_regions()
    views = [VIEWS["lungs"], VIEWS["outer"], VIEWS["full"]]
    for view, found in zip(views, weight_free.residual(views, slices, masks), strict=True):
        assert (found.shape, found.dtype) == ((3, 183), torch.float32)
        for row, region in enumerate(regions(masks.numpy(), view)):
            if region.any():  # the lungs of the first slice are all of it, so that nothing is outside
                expected = plain_residual(slices[row].numpy(), region)
                np.testing.assert_allclose(found[row], expected, atol=2e-3, rtol=1e-3)


def test_residual_of_odd_slices_is_finite_and_constant_ones_are_alike():
    slices = odd_slices()
    found = weight_free.residual([VIEWS["full"], VIEWS["outer"]], slices, torch.ones_like(slices, dtype=torch.bool))
    for vectors in found:
        assert vectors.isfinite().all()
        torch.testing.assert_close(vectors[0], vectors[2], atol=1e-4, rtol=0)


def all_features(slices, masks):
    """Computes all outputs of this file's functions, one after the other."""
    views = [VIEWS["full"], VIEWS["lungs"]]
    return [*weight_free.highpass(HIGHPASS, slices, masks), *weight_free.residual(views, slices, masks)]


def test_rows_do_not_depend_on_the_batch():
    slices, masks = some_slices(), some_regions()
    together = all_features(slices, masks)
    for row in range(3):
        alone = all_features(slices[row : row + 1], masks[row : row + 1])
        for of_batch, of_slice in zip(together, alone, strict=True):
            torch.testing.assert_close(of_slice[0], of_batch[row], atol=1e-5, rtol=1e-5)


def test_autocast_changes_nothing():
    slices, masks = some_slices(), some_regions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = all_features(slices, masks)
    assert all(map(torch.equal, inside, all_features(slices, masks)))


@pytest.mark.slow
def test_residual_separates_generators(shared):
    """Four generators, one of them unknown; the adjusted Rand index must be at least 0.97."""
    folder = shared / "challenge" / "attribution" / "test"
    with open(folder / "truth.csv", newline="") as file:
        truth = {row["image_id"]: row["generator"] for row in csv.DictReader(file)}
    pixels = np.stack([np.asarray(Image.open(folder / f"{name}.png").convert("L")) for name in truth])
    slices = torch.from_numpy(pixels)
    batches = [(part, torch.zeros_like(part, dtype=torch.bool)) for part in slices.split(16)]
    found = torch.cat([weight_free.residual([VIEWS["full"]], *batch)[0] for batch in batches])
    whitened = PCA(0.95, random_state=0).fit_transform(StandardScaler().fit_transform(found))
    for method in (AgglomerativeClustering(4), KMeans(4, n_init=10, random_state=0)):
        assert adjusted_rand_score(list(truth.values()), method.fit_predict(whitened)) >= 0.97
