"""decision.power: scores as plain loops give them, a curve as a grid finds it, leaks that are easy or impossible."""

import json

import numpy as np
import pytest
from scipy.special import expit

from gansfp.decision import power
from gansfp.decision.controls import ConditionalTest
from gansfp.decision.decide import FinalConfig
from gansfp.decision.planted import Planted, Space, read_planted, write_planted
from gansfp.decision.power import Layout, Power, is_found, measure_power

PATIENTS, EACH = 24, 3
CONFIG = FinalConfig()


def layout(own: float, copies: float = 2.0) -> Layout:
    """Patients whose slices lie about 1 from generated slices, more from others' copies, and `own` from their own."""
    rng, n = np.random.default_rng(0), PATIENTS * EACH
    patients = np.repeat([f"p{number:02d}" for number in range(PATIENTS)], EACH)
    spaces = []
    for number in range(3):
        near = np.sort(rng.normal(1, 0.1, (n, 5)).astype(np.float32), axis=1)
        to_copies = rng.normal(1.5, 0.1, (n, n)).astype(np.float32)
        np.fill_diagonal(to_copies, own)
        spaces.append(Space(f"space {number}", number == 0, near, near + 0.1, to_copies))
    rows = np.arange(n)
    labels = np.repeat([1, 0], 30)
    test = ConditionalTest(labels, np.zeros(60), np.zeros(60))
    return Layout(
        Planted(rows, np.roll(rows, EACH), spaces, 0.5), patients, np.roll(patients, EACH), (20, 20), test, copies
    )


@pytest.mark.parametrize("logarithm", [True, False])
def test_scores_are_those_of_plain_loops(logarithm):
    rng = np.random.default_rng(1)
    near, real = (np.sort(rng.random((6, 5)).astype(np.float32), axis=1) for _ in range(2))
    to_copies, seen = rng.random((6, 7)).astype(np.float32), rng.random((6, 7)) < 0.4
    found = power._scores(Space("s", logarithm, near, real, to_copies), seen)
    for row in range(6):
        distances = sorted([*near[row].tolist(), *to_copies[row][seen[row]].tolist()])
        for number, m in enumerate((1, 5)):
            generated, reference = np.mean(distances[:m]), np.mean(real[row][:m].tolist())
            if logarithm:
                generated, reference = np.log(generated), np.log(reference)
            assert found[2 * number, row] == pytest.approx(-generated, abs=1e-6)
            assert found[2 * number + 1, row] == pytest.approx(reference - generated, abs=1e-6)


def test_a_slice_that_was_not_used_is_compared_with_no_copy_of_its_patient():
    of = layout(0.1)
    for row in range(len(of.patients)):
        for copy in range(len(of.patients)):
            has_none = of.patients[row] not in (of.patients[copy], of.partners[copy])
            assert of.of_others[row, copy] == has_none


def test_the_curve_is_the_most_likely_one_of_a_grid():
    rng = np.random.default_rng(2)
    sizes = np.geomspace(0.01, 1, 120)
    found = rng.random(120) < expit(4 * np.log(sizes / 0.1))
    start, steepness = power._curve(sizes, found)

    def loss(middle, steep):
        chance = expit(steep * (np.log(sizes) - middle))
        prior = ((np.log(steep) - np.log(power.STEEP)) / power.SPREAD) ** 2 / 2
        return -np.log(np.where(found, chance, 1 - chance)).sum() + prior

    grid = [(loss(m, s), m, s) for m in np.linspace(-4, -0.5, 141) for s in np.linspace(1, 9, 161)]
    _, middle, steep = min(grid)
    assert (-start / steepness, steepness) == pytest.approx((middle, steep), abs=0.06)
    assert np.exp(power._size(start, steepness, 0.5)) == pytest.approx(0.1, rel=0.25)


@pytest.mark.parametrize("found", [True, False])
def test_the_curve_exists_where_all_audits_end_alike(found):
    start, steepness = power._curve(np.geomspace(0.01, 1, 20), np.full(20, found))
    assert np.isfinite([start, steepness]).all()
    assert (power._size(start, steepness, 0.8) < 0) == found


@pytest.fixture(scope="module")
def near():
    return measure_power(layout(0.2), CONFIG)


def test_near_copies_are_found_and_far_ones_are_not(near):
    far = measure_power(layout(1.5), CONFIG)
    assert near.smallest is not None
    assert 0.02 < near.smallest < 0.5
    assert near.of_matters > 0.3
    assert (far.smallest, far.of_matters < 0.1) == (None, True)
    assert "not even a generator whose slices are all copies" in str(far)
    json.dumps([near.as_dict(), far.as_dict()], allow_nan=False)
    sizes, shares = np.array(near.curve).T
    assert np.interp(np.log(near.smallest), np.log(sizes), shares) == pytest.approx(0.8, abs=0.02)
    assert (np.diff(sizes) > 0).all()


def test_the_size_that_is_printed_is_found_as_often_as_it_says(near):
    of, sizes = layout(0.2), [near.smallest * times for times in (0.5, 1, 2)]
    half, once, twice = (np.mean([is_found(of, size, CONFIG, 500 + k) for k in range(40)]) for size in sizes)
    assert half < 0.6
    assert 0.65 < once < 0.95
    assert twice > 0.9


def test_a_seed_gives_the_same_and_more_copies_make_a_leak_easier_to_see(near):
    assert is_found(layout(0.2), 0.1, CONFIG, 7) == is_found(layout(0.2), 0.1, CONFIG, 7)
    many = measure_power(layout(0.2, 8.0), CONFIG)
    assert many.smallest == pytest.approx(near.smallest / 4, rel=0.3)
    assert measure_power(layout(0.2, 8.0), CONFIG) == many


def test_words():
    assert str(Power(0.0312, 0.9, 0.5, 112)) == (
        "a leak in which one synthetic slice in 32 is a copy, deformed and blended to 50% with another patient's "
        "slice, would have been found with 80%"
    )
    assert "every synthetic slice is a copy" in str(Power(0.9, 0.1, 0.5, 112))


def test_planted_copies_are_written_and_read(tmp_path):
    planted = {"a": layout(0.2).planted, "b": layout(0.4).planted}
    (tmp_path / "x").mkdir()
    assert read_planted(str(tmp_path / "x")) is None
    write_planted(str(tmp_path / "x"), planted, "digest")
    assert read_planted(str(tmp_path / "x"), "another") is None
    found = read_planted(str(tmp_path / "x"), "digest")
    assert list(found) == ["a", "b"]
    for name, of_set in planted.items():
        assert np.array_equal(found[name].rows, of_set.rows)
        assert np.array_equal(found[name].partners, of_set.partners)
        assert found[name].blend == of_set.blend
        for space, expected in zip(found[name].spaces, of_set.spaces, strict=True):
            assert (space.name, space.logarithm) == (expected.name, expected.logarithm)
            for part in ("near_generated", "near_real", "to_copies"):
                assert np.array_equal(getattr(space, part), getattr(expected, part))


def test_no_set_with_copies_is_a_file_without_rows(tmp_path):
    write_planted(str(tmp_path), {}, "digest")
    assert read_planted(str(tmp_path), "digest") == {}
