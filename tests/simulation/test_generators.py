"""The generators are reproducible and varied, leave torch's state unchanged, and leak as documented."""

import numpy as np
import pytest
import torch

from gansfp.errors import UsageError
from gansfp.simulation import generators
from gansfp.simulation.generators import GENERATORS, GeneratorSettings, generate
from gansfp.simulation.phantom import phantoms

QUICK = GeneratorSettings(vae_steps=25, glo_steps=50)


@pytest.fixture(scope="module")
def training() -> np.ndarray:
    return phantoms(20, 2, seed=5)[0]


def nearest(generated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The distance of each generated slice to the nearest real slice, at 64 px."""
    small, small_real = (x.reshape(len(x), 64, 4, 64, 4).mean((2, 4)).reshape(len(x), -1) for x in (generated, real))
    return np.array([np.linalg.norm(small_real - slice_, axis=1).min() for slice_ in small])


@pytest.mark.parametrize("name", GENERATORS)
def test_slices_are_varied_and_chest_like(name, training):
    made = generate(name, training, 12, seed=3, settings=QUICK)
    assert made.shape == (12, 256, 256)
    assert made.dtype == np.uint8
    assert len({picture.tobytes() for picture in made}) == 12
    spread = made.astype(float).std(axis=0).mean()
    assert spread > 0.1 * training.astype(float).std(axis=0).mean()  # not collapsed
    average = training.mean(axis=0)
    assert np.corrcoef(made.mean(axis=0).ravel(), average.ravel())[0, 1] > 0.8  # no noise, no flat grey


@pytest.mark.parametrize("name", GENERATORS)
def test_equal_seeds_give_equal_bytes_on_any_number_of_threads(name, training):
    settings = GeneratorSettings(vae_steps=2, glo_steps=2)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    state = np.random.get_state()[1].copy()
    once = generate(name, training, 3, seed=8, settings=settings)
    torch.set_num_threads(2)
    again = generate(name, training, 3, seed=8, settings=settings)
    restored = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert restored == 2
    other = generate(name, training, 3, seed=9, settings=settings)
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(state, np.random.get_state()[1])


def test_warp_leaks_more_with_more_strength(training):
    distances = [
        nearest(generate("warp", training, 30, 1, GeneratorSettings(strength)), training).mean()
        for strength in (1, 0.8, 0.3)
    ]
    assert distances[0] < distances[1] < distances[2]


def test_eigen_is_not_near_any_training_slice(training):
    eigen, warp = (nearest(generate(name, training, 30, 1), training).mean() for name in ("eigen", "warp"))
    assert eigen > 1.3 * warp


def test_two_training_slices_are_enough_and_one_is_not(training):
    for name in GENERATORS:
        assert generate(name, training[:2], 2, 0, GeneratorSettings(vae_steps=2, glo_steps=2)).shape == (2, 256, 256)
        with pytest.raises(UsageError, match="got 1 training slices"):
            generate(name, training[:1], 2, 0)


def test_an_unknown_generator_is_named(training):
    with pytest.raises(UsageError, match=r"got generator 'gan', expected one of \['eigen'"):
        generate("gan", training, 2, 0)


def test_principal_components_equal_those_of_the_svd(training):
    codes, axes, mean = generators._principal_components(training, 5)
    flat = training.reshape(len(training), -1).astype(float)
    left, values, right = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(mean, flat.mean(axis=0))
    np.testing.assert_allclose(codes @ axes, (left[:, :5] * values[:5]) @ right[:5], atol=1e-6)
    np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-9)


@pytest.mark.parametrize(("n", "latent"), [(40, 3), (3, 6)])
def test_drawn_codes_have_mean_and_covariance_of_the_fitted(n, latent):
    random = torch.Generator().manual_seed(0)
    codes = torch.randn(n, latent, generator=random) @ torch.randn(latent, latent, generator=random) + 5
    drawn = generators._gaussian_like(codes, 200_000, random)
    spread = torch.cov(codes.T, correction=0)
    torch.testing.assert_close(drawn.mean(dim=0), codes.mean(dim=0), atol=0.03, rtol=0.01)
    torch.testing.assert_close(torch.cov(drawn.T), spread, atol=0.03 * float(spread.abs().max()), rtol=0.02)
