"""What the numbers of a DICOM file mean: HU that are established, grey levels, or a reason."""

import numpy as np
import pytest
from dicom_files import NAME, PATIENT, SERIES, chest, dataset, dicom, encode, functional_group, item, with_raw
from PIL import Image

from gansfp.images.image_file import GREY, HU, UNKNOWN
from gansfp.images.slices import decode, examine

UNITS = chest()
STORED = (UNITS + 1024).astype(np.uint16)
GREY_LEVELS = np.random.default_rng(1).integers(0, 256, UNITS.shape, dtype=np.uint8)
IDENTITY = {"RescaleIntercept": "0", "RescaleSlope": "1"}
NOTHING = {"RescaleIntercept": None, "RescaleSlope": None}


def window(units):
    """The lung window in plain numbers."""
    return np.rint((np.asarray(units, np.float64) + 1350) * 255 / 1500).clip(0, 255)


def check(data, expected, scale=HU, frame=0):
    slice_, header = decode(data, "IM0001", frame), examine(data, "IM0001")
    assert (slice_.status, slice_.error, header.error) == ("ok", "", "")
    assert header.scale == scale
    assert header.format == "DICOM"
    assert slice_.pixels.dtype == np.uint8
    assert slice_.pixels.flags.writeable
    assert np.abs(slice_.pixels - np.asarray(expected, float)).max() == 0


def check_refused(data, reason):
    """The reason is in the slice's error and in the header; nothing of the patient is."""
    slice_, header = decode(data, "IM0001"), examine(data, "IM0001")
    assert (slice_.status, slice_.pixels) == ("failed", None)
    assert reason in slice_.error
    assert reason in header.error + header.unknown_because
    for secret in (PATIENT, NAME, "Secretname", SERIES, "19700102"):
        assert secret not in slice_.error + header.error + header.unknown_because


def check_unknown(data, reason, stored):
    """Without an option it is refused; with one, the option says what the stored numbers are."""
    check_refused(data, reason)
    assert "--sixteen-bit" in decode(data, "IM0001").error
    assert examine(data).scale == UNKNOWN
    assert (decode(data, rule="hu+1024").pixels == window(stored.astype(int) - 1024)).all()
    assert (decode(data, rule="low").pixels == stored.clip(0, 255)).all()


def test_the_rescale_at_the_top():
    check(dicom(STORED), window(UNITS))
    check(dicom(UNITS, **IDENTITY), window(UNITS))
    check(dicom((UNITS + 1024).astype(np.int16)), window(UNITS))
    check(dicom((STORED * 2).astype(np.uint16), RescaleSlope="0.5", RescaleIntercept="-1024.0"), window(UNITS))
    odd = (UNITS + 1025) // 3
    check(dicom(odd.astype(np.uint16), RescaleSlope="3", RescaleIntercept="-1025"), window(odd * 3 - 1025))
    check(dicom(STORED.astype(np.uint32)), window(UNITS))
    check(dicom(STORED, RescaleType="HU"), window(UNITS))
    check(dicom(STORED, RescaleType=""), window(UNITS))
    check(dicom(STORED, Modality=None), window(UNITS))
    check(with_raw(dataset(STORED), "Modality", "CS", b"ct"), window(UNITS))


@pytest.mark.parametrize("slope", [None, ""])
def test_a_missing_or_empty_slope_is_1(slope):
    check(dicom(STORED, RescaleSlope=slope), window(UNITS))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        (NOTHING, "CT numbers without RescaleIntercept"),
        (NOTHING | {"Modality": "OT"}, "OT numbers without RescaleIntercept"),
        ({"RescaleIntercept": ""}, "CT numbers without RescaleIntercept"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"RescaleSlope": "0.0000"}, "RescaleSlope is 0"),
        ({"RescaleSlope": ["1", "2"]}, "RescaleSlope has several values"),
        ({"RescaleIntercept": ["-1024", "-1024"]}, "RescaleIntercept has several values"),
        ({"RescaleType": "US"}, "RescaleType is 'US', not HU"),
        ({"RescaleType": "BQML"}, "RescaleType is 'BQML', not HU"),
        *(({"Modality": name}, f"Modality is '{name}', and only CT has HU") for name in ("MR", "CR", "PT", "SEG")),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "MR Image Storage, and only CT has HU"),
        ({"Modality": "OT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.20"}, "Nuclear Medicine Image Storage"),
        ({"RescaleIntercept": "0"}, "the lowest value is 4 HU, and air has about -1000"),
        ({"RescaleIntercept": "-32768"}, "none is that of air"),
        ({"RescaleSlope": "16"}, "above 2000 HU"),
    ],
)
def test_numbers_of_16_bits_that_are_not_established_as_hu(elements, reason):
    check_unknown(dicom(STORED, **elements), reason, STORED)


