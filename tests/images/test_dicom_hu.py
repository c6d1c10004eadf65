"""HU that a DICOM header claims: what the numbers confirm, and what they do not."""

import io

import numpy as np
import pydicom
import pytest
from dicom_files import chest, dataset, dicom, encode, functional_group
from pydicom.encaps import encapsulate, get_frame

from gansfp.images.dicom_pixels import StoredPixels
from gansfp.images.image_file import HU, UNKNOWN
from gansfp.images.slices import decode, decode_frames, examine

UNITS = chest()
Y, X = np.mgrid[:256, :256] - 127.5
FAR = np.hypot(X, Y)
TISSUE = np.where(UNITS < -500, 40, UNITS)  # no air
BODY = (UNITS > -200) & (FAR < 110)


def window(units):
    return np.rint((np.asarray(units, np.float64) + 1350) * 255 / 1500).clip(0, 255)


LUNG_WINDOW = window(UNITS).astype(int)
STRETCHED = ((LUNG_WINDOW - 55) * 255 // 200).clip(0, 255)


def file(units, intercept=-1024, **elements):
    stored = np.asarray(units).astype(int) - intercept
    return dicom(stored.astype(np.uint16), RescaleIntercept=str(intercept), **elements)


def check(data, units, frame=0):
    slice_ = decode(data, "IM0001", frame)
    assert (slice_.status, slice_.error) == ("ok", "")
    assert (slice_.pixels == window(units)).all()
    assert examine(data).scale == HU


def check_refused(data, reason, frame=0):
    error = decode(data, "IM0001", frame).error
    assert reason in error
    assert error.endswith("say what the numbers are with --sixteen-bit")
    assert len(error) < 200


def with_padding(value, where, **elements):
    return dicom(np.where(where, value, UNITS + 1024).astype(np.uint16), **elements)


def test_padding_that_no_element_declares():
    outside, edge = FAR > 125, np.abs(Y) > 124.9
    assert 0.01 < edge.mean() < 0.03
    reason = "padding that PixelPaddingValue does not declare"
    check_refused(with_padding(4095, outside, BitsStored=12), "% of the values are above 2000 HU")
    check_refused(with_padding(63536, outside), reason)
    check_refused(with_padding(63536, edge), "2.3% of the values are above 31000 HU")
    check_refused(with_padding(63536, edge, PixelPaddingValue=0), reason)
    check_refused(with_padding(2500, FAR > 170), "the four corners have the largest value, 1476 HU")
    check_refused(with_padding(2500, X > 90), "% of the values are the largest one, 1476 HU")
    declared = with_padding(2500, FAR > 170, PixelPaddingValue=2500)
    assert decode(declared).status == "ok"


@pytest.mark.parametrize("intercept", [-1024, -1000])
@pytest.mark.parametrize("bits", [10, 11, 12, 16])
@pytest.mark.parametrize("levels", [LUNG_WINDOW, STRETCHED])
def test_grey_levels_with_the_rescale_of_a_scanner(levels, bits, intercept):
    stored = levels * ((1 << bits) - 1) // 255
    data = file(stored + intercept, intercept, BitsStored=bits)
    assert decode(data).status == "failed"
    assert (examine(data).scale, bool(examine(data).unknown_because)) == (UNKNOWN, True)


def test_the_reason_tells_what_grey_levels_lack():
    check_refused(file(STRETCHED * 8 - 1000, -1000), "0.0% of the values are those of soft tissue (-200 to 300 HU)")
    check_refused(file(STRETCHED * 4 - 1024), "the largest value is -4 HU, and muscle has more")
    signed = dicom((STRETCHED - 128).astype(np.int16), RescaleSlope="8", RescaleIntercept="0")
    check_refused(signed, "look like grey levels")
    wide = (UNITS.clip(-1024, 3071) + 1024) // 16  # 8 bits, all darker than 128
    check_refused(file(wide - 1024), "no value is above")


def test_rare_slices_are_read():
    noise = np.random.default_rng(0).normal(0, 10, UNITS.shape).round().astype(int)
    skull = np.where(FAR < 60, 35, np.where(FAR < 75, 900, np.where(FAR < 90, -60, -1000)))
    rare = {
        "skull": skull,
        "top of the skull": np.where(FAR < 45, 1000, np.where(FAR < 60, 20, -1000)),
        "without lungs": np.where(UNITS < -500, np.where(FAR < 90, 40, -1000), UNITS),
        "of a child": np.where(UNITS < -800, UNITS + np.where(FAR < 90, 250, 0), UNITS),
        "contrast medium": np.where(BODY & (np.abs(Y) < 40), 450, UNITS),
        "metal at the end of 12 bits": np.where(FAR < 20, 3071, UNITS - noise),
        "metal beyond 12 bits": np.where(FAR < 20, 29000, UNITS - noise),
        "mostly fat": np.where(UNITS > -200, np.where(FAR < 30, 50, -100), UNITS),
        "clipped at 400": UNITS.clip(-1000, 400),
        "clipped to the lung window": UNITS.clip(-1350, 150),
        "clipped to -1000 to 1000": UNITS.clip(-1000, 1000),
        "ground glass": np.where((UNITS < -800) & (FAR < 90), -400, UNITS),
        "water": np.where(FAR < 90, 0, -1000),
    }
    for name, units in rare.items():
        units = units if "clipped" in name or "metal" in name else units + noise
        slice_ = decode(file(units, -2000))
        assert slice_.error == "", name
        assert (slice_.pixels == window(units)).all()
    lung = (UNITS + noise)[100:150, 60:80]
    assert decode(file(lung, -2000)).status == "resized"
    assert decode(file((UNITS + noise)[100:150, 60:120])).status == "resized"


@pytest.mark.parametrize("intercept", [-1024, -1100, -1200, -8192])
def test_a_slice_of_nothing_but_air(intercept):
    air = np.random.default_rng(0).normal(-1000, 10, UNITS.shape).round().astype(int).clip(intercept)
    check(file(air, intercept), air)
    with_table = np.where(Y > 118, -700, air)
    check(file(with_table, intercept), with_table)
    black = np.full_like(air, -1000)
    check(file(black, intercept), black)


FRAMES = np.stack([TISSUE, UNITS, TISSUE, UNITS[::-1]])


def frames_file(frames=FRAMES, **elements):
    return dicom((frames + 1024).astype(np.uint16), **elements)


def test_a_frame_without_air_in_a_file_that_has_it():
    check_refused(file(TISSUE), "air has about -1000")
    for number, units in enumerate(FRAMES, 1):
        check(frames_file(), units, number)
    check_refused(frames_file(np.stack([TISSUE] * 3)), "air has about -1000", 2)
    coarse = dicom(((FRAMES + 1024) // 16).astype(np.uint8), RescaleSlope="16")
    assert decode(coarse, frame=1).status == "ok"
    alone = dicom(((TISSUE + 1024) // 16).astype(np.uint8), RescaleSlope="16")
    assert "neither grey levels nor HU" in decode(alone).error


def test_a_black_frame_does_not_make_grey_levels_hu():
    levels = (STRETCHED * 16).astype(np.uint16)
    data = dicom(np.stack([np.zeros_like(levels), levels // 20, levels]))
    assert decode(data, frame=1).status == "ok"
    check_refused(data, "above 2000 HU", 3)


def test_only_frames_of_the_same_rescale_speak_for_a_frame():
    def groups(*intercepts):
        made = [functional_group(RescaleIntercept=str(intercept), RescaleSlope="1") for intercept in intercepts]
        return {"RescaleIntercept": None, "RescaleSlope": None, "PerFrameFunctionalGroupsSequence": made}

    frames = FRAMES[:2]
    assert decode(frames_file(frames, **groups(-1024, -1024)), frame=1).status == "ok"
    check_refused(frames_file(frames, **groups(-1000, -1024)), "air has about -1000", 1)
    assert decode(frames_file(frames, **groups(-1000, -1024)), frame=2).status == "ok"


def test_at_most_16_other_frames_are_decoded_once_for_a_file(monkeypatch):
    decoded = []
    cells = StoredPixels.cells
    monkeypatch.setattr(StoredPixels, "cells", lambda self, frame: decoded.append(frame) or cells(self, frame))
    stack = np.repeat(TISSUE[None, ::4, ::4], 100, axis=0)
    results = list(decode_frames(frames_file(stack), "", [(number, "auto") for number in (50, 51, 52)]))
    assert all("air has about -1000" in result.error for result in results)
    assert len(decoded) == 3 + 16
    assert (min(decoded), max(decoded)) == (0, 99)


def test_a_damaged_frame_ends_the_search(monkeypatch):
    syntax = "1.2.840.10008.1.2.4.90"
    frames = []
    for units in FRAMES[[0, 1, 2]]:
        image = dataset((units + 1024).astype(np.uint16))
        image.compress(syntax, generate_instance_uid=False)
        frames.append(get_frame(pydicom.dcmread(io.BytesIO(encode(image))).PixelData, 0, number_of_frames=1))

    def compressed(*parts):
        image = dataset((FRAMES[:3] + 1024).astype(np.uint16))
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = encapsulate(list(parts))
        image["PixelData"].is_undefined_length = True
        return encode(image)

    check(compressed(*frames), TISSUE, 3)
    damaged = compressed(b"no frame", *frames[1:])
    assert decode(damaged, frame=2).status == "ok"
    check_refused(damaged, "air has about -1000", 3)
