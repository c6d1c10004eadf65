"""Writes and checks the submission format of the challenge: lines `id,value`, no header, every id exactly once."""

from __future__ import annotations

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress

from gansfp import store
from gansfp.collection.folders import read_files
from gansfp.collection.listing import list_below, recognise_images
from gansfp.collection.names import KnownIds, frame_ending, is_utf8, normal, shown
from gansfp.errors import DataError
from gansfp.images.slices import ENDINGS, without_ending

_ONE_SLICE = (".png", ".jpg", ".jpeg")  # endings of files that are not opened to count their slices
_FOLDERS_ABOVE = 8  # of a folder of images, that may be part of its ids


def submission(values: Mapping[str, int]) -> bytes:
    """Returns the content of the file for {image id: value}, in that order."""
    return "".join(f"{image_id},{value}\n" for image_id, value in values.items()).encode()


def problems(content: bytes, ids: Iterable[str], binary: bool = True) -> list[str]:
    """Returns what the official validator would reject in a file, one line a problem; none if the file is correct.

    Also rejected is a file from which other readers of CSV files get other values: they remove quotation marks around
    a value, for example. Lines may end in LF or CRLF; the last line may end in neither. Ids in different Unicode forms
    are the same. ids: that the file must hold. binary: True for membership, where a value is 0 or 1; False for
    attribution, where a value is a cluster number.
    """
    try:
        store.decode_text(content)
    except ValueError as error:
        return [f"the file is {error}"]
    lines = content.decode().split("\n")
    if not lines[-1]:
        lines.pop()
    expected_ids, counts = {normal(image_id): image_id for image_id in ids}, Counter[str]()
    known = KnownIds(expected_ids)
    problem_lines = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        problem = _problem(line, number, expected_ids, known, binary)
        problem_lines += [f"line {number}: got {problem}"] if problem else []
        counts[normal(line.partition(",")[0])] += 1
    repeated = {image_id: counts[form] for form, image_id in expected_ids.items() if counts[form] > 1}
    problem_lines += [f"got {image_id!r} {count} times, expected it once" for image_id, count in repeated.items()]
    missing = [image_id for form, image_id in expected_ids.items() if not counts[form]]
    if missing:
        problem_lines.append(f"{len(missing)} ids are missing, such as {missing[0]!r}")
    return problem_lines


def _problem(line: str, number: int, expected_ids: Container[str], known: KnownIds, binary: bool) -> str:
    """Returns what is wrong in a line, and what is expected there; "" for a correct line."""
    image_id, comma, value = line.partition(",")
    valid = value in ("0", "1") if binary else value.isascii() and value.isdigit()
    if not comma or "," in value:
        separator = next((name for mark, name in ((";", "semicolon"), ("\t", "tab")) if mark in line), "")
        return f"{line[:60]!r}, expected id,value{f' (with a comma, not a {separator})' if separator else ''}"
    if number == 1 and image_id.startswith("\ufeff"):
        return f"id {image_id[:60]!r}, expected an id of the set (the file begins with a byte-order mark; remove it)"
    if image_id.startswith('"'):
        marked = normal(image_id) in expected_ids
        advice = "rename the image, which readers of CSV files would read otherwise" if marked else "remove them"
        return f"id {image_id[:60]!r}, expected an id without quotation marks ({advice})"
    if "\r" in image_id:
        return f"id {image_id[:60]!r}, expected an id without line break"
    if normal(image_id) not in expected_ids:
        return f"id {image_id[:60]!r}, expected an id of the set{_hint(image_id, number, known, valid)}"
    if not valid:
        blanks = " (remove the spaces around it)" if value != value.strip() else ""
        return f"{value[:20]!r} for {image_id!r}, expected {'0 or 1' if binary else 'a number'}{blanks}"
    return ""


def _hint(image_id: str, number: int, known: KnownIds, valid: bool) -> str:
    """Returns a likely reason, in parentheses, why the id of a line is not an id of the set; "" for no guess."""
    if image_id != image_id.strip():
        return " (remove the spaces around it)"
    if image_id.lower().endswith(ENDINGS):
        return " (ids have no file ending)"
    if number == 1 and not valid:
        return " (the file must not have a header line)"
    return f" ({reason})" if (reason := known.reason(image_id)) else ""


def read_ids(uri: str) -> list[str]:
    """Returns the ids of a set: the image names of a folder, without ending, or the lines of a text file.

    The sub-folders of a folder count too. Of a line, the text before the first comma counts. A first line `image_id` or
    `image_id,...` is a header. Each slice of a file with several has an id, as in the catalog. Raises DataError where
    there are no ids, where an id is there twice, and where `uri` cannot be read.
    """
    return _readings(uri)[0]


