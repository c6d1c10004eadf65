"""Local binary patterns: codes compared with scikit-image, summaries compared with counts over regions."""

import platform

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.feature import local_binary_pattern

from gansfp.embedding import lbp
from gansfp.embedding.backbones import cpu_features
from gansfp.errors import UsageError
from gansfp.images.views import VIEWS, get_view, regions

RNG = np.random.default_rng(0)


def some_slice():
    noise = RNG.normal(size=(256, 256))
    return (ndimage.gaussian_filter(noise, 9) * 2500 + 120 + 20 * noise).clip(0, 255).astype(np.uint8)


def lungs():
    mask = np.zeros((256, 256), bool)
    mask[60:180, 40:110] = mask[70:170, 140:215] = True
    return mask


KINDS = {
    "slice": some_slice(),
    "two levels": RNG.integers(0, 2, (256, 256), dtype=np.uint8),  # many neighbours are equal
    "noise": RNG.integers(0, 256, (256, 256), dtype=np.uint8),
    "white": np.full((256, 256), 255, np.uint8),
    "black": np.zeros((256, 256), np.uint8),
    "ramp": np.arange(256, dtype=np.uint8)[:, None].repeat(256, 1),
    "not square": RNG.integers(0, 256, (50, 70), dtype=np.uint8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_codes_equal_scikit_image(kind):
    pixels = KINDS[kind]
    found = lbp.lbp_codes(pixels)
    different = found != local_binary_pattern(pixels, 8, 1, "uniform")
    # Other processors round a product and a sum once together, so the sign of equal neighbours may differ.
    assert not different.any() if platform.machine() == "x86_64" else different.mean() < 0.1
    assert found.dtype == np.uint8


def test_summaries_over_a_region():
    pixels, region = some_slice(), lungs()
    codes = local_binary_pattern(pixels, 8, 1, "uniform")[region]
    histogram = lbp.lbp(pixels, region)
    np.testing.assert_allclose(histogram, [(codes == k).mean() for k in range(10)], atol=1e-6)
    assert histogram.sum() == pytest.approx(1, abs=1e-6)
    mean = lbp.lbp(pixels, region, "mean")
    assert mean.shape == (1,)
    assert mean[0] == pytest.approx(codes.mean(), abs=1e-5)


def test_empty_regions_are_finite():
    for output in ("histogram", "mean"):
        assert not lbp.lbp(some_slice(), np.zeros((256, 256), bool), output).any()


def test_another_output_is_an_error():
    with pytest.raises(UsageError, match="got 'median'"):
        lbp.lbp(some_slice(), lungs(), "median")


def test_the_pairs_of_a_slice():
    pixels, mask = some_slice(), lungs()
    pairs = [("lbp", "full"), ("lbp", "lungs"), ("lbp-mean", "outer"), ("highpass", "full"), ("resnet50", "outer")]
    found = cpu_features(pairs, pixels, mask)
    assert list(found) == pairs[:3]
    np.testing.assert_array_equal(found["lbp", "full"], lbp.lbp(pixels, np.ones((256, 256), bool)))
    np.testing.assert_array_equal(found["lbp", "lungs"], lbp.lbp(pixels, mask))
    np.testing.assert_array_equal(found["lbp-mean", "outer"], lbp.lbp(pixels, ~mask, "mean"))
    assert cpu_features(pairs[3:], pixels, mask) == {}


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_they_use_the_regions_that_the_device_uses(view):
    masks = np.stack([lungs(), np.zeros((256, 256), bool), np.ones((256, 256), bool)])
    on_device = regions(torch.from_numpy(masks), get_view(view)).numpy()
    np.testing.assert_array_equal(regions(masks, get_view(view)), on_device)
    for mask, region in zip(masks, on_device, strict=True):
        pixels = some_slice()
        found = cpu_features([("lbp", view)], pixels, mask)["lbp", view]
        np.testing.assert_array_equal(found, lbp.lbp(pixels, region))
