"""gansfp.images.grey_levels: each rule against a slow plain one, and what it recognises in numbers of 16 bits."""

from fractions import Fraction

import numpy as np
import pytest

from gansfp.images.grey_levels import SIXTEEN_BITS, choose_rule, evidence, is_hu, lung_window, to_grey
from gansfp.images.image_file import GREY, HU, UNKNOWN, NoSliceError, Numbers

RNG = np.random.default_rng(0)
EDGES = [-40000, -32768, -1351, -1350, -1349, -1025, -1024, -600, -1, 0, 1, 150, 151, 255, 256, 257, 1024, 1174, 1175]
EDGES += [31418, 32768, 32918, 40000, 65280, 65535, 65536, 100000]


def window(units):
    """The lung window of one number: -1350 HU is 0, 150 HU is 255; half is rounded to even, as numpy does."""
    return round(Fraction(min(max(units + 1350, 0), 1500) * 255, 1500))


PLAIN = {
    "full": lambda number: min(max(number, 0), 65535) // 256,
    "low": lambda number: min(max(number, 0), 255),
    "hu": window,
    "hu+1024": lambda number: window(number - 1024),
    "hu+32768": lambda number: window(number - 32768),
}


def test_each_rule_is_as_its_plain_reference():
    assert PLAIN.keys() == SIXTEEN_BITS.keys()
    for rule, plain in PLAIN.items():
        for dtype in (np.uint16, np.int16, np.int32, np.uint32, np.int64, np.float32, np.float64):
            info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
            numbers = [edge for edge in EDGES if info is None or info.min <= edge <= info.max]
            numbers += RNG.integers(0, 30000, 500).tolist()
            found = SIXTEEN_BITS[rule](np.array([numbers], dtype))
            assert found.dtype == np.uint8
            assert found[0].tolist() == [plain(number) for number in numbers], (rule, dtype)
            assert to_grey(Numbers(np.array([numbers], dtype), UNKNOWN), rule).tolist() == found.tolist()


def test_the_lung_window_of_every_integer():
    units = np.arange(-1400, 200)
    assert lung_window(units).tolist() == [window(int(value)) for value in units]


def test_what_is_inverted_is_inverted_before_it_is_composited():
    values, opacity = RNG.integers(0, 256, (2, 50, 50), dtype=np.uint8)
    found = to_grey(Numbers(values, GREY, True, opacity))
    exact = (255 - values.astype(float)) * opacity / 255
    assert np.abs(found - exact).max() <= 0.5 + 1e-9
    assert (found[opacity == 0] == 0).all()
    np.testing.assert_array_equal(to_grey(Numbers(values, GREY)), values)


def test_opacity_is_composited_as_pillow_does():
    from PIL import Image

    values, opacity = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    black = Image.new("L", (256, 256))
    referee = Image.composite(Image.fromarray(values), black, Image.fromarray(opacity))
    np.testing.assert_array_equal(to_grey(Numbers(values, GREY, opacity=opacity)), np.asarray(referee))


def chest(seed=0, lungs=True):
    """HU of a chest slice: air around, soft tissue, lungs, some bone."""
    rng = np.random.default_rng(seed)
    units = rng.normal(40, 20, (128, 128))
    units[:20] = rng.normal(-1000, 10, (20, 128))
    if lungs:
        units[40:100, 20:60] = rng.normal(-860, 40, (60, 40))
    units[60:64, 80:84] = rng.normal(700, 100, (4, 4))
    return units.round()


@pytest.mark.parametrize(("rule", "offset"), [("hu", 0), ("hu+1024", 1024), ("hu+32768", 32768)])
def test_offsets_of_hu_are_recognised(rule, offset):
    files = []
    for seed in range(5):
        values = (chest(seed) + offset).astype(np.int32)
        if offset:
            values[:5, :5] = 0  # padding
        files.append(evidence([Numbers(values, UNKNOWN)]))
    assert choose_rule(files).rule == rule


@pytest.mark.parametrize(("factor", "rule"), [(1, "low"), (256, "full"), (257, "full")])
def test_grey_levels_in_16_bits_are_recognised(factor, rule):
    files = [evidence([Numbers(RNG.integers(0, 256, (64, 64)).astype(np.uint16) * factor, UNKNOWN)]) for _ in range(3)]
    assert choose_rule(files).rule == rule
    assert all(file.exact for file in files) == (factor > 1)


