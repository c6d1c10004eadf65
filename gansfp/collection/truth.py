"""Reads the truth files of DATA, with which predictions are scored after they are made.

Only gansfp/decision/final.py and jobs/reproduce.py import this file to learn the answers; a test checks it. What starts
every job, gansfp/runtime/collection.py, takes from it check_truth_files alone, which tells no answer. An image_id of a
truth file is the catalog's image_id, or a file name without ending that only one test image has, or a path below DATA
without ending.
"""

from collections import Counter

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.groups import uri_below
from gansfp.collection.layout import collection_folder
from gansfp.collection.names import frame_ending, key, likely_reason
from gansfp.errors import DataError


def check_truth_files(data: str, catalog: Catalog) -> None:
    """Looks for mistakes in all truth files of DATA, and keeps nothing of what they say.

    catalog: the whole catalog of DATA. Raises DataError as read_membership_truth and read_attribution_truth do.
    """
    for name in catalog.sets_to_decide():
        read_membership_truth(data, catalog, name)
    if len(catalog.unattributed()):
        read_attribution_truth(data, catalog)


def read_membership_truth(data: str, catalog: Catalog, set: str) -> dict[str, int] | None:
    """Returns {image_id: 1 for used, 0 for not used} for every unknown slice of a set, or None without a truth file.

    catalog: the whole catalog of DATA. Raises DataError for an unknown, missing or repeated id, a value other than 0
    and 1, and a missing column.
    """
    uri = store.join(collection_folder(data), "membership", set, "test", "truth.csv")
    answers = _read(data, uri, catalog.unknown(set), "used")
    if answers is None:
        return None
    invalid = [image_id for image_id, value in answers.items() if value not in ("0", "1")]
    if invalid:
        example = f"{answers[invalid[0]]!r} of {invalid[0]!r}"
        raise DataError(f"{uri}: {len(invalid)} values of `used` are not 0 or 1, such as {example}")
    return {image_id: int(value) for image_id, value in answers.items()}


def read_attribution_truth(data: str, catalog: Catalog) -> dict[str, str] | None:
    """Returns {image_id: generator} for every test slice of attribution, or None without a truth file.

    catalog: the whole catalog of DATA. Raises DataError as read_membership_truth does, and for an empty generator.
    """
    uri = store.join(collection_folder(data), "attribution", "test", "truth.csv")
    answers = _read(data, uri, catalog.unattributed(), "generator")
    empty = [image_id for image_id, value in (answers or {}).items() if not value]
    if empty:
        raise DataError(f"{uri}: {len(empty)} values of `generator` are empty, such as that of {empty[0]!r}")
    return answers


def _read(data: str, uri: str, images: Catalog, column: str) -> dict[str, str] | None:
    """Returns {image_id: value of the column} for all `images`, in their order, or None if there is no file."""
    if not store.exists(uri):
        return None
    columns = store.read_csv(uri, ("image_id", column))
    ids, names = images.ids.tolist(), images.column("name").tolist()
    counts = Counter(map(key, names))
    paths = _paths(data, images)
    id_of_key = {key(path): image_id for image_id, path in zip(ids, paths, strict=True)}
    id_of_key |= {key(name): image_id for image_id, name in zip(ids, names, strict=True) if counts[key(name)] == 1}
    id_of_key |= {key(image_id): image_id for image_id in ids}
    file_ids = columns["image_id"]
    unmatched = [given for given in file_ids if key(given) not in id_of_key]
    _refuse(uri, "ids fit several test images, give their paths", [name for name in unmatched if counts[key(name)] > 1])
    _refuse(uri, "ids fit no test image", unmatched, likely_reason(unmatched, [*ids, *names, *paths]))
    resolved_ids = [id_of_key[key(given)] for given in file_ids]
    repeated = [image_id for image_id, count in Counter(resolved_ids).items() if count > 1]
    _refuse(uri, "ids are there more than once", repeated)
    answers = dict(zip(resolved_ids, columns[column], strict=True))
    _refuse(uri, "test images are missing", [image_id for image_id in ids if image_id not in answers])
    return {image_id: answers[image_id] for image_id in ids}


def _paths(data: str, images: Catalog) -> list[str]:
    """Returns the path of each image below DATA, without ending; with the slice's number in a file of several."""
    places = zip(images.column("uri").tolist(), images.column("frame").tolist(), strict=True)
    return [uri_below(data, uri) + frame_ending(frame) for uri, frame in places]


def _refuse(uri: str, problem: str, ids: list[str], reason: str = "") -> None:
    """Raises DataError if there are any ids with a problem. reason: a likely one, "" for none."""
    if ids:
        raise DataError(f"{uri}: {len(ids)} {problem}, such as {ids[0]!r}{f' ({reason})' if reason else ''}")
