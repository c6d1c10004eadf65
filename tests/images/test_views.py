"""Views: regions and boxes against loops over slices, resampling against Pillow and against means pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from gansfp.errors import UsageError
from gansfp.images import views

FULL = torch.tensor([[0.0, 0.0, 256.0, 256.0]])


def some_masks():
    """Lungs in the middle, none, in a corner, everywhere, one pixel, wide and low at the lower border."""
    masks = torch.zeros(6, 256, 256, dtype=torch.bool)
    masks[0, 60:160, 40:100] = True
    masks[0, 70:150, 150:221] = True
    masks[2, :30, :50] = True
    masks[3] = True
    masks[4, 100, 200] = True
    masks[5, 250:, 3:250] = True
    return masks


def plain_box(mask):
    """The square around a mask, in plain numpy."""
    rows, columns = np.nonzero(mask)
    if not rows.size:
        return [0, 0, 256, 256]
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    side = min(256, max(bottom - top, right - left) + 2 * views.MARGIN)
    y = min(max((top + bottom - side) / 2, 0), 256 - side)
    x = min(max((left + right - side) / 2, 0), 256 - side)
    return [y, x, y + side, x + side]


def plain_area(image, box, size):
    """Exact means over the parts of a box, one output pixel at a time."""
    y0, x0, y1, x1 = box
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            top, bottom = y0 + (y1 - y0) * i / size, y0 + (y1 - y0) * (i + 1) / size
            left, right = x0 + (x1 - x0) * j / size, x0 + (x1 - x0) * (j + 1) / size
            total = 0.0
            for r in range(int(top), min(256, int(np.ceil(bottom)))):
                for c in range(int(left), min(256, int(np.ceil(right)))):
                    total += image[r, c] * (min(bottom, r + 1) - max(top, r)) * (min(right, c + 1) - max(left, c))
            out[i, j] = total / ((bottom - top) * (right - left))
    return out


@pytest.mark.parametrize("name", sorted(views.VIEWS))
def test_regions_slice_by_slice(name):
    view, masks = views.get_view(name), some_masks()
    for mask, region in zip(masks, views.regions(masks, view), strict=True):
        if view.region == "all" or not mask.any():
            assert region.all()
        else:
            assert torch.equal(region, mask if view.region == "lungs" else ~mask)


def test_boxes_equal_plain_boxes():
    masks = some_masks()
    boxes = views.boxes(masks, views.get_view("lungs"))
    assert boxes.dtype == torch.float32
    np.testing.assert_allclose(boxes, [plain_box(mask.numpy()) for mask in masks], atol=1e-4)


def test_cropped_boxes_are_squares_within_the_slice_that_hold_the_lungs():
    masks = some_masks()
    for mask, (y0, x0, y1, x1) in zip(masks, views.boxes(masks, views.get_view("lungs")).tolist(), strict=True):
        assert y1 - y0 == pytest.approx(x1 - x0)
        assert min(y0, x0) >= 0
        assert max(y1, x1) <= 256
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert ((rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)).all()


@pytest.mark.parametrize("name", ["full", "lungs_uncropped", "outer"])
def test_uncropped_boxes_are_the_slice(name):
    assert torch.equal(views.boxes(some_masks(), views.get_view(name)), FULL.expand(6, 4))


@pytest.mark.parametrize("size", [1, 32, 64, 128, 256])
def test_area_of_the_full_slice_is_exactly_block_means(size):
    image = torch.randint(0, 256, (2, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    step = 256 // size
    means = image.double().reshape(2, size, step, size, step).mean((2, 4)).float()
    assert torch.equal(views.resample(image, FULL.expand(2, 4), size, "area"), means)


@pytest.mark.parametrize(
    ("box", "size"), [([3.5, 10.25, 120.75, 127.5], 9), ([100, 0, 256, 156], 11), ([50, 60, 55, 65], 8)]
)
def test_area_equals_plain_means(box, size):
    image = np.random.default_rng(1).random((256, 256)).astype(np.float32)
    resampled = views.resample(torch.from_numpy(image)[None], torch.tensor([box]), size, "area")[0]
    np.testing.assert_allclose(resampled, plain_area(image, box, size), atol=1e-5)


@pytest.mark.parametrize("size", [64, 224, 256, 299])
@pytest.mark.parametrize("box", [[0, 0, 256, 256], [40, 20, 190.5, 170.5], [0, 156, 100, 256]])
def test_bicubic_equals_pillow(box, size):
    image = np.random.default_rng(2).random((256, 256)).astype(np.float32) * 255
    y0, x0, y1, x1 = box
    expected = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
    resampled = views.resample(torch.from_numpy(image)[None], torch.tensor([box], dtype=torch.float32), size)[0]
    np.testing.assert_allclose(resampled, np.asarray(expected), atol=1e-3)


def test_bicubic_at_its_own_size_changes_nothing():
    image = torch.rand(1, 256, 256)
    assert torch.equal(views.resample(image, FULL, 256), image)


@pytest.mark.parametrize("mode", ["bicubic", "area"])
def test_rows_do_not_depend_on_the_batch_and_channels_are_kept(mode):
    images = torch.rand(6, 3, 256, 256, generator=torch.Generator().manual_seed(3)) * 255
    boxes = views.boxes(some_masks(), views.get_view("lungs"))
    together = views.resample(images, boxes, 96, mode)
    assert together.shape == (6, 3, 96, 96)
    assert together.dtype == torch.float32
    for i in range(6):
        torch.testing.assert_close(views.resample(images[i, 1:2], boxes[i : i + 1], 96, mode)[0], together[i, 1])


def test_autocast_does_not_round_the_pixels():
    image = torch.rand(1, 256, 256, generator=torch.Generator().manual_seed(4)) * 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = views.resample(image, FULL, 224)
    assert torch.equal(inside, views.resample(image, FULL, 224))


def test_unknown_names_list_the_names():
    with pytest.raises(
        UsageError, match=r"got 'heart', expected one of \['full', 'lungs', 'lungs_uncropped', 'outer'\]"
    ):
        views.get_view("heart")
    with pytest.raises(UsageError, match=r"got 'nearest', expected one of \['area', 'bicubic'\]"):
        views.resample(torch.zeros(1, 256, 256), FULL, 64, "nearest")
