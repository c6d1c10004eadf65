"""The phantom is reproducible and looks like a chest in the lung window; slices of one patient are similar."""

import numpy as np
import pytest
from scipy.interpolate import BSpline

from gansfp.errors import UsageError
from gansfp.images.lungs import threshold_mask
from gansfp.simulation.phantom import draw_patient, draw_slice, phantoms, spline_matrix


@pytest.fixture(scope="module")
def some() -> tuple[np.ndarray, np.ndarray]:
    return phantoms(24, 3, seed=11)


def test_shape_type_and_groups(some):
    slices, groups = some
    assert slices.shape == (72, 256, 256)
    assert slices.dtype == np.uint8
    assert groups[:4].tolist() == ["patient_0000"] * 3 + ["patient_0001"]
    assert len(np.unique(groups)) == 24


def test_a_seed_gives_the_same_slices_and_more_patients_change_nothing(some):
    assert np.array_equal(phantoms(3, 3, seed=11)[0], some[0][:9])
    assert not np.array_equal(phantoms(1, 3, seed=12)[0], some[0][:3])


def test_it_looks_like_a_chest_in_lung_window(some):
    slices, _ = some
    corner, middle = slices[:, :6, :6].mean(), slices[:, 110:140, 122:134]
    assert corner < 70  # air, or black outside the round field
    assert np.median(middle) > 200  # heart and vessels
    masks = np.stack([threshold_mask(picture) for picture in slices])
    with_lungs = masks.any(axis=(1, 2))
    assert with_lungs.mean() > 0.95
    areas = masks[with_lungs].mean(axis=(1, 2))
    assert areas.min() > 0.05
    assert areas.max() < 0.5
    left, right = masks[with_lungs][:, :, :128], masks[with_lungs][:, :, 128:]
    assert (left.any(axis=(1, 2)) & right.any(axis=(1, 2))).mean() > 0.95
    lungs = slices[masks]
    assert 60 < np.median(lungs) < 105
    assert (lungs > 150).mean() > 0.005  # vessels


def test_slices_of_one_patient_are_nearer_than_others_but_not_equal(some):
    slices, groups = some
    small = slices.reshape(72, 32, 8, 32, 8).mean((2, 4)).reshape(72, -1)
    distances = np.linalg.norm(small[:, None] - small[None], axis=2)
    same = groups[:, None] == groups[None]
    np.fill_diagonal(distances, np.nan)
    assert np.nanmax(distances[same]) < np.nanmedian(distances[~same])
    assert np.nanmin(distances) > 10
    nearest = np.nanargmin(distances, axis=1)
    assert (groups[nearest] == groups).mean() > 0.95


def test_every_slice_has_new_noise_and_the_same_anatomy():
    patient = draw_patient(np.random.default_rng(3))
    once, again = (draw_slice(patient, 0.5, np.random.default_rng(seed)).astype(float) for seed in (1, 2))
    assert 0.5 < np.abs(once - again).mean() < 12
    assert np.corrcoef(once.ravel(), again.ravel())[0, 1] > 0.98


def test_spline_matrix_is_a_cubic_b_spline():
    knots = 9
    at = np.linspace(1, knots - 2, 256)
    reference = np.zeros((256, knots))
    for column in range(knots):
        piece = BSpline.basis_element(np.arange(column - 2, column + 3), extrapolate=False)
        reference[:, column] = np.nan_to_num(piece(at))
    np.testing.assert_allclose(spline_matrix(knots), reference, atol=1e-6)


@pytest.mark.parametrize(("patients", "each"), [(0, 3), (3, 0), (-1, 2)])
def test_no_patients_or_slices_is_an_error(patients, each):
    with pytest.raises(UsageError, match="expected 1 or more"):
        phantoms(patients, each, seed=0)
