"""What the report says of the collection: what was read and how, what was refused, duplicates, groups, lungs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.readings import ReadingCount
from gansfp.images import slices
from gansfp.images.image_file import NoSliceError
from gansfp.images.lungs import threshold_mask
from gansfp.images.slices import Source
from gansfp.report.audited import AuditedWork
from gansfp.report.pictures import Pictures, encode, outlined

REFUSED = 50  # lines; with thousands of bad files, the rest is counted by its reason
REFUSED_PICTURES = 12
REAL = ("used", "not_used", "unknown")  # roles of real slices
OF_EACH_ROLE = 2  # slices with their lungs


@dataclass(frozen=True)
class Part:
    """The slices of one purpose: how many there are, how many could not be read, and of how many patients they are."""

    task: str
    set: str
    split: str
    role: str
    slices: int
    unreadable: int
    patients: int
    formats: str


@dataclass(frozen=True)
class Refused:
    """A file that was not read. picture: its numbers, stretched to grey levels, where it has any."""

    image_id: str
    reason: str
    picture: str = ""


@dataclass(frozen=True)
class DataSection:
    """reasons: of refused files, with how many there are, the most frequent first. ungrouped: real slices of the
    membership sets without a group. lungs: (id, role, picture, share of the slice)."""

    slices: int
    parts: Sequence[Part]
    readings: Sequence[ReadingCount]
    refused: Sequence[Refused]
    refused_in_all: int
    reasons: Sequence[tuple[str, int]]
    duplicates: Sequence[str]
    findings: Sequence[str]
    ungrouped: int
    lungs: Sequence[tuple[str, str, str, float]]


def data_section(audited: AuditedWork, pictures: Pictures) -> DataSection | None:
    """The section; None where no job has read the collection."""
    catalog = audited.catalog
    if catalog is None:
        return None
    bad = {line["image_id"]: line["reason"] for line in audited.run.get("bad_images", [])}
    of_sets = catalog.column("task") == "membership"
    unread = catalog.select(status="unreadable")
    bad |= dict(zip(unread.ids.tolist(), unread.column("error").tolist(), strict=True))
    return DataSection(
        len(catalog),
        _parts(catalog),
        catalog.readings(),
        _refused(catalog, bad, pictures),
        len(bad),
        Counter(bad.values()).most_common(REFUSED),
        [str(duplicates) for duplicates in catalog.duplicates()],
        audited.run.get("findings", catalog.findings),
        int(((catalog.column("group") == "") & np.isin(catalog.column("role"), REAL) & of_sets).sum()),
        _lungs(catalog, pictures),
    )


def _parts(catalog: Catalog) -> list[Part]:
    purposes = list(zip(*(catalog.column(name).tolist() for name in ("task", "set", "split", "role")), strict=True))
    status, groups, formats = catalog.column("status"), catalog.groups(), catalog.column("format")
    parts = []
    for purpose in sorted(set(purposes)):
        rows = np.array([other == purpose for other in purposes])
        kinds = ", ".join(sorted({kind for kind in formats[rows].tolist() if kind}))
        unreadable = int((status[rows] != "ok").sum())
        task, set_, split, role = purpose
        patients = len(np.unique(groups[rows]))
        parts.append(Part(task, set_, split, role, int(rows.sum()), unreadable, patients, kinds))
    return parts


def _refused(catalog: Catalog, bad: dict[str, str], pictures: Pictures) -> list[Refused]:
    sources = dict(zip(catalog.ids.tolist(), catalog.sources(), strict=True))
    lines: list[Refused] = []
    for image_id, reason in sorted(bad.items())[:REFUSED]:
        shown = bool(pictures) and image_id in sources and len(lines) < REFUSED_PICTURES
        lines.append(Refused(image_id, reason, _stretched(sources[image_id]) if shown else ""))
    return lines


def _stretched(source: Source) -> str:
    """The numbers of a file that was not read, stretched to grey levels; empty where there are none."""
    try:
        numbers = slices.numbers_of_file(store.read_bytes(source.uri), source.uri)
    except (OSError, NoSliceError):
        return ""
    values = numbers.values
    low, high = np.percentile(values, [0.5, 99.5])
    grey = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    return encode(np.rint(255 * (1 - grey if numbers.inverted else grey)).astype(np.uint8), 128)


def _lungs(catalog: Catalog, pictures: Pictures) -> list[tuple[str, str, str, float]]:
    """Some slices of each role with the outline of their lungs, by the threshold mask."""
    if not pictures:
        return []
    shown = []
    ids, roles = catalog.ids, catalog.column("role")
    for role in sorted(set(roles.tolist())):
        of_role = ids[(roles == role) & (catalog.column("status") == "ok")].tolist()
        places = np.linspace(0, len(of_role) - 1, 2 + OF_EACH_ROLE).round().astype(int)[1:-1]
        for image_id in dict.fromkeys(of_role[place] for place in places if of_role):
            pixels = pictures.pixels(image_id)
            if pixels is not None:
                mask = np.asarray(threshold_mask(pixels), dtype=bool)
                shown.append((image_id, role, encode(outlined(pixels, mask), 160), float(mask.mean())))
    return shown
