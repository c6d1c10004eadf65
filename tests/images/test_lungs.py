"""Lung masks against drawn chests and against radiologists; their parts against scipy and scikit-image."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from gansfp.errors import UsageError
from gansfp.images import lungs

ROW, COLUMN = np.mgrid[:256, :256].astype(float)


def ellipse(row, column, height, width):
    return ((ROW - row) / height) ** 2 + ((COLUMN - column) / width) ** 2 <= 1


def chest(air=60, lung=90, tissue=220):
    """A body with two lungs, a vessel in one of them, a trachea, and a table below: its pixels and its lungs."""
    pixels = np.full((256, 256), air, dtype=np.uint8)
    pixels[ellipse(120, 128, 80, 110)] = tissue
    drawn = ellipse(115, 80, 50, 35) | ellipse(115, 176, 50, 35)
    pixels[drawn] = lung
    pixels[ellipse(110, 75, 5, 5)] = tissue
    pixels[ellipse(100, 128, 7, 7)] = air
    pixels[(abs(ROW - 225) < 3) & (abs(COLUMN - 128) < 110)] = tissue
    return pixels, drawn


def test_finds_the_drawn_lungs_and_nothing_else():
    pixels, drawn = chest()
    mask = lungs.threshold_mask(pixels)
    assert mask.shape == (256, 256)
    assert mask.dtype == bool
    assert lungs.dice(mask, drawn) > 0.99
    assert mask[110, 75], "the vessel is filled"
    assert not mask[100, 128], "the trachea is not lung"


@pytest.mark.parametrize(
    ("air", "lung", "tissue"), [(0, 40, 255), (60, 90, 220), (100, 115, 180), (0, 0, 120), (5, 5, 7)]
)
def test_follows_the_grey_level_window(air, lung, tissue):
    pixels, drawn = chest(air, lung, tissue)
    assert lungs.dice(lungs.threshold_mask(pixels), drawn) > 0.98


@pytest.mark.parametrize("blurred", [False, True])
def test_seals_a_gap_in_the_chest_wall(blurred):
    pixels, drawn = chest()
    pixels[:100, 78:82] = 90
    if blurred:
        pixels = ndimage.gaussian_filter(pixels, 3.0)
    assert lungs.dice(lungs.threshold_mask(pixels), drawn) > 0.93


def test_air_between_body_and_table_is_not_lung():
    pixels = np.full((256, 256), 60, dtype=np.uint8)
    pixels[ellipse(90, 128, 60, 110)] = 220
    pixels[(abs(ROW - 175) < 3) & (abs(COLUMN - 128) < 110)] = 220
    pixels[(ROW > 140) & (ROW < 178) & (abs(abs(COLUMN - 128) - 108) < 3)] = 220
    assert not lungs.threshold_mask(pixels)[150:172].any()


def test_a_liver_dome_within_a_lung_stays_out():
    pixels, drawn = chest()
    pixels[ellipse(125, 176, 18, 18)] = 220
    mask = lungs.threshold_mask(pixels)
    assert not mask[125, 176]
    assert lungs.dice(mask, drawn & ~ellipse(125, 176, 18, 18)) > 0.98


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((256, 256), np.uint8),
        np.full((256, 256), 255, np.uint8),
        np.full((256, 256), 77, np.uint8),
        np.where(ellipse(128, 128, 90, 110), 220, 0).astype(np.uint8),
    ],
    ids=["black", "white", "constant", "body without lungs"],
)
def test_no_lungs_is_an_empty_mask(pixels):
    assert not lungs.threshold_mask(pixels).any()


def test_noise_gives_a_mask_without_error():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    assert lungs.threshold_mask(noise).shape == (256, 256)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_equals_scikit_image(seed):
    rng = np.random.default_rng(seed)
    pixels = np.concatenate([rng.normal(60, 12, 900), rng.normal(rng.integers(120, 220), 20, 700)]).clip(0, 255)
    pixels = pixels.astype(np.uint8)
    assert lungs._otsu(np.bincount(pixels, minlength=256)) == threshold_otsu(pixels)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 6])
def test_morphology_equals_scipy(radius):
    mask = np.random.default_rng(radius).random((64, 64)) < 0.02
    expected = mask
    for step in range(radius):
        element = ndimage.generate_binary_structure(2, 2 if step % 2 else 1)
        expected = ndimage.binary_dilation(expected, element)
    assert np.array_equal(lungs._dilate(mask, radius), expected)
    assert np.array_equal(lungs._erode(~mask, radius), ~expected)


def test_fill_takes_small_holes_only():
    mask = np.zeros((128, 128), dtype=bool)
    mask[20:60, 20:90] = True
    mask[25:30, 25:30] = False  # 25 pixels
    mask[35:55, 40:60] = False  # 400 pixels
    expected = mask.copy()
    expected[25:30, 25:30] = True
    assert np.array_equal(lungs._fill(mask), expected)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.7])
def test_fill_equals_a_look_at_every_component(share):
    mask = ndimage.uniform_filter(np.random.default_rng(7).random((128, 128)), 5) < 0.5
    mask &= np.random.default_rng(8).random(mask.shape) > share * 0.1
    mask[:, : int(40 * share)] = False  # a bounding box that is not the slice
    expected, (labels, count) = mask.copy(), ndimage.label(~mask)
    for k in range(1, count + 1):
        rows, columns = np.nonzero(labels == k)
        inner = min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 127
        expected |= (labels == k) & (inner and rows.size <= lungs.LARGEST_HOLE)
    assert (expected != mask).any()
    np.testing.assert_array_equal(lungs._fill(mask), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1001])
def test_the_middle_is_the_median(size):
    rng = np.random.default_rng(size)
    for levels in (2, 256):
        values = rng.integers(0, levels, size, dtype=np.uint8)
        assert lungs._middle(values) == np.median(values)


def test_directions_with_tissue_by_hand():
    tissue = np.random.default_rng(1).random((12, 9)) < 0.1
    expected = [
        [
            int(tissue[: r + 1, c].any()) + int(tissue[r:, c].any())
            + int(tissue[r, : c + 1].any()) + int(tissue[r, c:].any())
            for c in range(9)
        ]
        for r in range(12)
    ]  # fmt: skip
    assert np.array_equal(lungs._directions_with_tissue(tissue), expected)


def test_dice_by_hand():
    a = np.array([[True, True, False, False]])
    b = np.array([[False, True, True, True]])
    assert lungs.dice(a, b) == pytest.approx(2 * 1 / (2 + 3))
    assert lungs.dice(a, a) == 1.0
    assert lungs.dice(a, ~a) == 0.0
    assert lungs.dice(a & ~a, a & ~a) == 1.0


def test_masks_by_name():
    assert lungs.get_mask("threshold") is lungs.threshold_mask
    assert not lungs.is_network("threshold")
    for name in ("lungmask", "unet:work/models/unet", "unet:s3://bucket/unet"):
        assert lungs.is_network(name)
        lungs.check_mask(name)
        with pytest.raises(UsageError, match=r"which a network computes, expected one of \['threshold'\]"):
            lungs.get_mask(name)


@pytest.mark.parametrize("name", ["unet9", "unet", "unet:", "lungmask:", "lungmask:x", "Threshold", ""])
def test_unknown_masks(name):
    for function in (lungs.check_mask, lungs.get_mask):
        with pytest.raises(
            UsageError, match=rf"got '{name}', expected one of \['lungmask', 'threshold', 'unet:FOLDER'\]"
        ):
            function(name)


def test_agrees_with_radiologists(shared):
    """All 278 slices have lungs, of at least 328 pixels, so that the mean includes every slice."""
    scores: dict[str, list[float]] = {}
    for path in sorted((shared / "lung_masks" / "images").glob("*.png")):
        drawn = np.asarray(Image.open(shared / "lung_masks" / "masks" / path.name).convert("L")) > 0
        mask = lungs.threshold_mask(np.asarray(Image.open(path).convert("L")))
        scores.setdefault(path.name.partition("_z")[0], []).append(lungs.dice(mask, drawn))
    means = {volume: float(np.mean(values)) for volume, values in scores.items()}
    everything = np.concatenate(list(scores.values()))
    print(f"mean Dice {everything.mean():.4f} on {everything.size} slices; by volume {means}")
    assert everything.mean() >= 0.96
    assert min(means.values()) >= 0.93
