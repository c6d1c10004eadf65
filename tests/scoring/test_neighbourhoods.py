"""scoring.neighbourhoods: slices that are alike are neighbours in the picture, and the picture is always the same."""

import numpy as np
import pytest

from gansfp.scoring import neighbourhoods
from gansfp.scoring.neighbourhoods import places_in_a_plane


@pytest.fixture
def heaps():
    """Three heaps of 40 slices, and the heap of each slice."""
    rng = np.random.default_rng(0)
    middles = 8 * rng.normal(size=(3, 50))
    of = np.repeat(np.arange(3), 40)
    return (middles[of] + rng.normal(size=(120, 50))).astype(np.float32), of


def share_of_neighbours(places, of):
    """The share of slices whose nearest neighbour in the plane is of the same heap."""
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((of[distances.argmin(1)] == of).mean())


def test_slices_of_a_heap_are_neighbours(heaps):
    x, of = heaps
    places = places_in_a_plane(x)
    assert (places.shape, places.dtype) == ((120, 2), np.float32)
    assert share_of_neighbours(places, of) == 1
    np.testing.assert_array_equal(places, places_in_a_plane(x))


def test_of_many_slices_a_part_is_placed_and_the_others_join_it(heaps, monkeypatch):
    x, of = heaps
    monkeypatch.setattr(neighbourhoods, "MOST", 60)
    places = places_in_a_plane(x)
    assert len(np.unique(places, axis=0)) <= 60
    for heap in range(3):
        inside, outside = places[of == heap], places[of != heap]
        farthest = np.linalg.norm(inside[:, None] - inside[None], axis=2).max()
        assert np.linalg.norm(inside[:, None] - outside[None], axis=2).min() > 0.1 * farthest


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_few_slices_have_places(n, d):
    places = places_in_a_plane(np.random.default_rng(0).normal(size=(n, d)).astype(np.float32))
    assert places.shape == (n, 2)
    assert np.isfinite(places).all()


def test_slices_that_are_all_alike_have_places():
    assert np.isfinite(places_in_a_plane(np.ones((20, 8), np.float32))).all()
