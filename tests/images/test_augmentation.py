"""Augmentation against plain references: the distribution of changes, single changes, and no use of global state."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from gansfp.errors import UsageError
from gansfp.images.augmentation import AUGMENTATIONS, Augmentation, Change, get_augmentation

IDENTITY = {"flip": False, "zoom": 1.0, "angle": 0.0, "down": 0.0, "right": 0.0}


@pytest.fixture(scope="module")
def picture():
    """(64, 64) uint8, smooth, dark at its border."""
    rows, columns = np.mgrid[:64, :64] - 31.5
    waves = 120 + 60 * np.sin(rows / 6) * np.cos(columns / 4 + 1)
    return (waves * np.exp(-(rows**2 + columns**2) / 300)).round().astype(np.uint8)


def make_change(**fields):
    return Change(**IDENTITY | fields)


def test_what_is_drawn_is_as_published():
    changes = [AUGMENTATIONS["kde-lab-2024"].draw(0, 1, index) for index in range(4000)]
    for name, low, high in (("zoom", 0.97, 1.03), ("angle", -10, 10), ("down", -0.05, 0.05), ("right", -0.05, 0.05)):
        values = np.array([getattr(change, name) for change in changes])
        assert low <= values.min() < values.max() <= high
        # Uniform: the quartiles divide the range into equal parts.
        np.testing.assert_allclose(
            np.quantile(values, [0.25, 0.5, 0.75]), np.linspace(low, high, 5)[1:4], atol=0.03 * (high - low)
        )
    assert 0.45 < np.mean([change.flip for change in changes]) < 0.55


def test_depends_only_on_its_numbers(picture):
    augmentation = Augmentation()
    torch.manual_seed(1)
    first = augmentation.draw(3, 2, 7)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert augmentation.draw(3, 2, 7) == first
    assert len({augmentation.draw(*numbers) for numbers in ((3, 2, 7), (3, 2, 8), (3, 3, 7), (4, 2, 7))}) == 4
    torch.set_rng_state(state)
    np.testing.assert_array_equal(first.apply(picture), first.apply(picture))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_identity_changes_nothing(picture):
    np.testing.assert_array_equal(make_change().apply(picture), picture)


def test_flip_and_shift_equal_numpys(picture):
    np.testing.assert_array_equal(make_change(flip=True).apply(picture), picture[:, ::-1])
    moved = make_change(down=3 / 64, right=-2 / 64).apply(picture)
    expected = np.zeros_like(picture)
    expected[3:, :-2] = picture[:-3, 2:]
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("fields", [{"angle": 10.0}, {"angle": -4.0, "zoom": 1.03}, {"zoom": 0.97, "right": 0.05}])
def test_equals_scipys_affine_transform(picture, fields):
    change = make_change(**fields)
    angle = np.deg2rad(change.angle)
    turn = np.array(
        [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    )  # clockwise, because rows count downwards
    matrix = np.linalg.inv(change.zoom * turn)
    centre = np.array([31.5, 31.5])
    offset = centre - matrix @ (centre + 64 * np.array([change.down, change.right]))
    expected = ndimage.affine_transform(picture.astype(float), matrix, offset, order=1)
    inner = np.s_[8:-8, 8:-8]  # without the border, where each library blends in pixels from outside in its own way
    assert np.abs(change.apply(picture) - expected)[inner].max() < 0.51


def test_a_mask_moves_with_its_picture(picture):
    change = Augmentation().draw(0, 1, 2)
    mask = picture > 60
    moved = change.apply(mask)
    assert moved.dtype == bool
    both, either = (moved & (change.apply(picture) > 60)).sum(), (moved | (change.apply(picture) > 60)).sum()
    assert both / either > 0.93


def test_names():
    assert get_augmentation("") is None
    assert get_augmentation("kde-lab-2024") == Augmentation(flip=True, zoom=0.03, rotation=10, shift=0.05)
    with pytest.raises(UsageError, match="got 'kde', expected one of"):
        get_augmentation("kde")