def other_readings(uri: str) -> list[list[str]]:
    """Returns what else the ids of a set may be: an id may end in .dcm, or may be a path. Raises as read_ids does."""
    return _readings(uri)[1:]


def _readings(uri: str) -> list[list[str]]:
    """Returns the ways in which the ids of a set can be read, the most likely first."""
    try:
        readings = _of_list(store.decode_text(store.read_bytes(uri)))
    except ValueError as error:
        raise DataError(
            f"--ids: got {uri!r}, not a text file, expected a folder of images or a list of ids ({error})"
        ) from error
    except OSError:  # opening a folder raises it
        if not store.exists(uri):
            raise DataError(
                f"--ids: got {uri!r}, which does not exist, expected a folder of images or a list of ids"
            ) from None
        readings = _of_folder(uri)
    if not any(readings):
        raise DataError(f"--ids: got {uri!r}, which has no ids, expected a folder of images or a list of ids")
    once = [ids for ids in readings if len(set(map(normal, ids))) == len(ids)]
    if not once:
        repeated = next(image_id for image_id, count in Counter(map(normal, readings[0])).items() if count > 1)
        raise DataError(f"--ids: got {uri!r}, which has {repeated!r} twice, expected every id once")
    return once


def _of_list(text: str) -> list[list[str]]:
    """Returns the readings of a list: without blanks and file endings, without blanks, and as it is; then the same
    where quotation marks around an id do not belong to it."""
    firsts = [[line.removesuffix("\r").partition(",")[0] for line in text.split("\n")]]
    if '"' in text:
        with suppress(csv.Error):  # the marks belong to the ids
            firsts.append([row[0] if row else "" for row in csv.reader(io.StringIO(text, newline=""), strict=True)])
    readings = []
    for first in firsts:
        ids = [text for text in first if text.strip()]
        ids = ids[1:] if ids and ids[0].strip() == "image_id" else ids
        stripped = [image_id.strip() for image_id in ids]
        readings += [[without_ending(image_id) for image_id in stripped], stripped, ids]
    return readings


def _of_folder(uri: str) -> list[list[str]]:
    """Returns the readings of a folder: names, or, where several images have one name, paths below it or below one of
    the folders around it, as the catalog has them."""
    try:
        entries = list_below(uri).entries
    except OSError as error:
        raise DataError(f"--ids: got {uri!r}, which cannot be read ({store.one_line(error)})") from error
    images = sorted(recognise_images(uri, entries))
    odd = [path for path in images if not is_utf8(path)]
    if odd:
        raise DataError(f"--ids: got {uri!r}, which has a name that is not UTF-8, {shown(odd[0])}; rename it")
    paths = [without_ending(path) for path in images]
    names = [posixpath.basename(path) for path in paths]
    counts, frames = Counter(map(normal, names)), _frames(uri, images)
    if max(counts.values(), default=1) == 1:
        return [sorted(_with_frames(names, frames))]
    around = store.open_store(uri)[1].strip("/").split("/")
    readings = []
    for depth in range(min(_FOLDERS_ABOVE, len(around)) + 1):
        full = ["/".join([*around[len(around) - depth :], path]) for path in paths]
        readings += [_with_frames(_short(full, names, counts), frames), _with_frames(full, frames)]
    return readings


def _short(paths: Sequence[str], names: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Returns the name of each image, or its path where several images have that name."""
    return [name if counts[normal(name)] == 1 else path for name, path in zip(names, paths, strict=True)]


def _frames(uri: str, images: Sequence[str]) -> list[list[str]]:
    """Returns what the id of each slice of a file ends in, as the catalog has it: [""] for a file of one slice.

    images: paths below `uri`.
    """
    to_open = [path for path in images if not path.lower().endswith(_ONE_SLICE)]
    files = read_files([store.join(uri, path) for path in to_open])
    endings = {
        path: [frame_ending(source.frame) for source in file.sources] for path, file in zip(to_open, files, strict=True)
    }
    return [endings.get(path, [""]) for path in images]


def _with_frames(ids: Sequence[str], frames: Sequence[Sequence[str]]) -> list[str]:
    """Returns the ids of slices. ids: of files; frames: what _frames returns."""
    return [image_id + frame for image_id, of_file in zip(ids, frames, strict=True) for frame in of_file]
