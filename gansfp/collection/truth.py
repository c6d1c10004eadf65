"""The answers, for scoring alone: only jobs/final.py imports this file, and a test sees to it.

An image_id of a truth file may be a file name without ending, if one test image alone has it, or the catalog's own.
"""

from collections import Counter

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import DataError


def read_membership_truth(data: str, catalog: Catalog, set: str) -> dict[str, int] | None:
    """{image_id: 1 used, 0 not} of every unknown slice of one set, or None where DATA has no truth for it.

    catalog: the whole catalog of DATA. Raises DataError for an unknown, missing or repeated id, a value but 0 and 1, a
    missing column.
    """
    uri = store.join(data, "membership", set, "test", "truth.csv")
    answers = _read(uri, catalog.unknown(set), "used")
    if answers is None:
        return None
    wrong = [image_id for image_id, value in answers.items() if value not in ("0", "1")]
    if wrong:
        raise DataError(
            f"{uri}: {len(wrong)} values of `used` are not 0 or 1, such as {answers[wrong[0]]!r} of {wrong[0]!r}"
        )
    return {image_id: int(value) for image_id, value in answers.items()}


def read_attribution_truth(data: str, catalog: Catalog) -> dict[str, str] | None:
    """{image_id: generator} of every test slice of attribution, or None where DATA has no truth for it.

    catalog: the whole catalog of DATA. Raises DataError as read_membership_truth does, and for an empty generator.
    """
    uri = store.join(data, "attribution", "test", "truth.csv")
    answers = _read(uri, catalog.unattributed(), "generator")
    empty = [image_id for image_id, value in (answers or {}).items() if not value]
    if empty:
        raise DataError(f"{uri}: {len(empty)} values of `generator` are empty, such as that of {empty[0]!r}")
    return answers


def _read(uri: str, images: Catalog, column: str) -> dict[str, str] | None:
    """{image_id: value}, in the order of the catalog."""
    if not store.exists(uri):
        return None
    columns = store.read_csv(uri, ("image_id", column))
    ids, names = images.ids.tolist(), images.column("name").tolist()
    counts = Counter(names)
    resolve = {name: image_id for image_id, name in zip(ids, names, strict=True) if counts[name] == 1}
    resolve |= dict(zip(ids, ids, strict=True))
    given = columns["image_id"]
    _refuse(
        uri,
        "ids are of several test images, give the path",
        [name for name in given if counts[name] > 1 and name not in resolve],
    )
    _refuse(uri, "ids are of no test image", [image_id for image_id in given if image_id not in resolve])
    resolved = [resolve[image_id] for image_id in given]
    _refuse(uri, "ids are given twice", [image_id for image_id, count in Counter(resolved).items() if count > 1])
    answers = dict(zip(resolved, columns[column], strict=True))
    _refuse(uri, "test images are missing", [image_id for image_id in ids if image_id not in answers])
    return {image_id: answers[image_id] for image_id in ids}


def _refuse(uri: str, what: str, ids: list[str]) -> None:
    if ids:
        raise DataError(f"{uri}: {len(ids)} {what}, such as {ids[0]!r}")