@pytest.mark.parametrize("text", [b"NaN", b"inf", b"-1e999", b"abc", b"1,0", b"1.0.0"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescale_that_is_no_number(keyword, text):
    image = dataset(STORED)
    shown = {b"NaN": "nan", b"-1e999": "-inf"}.get(text, text.decode())
    reason = f"{keyword} is {shown}" if shown in ("nan", "inf", "-inf") else f"{keyword} is '{shown}', which is no"
    check_unknown(with_raw(image, keyword, "DS", text), reason, STORED)


def test_rescale_in_functional_groups():
    right = {"RescaleIntercept": "-1024", "RescaleSlope": "1", "RescaleType": "HU"}
    wrong = {"RescaleIntercept": "0", "RescaleSlope": "2", "RescaleType": "HU"}
    shared, frames = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
    check(dicom(STORED, **NOTHING, **{shared: [functional_group(**right)]}), window(UNITS))
    check(dicom(STORED, **NOTHING, **{frames: [functional_group(**right)]}), window(UNITS))
    both = {shared: [functional_group(**wrong)], frames: [functional_group(**right)]}
    check(dicom(STORED, **NOTHING, **both), window(UNITS))
    in_both = {shared: [functional_group(RescaleSlope="1")], frames: [functional_group(RescaleIntercept="-1024")]}
    check(dicom(STORED, **NOTHING, **in_both), window(UNITS))
    check(dicom(STORED, **{shared: [functional_group(**right)]}), window(UNITS))  # the same at the top
    check_unknown(dicom(STORED, **{shared: [functional_group(**wrong)]}), "is given twice", STORED)
    empty = {shared: [item()], frames: [item()]}
    check_unknown(dicom(STORED, **NOTHING, **empty), "CT numbers without RescaleIntercept", STORED)
    us = {shared: [functional_group(**right | {"RescaleType": "US"})]}
    check_unknown(dicom(STORED, **NOTHING, **us), "RescaleType is 'US'", STORED)


def test_each_frame_has_its_own_rescale():
    stored = np.stack([(UNITS + 1024), (UNITS + 2000) * 2, UNITS + 1024]).astype(np.uint16)
    rescales = [("-1024", "1"), ("-2000", "0.5"), ("", "1")]
    groups = [functional_group(RescaleIntercept=i, RescaleSlope=s) for i, s in rescales]
    data = dicom(stored, **NOTHING, PerFrameFunctionalGroupsSequence=groups)
    header = examine(data)
    assert (header.frames, header.scale) == (3, HU)
    assert decode(data).error == "holds 3 frames, expected one slice a file"
    check(data, window(UNITS), frame=1)
    check(data, window(UNITS), frame=2)
    assert "CT numbers without RescaleIntercept" in decode(data, frame=3).error


def test_8_bits_without_a_rescale_are_grey_levels():
    for elements in (NOTHING, IDENTITY, {"RescaleIntercept": "0", "RescaleSlope": None}):
        for more in ({}, {"RescaleType": "US"}, {"Modality": "MR"}, {"Modality": "OT"}):
            check(dicom(GREY_LEVELS, **elements, **more), GREY_LEVELS, GREY)
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    check(dicom(GREY_LEVELS, **IDENTITY, **inverted), 255 - GREY_LEVELS, GREY)
    check(dicom(GREY_LEVELS.astype(np.uint16), **IDENTITY, BitsStored=8), GREY_LEVELS, GREY)
    six_bits = GREY_LEVELS >> 2
    check(dicom(six_bits, **NOTHING, BitsStored=6), np.rint(six_bits.astype(int) * 255 / 63), GREY)
    check_refused(dicom(GREY_LEVELS.view(np.int8), **IDENTITY), "8-bit numbers with a sign")


def test_8_bits_with_another_rescale():
    coarse = (UNITS + 1024) // 16
    check(dicom(coarse.astype(np.uint8), RescaleSlope="16"), window(coarse * 16 - 1024))
    reason = "look like grey levels"
    check_refused(dicom(GREY_LEVELS), reason)  # a conversion to grey levels that kept the intercept of the scanner
    check_refused(dicom(GREY_LEVELS.astype(np.uint16)), reason)
    check_refused(dicom(GREY_LEVELS, RescaleIntercept="0", RescaleSlope="0"), "RescaleSlope is 0")
    check_refused(dicom(GREY_LEVELS, RescaleSlope="16", Modality="MR"), "Modality is 'MR'")


def test_a_slice_of_nothing_but_air_is_read():
    air = np.random.default_rng(0).normal(-1000, 8, UNITS.shape).clip(-1024).astype(np.int16)
    check(dicom((air + 1024).astype(np.uint16)), window(air))
    check(dicom(np.zeros_like(STORED)), window(np.full(UNITS.shape, -1024)))


def lut(entries, first=0, kind="HU"):
    made = item(ModalityLUTType=kind, LUTDescriptor=[len(entries), first, 16])
    made.add_new("LUTData", "OW", np.asarray(entries).astype("<i2").tobytes())
    made["LUTDescriptor"].VR = "US"
    return NOTHING | {"ModalityLUTSequence": [made]}


def test_modality_lut():
    entries = np.arange(1500) * 2 - 1000
    stored = ((UNITS + 1000) // 2 + 7).clip(0).astype(np.uint16)
    check(dicom(stored, **lut(entries, first=7)), window(entries[(stored.astype(int) - 7).clip(0, 1499)]))
    check_unknown(dicom(STORED, **lut(entries, kind="US")), "ModalityLUTType is 'US', not HU", STORED)
    check_unknown(dicom(STORED, **lut(entries) | IDENTITY), "both a ModalityLUTSequence and a rescale", STORED)
    check_unknown(dicom(STORED, **lut(entries[entries >= 0])), "the lowest value is 8 HU", STORED)


@pytest.mark.parametrize("intercept", ["-1024", "-1000"])
def test_monochrome1_is_inverted(intercept):
    stored = (UNITS - int(intercept)).clip(0).astype(np.uint16)
    units = stored.astype(int) + int(intercept)
    data = dicom(stored, PhotometricInterpretation="MONOCHROME1", RescaleIntercept=intercept)
    check(data, 255 - window(units))


@pytest.mark.parametrize("kind", ["PALETTE COLOR", "RGB", "YBR_FULL"])
def test_colour_is_refused(kind):
    data = dicom(GREY_LEVELS, PhotometricInterpretation=kind, SamplesPerPixel=1 if kind[0] == "P" else 3)
    check_refused(data, f"DICOM of kind {kind}, expected MONOCHROME1 or MONOCHROME2")


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer, not an axial slice"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel is 3, expected 1"),
        ({"BitsStored": 17}, "BitsStored is 17, expected 1 to 16"),
        ({"BitsStored": 12, "HighBit": 15}, "HighBit is 15, expected 11"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "BitsAllocated is 1, expected 8, 16 or 32"),
        ({"BitsAllocated": 64, "BitsStored": 64}, "BitsAllocated is 64, expected 8, 16 or 32"),
        ({"NumberOfFrames": "-1"}, "NumberOfFrames is -1"),
        ({"NumberOfFrames": "2"}, "the file is cut off"),
        ({"Rows": None}, "not a DICOM image: no Rows"),
        ({"Rows": 100}, "bytes of pixels, too many for 256x100"),
        ({"PixelData": None}, "not a DICOM image: no PixelData"),
        ({"PhotometricInterpretation": None}, "not a DICOM image: no PhotometricInterpretation"),
    ],
)
def test_layouts_that_are_not_read(elements, reason):
    data = dicom(STORED, **elements)
    if "NumberOfFrames" in elements and elements["NumberOfFrames"] == "2":
        assert decode(data, frame=1).status == "ok"
        assert reason in decode(data, frame=2).error
    else:
        check_refused(data, reason)


