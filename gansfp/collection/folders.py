"""Reads a folder of images that is no collection: every file, with one rule for all numbers of 16 bits."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gansfp import store
from gansfp.collection.listing import list_below, recognise_images
from gansfp.errors import DataError
from gansfp.images.grey_levels import choose_rule
from gansfp.images.image_file import UNKNOWN
from gansfp.images.slices import MAX_BYTES, Header, Source, examine

_READERS = 8  # threads that read files: a store answers slowly, but answers many requests at once


class FolderFile(NamedTuple):
    """A file of a folder.

    sources: its slices; one, without a rule, where it cannot be read. patient: PatientID, else SeriesInstanceUID, ""
    where the file does not say; it must not appear in any output. sha256: of the file. error: why it cannot be read.
    """

    sources: list[Source]
    patient: str
    sha256: str
    error: str


def list_images(folder: str) -> list[str]:
    """Returns the paths, below a folder or URI, of all images there, which are recognised by their content; sorted.

    Raises DataError where the folder cannot be listed.
    """
    try:
        entries = list_below(folder).entries
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({store.one_line(error)})") from error
    return sorted(recognise_images(folder, [entry for entry in entries if not entry.is_folder]))


def read_files(uris: Sequence[str]) -> list[FolderFile]:
    """Examines all files, in their order.

    The files are taken for one class: one rule holds for all numbers of 16 bits. Only files that should tell what their
    numbers are, and do not (DICOM, NIfTI), have no rule.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        headers = list(readers.map(_examine, uris))
    undecided = [header for header, _ in headers if header.scale == UNKNOWN and not header.unknown_because]
    rule = choose_rule([header.evidence for header in undecided if header.evidence]).rule
    return [
        FolderFile(
            _sources(uri, header, rule),
            header.patient or header.series,
            sha256,
            header.error or header.unknown_because,
        )
        for uri, (header, sha256) in zip(uris, headers, strict=True)
    ]


def _sources(uri: str, header: Header, rule: str) -> list[Source]:
    frames: Sequence[int] = range(1, header.frames + 1) if header.frames > 1 and not header.error else [0]
    return [Source(uri, frame, "" if header.unknown_because else rule) for frame in frames]


def _examine(uri: str) -> tuple[Header, str]:
    """Returns the header and the sha256 of a file; both say so where it cannot be read."""
    try:
        data = store.read_bytes(uri, MAX_BYTES)
    except OSError as error:
        return Header(error=store.one_line(error)), ""
    return examine(data, uri), hashlib.sha256(data).hexdigest()
