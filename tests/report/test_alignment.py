"""report.alignment: known deformations are undone, unrelated slices differ, and each step beside a plain reference."""

import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, optimize

from gansfp.report import alignment
from gansfp.report.alignment import align, body_mask, descend, fit_affine, local_correlation
from gansfp.simulation.generators import blended_copy
from gansfp.simulation.phantom import phantoms

IDENTITY = np.eye(2, 3)


@pytest.fixture(scope="module")
def pixels():
    return phantoms(4, 1, 0)[0]


def chest(rng, side=256):
    """A smooth picture like a chest: a bright body, two dark lungs, bright blobs everywhere in it. (side, side)."""
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = 1 / (1 + np.exp(20 * (np.hypot(rows / 0.6, columns / 0.8) - 1)))
    lungs = sum(1 / (1 + np.exp(20 * (np.hypot(rows / 0.4, (columns - at) / 0.25) - 1))) for at in (-0.35, 0.35))
    picture = 40 + 150 * body - 110 * lungs
    for _ in range(150):
        row, column, width = rng.uniform(-0.6, 0.6), rng.uniform(-0.8, 0.8), rng.uniform(0.015, 0.04)
        picture += 60 * body * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    return np.clip(picture, 0, 255)


def moved_by(picture, affine, bend=0.0):
    """The picture so moved that `affine` lays it back, and bent by waves of so many pixels: uint8."""
    linear, shift = affine[:, :2], affine[:, 2]
    rows, columns = np.indices(picture.shape)
    waves = bend * np.stack([np.sin(columns / 25), np.cos(rows / 30)])
    points = np.tensordot(np.linalg.inv(linear), np.stack([rows, columns]) - shift[:, None, None], 1) + waves
    return np.rint(ndimage.map_coordinates(picture, points, order=1, mode="nearest")).astype(np.uint8)


def turned(degrees, stretch, shift, side=256):
    """An affine map (2, 3) around the middle of a picture."""
    angle, middle = math.radians(degrees), (side - 1) / 2
    linear = stretch * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.column_stack([linear, np.array(shift) + middle - linear @ (middle, middle)])


@pytest.mark.parametrize(
    "affine", [turned(0, 1, (7, -12)), turned(6, 0.9, (-5, 4)), turned(-4, 1.1, (3, 15)), turned(0, 1, (-40, 0))]
)
def test_an_affine_map_is_found(affine):
    picture = chest(np.random.default_rng(1))
    aligned = align(np.rint(picture).astype(np.uint8), moved_by(picture, affine))
    corners = np.array([[0, 0, 1], [0, 255, 1], [255, 0, 1], [255, 255, 1]]).T
    assert np.abs((aligned.affine - affine) @ corners).max() < 0.5
    assert aligned.agreement > 0.97


@pytest.mark.parametrize("bend", [1.5, 4.0])
def test_a_deformation_and_another_brightness_are_undone(bend):
    real = chest(np.random.default_rng(2))
    synthetic = moved_by(0.8 * real + 20, turned(3, 0.95, (4, -6)), bend)
    real = np.rint(real).astype(np.uint8)
    aligned, body = align(real, synthetic), body_mask(real)
    before = np.abs(synthetic - real.astype(float))[body].mean()
    assert np.abs(aligned.difference[body]).mean() < before / 5
    assert aligned.agreement > 0.9
    assert bend / 2 < aligned.largest_shift <= alignment.LARGEST_SHIFT
    assert not aligned.agrees[~body].any()
    assert aligned.agreement == pytest.approx(aligned.agrees.sum() / body.sum())
    assert np.array_equal(aligned.difference, aligned.moved - real)
    assert aligned.moved.dtype == aligned.difference.dtype == np.float32


def test_copies_agree_and_other_patients_do_not(pixels):
    rng = np.random.default_rng(0)
    copies = [blended_copy(a, b, 0.1, 3.0, rng) for a, b in zip(pixels, pixels[::-1], strict=True)]
    of_copies = [align(real, copy).agreement for real, copy in zip(pixels, copies, strict=True)]
    of_others = [align(real, other).agreement for real, other in zip(pixels, np.roll(copies, 1, axis=0), strict=True)]
    assert min(of_copies) > max(of_others) + 0.1, (of_copies, of_others)
    assert np.mean(of_copies) > np.mean(of_others) + 0.25


def test_copies_of_real_slices_agree_and_other_patients_do_not(shared):
    paths = sorted((shared / "challenge/membership/warp/train/used").glob("*.png"))[:5]
    reals = [np.asarray(Image.open(path)) for path in paths]
    rng = np.random.default_rng(0)
    copies = [blended_copy(real, other, 0.1, 3.0, rng) for real, other in zip(reals, reals[::-1], strict=True)]
    of_copies = [align(real, copy).agreement for real, copy in zip(reals, copies, strict=True)]
    of_others = [align(real, copy).agreement for real, copy in zip(reals, copies[1:] + copies[:1], strict=True)]
    assert min(of_copies) > 0.7
    assert max(of_others) < 0.6


def test_a_slice_agrees_with_itself(pixels):
    aligned = align(pixels[0], pixels[0])
    assert aligned.agreement == 1
    assert np.abs(aligned.difference).max() < 1e-3
    assert np.abs(aligned.affine - IDENTITY).max() < 1e-6


