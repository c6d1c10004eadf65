"""gansfp.collection.default_groups: slices of one patient, series or volume share a group where none is given."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gansfp.collection.default_groups import Origin, complete_groups

NOWHERE = Origin("", "", "")


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


def test_one_patient_number_for_all_was_removed_from_the_files():
    origins = [Origin("anonymous", f"s{number // 3}", "") for number in range(9)]
    groups, notes = complete_groups([""] * 9, origins)
    assert groups == [f"series-s{number // 3}" for number in range(9)]
    assert "same PatientID, and 3 SeriesInstanceUIDs" in notes[0]
    # One patient with one series is one patient.
    assert complete_groups([""] * 2, [Origin("p", "s", "")] * 2)[0] == ["patient-p"] * 2
    # A tool that gives each file a series of its own says nothing of patients.
    assert set(complete_groups([""] * 9, [Origin("p", f"s{number}", "") for number in range(9)])[0]) == {"patient-p"}


names = st.sampled_from(["", "a", "b", "c"])
origins = st.builds(Origin, names, names, names)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["", "", "g", "h"]), origins), max_size=12))
def test_slices_of_one_origin_are_never_apart(slices):
    given_groups, of_slices = [group for group, _ in slices], [origin for _, origin in slices]
    completed, _ = complete_groups(given_groups, of_slices)
    for group, full, origin in zip(given_groups, completed, of_slices, strict=True):
        assert full == group or not group
        assert bool(full) == (bool(group) or origin != NOWHERE)
    fresh = {}
    for group, full, origin in zip(given_groups, completed, of_slices, strict=True):
        if not group and origin != NOWHERE:
            assert fresh.setdefault(origin, full) == full
