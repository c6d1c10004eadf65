"""Describes a collection before it is read: what each folder is taken for, and what its files are like.

Only some files of each class are opened, so that the description of 40,000 slices takes seconds.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from gansfp import store
from gansfp.collection.catalog import Catalog, catalog_of
from gansfp.collection.contents import Pseudonyms, examine_all
from gansfp.collection.groups import read_groups
from gansfp.collection.layout import Image, Purpose, describe_layout, find_images
from gansfp.collection.readings import describe as class_name

OPENED = 100  # files of a class that are opened at most
OPENED_BYTES = 1 << 28  # of a class
_REASONS = _SHOWN = 5  # that are shown of a class


def describe_collection(data: str, *, allow_outside: bool = False, sixteen_bit: str = "auto") -> str:
    """Returns the description as text. Writes nothing. Raises DataError as read_catalog does."""
    data = store.absolute(data)
    images, notes = find_images(data, allow_outside)
    groups, group_notes = read_groups(data, images)
    by_class: dict[Purpose, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        by_class[image.purpose].append(row)
    opened = sorted(row for rows in by_class.values() for row in _sample(images, rows))
    sample = [images[row] for row in opened]
    contents = examine_all(sample, None, Pseudonyms(sample))
    catalog = catalog_of(data, sample, contents, [groups[row] for row in opened], sixteen_bit)
    lines = [f"{data}: {len(images):,} files, of which {len(opened):,} were opened", ""]
    for purpose, rows in sorted(by_class.items()):
        lines += _describe_class(purpose, [images[row] for row in rows], [groups[row] for row in rows], catalog)
    lines += [f"note: {note}" for note in [*notes, *group_notes, *catalog.notes]]
    lines += [f"careful: {finding}" for finding in catalog.findings]
    return "\n".join(lines)


def _sample(images: Sequence[Image], rows: Sequence[int]) -> list[int]:
    """Returns some rows, evenly spread; at least one."""
    chosen = [rows[place] for place in sorted({round(p) for p in np.linspace(0, len(rows) - 1, OPENED)})]
    read = np.cumsum([max(images[row].bytes, 0) for row in chosen])
    return chosen[: max(1, int((read <= OPENED_BYTES).sum()))]


def _describe_class(purpose: Purpose, images: Sequence[Image], groups: Sequence[str], catalog: Catalog) -> list[str]:
    """Returns the lines about one class. images, groups: of all its files; catalog: of the files that were opened."""
    folders = describe_layout(images)
    place, others = max(folders, key=lambda count: count.files).folder, len(folders) - 1
    more = f" and {others} more folders" if others else ""
    lines = [f"{class_name(purpose)}: {len(images):,} files, from {place}{more}"]
    of_class = catalog.select(task=purpose.task, set=purpose.set, split=purpose.split, role=purpose.role)
    of_class = of_class.where(of_class.column("generator") == purpose.generator)
    good, bad = of_class.select(status="ok"), of_class.select(status="unreadable")
    if len(good):
        sizes = [f"{width}x{height}" for width, height in zip(good.column("width"), good.column("height"), strict=True)]
        lines.append(f"  sizes {_counted(sizes)}; modes {_counted(good.column('mode').tolist())}")
        lines.append(f"  read as {_counted(good.column('reading').tolist())}")
        if good.column("frame").any():
            lines.append(f"  {len(good):,} slices in {len(set(good.column('uri').tolist())):,} files that were opened")
    lines.append(_describe_groups(groups, good))
    if len(bad):
        lines.append(f"  refused: {len(bad):,} of {len(of_class):,}")
        reasons = Counter(bad.column("error").tolist())
        lines += [f"    {count:,} x {reason}" for reason, count in reasons.most_common(_REASONS)]
    return [*lines, ""]


def _describe_groups(groups: Sequence[str], good: Catalog) -> str:
    """Returns a line. groups: of all files, as groups.csv and the table tell. good: the readable slices."""
    given, without = len(set(groups) - {""}), sum(not group for group in groups)
    by_files = len(set(good.column("group").tolist()) - {""} - set(groups))
    parts = [f"{given:,} by groups.csv or the table"] if given else []
    parts += [f"{by_files:,} by what the opened files say"] if by_files else []
    if without and not by_files:
        parts.append(f"none for {without:,} files, each of which counts as a patient of its own")
    return f"  groups: {', '.join(parts)}"


def _counted(values: Sequence[str]) -> str:
    """Returns the different values with their counts, the most frequent first."""
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({count:,})" for value, count in counts[:_SHOWN])
    return shown + (f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")
