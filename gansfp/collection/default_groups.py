"""Groups slices where neither groups.csv nor a table does: by what DICOM says of the patient, and by volume.

Neighbours of one patient are nearly the same picture. Without groups they would look like independent witnesses.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

_SLICES_A_SERIES = 3  # the least mean number for which a series can stand for a patient


class Origin(NamedTuple):
    """Where a slice comes from.

    patient, series: salted digests of PatientID and SeriesInstanceUID, "" where the file does not say. volume: the path
    of a file that holds several slices, "" for other files.
    """

    patient: str
    series: str
    volume: str


def complete_groups(groups: Sequence[str], origins: Sequence[Origin]) -> tuple[list[str], list[str]]:
    """Returns the groups, with a group for each slice that has none and whose file says where it comes from; and notes.

    A slice's group is its patient's, else its series', else its volume's. If other slices of the patient have one group
    in groups.csv or in the table, it is that group.
    """
    names, notes = _names(groups, origins)
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


def _names(groups: Sequence[str], origins: Sequence[Origin]) -> tuple[list[str], list[str]]:
    """Returns the group that each slice's file names ("" for none), and a note where PatientID is of no use."""
    patients = {origin.patient for origin in origins} - {""}
    series = [origin.series for origin in origins if origin.patient and origin.series]
    # One number for all, and series that are large enough to be series: the number was removed from the files.
    one_patient = len(patients) == 1 and 1 < len(set(series)) <= len(series) / _SLICES_A_SERIES
    notes = []
    if one_patient and not all(groups):
        notes.append(
            f"all DICOM files have the same PatientID, and {len(set(series))} SeriesInstanceUIDs: the number was "
            "probably removed, so that each series counts as a patient; if not, give groups.csv"
        )

    def name(origin: Origin) -> str:
        if origin.patient and not (one_patient and origin.series):
            return f"patient-{origin.patient}"
        return f"series-{origin.series}" if origin.series else origin.volume

    return [name(origin) for origin in origins], notes
