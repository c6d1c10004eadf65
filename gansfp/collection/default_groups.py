"""Groups slices where neither groups.csv nor a table does: by what DICOM says of the patient, and by volume.

Neighbours of one patient are nearly the same picture. Without groups they would look like independent witnesses.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from gansfp.collection.image import Purpose

_SLICES_A_SERIES = 3  # the least mean number for which a series can stand for a patient


class Origin(NamedTuple):
    """Where a slice comes from.

    patient, series: salted digests of PatientID and SeriesInstanceUID, "" where the file does not say. volume: the path
    of a file that holds several slices, "" for other files.
    """

    patient: str
    series: str
    volume: str


def complete_groups(
    groups: Sequence[str], origins: Sequence[Origin], purposes: Sequence[Purpose]
) -> tuple[list[str], list[str]]:
    """Returns the groups, with a group for each slice that has none and whose file says where it comes from; and notes.

    A slice's group is its patient's, else its series', else its volume's. If other slices of the patient have one group
    in groups.csv or in the table, it is that group.
    """
    names, notes = _names(groups, origins, purposes)
    given: dict[str, set[str]] = defaultdict(set)
    for group, name in zip(groups, names, strict=True):
        if group and name:
            given[name].add(group)
    known = {name: min(of_name) for name, of_name in given.items() if len(of_name) == 1}
    completed = [group or known.get(name, name) for group, name in zip(groups, names, strict=True)]
    added = [full for group, full in zip(groups, completed, strict=True) if full and not group]
    if added:
        notes.append(
            f"{len(added):,} slices without a group in groups.csv are in {len(set(added)):,} groups by the patient, "
            "series or volume that their files name"
        )
    return completed, notes


def _names(
    groups: Sequence[str], origins: Sequence[Origin], purposes: Sequence[Purpose]
) -> tuple[list[str], list[str]]:
    """Returns the group that each slice's file names ("" for none), and a note for each PatientID of no use."""
    replaced, notes = _replaced(origins, purposes), []
    for patient in sorted(replaced):
        rows = [row for row, origin in enumerate(origins) if origin.patient == patient]
        if not all(groups[row] for row in rows):
            series = {origins[row].series for row in rows} - {""}
            notes.append(
                f"{len(rows):,} slices have the same PatientID, and {len(series)} SeriesInstanceUIDs: it is probably "
                "no patient's own, so that each series counts as a patient; if it is, give groups.csv"
            )

    def name(origin: Origin) -> str:
        if origin.patient and not (origin.patient in replaced and origin.series):
            return f"patient-{origin.patient}"
        return f"series-{origin.series}" if origin.series else origin.volume

    return [name(origin) for origin in origins], notes


def _replaced(origins: Sequence[Origin], purposes: Sequence[Purpose]) -> set[str]:
    """Returns the PatientIDs that stand in the files in place of the patients' own.

    More than half of the real slices of a class have such a number, in several series that are large enough to be
    series. Generated slices say nothing of patients.
    """
    series_of: dict[Purpose, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for origin, purpose in zip(origins, purposes, strict=True):
        if purpose.is_real and origin.patient:
            series_of[purpose][origin.patient].append(origin.series)
    replaced = set()
    for of_patient in series_of.values():
        patient, every = max(of_patient.items(), key=lambda item: len(item[1]))
        series = [name for name in every if name]
        several = 1 < len(set(series)) <= len(series) / _SLICES_A_SERIES
        if several and len(every) > sum(map(len, of_patient.values())) / 2:
            replaced.add(patient)
    return replaced
