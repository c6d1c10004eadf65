"""The challenge's own format: no header, `id,value`, every id exactly once; written, and checked for anybody."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from gansfp import store
from gansfp.errors import DataError
from gansfp.images.slices import ENDINGS


def submission(values: Mapping[str, int]) -> bytes:
    """The file for {image id: value}, in that order."""
    return "".join(f"{image_id},{value}\n" for image_id, value in values.items()).encode()


def problems(content: bytes, ids: Iterable[str], binary: bool = True) -> list[str]:
    """What the official validator would reject, a line each; none if the file is right.

    Lines may end in LF or CRLF, the last one in nothing. binary: membership, where a value is 0 or 1; otherwise a
    cluster number.
    """
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError:
        return ["it is not a text file"]
    if not lines[-1]:
        lines.pop()
    wanted, found = dict.fromkeys(ids), Counter[str]()
    out = []
    for number, line in enumerate(lines, 1):
        image_id, comma, value = line.removesuffix("\r").partition(",")
        valid = value in ("0", "1") if binary else value.isascii() and value.isdigit()
        if not comma or "," in value:
            out.append(f"line {number}: got {line[:60]!r}, expected id,value")
        elif image_id not in wanted:
            out.append(f"line {number}: {image_id[:60]!r} is no id of the set{_hint(image_id, number, valid)}")
        elif not valid:
            expected = "0 or 1" if binary else "a number"
            out.append(f"line {number}: got {value[:20]!r} for {image_id!r}, expected {expected}")
        found[image_id] += 1
    repeated = {image_id: count for image_id, count in found.items() if count > 1 and image_id in wanted}
    out += [f"{image_id!r} is given {count} times" for image_id, count in repeated.items()]
    missing = [image_id for image_id in wanted if not found[image_id]]
    if missing:
        out.append(f"{len(missing)} ids are missing, such as {missing[0]!r}")
    return out


def _hint(image_id: str, number: int, valid: bool) -> str:
    """Why what looks like an id is none."""
    if image_id.startswith("\ufeff"):
        return " (the file begins with a byte-order mark)"
    if image_id != image_id.strip():
        return " (there are spaces around it)"
    if image_id.lower().endswith(ENDINGS):
        return " (ids carry no file ending)"
    return " (there is no header line)" if number == 1 and not valid else ""


def read_ids(uri: str) -> list[str]:
    """The ids of a set: a folder's image names without ending, or a text file's lines up to the first comma.

    A first line `image_id` or `image_id,...` is a header. Raises DataError where there are none, where one is there
    twice, or where the place cannot be read.
    """
    try:
        lines = store.read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--ids {uri!r}: is no text, expected a folder of images or a list of ids") from error
    except OSError:  # a folder
        lines = [posixpath.basename(path) for path in store.list_files(uri)]
        if store.is_remote(uri):  # names in a URI are percent-encoded, and its options follow
            lines = [unquote(name.partition("?")[0]) for name in lines]
        lines = [name for name in lines if name.lower().endswith(ENDINGS)]
    ids = [_without_ending(line.partition(",")[0].strip()) for line in lines if line.strip()]
    ids = ids[1:] if ids[:1] == ["image_id"] else ids
    if not ids:
        raise DataError(f"--ids {uri!r}: got no ids, expected a folder of images or a list of ids")
    repeated = next((image_id for image_id, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"--ids {uri!r}: got {repeated!r} twice, expected every id once")
    return ids


def _without_ending(name: str) -> str:
    return posixpath.splitext(name)[0] if name.lower().endswith(ENDINGS) else name
