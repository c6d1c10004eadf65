"""Reads a folder of images that is no collection: every file, with one rule for all numbers of 16 bits."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gansfp import store
from gansfp.images.grey_levels import choose_rule
from gansfp.images.image_file import UNKNOWN
from gansfp.images.slices import MAX_BYTES, Header, Source, examine

_READERS = 8  # threads that read files: a store answers slowly, but answers many requests at once


class FolderFile(NamedTuple):
    """A file of a folder. sources: its slices, none where it cannot be read; sha256: of the file; error: the reason."""

    sources: list[Source]
    sha256: str
    error: str


def read_files(uris: Sequence[str]) -> list[FolderFile]:
    """Examines all files, in their order. The files are taken for one class: one rule holds for all 16-bit numbers."""
    with ThreadPoolExecutor(_READERS) as readers:
        headers = list(readers.map(_examine, uris))
    rule = choose_rule([header.evidence for header, _ in headers if header.scale == UNKNOWN and header.evidence]).rule
    files = []
    for uri, (header, sha256) in zip(uris, headers, strict=True):
        frames = range(1, header.frames + 1) if header.frames > 1 else [0]
        sources = [] if header.error else [Source(uri, frame, rule) for frame in frames]
        files.append(FolderFile(sources, sha256, header.error))
    return files


def _examine(uri: str) -> tuple[Header, str]:
    """Returns the header and the sha256 of a file; both say so where it cannot be read."""
    try:
        data = store.read_bytes(uri, MAX_BYTES)
    except OSError as error:
        return Header(error=store.one_line(error)), ""
    return examine(data, uri), hashlib.sha256(data).hexdigest()
