"""Groups slices where neither groups.csv nor a table does: by what DICOM says of the patient, and by volume.

Neighbours of one patient are nearly the same picture. Without groups they would look like independent witnesses.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class Origin(NamedTuple):
    """Where a slice comes from.

    patient, series: digests of PatientID and SeriesInstanceUID, "" where the file does not say. volume: the path of a
    file that holds several slices, "" for other files.
    """

    patient: str
    series: str
    volume: str


def complete_groups(groups: Sequence[str], origins: Sequence[Origin]) -> tuple[list[str], list[str]]:
    """Returns the groups, with a group for each slice that has none and whose file says where it comes from; and notes.

    A slice's group is its patient's, else its series', else its volume's. If another slice of the patient has a group
    in groups.csv or in the table, it is that group. The name of a new group is a number in the order of the slices: it
    says nothing of the patient, and it is the same in each run.
    """
    keys, notes = _keys(groups, origins)
    given: dict[str, set[str]] = defaultdict(set)
    for group, key in zip(groups, keys, strict=True):
        if group and key:
            given[key].add(group)
    names: dict[str, str] = {}
    completed = []
    for group, key in zip(groups, keys, strict=True):
        if not group and key and key not in names:
            known = given.get(key, set())
            kind = key.partition(" ")[0]
            names[key] = min(known) if len(known) == 1 else f"{kind}-{len(names) + 1:05d}"
        completed.append(group or names.get(key, ""))
    if names:
        count = sum(not group and bool(key) for group, key in zip(groups, keys, strict=True))
        notes.append(
            f"{count:,} slices without a group in groups.csv are in {len(set(names.values())):,} groups by "
            "the patient, series or volume that their files name"
        )
    return completed, notes


def _keys(groups: Sequence[str], origins: Sequence[Origin]) -> tuple[list[str], list[str]]:
    """Returns what each slice is grouped by ("" for nothing), and a note where the patients' numbers are of no use."""
    patients = {origin.patient for origin in origins} - {""}
    series = {origin.series for origin in origins if origin.patient} - {""}
    notes = []
    one_patient = len(patients) == 1 and len(series) > 1
    if one_patient and not all(groups):
        notes.append(
            f"all DICOM files have the same PatientID, and {len(series)} SeriesInstanceUIDs: the number was probably "
            "removed, so that each series counts as a patient; if not, give groups.csv"
        )

    def key(origin: Origin) -> str:
        if origin.patient and not (one_patient and origin.series):
            return f"dicom-patient {origin.patient}"
        if origin.series:
            return f"dicom-series {origin.series}"
        return f"volume {origin.volume}" if origin.volume else ""

    return [key(origin) for origin in origins], notes
