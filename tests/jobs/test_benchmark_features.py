"""Features without weights in jobs.benchmark: what is compared computes the same, and every figure is there."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gansfp.embedding.embedder import Embedder
from gansfp.images.lungs import threshold_mask
from gansfp.simulation.phantom import draw_patient, draw_slice
from jobs.benchmark import MEASUREMENTS
from jobs.benchmarks.features import HIGHPASS, RESIDUAL, _views, plain_highpass, plain_residual
from jobs.benchmarks.measure import Bench, Sizes


@pytest.fixture(scope="module")
def slice_and_mask():
    rng = np.random.default_rng(0)
    pixels = draw_slice(draw_patient(rng), 0.5, rng)
    return pixels, threshold_mask(pixels)


def test_the_loops_compute_the_same(slice_and_mask):
    pixels, mask = slice_and_mask
    found = Embedder([*HIGHPASS, RESIDUAL], {})(pixels[None], mask[None])
    by_scipy = plain_highpass(pixels, _views(mask))
    assert len(HIGHPASS) == 9
    assert list(by_scipy) == list(HIGHPASS)
    for pair, vector in by_scipy.items():
        # Pillow resizes a box with fractions of pixels in another way.
        assert np.linalg.norm(found[pair][0] - vector) < (0.3 if pair[1] == "lungs" else 1e-4), pair
    np.testing.assert_allclose(found[RESIDUAL][0], plain_residual(pixels), atol=2e-3, rtol=1e-3)


def test_every_figure_is_there(slice_and_mask, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(slice_and_mask[0]).save(data / "slice.png")
    rows = MEASUREMENTS["features"](
        Bench(replace(Sizes(), slices=3, seconds=0.01), str(tmp_path / "scratch"), str(data))
    )
    assert [row.name.split(",")[0] for row in rows] == ["highpass", "highpass", "residual", "residual"]
    for row in rows:
        assert row.ratio == pytest.approx(row.value / row.other)
        assert (row.value > 0, row.error) == (True, "")
    assert 0 < rows[0].ratio < 1  # of the bound
    assert rows[0].target.of_value
