"""gansfp.images.nifti: volumes that nibabel wrote, in all orientations, against SimpleITK; bad ones by their reason."""

import gzip
import itertools
import struct
import sys

import numpy as np
import pytest
from dicom_files import chest

from gansfp.images.grey_levels import lung_window
from gansfp.images.image_file import GREY, HU, UNKNOWN, NoSliceError
from gansfp.images.nifti import is_nifti, open_nifti
from gansfp.images.slices import SIDE, decode, examine

nibabel = pytest.importorskip("nibabel")
RNG = np.random.default_rng(0)
SHAPE = (7, 6, 5)


def hu(shape=SHAPE, dtype=np.int16):
    """Numbers that can be HU: all different, with air."""
    return (np.arange(np.prod(shape)) * 7 - 1000).reshape(shape).astype(dtype)


def nifti(volume, affine=None, change=None):
    """The bytes of a NIfTI file. affine: None for none at all. change: of the image before it is written."""
    image = nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)
    if change:
        change(image)
    data = image.to_bytes()
    return data if affine is not None else data[:252] + bytes(4) + data[256:]  # qform_code, sform_code


def affine_of(axes, directions, spacing=(0.7, 0.8, 2.5), tilt=0.0):
    """Stored axis i runs along axis axes[i] of the patient (RAS+), in this direction."""
    rotation = np.zeros((3, 3))
    for stored, (axis, direction) in enumerate(zip(axes, directions, strict=True)):
        rotation[axis, stored] = direction
    c, s = np.cos(tilt), np.sin(tilt)
    turned = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ rotation
    affine = np.eye(4)
    affine[:3, :3] = turned * spacing
    affine[:3, 3] = -30, 20, 400
    return affine


def frames_of(data):
    image = open_nifti(data)
    frames = [image.numbers(index) for index in range(image.frames)]
    assert all(frame.values.shape == (image.height, image.width) for frame in frames)
    return np.array([frame.values for frame in frames])


def as_radiologists_see_it(path):
    """SimpleITK's volume, resampled to the axes of the patient: (z, y, x) with x to the left, y to posterior."""
    itk = pytest.importorskip("SimpleITK")
    return itk.GetArrayFromImage(itk.DICOMOrient(itk.ReadImage(str(path)), "LPS"))


ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_every_orientation_is_shown_as_simpleitk_shows_it(tmp_path, form):
    path = tmp_path / "volume.nii"
    assert len(ORIENTATIONS) == 48
    for number, (axes, directions) in enumerate(ORIENTATIONS):

        def only_one_form(image):
            image.set_sform(image.affine, 1 if form == "sform" else 0)
            image.set_qform(image.affine, 1 if form == "qform" else 0)

        data = nifti(hu(), affine_of(axes, directions, tilt=0.2 * (number % 2)), change=only_one_form)
        path.write_bytes(data)
        np.testing.assert_array_equal(frames_of(data), as_radiologists_see_it(path))


def test_the_corner_of_a_volume_in_ras():
    """By hand: in RAS+ the last x is the patient's right, the last y is anterior, the first z is inferior."""
    volume = hu()
    frames = frames_of(nifti(volume, np.diag([1.0, 1, 1, 1])))
    assert frames.shape == (5, 6, 7)
    assert frames[0, 0, 0] == volume[-1, -1, 0]
    assert frames[-1, -1, -1] == volume[0, 0, -1]


def test_without_orientation_nibabels_default_is_taken():
    volume = hu()
    data = nifti(volume)
    image = nibabel.Nifti1Image.from_bytes(data)
    assert (image.header["sform_code"], image.header["qform_code"]) == (0, 0)
    canonical = np.asarray(nibabel.as_closest_canonical(image).dataobj)
    np.testing.assert_array_equal(frames_of(data), canonical.transpose(2, 1, 0)[:, ::-1, ::-1])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["i2", "i4", "f4", "f8"])
def test_kinds_of_files(order, kind, packed, dtype):
    header = getattr(nibabel, kind).header_class(endianness=order)
    data = getattr(nibabel, kind)(hu(), np.diag([-1.0, -1, 1, 1]), header, dtype=np.dtype(dtype)).to_bytes()
    data = gzip.compress(data) if packed else data
    assert is_nifti(data[:4096])
    opened = open_nifti(data)
    assert (opened.format, opened.mode, opened.frames, opened.scale) == ("NIfTI", np.dtype(dtype).name, 5, HU)
    assert (opened.width, opened.height, opened.bits, opened.quick) == (7, 6, 8 * np.dtype(dtype).itemsize, True)
    np.testing.assert_array_equal(frames_of(data), hu().transpose(2, 1, 0))
    assert opened.numbers(3).values.dtype.isnative


