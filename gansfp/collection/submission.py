"""Writes and checks the submission format of the challenge: lines `id,value`, no header, every id exactly once."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from gansfp import store
from gansfp.errors import DataError
from gansfp.images.slices import ENDINGS


def submission(values: Mapping[str, int]) -> bytes:
    """Returns the content of the file for {image id: value}, in that order."""
    return "".join(f"{image_id},{value}\n" for image_id, value in values.items()).encode()


def problems(content: bytes, ids: Iterable[str], binary: bool = True) -> list[str]:
    """Returns what the official validator would reject in a file, one line a problem; none if the file is correct.

    Lines may end in LF or CRLF; the last line may end in neither. ids: that the file must hold. binary: True for
    membership, where a value is 0 or 1; False for attribution, where a value is a cluster number.
    """
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        return ["the file is not text in UTF-8"]
    if not lines[-1]:
        lines.pop()
    expected_ids, counts = dict.fromkeys(ids), Counter[str]()
    problem_lines = []
    for number, line in enumerate(lines, 1):
        image_id, comma, value = line.removesuffix("\r").partition(",")
        valid = value in ("0", "1") if binary else value.isascii() and value.isdigit()
        if not comma or "," in value:
            problem_lines.append(f"line {number}: got {line[:60]!r}, expected id,value")
        elif image_id not in expected_ids:
            hint = _hint(image_id, number, valid)
            problem_lines.append(f"line {number}: got id {image_id[:60]!r}, expected an id of the set{hint}")
        elif not valid:
            expected = "0 or 1" if binary else "a number"
            problem_lines.append(f"line {number}: got {value[:20]!r} for {image_id!r}, expected {expected}")
        counts[image_id] += 1
    repeated = {image_id: count for image_id, count in counts.items() if count > 1 and image_id in expected_ids}
    problem_lines += [f"got {image_id!r} {count} times, expected it once" for image_id, count in repeated.items()]
    missing = [image_id for image_id in expected_ids if not counts[image_id]]
    if missing:
        problem_lines.append(f"{len(missing)} ids are missing, such as {missing[0]!r}")
    return problem_lines


def _hint(image_id: str, number: int, valid: bool) -> str:
    """Returns a likely reason, in parentheses, why the id of a line is not an id of the set; "" for no guess."""
    if image_id.startswith("\ufeff"):
        return " (the file begins with a byte-order mark; remove it)"
    if image_id != image_id.strip():
        return " (remove the spaces around it)"
    if image_id.lower().endswith(ENDINGS):
        return " (ids have no file ending)"
    return " (the file must not have a header line)" if number == 1 and not valid else ""


def read_ids(uri: str) -> list[str]:
    """Returns the ids of a set: the image names of a folder, without ending, or the lines of a text file.

    Of a line, the text before the first comma counts. A first line `image_id` or `image_id,...` is a header. Raises
    DataError where there are no ids, where an id is there twice, and where `uri` cannot be read.
    """
    try:
        lines = store.read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--ids: got {uri!r}, not a text file, expected a folder of images or a list of ids") from error
    except OSError:  # opening a folder raises it
        lines = [posixpath.basename(path) for path in store.list_files(uri)]
        if store.is_remote(uri):  # a URI has percent-encoded names, and options at its end
            lines = [unquote(name.partition("?")[0]) for name in lines]
        lines = [name for name in lines if name.lower().endswith(ENDINGS)]
    ids = [_without_ending(line.partition(",")[0].strip()) for line in lines if line.strip()]
    ids = ids[1:] if ids[:1] == ["image_id"] else ids
    if not ids:
        raise DataError(f"--ids: got {uri!r}, which has no ids, expected a folder of images or a list of ids")
    repeated = next((image_id for image_id, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"--ids: got {uri!r}, which has {repeated!r} twice, expected every id once")
    return ids


def _without_ending(name: str) -> str:
    return posixpath.splitext(name)[0] if name.lower().endswith(ENDINGS) else name
