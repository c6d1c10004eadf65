"""scoring.variety: the effective number of slices, against its definition."""

import numpy as np
import pytest

from gansfp.scoring.variety import effective_number


def by_definition(x):
    x = x - x.mean(0)
    kernel = np.array([[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in x] for a in x])
    values = np.linalg.eigvals(kernel / len(x)).real
    return np.exp(-sum(value * np.log(value) for value in values if value > 1e-12))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_it_is_the_exponential_of_an_entropy(shape):
    x = np.random.default_rng(0).normal(size=shape)
    assert effective_number(x.astype(np.float32)) == pytest.approx(by_definition(x), rel=1e-5)


def test_copies_count_once():
    x = np.random.default_rng(1).normal(size=(20, 500)).astype(np.float32)
    assert effective_number(np.repeat(x, 5, axis=0)) == pytest.approx(effective_number(x), rel=1e-4)
    assert 15 < effective_number(x) <= 20


def test_slices_that_are_all_alike_are_one():
    assert effective_number(np.ones((9, 4), np.float32)) == 1.0