def test_slices_become_grey_levels():
    volume = RNG.integers(-1200, 400, (SIDE, SIDE, 3)).astype(np.int16)
    data = nifti(volume, np.diag([-1.0, -1, 1, 1]))
    for frame in range(3):
        slice_ = decode(data, frame=frame + 1)
        assert (slice_.status, slice_.mode) == ("ok", "int16")
        np.testing.assert_array_equal(slice_.pixels, lung_window(volume[:, :, frame].T))
    assert decode(data).error == "holds 3 frames, expected one slice a file"
    header = examine(data)
    assert (header.scale, header.frames, header.unknown_because, header.error) == (HU, 3, "", "")
    assert header.evidence.low == volume.min()


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -1000.0), (2.0, 0.0), (1.0, -1024.0), (1.0, 0.0)])
def test_slope_and_intercept(slope, intercept):
    units = hu(dtype=np.float64) - 200
    stored = ((units - intercept) / slope).round().astype(np.int16)
    data = bytearray(nifti(stored, np.diag([-1.0, -1, 1, 1])))
    data[112:120] = struct.pack("<ff", slope, intercept)
    np.testing.assert_array_equal(frames_of(bytes(data)), (stored * slope + intercept).transpose(2, 1, 0))


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_means_no_scaling(slope):
    data = bytearray(nifti(hu(), np.diag([-1.0, -1, 1, 1])))
    data[112:120] = struct.pack("<ff", slope, 5.0)
    np.testing.assert_array_equal(frames_of(bytes(data)), hu().transpose(2, 1, 0))


def test_eight_bits_are_grey_levels_unless_they_are_scaled():
    grey = RNG.integers(0, 256, SHAPE).astype(np.uint8)
    data = bytearray(nifti(grey, np.diag([-1.0, -1, 1, 1])))
    image = open_nifti(bytes(data))
    assert (image.scale, image.numbers(1).scale) == (GREY, GREY)
    np.testing.assert_array_equal(image.numbers(1).values, grey[:, :, 1].T)
    stored = np.where(grey < 128, grey % 40, 100 + grey % 40).astype(np.uint8)  # air and soft tissue
    data = bytearray(nifti(stored, np.diag([-1.0, -1, 1, 1])))
    data[112:120] = struct.pack("<ff", 10.0, -1100.0)
    image = open_nifti(bytes(data))
    assert image.numbers(1).scale == HU
    np.testing.assert_array_equal(image.numbers(1).values, stored[:, :, 1].T * 10.0 - 1100)


def test_numbers_that_are_no_hu_are_unknown_with_a_reason():
    data = nifti((hu() + 1024).astype(np.int16))
    numbers = open_nifti(data).numbers(0)
    assert numbers.scale == UNKNOWN
    assert numbers.unknown_because == "the lowest value is 24 HU, and air has about -1000"
    assert "--sixteen-bit" in decode(data, frame=1).error
    assert decode(data, frame=1, rule="hu+1024").status == "resized"
    assert examine(data).unknown_because == numbers.unknown_because


def test_the_whole_volume_decides_what_its_numbers_are():
    """A frame of soft tissue only is HU where another frame has air."""
    volume = RNG.normal(40, 20, SHAPE).round().astype(np.int16)
    assert open_nifti(nifti(volume)).numbers(0).scale == UNKNOWN
    volume[:, :, 4] -= 1000
    assert [open_nifti(nifti(volume)).numbers(frame).scale for frame in (0, 4)] == [HU, HU]


def window(volume, frame):
    return lung_window(volume[:, :, frame].T)


def chests(offset=0, frames=4):
    """A volume of chest slices with noise, (256, 256, frames), HU plus the offset."""
    units = np.repeat(chest()[:, :, None], frames, axis=2)
    return (units + RNG.normal(0, 15, units.shape).round() + offset).astype(np.int16)


@pytest.mark.parametrize("offset", [1000, 1024])
@pytest.mark.parametrize("background", [-1000, -1024, -2000])
@pytest.mark.parametrize("width", [2, 60, 200])
def test_a_background_is_no_air(offset, background, width):
    """CT numbers whose intercept was lost; a resampler wrote the background, and numbers between it and the slice."""
    volume = chests(offset)
    volume[:width], volume[width, :20] = background, -900
    assert "look like hu+1024" in decode(nifti(volume), frame=2).error
    assert decode(nifti(volume), frame=2, rule="hu+1024").status == "ok"
    volume -= offset
    np.testing.assert_array_equal(decode(nifti(volume, np.diag([-1.0, -1, 1, 1])), frame=2).pixels, window(volume, 1))


@pytest.mark.parametrize("background", [-3024, -2000, -1024, 0])
def test_a_volume_in_hu_with_a_background_is_read(background):
    volume = chests()
    volume[:, 150:] = background
    np.testing.assert_array_equal(decode(nifti(volume, np.diag([-1.0, -1, 1, 1])), frame=2).pixels, window(volume, 1))


