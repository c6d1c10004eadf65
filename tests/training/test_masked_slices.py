"""gansfp.training.masked_slices: what is lung in masks of many kinds, and what is no mask."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from gansfp.errors import DataError
from gansfp.images.grey_levels import lung_window
from gansfp.training.masked_slices import pair_folders, read_pair

RNG = np.random.default_rng(0)
SLICE = RNG.integers(0, 256, (256, 256), dtype=np.uint8)


def two_lungs(side=256):
    """Label 1 in one lung, 2 in the other; their sides are odd, so that halves of pixels occur at other sizes."""
    labels = np.zeros((side, side), np.uint8)
    labels[side // 5 : side - side // 5, side // 7 : side // 2 - side // 9] = 1
    labels[side // 4 : side - side // 6, side // 2 + side // 9 : side - side // 8] = 2
    return labels


def at_least_half(lung, side=256):
    """A slow plain reference: a pixel is lung where at least half of its area is. For sides that are multiples."""
    step = len(lung) // side
    return np.array(
        [
            [lung[y * step : (y + 1) * step, x * step : (x + 1) * step].mean() >= 0.5 for x in range(side)]
            for y in range(side)
        ]
    )


def encode(pixels, kind="PNG", **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def pair(folder, mask, image=SLICE):
    """Reads a folder of one slice with one mask, given as pixels or as bytes."""
    for name, content in (("i", image), ("m", mask)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "a.png").write_bytes(content if isinstance(content, bytes) else encode(content))
    pairs = pair_folders(str(folder / "i"), str(folder / "m"))
    return read_pair(pairs.images[0], pairs.masks[0])


@pytest.mark.parametrize("labels", [(1, 1), (255, 255), (1, 2), (2, 1), (3, 200), (128, 255), (1, 255), (400, 65535)])
@pytest.mark.parametrize("side", [256, 512, 1024])
def test_every_label_is_lung_at_every_size(tmp_path, labels, side):
    drawn = two_lungs(side)
    mask = np.array([0, *labels], np.uint16 if max(labels) > 255 else np.uint8)[drawn]
    pixels, lungs = pair(tmp_path, mask)
    np.testing.assert_array_equal(pixels, SLICE)
    np.testing.assert_array_equal(lungs, at_least_half(drawn > 0))
    assert lungs.dtype == bool


def test_many_labels(tmp_path):
    lobes = np.zeros((256, 256), np.uint8)
    for label in range(1, 32):
        lobes[8 * label : 8 * label + 6, 40:200] = label * 8
    np.testing.assert_array_equal(pair(tmp_path, lobes)[1], lobes > 0)


def test_a_small_mask_is_enlarged(tmp_path):
    small = two_lungs(64)
    np.testing.assert_array_equal(pair(tmp_path, small)[1], (small > 0).repeat(4, 0).repeat(4, 1))


def test_a_mask_that_is_no_square_is_padded_as_its_slice_is(tmp_path):
    labels = two_lungs()[:, 20:220]
    expected = np.zeros((256, 256), bool)
    expected[:, 28:228] = labels > 0
    np.testing.assert_array_equal(pair(tmp_path, labels, np.ascontiguousarray(SLICE[:, 20:220]))[1], expected)


OTHER_PROPORTIONS = [
    ((512, 512), (400, 512)),
    ((512, 512), (512, 400)),
    ((512, 512), (256, 255)),
    ((256, 256), (255, 256)),
    ((300, 512), (512, 300)),
]


@pytest.mark.parametrize(("image", "mask"), OTHER_PROPORTIONS)
def test_a_mask_of_other_proportions_is_refused(tmp_path, image, mask):
    labels = np.resize(two_lungs(512), (512, 512))[: mask[0], : mask[1]]
    picture = RNG.integers(0, 256, image, dtype=np.uint8)
    sizes = f"{mask[1]}x{mask[0]} pixels, expected the proportions of its slice, {image[1]}x{image[0]}$"
    with pytest.raises(DataError, match=f"a.png: got a mask of {sizes}"):
        pair(tmp_path, labels, picture)


SAME_PROPORTIONS = [
    ((512, 400), (256, 200)),
    ((511, 400), (256, 200)),
    ((333, 500), (111, 166)),
    ((100, 80), (500, 400)),
    ((512, 512), (2, 2)),
]


@pytest.mark.parametrize(("image", "mask"), SAME_PROPORTIONS)
def test_a_mask_of_another_size_and_the_same_proportions_is_read(tmp_path, image, mask):
    labels = np.zeros(mask, np.uint8)
    labels[mask[0] // 2 :, : mask[1] // 2] = 1
    found = pair(tmp_path, labels, RNG.integers(0, 256, image, dtype=np.uint8))[1]
    quarter = min(image) / max(image) / 4  # of the slice, in the padded square
    assert found.mean() == pytest.approx(quarter, abs=0.01)


def tiff(pixels, **options):
    file = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(file, pixels, **options)
    return file.getvalue()


CORNERS = np.array([1, 0, 0, 0, 1], np.uint8).repeat(20)
INVERTED = {
    "8 bits": (255 - (two_lungs() > 0) * np.uint8(255), r"69\.\d% of the slice, 100\.0% of its border and 4"),
    "ones": (1 - (two_lungs(512) > 0).astype(np.uint8), r"69\.\d% of the slice, 100\.0% of its border and 4"),
    "all 255": (np.full((256, 256), 255, np.uint8), r"100\.0% of the slice, 100\.0% of its border and 4"),
    "all 1": (np.ones((256, 256), np.uint8), r"100\.0% of the slice"),
    "large lungs": (np.pad(np.zeros((230, 230), np.uint8), 13, constant_values=1), r"19\.3% of the slice, 100\.0%"),
    "corners": (np.outer(CORNERS, CORNERS), r"16\.0% of the slice, 40\.0% of its border and 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVERTED)
def test_an_inverted_mask_is_refused(tmp_path, name):
    mask, shares = INVERTED[name]
    with pytest.raises(DataError, match=rf"a.png: got lung in {shares}.*at most 60%, 50% and 3; is it inverted\?$"):
        pair(tmp_path, mask)


def test_a_mask_that_is_stored_with_white_zeros_is_refused_where_it_is_inverted(tmp_path):
    """tifffile writes bool so; every reader shows False as white."""
    lung = two_lungs() > 0
    hint = r"is it inverted\? Its file says that 0 is white \(MinIsWhite, MONOCHROME1\); save it as PNG$"
    for stored in (lung, lung * np.uint8(255), lung * np.uint16(3)):
        with pytest.raises(DataError, match=hint):
            pair(tmp_path, tiff(stored, photometric="miniswhite"))
        shown = stored == 0 if stored.dtype == bool else stored.max() - stored
        np.testing.assert_array_equal(pair(tmp_path, tiff(shown, photometric="miniswhite"))[1], lung)
    np.testing.assert_array_equal(pair(tmp_path, tiff(lung, photometric="minisblack"))[1], lung)


def test_labels_in_colours_and_in_other_files(tmp_path):
    drawn = two_lungs()
    palette = Image.frombytes("P", (256, 256), drawn.tobytes())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    colours = np.array([[0, 0, 0], [200, 30, 0], [0, 0, 90]], np.uint8)[drawn]
    transparent = np.dstack([np.full((256, 256, 3), 255, np.uint8), (drawn > 0).astype(np.uint8) * 255])
    for mask in (palette, colours, transparent, Image.fromarray(drawn > 0)):
        np.testing.assert_array_equal(pair(tmp_path, encode(mask))[1], drawn > 0)
    nibabel = pytest.importorskip("nibabel")
    for dtype in (np.uint8, np.int16, np.float32):
        volume = nibabel.Nifti1Image(drawn.T[:, :, None].astype(dtype), np.diag([-1.0, -1, 1, 1])).to_bytes()
        np.testing.assert_array_equal(pair(tmp_path, volume)[1], drawn > 0)


def test_smooth_outlines_are_cut_at_half(tmp_path):
    """A mask that was shrunk with smoothing: its numbers in between are no labels."""
    large = (two_lungs(768) > 0).astype(np.uint8) * 255
    smooth = np.asarray(Image.fromarray(large).resize((256, 256), Image.Resampling.BOX))
    assert len(np.unique(smooth)) > 3
    np.testing.assert_array_equal(pair(tmp_path, smooth)[1], smooth >= 128)


CT = np.clip(RNG.normal(120, 60, (256, 256)), 0, 255).astype(np.uint8)
NO_MASKS = {
    "a slice": (CT, "a mask of 256 grey levels, such as"),
    "a large slice": (CT.repeat(2, 0).repeat(2, 1), "a mask of 256 grey levels, such as"),
    "16 bits": (CT.astype(np.uint16) * 250, "a mask of 256 grey levels, such as"),
    "no 0": (np.where(two_lungs() > 0, 60, 230).astype(np.uint8), "a mask without 0, with grey levels such as 230"),
    "JPEG": (
        encode(np.where(np.hypot(*np.mgrid[-128:128, -128:128]) < 90, 255, 0).astype(np.uint8), "JPEG", quality=90),
        "a JPEG file of .* grey levels, which does not keep labels|a mask of .* grey levels",
    ),
}


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_no_mask_is_refused(tmp_path, name):
    mask, reason = NO_MASKS[name]
    with pytest.raises(DataError, match=f"a.png: got ({reason}).*, expected 0, and 255") as error:
        pair(tmp_path, mask)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side", [256, 512])
def test_a_slice_with_few_levels_is_not_its_own_mask(tmp_path, side):
    flat = np.array([0, 60, 230], np.uint8)[two_lungs(side)]
    with pytest.raises(DataError, match="got the same picture as the slice, expected 0"):
        pair(tmp_path, flat, flat)


def test_a_jpeg_mask_without_noise_is_read(tmp_path):
    blocks = np.zeros((256, 256), np.uint8)
    blocks[64:192, 64:192] = 255
    np.testing.assert_array_equal(pair(tmp_path, encode(blocks, "JPEG", quality=100))[1], blocks > 0)


def test_stacks_are_left_out(tmp_path):
    stack = encode(two_lungs(), "TIFF", save_all=True, append_images=[Image.fromarray(two_lungs())])
    with pytest.raises(DataError, match="holds 2 frames, expected one slice a file"):
        pair(tmp_path, stack)


def chest(seed):
    """HU of a slice: air, a body of soft tissue, lungs."""
    units = np.random.default_rng(seed).normal(40, 15, (256, 256))
    units[two_lungs() > 0] -= 850
    units[:30] = -1000
    return units.round()


def write(folder, slices):
    for name, pixels in slices.items():
        for part, content in (("i", pixels), ("m", two_lungs())):
            (folder / part).mkdir(exist_ok=True)
            (folder / part / f"{name}.png").write_bytes(encode(content))
    return pair_folders(str(folder / "i"), str(folder / "m"))


def test_one_rule_for_all_slices_of_16_bits(tmp_path, caplog):
    """The last slice alone would be read otherwise: it has no soft tissue."""
    caplog.set_level(logging.INFO)
    units = [chest(seed) for seed in range(10)]
    units[-1][units[-1] > -500] = -400
    stored = {f"s{index}": (values + 1024).clip(0).astype(np.uint16) for index, values in enumerate(units)}
    pairs = write(tmp_path, stored)
    assert {source.rule for source in pairs.images} == {"hu+1024"}
    for source, mask, values in zip(pairs.images, pairs.masks, stored.values(), strict=True):
        np.testing.assert_array_equal(read_pair(source, mask)[0], lung_window(values.astype(float) - 1024))
    assert "16 bits: the 10 slices are read as hu+1024" in caplog.text
    assert pairs.take(np.array([2])).images == pairs.images[2:3]


def test_slices_whose_numbers_are_unknown_are_left_out(tmp_path, caplog):
    odd = (np.arange(65536) % 5000).reshape(256, 256).astype(np.uint16)
    assert len(write(tmp_path, {"a": SLICE, "b": odd}).images) == 1
    assert "left out 1 of 2 slices that cannot be read, such as b.png: it is unknown what" in caplog.text