def test_floating_point_pixels_are_refused():
    image = dataset(STORED, PixelData=None, BitsAllocated=32, BitsStored=32)
    image.FloatPixelData = UNITS.astype("<f4").tobytes()
    check_refused(encode(image), "floating-point pixels")


def test_patient_and_series_are_told_and_in_no_message():
    header = examine(dicom(STORED, PatientID=f" {PATIENT} "))
    assert (header.patient, header.series) == (PATIENT, SERIES)
    assert examine(dicom(STORED, PatientID=None)).patient == ""
    assert examine(with_raw(dataset(STORED), "PatientID", "LO", "Müller".encode("latin-1"))).patient == "Müller"
    whole = dicom(STORED)
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(140, len(whole))])
        for place in rng.integers(132, 900, 3):
            damaged[place % len(damaged)] = rng.integers(0, 256)
        error = decode(bytes(damaged), "IM0001").error + examine(bytes(damaged), "IM0001").error
        failed += bool(error)
        assert not any(secret in error for secret in (PATIENT, "Secretname", SERIES))
    assert failed > 100


ODD_FILES = {
    **dict.fromkeys(["ct_no_slope", "ct_empty_slope", "ct_ge_preamble", "ct_mention", "ct_jls", "ct_ljpeg"], "right"),
    **dict.fromkeys(["ct_enhanced_1frame_shared", "ct_enhanced_1frame_perframe"], "right"),
    **dict.fromkeys(["sitk_8bit", "sitk_8bit_ct", "sc_8bit_identity", "m1_8i"], "right"),
    **dict.fromkeys(["ct_pad_63536", "ct_pad_4095"], "padded"),
    **dict.fromkeys(["ct_empty_intercept", "ct_no_rescale_u16", "g16_16", "sc12"], "without RescaleIntercept"),
    "ct_slope0": "RescaleSlope is 0",
    "sitk_16bit_grey": "RescaleType is 'US'",
    "mr": "Modality is 'MR'",
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files(shared, name):
    folder = shared / "odd_files"
    if not folder.is_dir():
        pytest.skip("no odd files")
    data, expected = (folder / f"{name}.dcm").read_bytes(), ODD_FILES[name]
    if picture := {"right": "right_dicom", "padded": "right_dicom_padded"}.get(expected):
        check(data, np.asarray(Image.open(folder / f"{picture}.png")), examine(data).scale)
    else:
        assert expected in decode(data).error