def test_the_affine_fit_beside_a_general_minimiser():
    rng = np.random.default_rng(3)
    picture = ndimage.gaussian_filter(rng.uniform(0, 255, (32, 32)), 3.0).astype(np.float32)
    picture = 255 * (picture - picture.min()) / np.ptp(picture)
    synthetic = moved_by(0.9 * picture + 5, turned(4, 1.05, (1.2, -0.7), 32)).astype(np.float32)
    inside = np.zeros((32, 32), dtype=bool)
    inside[5:-5, 4:-6] = True

    def squares(p):
        at = (np.argwhere(inside) - 15.5) / 16
        places = np.column_stack([at @ p[0:2] + p[2], at @ p[3:5] + p[5]]) * 16 + 15.5
        values = ndimage.map_coordinates(synthetic, places.T, order=1, mode="nearest")
        return np.sum((p[6] * values + p[7] - picture[inside]) ** 2)

    start = np.array([1.0, 0, 0, 0, 1, 0, 1, 0])
    # Scaled so that a step in any direction changes the picture about as much.
    scale = np.array([1, 1, 1, 1, 1, 1, 1, 100.0])
    found = optimize.minimize(lambda q: squares(q * scale), start / scale, method="Powell")
    fitted, error = descend(picture, synthetic, inside, start)
    assert error == pytest.approx(squares(fitted), rel=1e-4)
    assert error < squares(start) / 100
    assert error < 1.005 * found.fun
    assert np.abs((fitted - found.x * scale)[:6]).max() * 16 < 0.02  # pixels


def test_the_affine_fit_gives_pixels_of_the_full_size():
    picture, affine = chest(np.random.default_rng(4), 128), turned(2, 1.03, (5, -3), 128)
    fitted = fit_affine(picture.astype(np.float32), moved_by(picture, affine).astype(np.float32), picture > 0)
    np.testing.assert_allclose(fitted @ (63.5, 63.5, 1), affine @ (63.5, 63.5, 1), atol=0.1)
    np.testing.assert_allclose(fitted[:, :2], affine[:, :2], atol=0.003)


def test_local_correlation_beside_loops():
    rng = np.random.default_rng(5)
    a, b = (ndimage.gaussian_filter(rng.uniform(0, 255, (24, 31)), 1.0) for _ in range(2))
    a[:, 20:] = 7.0
    b[:, :20] += 0.5 * a[:, :20]
    correlation, deviations = local_correlation(a, b)
    half = alignment.WINDOW // 2
    wide_a, wide_b = (np.pad(x, half, mode="symmetric") for x in (a, b))
    for row in range(a.shape[0]):
        for column in range(a.shape[1]):
            window = np.s_[row : row + alignment.WINDOW, column : column + alignment.WINDOW]
            x, y = wide_a[window].ravel(), wide_b[window].ravel()
            expected = np.corrcoef(x, y)[0, 1] if np.ptp(x) > 0 else 0.0
            assert correlation[row, column] == pytest.approx(expected, abs=1e-6)
            assert deviations[row, column] == pytest.approx(max(x.std(), y.std()), abs=1e-6)


def test_flat_places_agree_if_their_grey_levels_are_near():
    rng = np.random.default_rng(6)
    real, moved = (100 + rng.standard_normal((2, 60, 60))).astype(np.float32)
    moved[:, 30:] += 12
    agrees = alignment.agreeing(real, moved)
    assert agrees[:, :20].all()
    assert not agrees[:, 40:].any()


def test_the_body_has_lungs_and_no_table(pixels):
    for picture in pixels:
        body = body_mask(picture)
        assert ndimage.label(body)[1] == 1
        assert np.array_equal(ndimage.binary_fill_holes(body), body)
        assert 0.25 < body.mean() < 0.9
    rows, columns = np.mgrid[:256, :256]
    drawn = np.where(np.hypot(rows - 120, columns - 128) < 80, 200, 20).astype(np.uint8)
    body = drawn > 100
    drawn[100:140, 90:120] = 30  # a lung
    drawn[220:222] = 200  # a table
    assert np.count_nonzero(body_mask(drawn) ^ body) < 100


def odd_pictures():
    rng = np.random.default_rng(7)
    dot = np.zeros((256, 256), np.uint8)
    dot[100, 100] = 255
    half = np.zeros((256, 256), np.uint8)
    half[:, 128:] = 200
    return {
        "black": np.zeros((256, 256), np.uint8),
        "grey": np.full((256, 256), 90, np.uint8),
        "white": np.full((256, 256), 255, np.uint8),
        "dot": dot,
        "half": half,
        "stripes": np.tile(np.uint8([0, 255]), (256, 128)),
        "noise": rng.integers(0, 256, (256, 256), dtype=np.uint8),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", odd_pictures())
def test_odd_pictures_are_compared_too(name, pixels):
    odd = odd_pictures()[name]
    for pair in ((odd, pixels[0]), (pixels[0], odd), (odd, odd_pictures()["noise"]), (odd, odd)):
        aligned = align(*pair)
        assert np.isfinite(aligned.moved).all()
        assert np.isfinite(aligned.affine).all()
        assert 0 <= aligned.agreement <= 1
        assert 0 <= aligned.largest_shift <= alignment.LARGEST_SHIFT
    assert aligned.agreement == 1


def test_a_fit_beyond_the_bounds_is_not_used():
    picture = chest(np.random.default_rng(8))
    real = np.rint(picture).astype(np.uint8)
    assert np.abs(align(real, moved_by(picture, turned(0, 0.75, (0, 0)))).affine[:, :2] - 0.75 * np.eye(2)).max() < 0.02
    for beyond in (turned(0, 0.6, (0, 0)), turned(0, 0.6, (0, 0)) * [[1], [-1]] + [[0, 0, 0], [0, 0, 255]]):
        assert np.array_equal(align(real, moved_by(picture, beyond)).affine, IDENTITY)


def test_the_same_slices_give_the_same_bits(pixels):
    first, second = (align(pixels[1], pixels[2]) for _ in range(2))
    for name in ("moved", "difference", "agrees", "affine"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert (first.agreement, first.largest_shift) == (second.agreement, second.largest_shift)
