"""gansfp.embedding.measures against plain loops over pixels, and what each measurement must show."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import Embedder
from gansfp.embedding.measures import MEASURES, measures
from gansfp.simulation.phantom import phantoms

NAMES = [measure.name for measure in MEASURES]


@pytest.fixture(scope="module")
def slices():
    return phantoms(6, 1, 0)[0]


def measured(pixels):
    return measures(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()


def plain(picture):
    """All measurements of one slice, by loops or numpy's own functions."""
    grey = picture.astype(np.float64)
    filtered = ndimage.convolve(grey, np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]), mode="constant")
    values = [
        abs(filtered[row, column])
        for row in range(1, 255, 2)
        for column in range(1, 255, 2)
        if 0 < picture[row, column] < 255
    ]
    values.sort()
    noise = values[(len(values) - 1) // 2] / (6 * 0.6745) if values else 0.0  # torch takes the lower median
    near = [abs(grey[row, column + 1] - grey[row, column]) for row in range(256) for column in range(255)]
    apart = np.abs(grey[:, 2:] - grey[:, :-2]).mean()
    borders = np.mean([np.abs(grey[:, column + 1] - grey[:, column]).mean() for column in range(7, 255, 8)])
    weight = grey.sum() + 256e-3
    places = np.arange(256)
    result = [noise, np.mean(near) / max(apart, 1e-3), grey.mean(), grey.std()]
    result += [(picture == 0).mean(), (picture == 255).mean(), len(np.unique(picture))]
    centres, spreads = [], []
    for axis in (1, 0):
        shares = (grey.sum(axis) + 1e-3) / weight
        centre = sum(share * place for share, place in zip(shares, places, strict=True))
        centres.append(centre)
        spreads.append(np.sqrt(sum(s * (p - centre) ** 2 for s, p in zip(shares, places, strict=True))))
    return [*result, *centres, *spreads, borders / max(np.mean(near), 1e-3)]


def test_measures_equal_plain_loops(slices):
    noisy = np.clip(slices[:2] + np.random.default_rng(0).normal(0, 4, (2, 256, 256)), 0, 255).astype(np.uint8)
    flat = np.zeros((1, 256, 256), np.uint8)
    pixels = np.concatenate([slices[:2], noisy, flat])
    np.testing.assert_allclose(measured(pixels), [plain(picture) for picture in pixels], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_flat_slice_has_finite_measures(level):
    assert np.isfinite(measured(np.full((1, 256, 256), level, np.uint8))).all()


def jpeg(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


CHANGES = {
    "noise": lambda picture: np.clip(picture + np.random.default_rng(1).normal(0, 5, picture.shape), 0, 255),
    "mean grey level": lambda picture: np.clip(picture.astype(int) + 10, 0, 255),
    "contrast": lambda picture: np.clip(1.2 * (picture.astype(int) - 128) + 128, 0, 255),
    "centre of the body, down": lambda picture: np.roll(picture, 8, 0),
    "centre of the body, across": lambda picture: np.roll(picture, 8, 1),
    "edges of 8x8 blocks": jpeg,
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_measure_rises_with_what_it_is_named_after(slices, name):
    changed = np.stack([CHANGES[name](picture).astype(np.uint8) for picture in slices])
    column = NAMES.index(name)
    assert (measured(changed)[:, column] > measured(slices)[:, column]).all()


def test_measures_are_a_backbone_without_weights(slices):
    assert not parse_backbone("measures").needs_weights
    found = Embedder([("measures", "full")], {})(slices, np.zeros(slices.shape, bool))
    np.testing.assert_array_equal(found["measures", "full"], measured(slices))