def test_one_number_above_255_changes_nothing():
    values = RNG.integers(0, 256, (128, 128)).astype(np.uint16)
    values[0, 0] = 256
    assert choose_rule([evidence([Numbers(values, UNKNOWN)])]).rule == "low"


def test_a_dark_file_follows_the_others_of_its_class():
    bright = [evidence([Numbers(RNG.integers(0, 65536, (64, 64)).astype(np.uint16), UNKNOWN)]) for _ in range(9)]
    dark = evidence([Numbers(RNG.integers(0, 200, (64, 64)).astype(np.uint16), UNKNOWN)])
    assert choose_rule([*bright, dark]).rule == "full"
    assert "full" not in dark.fits
    assert "full" in dark.poor


def test_blank_files_do_not_count():
    blank = evidence([Numbers(np.zeros((9, 9), np.uint16), UNKNOWN)])
    assert blank.blank
    full = evidence([Numbers(RNG.integers(0, 65536, (64, 64)).astype(np.uint16), UNKNOWN)])
    assert choose_rule([blank] * 50 + [full]).rule == "full"
    assert choose_rule([]).rule == ""


def test_transparent_pixels_do_not_count():
    values = RNG.integers(0, 256, (64, 64)).astype(np.uint16)
    values[:10] = 60000
    opacity = np.where(values == 60000, 0, 255).astype(np.uint8)
    found = evidence([Numbers(values, UNKNOWN, opacity=opacity)])
    assert (found.high, found.fits) == (values[10:].max(), ("low",))
    assert evidence([Numbers(values, UNKNOWN, opacity=opacity * 0)]).blank


def test_numbers_of_no_rule_are_refused():
    values = (np.arange(16384) % 3000).reshape(128, 128).astype(np.uint16)
    with pytest.raises(
        NoSliceError, match=r"numbers from 0 to 2999 are neither .* say what they are with --sixteen-bit"
    ):
        to_grey(Numbers(values, UNKNOWN))
    with pytest.raises(NoSliceError, match="because of this; say what the numbers are with --sixteen-bit"):
        to_grey(Numbers(values, UNKNOWN, unknown_because="because of this"))


def test_hu_need_air():
    assert is_hu(chest()) == is_hu(np.zeros(0)) == is_hu(np.full(9, -1000)) == is_hu(np.full(9, -2000)) == ""
    assert is_hu(np.array([0, 40, 4000])) == "the lowest value is 0 HU, and air has about -1000"
    assert is_hu(np.array([-32768, 40, 60])).startswith("values are from -32768 to 60 HU, and none is that of air")
    assert to_grey(Numbers(np.array([[-1350, 150]]), HU)).tolist() == [[0, 255]]


def choice(*files):
    return choose_rule([evidence([Numbers(np.asarray(values), UNKNOWN)]) for values in files]).rule


@pytest.mark.parametrize("padding", [-1500, -2000, -3024, -32767])
def test_padding_below_air_does_not_hide_hu(padding):
    units = chest()
    units[:, :30] = padding
    assert choice((units + 32768).astype(np.uint16)) == "hu+32768"
    assert choice(units.astype(np.int16)) == "hu"


@pytest.mark.parametrize("padding", [976, 2000, 3071, 62511])
def test_padding_with_large_numbers_is_not_shown_white(padding):
    units = chest()
    units[:, :30] = padding
    assert choice((units + 1024).astype(np.uint16)) == ""


def test_grey_levels_of_10_12_and_14_bits_are_neither_hu_nor_the_full_range():
    grey = lung_window(chest() + RNG.normal(0, 30, (128, 128)))
    for factor in (4, 16, 64):
        assert choice(grey.astype(np.uint16) * factor) == ""
    assert choice(grey.astype(np.uint16) * 256) == choice(grey.astype(np.uint16) * 257) == "full"


def test_full_is_not_taken_where_it_leaves_no_levels():
    wrapped = chest().astype(np.int16).view(np.uint16)  # negative HU became numbers near 65535
    assert choice(wrapped) == ""


def test_a_class_of_two_kinds_gets_no_rule():
    low, full = RNG.integers(0, 256, (64, 64)), RNG.integers(0, 65536, (64, 64))
    units = chest().astype(np.int64)
    assert choice(low, full) == ""
    assert choice(*[low] * 9, full) == ""
    assert choice(low, full, full, full) == "full"  # a dark slice among bright ones
    assert choice(units + 1024, units + 32768) == ""
    assert choice(units + 32768, full) == ""
