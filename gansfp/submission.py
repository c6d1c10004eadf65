"""The challenge's own format: no header, `id,value`, every id exactly once; written, and checked for anybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from gansfp import store
from gansfp.errors import DataError
from gansfp.layout import ENDINGS


def submission(values: Mapping[str, int]) -> bytes:
    """The file for {image id: value}, in that order."""
    return "".join(f"{image_id},{value}\n" for image_id, value in values.items()).encode()


def problems(content: bytes, ids: Iterable[str], binary: bool = True) -> list[str]:
    """What the official validator would reject, a line each; none if the file is right.

    binary: membership, where a value is 0 or 1; otherwise a cluster number.
    """
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        return ["it is not a text file"]
    wanted, found = Counter(ids), Counter[str]()
    out = []
    for number, line in enumerate(lines, 1):
        image_id, comma, value = line.partition(",")
        if not comma or "," in value:
            out.append(f"line {number}: got {line[:60]!r}, expected id,value")
        elif image_id not in wanted:
            ending = next((e for e in ENDINGS if image_id.lower().endswith(e)), "")
            hint = " (ids carry no file ending)" if ending else " (no header line)" if number == 1 else ""
            out.append(f"line {number}: {image_id[:60]!r} is no id of the set{hint}")
        elif not (value in ("0", "1") if binary else value.isascii() and value.isdigit()):
            out.append(f"line {number}: got {value[:20]!r} for {image_id!r}, expected {'0 or 1' if binary else 'a number'}")
        found[image_id] += 1
    out += [f"{image_id!r} is given {count} times" for image_id, count in found.items() if count > 1 and image_id in wanted]
    missing = [image_id for image_id in wanted if not found[image_id]]
    if missing:
        out.append(f"{len(missing)} ids are missing, such as {missing[0]!r}")
    return out


def read_ids(uri: str) -> list[str]:
    """The ids of a set: a folder's image names without ending, or a text file's lines up to the first comma.

    Raises DataError where there are none, or where the place cannot be read.
    """
    try:
        lines = store.read_bytes(uri).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--ids {uri!r}: is no text, expected a folder of images or a list of ids") from error
    except OSError:  # a folder
        paths = store.list_files(uri)
        lines = [path.rsplit("/", 1)[-1].rsplit(".", 1)[0] for path in paths if path.lower().endswith(ENDINGS)]
    ids: Sequence[str] = [line.partition(",")[0].strip() for line in lines if line.strip()]
    ids = ids[1:] if ids and ids[0] == "image_id" else ids
    if not ids:
        raise DataError(f"--ids {uri!r}: got no ids")
    return list(ids)
