"""gansfp.collection.default_groups: slices of one patient, series or volume share a group where none is given."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gansfp.collection import default_groups
from gansfp.collection.default_groups import Origin
from gansfp.collection.image import Purpose

NOWHERE = Origin("", "", "")
USED, NOT_USED, GENERATED = (
    Purpose("membership", "a", "train", role, "") for role in ("used", "not_used", "generated")
)


def complete_groups(groups, origins, purposes=None):
    return default_groups.complete_groups(groups, origins, purposes or [USED] * len(groups))


def test_patients_come_before_series_and_series_before_volumes():
    origins = [
        Origin("p", "s1", ""),
        Origin("p", "s2", "a/stack"),
        Origin("q", "s3", ""),
        Origin("", "s4", ""),
        Origin("", "s4", "b/stack"),
        Origin("", "", "c/stack"),
        Origin("", "", "c/stack"),
        NOWHERE,
    ]
    groups, notes = complete_groups([""] * 8, origins)
    assert groups == [
        "patient-p",
        "patient-p",
        "patient-q",
        "series-s4",
        "series-s4",
        "c/stack",
        "c/stack",
        "",
    ]
    assert notes == [
        "7 slices without a group in groups.csv are in 4 groups by the patient, series or volume that their files name"
    ]


def test_given_groups_stay_and_hold_for_the_whole_patient():
    origins = [Origin("p", "s", ""), Origin("p", "s", ""), Origin("q", "s", ""), Origin("q", "s", ""), NOWHERE]
    assert complete_groups(["one", "", "", "", "x"], origins)[0] == [
        "one",
        "one",
        "patient-q",
        "patient-q",
        "x",
    ]
    # Two groups of one patient contradict each other: the slices without a group are neither's.
    assert complete_groups(["one", "two", ""], [Origin("p", "s", "")] * 3)[0] == ["one", "two", "patient-p"]
    assert complete_groups(["a", "b"], [Origin("p", "s", "")] * 2) == (["a", "b"], [])
    assert complete_groups(["", ""], [NOWHERE] * 2) == (["", ""], [])


def in_series(patient, count, each=3):
    """Slices of one PatientID in so many series."""
    return [Origin(patient, f"{patient}-{number // each}", "") for number in range(count * each)]


def test_one_patient_number_for_all_was_removed_from_the_files():
    groups, notes = complete_groups([""] * 9, in_series("anonymous", 3))
    assert groups == [f"series-anonymous-{number // 3}" for number in range(9)]
    assert "9 slices have the same PatientID, and 3 SeriesInstanceUIDs" in notes[0]
    # One patient with one series is one patient.
    assert complete_groups([""] * 2, [Origin("p", "s", "")] * 2)[0] == ["patient-p"] * 2
    # A tool that gives each file a series of its own says nothing of patients.
    assert set(complete_groups([""] * 9, in_series("p", 9, 1))[0]) == {"patient-p"}
    assert complete_groups(["x"] * 9, in_series("p", 3))[1] == []


def test_other_patient_numbers_do_not_hide_that_it_was_removed():
    anonymous, other = in_series("anonymous", 8), in_series("p", 1)
    for others, purposes in (
        (other, [USED] * 3),
        (other, [GENERATED] * 3),
        (other, [NOT_USED] * 3),
        (in_series("p", 20, 2), [NOT_USED] * 40),
        (in_series("generated", 20), [GENERATED] * 60),
    ):
        groups, notes = complete_groups([""] * (24 + len(others)), anonymous + others, [USED] * 24 + purposes)
        assert groups == [f"series-{origin.series}" for origin in anonymous] + [f"patient-{o.patient}" for o in others]
        assert "24 slices have the same PatientID, and 8 SeriesInstanceUIDs" in notes[0]
    # Each class has a number of its own.
    groups, notes = complete_groups([""] * 36, anonymous + in_series("other", 4), [USED] * 24 + [NOT_USED] * 12)
    assert (len(set(groups)), len(notes)) == (12, 3)


def test_patients_with_several_series_stay_patients():
    origins = [origin for patient in "abcd" for origin in in_series(patient, 3)]
    assert len(set(complete_groups([""] * 36, origins)[0])) == 4


names = st.sampled_from(["", "a", "b", "c"])
origins = st.builds(Origin, names, names, names)
purposes = st.sampled_from([USED, NOT_USED, GENERATED])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["", "", "g", "h"]), origins, purposes), max_size=12))
def test_slices_of_one_origin_are_never_apart(slices):
    given_groups, of_slices, purposes_of_slices = ([row[part] for row in slices] for part in range(3))
    completed, _ = complete_groups(given_groups, of_slices, purposes_of_slices)
    for group, full, origin in zip(given_groups, completed, of_slices, strict=True):
        assert full == group or not group
        assert bool(full) == (bool(group) or origin != NOWHERE)
    fresh = {}
    for group, full, origin in zip(given_groups, completed, of_slices, strict=True):
        if not group and origin != NOWHERE:
            assert fresh.setdefault(origin, full) == full