def test_grey_levels_with_a_number_of_air_are_not_hu():
    levels = window(chests(), 1).astype(np.int16)
    for volume in (levels * 4, levels * 16 - 1000, levels * 8 - 1024):
        volume[:3] = -1000
        assert "lack the air and the soft tissue of HU" in decode(nifti(volume)).error


def test_large_volumes_are_recognised_too():
    assert open_nifti(nifti(np.tile(chests(frames=40), (3, 3, 1)))).numbers(0).scale == HU


def test_numbers_that_are_not_finite_are_black():
    volume = hu(dtype=np.float32)
    volume[0, 0, 0], volume[1, 0, 0], volume[2, 0, 0] = np.nan, np.inf, -np.inf
    numbers = open_nifti(nifti(volume, np.diag([-1.0, -1, 1, 1]))).numbers(0)
    assert numbers.scale == HU
    assert np.isfinite(numbers.values).all()
    expected = np.full((6, 7), 255)
    expected[0, :3] = 0
    np.testing.assert_array_equal(numbers.opacity, expected)
    empty = open_nifti(nifti(volume * np.nan)).numbers(0)
    assert not empty.opacity.any()


def test_a_picture_and_a_series_of_one_volume():
    assert frames_of(nifti(hu((7, 6)))).shape == (1, 6, 7)
    assert frames_of(nifti(hu((7, 6, 5, 1)))).shape == (5, 6, 7)
    assert frames_of(nifti(hu((7, 6, 5, 1, 1)))).shape == (5, 6, 7)


def refused(data):
    with pytest.raises(NoSliceError) as error:
        open_nifti(data).numbers(0)
    slice_ = decode(data, "a.nii", 1)
    assert (slice_.status, slice_.pixels) == ("failed", None)
    return str(error.value)


def test_what_is_no_volume_of_numbers_is_refused():
    assert refused(nifti(hu((7, 6, 5, 2)))) == "4 dimensions (7x6x5x2), expected 3; save one volume a file"
    assert refused(nifti(hu((7, 6, 5, 1, 3)))).startswith("5 dimensions")
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert refused(nifti(colour)).startswith("voxels are ")
    assert refused(nifti(hu(dtype=np.complex64))) == "voxels are complex64, expected integers or floating-point numbers"
    two = bytearray(nifti(hu()))
    two[344:348] = b"ni1\0"
    assert is_nifti(bytes(two))
    assert refused(bytes(two)).startswith("NIfTI in two files (.hdr and .img)")


def test_sizes_and_cut_files_are_refused():
    whole = nifti(hu())
    packed = gzip.compress(whole)
    assert refused(whole[:-1]) == f"truncated: a NIfTI file of {len(whole) - 1} bytes, expected {len(whole)}"
    for damaged in (packed[:-20], packed[:-4], packed[:-8] + bytes(8), packed + b"garbage"):
        assert refused(damaged).startswith("truncated or damaged gzip")
    assert (
        refused(gzip.compress(whole[:-9]))
        == f"truncated: a NIfTI file of {len(whole) - 9} bytes, expected {len(whole)}"
    )
    large = bytearray(whole)
    large[40:50] = struct.pack("<5h", 3, 8000, 8000, 8000, 1)
    for data in (bytes(large), gzip.compress(large)):
        assert refused(data) == "a volume of 953.7 GiB (8000x8000x8000 int16), at most 1 GiB is read"


def test_a_gzip_file_of_several_members_is_read():
    whole = nifti(hu(), np.diag([-1.0, -1, 1, 1]))
    np.testing.assert_array_equal(
        frames_of(gzip.compress(whole[:400]) + gzip.compress(whole[400:]))[0], hu()[:, :, 0].T
    )


def test_an_affine_without_directions_is_refused():
    broken = bytearray(nifti(hu(), np.eye(4)))
    broken[280:328] = bytes(48)
    assert "orientation is unknown" in refused(bytes(broken))
    broken[280:284] = struct.pack("<f", np.nan)
    assert "orientation is unknown" in refused(bytes(broken))


def test_other_gzip_files_are_not_nifti():
    assert not is_nifti(gzip.compress(b"text" * 500))
    assert not is_nifti(b"\x1f\x8b" + bytes(600))
    assert not is_nifti(b"")


def test_without_nibabel_the_reason_says_what_to_install(monkeypatch):
    data = nifti(hu())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    slice_ = decode(data, "a.nii", 1)
    assert (slice_.error, slice_.needs_package) == ("NIfTI needs nibabel: install gansfp[nifti]", "nibabel")


def test_bad_headers_say_nothing_on_the_terminal(capfd):
    rng = np.random.default_rng(1)
    whole = nifti(hu(), np.eye(4))
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, 344, 3):
            damaged[place] = rng.integers(0, 256)
        slice_ = decode(bytes(damaged), "a.nii", 1)
        assert (slice_.pixels is None) == bool(slice_.error)
    assert capfd.readouterr() == ("", "")
