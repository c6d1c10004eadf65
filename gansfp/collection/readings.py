"""Says how the numbers of each file become grey levels: by one rule for all files of a class.

The files of a class come from one tool, so that their numbers mean the same.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from gansfp.collection.contents import Content
from gansfp.collection.image import Purpose
from gansfp.images.grey_levels import (
    AUTO,
    FEW_LEVELS,
    SIXTEEN_BITS,
    WINDOW_CENTRE,
    WINDOW_WIDTH,
    Choice,
    Evidence,
    choose_rule,
)
from gansfp.images.image_file import GREY, HU, UNKNOWN

READ_AS = (AUTO, *SIXTEEN_BITS)  # the values of --sixteen-bit
_NAMED = 3  # images that a note names
_CHANGED = 1  # raise it when a reading changes its grey levels: embeddings of before are then computed again


class Reading(NamedTuple):
    """How a file is read.

    name: for the catalog and the log, such as "DICOM HU" or "PNG 16-bit full"; "" for a file that is not read. rule:
    for slices.Source. error: why the file is not read although its header can be read.
    """

    name: str
    rule: str = AUTO
    error: str = ""


def choose_readings(
    purposes: Sequence[Purpose], contents: Sequence[Content], sixteen_bit: str = AUTO
) -> tuple[list[Reading], list[str]]:
    """Returns how each file is read, and notes: which rule each class of 16-bit files has, and how sure it is.

    sixteen_bit: of READ_AS; a rule is taken for all files that do not tell what their numbers are.
    """
    undecided: dict[Purpose, list[Content]] = defaultdict(list)
    for purpose, content in zip(purposes, contents, strict=True):
        if content.status == "ok" and content.scale == UNKNOWN and not content.unknown_because:
            undecided[purpose].append(content)
    choices: dict[Purpose, Choice] = {}
    notes = []
    for purpose, files in undecided.items():
        if sixteen_bit == AUTO:
            choices[purpose] = choose_rule([file.evidence for file in files if file.evidence])
        else:
            choices[purpose] = Choice(sixteen_bit, "by --sixteen-bit")
        choice = choices[purpose]
        taken = f"are read as {choice.rule}" if choice.rule else "are not read"
        notes.append(f"16 bits: the {len(files)} files of {describe(purpose)} {taken} ({choice.why})")
    readings = [
        _reading(content, choices.get(purpose), sixteen_bit)
        for purpose, content in zip(purposes, contents, strict=True)
    ]
    return readings, notes


def _reading(content: Content, choice: Choice | None, sixteen_bit: str) -> Reading:
    if content.status != "ok":
        return Reading("")
    turned = ", turned" if content.turned else ""
    if content.scale == GREY:
        return Reading(f"{content.format} grey{turned}")
    if content.scale == HU:
        # Compressed numbers may turn out not to be HU when they are decoded; then the rule says what they are.
        return Reading(f"{content.format} HU{turned}", sixteen_bit)
    if content.unknown_because and sixteen_bit == AUTO:
        likely = choose_rule([content.evidence]).rule if content.evidence else ""
        hint = f" (they look like {likely})" if likely else ""
        return Reading("", "", f"{content.unknown_because}; say what the numbers are with --sixteen-bit{hint}")
    rule = choice.rule if choice else sixteen_bit
    if not rule:
        evidence = content.evidence
        span = f" from {evidence.low:g} to {evidence.high:g}" if evidence else ""
        return Reading("", "", f"numbers{span} of unknown meaning; say what they are with --sixteen-bit")
    return Reading(f"{content.format} 16-bit {rule}{turned}", rule)


def content_hash(content: Content, frame: int, reading: Reading) -> str:
    """Returns a hash of the grey levels of a slice, "" for a file that cannot be read.

    It is the file's sha256 where the file alone decides about the grey levels, so that an embedding stays valid when
    the file moves. Otherwise it also covers the frame and the reading.
    """
    if not content.sha256 or (content.scale == GREY and not frame and not content.turned and content.format != "DICOM"):
        return content.sha256
    return hashlib.sha256(f"{content.sha256} {frame} {reading.name} {reading.rule} {_CHANGED}".encode()).hexdigest()


def describe(purpose: Purpose) -> str:
    """Returns a class in words, such as "membership/a/train/used"."""
    parts = (purpose.task, purpose.set, purpose.split, purpose.generator or purpose.role)
    return "/".join(part for part in parts if part)


class ReadingCount(NamedTuple):
    """A line of the table of how files were read. names: the first image ids."""

    reading: str
    slices: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.slices > len(self.names) else ""
        return f"{self.reading}: {self.slices:,} slices ({', '.join(self.names)}{more})"


def count_readings(readings: Sequence[str], ids: Sequence[str]) -> list[ReadingCount]:
    """Returns how many slices were read in each way, the most frequent first."""
    ids_of: dict[str, list[str]] = defaultdict(list)
    for reading, image_id in zip(readings, ids, strict=True):
        ids_of[reading or "not read"].append(image_id)
    lines = [ReadingCount(reading, len(names), tuple(names[:_NAMED])) for reading, names in ids_of.items()]
    return sorted(lines, key=lambda line: (-line.slices, line.reading))


def note_lost_levels(rows: Sequence[tuple[str, Content, Reading]]) -> list[str]:
    """Returns a note about slices, given with their ids, that keep fewer than 32 of their grey levels."""
    poor = [image_id for image_id, content, reading in rows if reading.name and _loses_levels(content, reading)]
    if not poor:
        return []
    return [f"{len(poor)} slices keep fewer than {FEW_LEVELS} grey levels of more, such as {', '.join(poor[:_NAMED])}"]


def note_misfits(rows: Sequence[tuple[str, Content, Reading]]) -> list[str]:
    """Returns a note about slices whose numbers cannot be the HU that the rule of their class makes of them."""
    misfits = [
        image_id
        for image_id, content, reading in rows
        if content.scale == UNKNOWN and reading.rule.startswith("hu") and not _fits(content.evidence, reading.rule)
    ]
    if not misfits:
        return []
    return [f"{len(misfits)} slices do not fit the rule of their class, such as {', '.join(misfits[:_NAMED])}"]


def _fits(evidence: Evidence | None, rule: str) -> bool:
    return evidence is None or evidence.blank or rule in evidence.fits


def _loses_levels(content: Content, reading: Reading) -> bool:
    evidence = content.evidence
    if evidence is None or evidence.blank:
        return False
    if content.scale == HU:  # how much of the window the numbers cover
        black, white = WINDOW_CENTRE - WINDOW_WIDTH / 2, WINDOW_CENTRE + WINDOW_WIDTH / 2
        covered = min(evidence.high, white) - max(evidence.low, black)
        return evidence.high - evidence.low >= FEW_LEVELS > covered * 255 / WINDOW_WIDTH
    return reading.rule in evidence.poor
