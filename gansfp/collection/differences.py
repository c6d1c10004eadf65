"""Finds in what the files of used and not-used slices differ: a membership score could rest on it instead of on a leak.

Properties of the files come from the catalog. What the pictures show (how dark, how bright, how much is cut off to
black or white, as another window makes it) is seen in some slices of each class.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from gansfp.collection.contents import Content
from gansfp.collection.image import Purpose
from gansfp.collection.readings import Reading
from gansfp.images.slices import Source, load

_LEAST_DIFFERENCE = 0.1  # of the shares that a value has among the used and among the not-used slices
_CUT_SHARE = 0.5  # of slices with the same lowest or highest number: the numbers were cut off there
_ENOUGH = 10  # slices of a class, for what only many slices can show
_SEEN = 30  # slices of a class that are looked at
_LEAST_AUC = 0.9  # with which what is seen tells used from not used
_READERS = 8


class Labelled(NamedTuple):
    """A readable slice that is known to be used or not used."""

    purpose: Purpose
    content: Content
    reading: Reading
    source: Source


def find_differences(slices: Sequence[Labelled]) -> list[str]:
    """Returns one line for each property in which used and not-used slices of a set differ.

    The properties are the reading, the format, the kind of pixels, the size, the bits, the numbers at which values were
    cut off, and what the pictures show.
    """
    sets: dict[str, dict[str, list[Labelled]]] = defaultdict(lambda: {"used": [], "not_used": []})
    for labelled in slices:
        sets[labelled.purpose.set][labelled.purpose.role].append(labelled)
    lines = []
    for name, classes in sorted(sets.items()):
        used, not_used = classes["used"], classes["not_used"]
        if used and not_used:
            found = [*_differences_of_files(used, not_used), *_differences_that_show(used, not_used)]
            lines += [f"set {name}: {line}; a membership score could rest on it" for line in found]
    return lines


_PROPERTIES: Mapping[str, Callable[[Labelled], str]] = {
    "reading": lambda labelled: labelled.reading.name,
    "format": lambda labelled: labelled.content.format,
    "kind of pixels": lambda labelled: labelled.content.mode,
    "size": lambda labelled: f"{labelled.content.width}x{labelled.content.height}",
    "bits": lambda labelled: str(labelled.content.bits),
}


def _differences_of_files(used: Sequence[Labelled], not_used: Sequence[Labelled]) -> list[str]:
    lines = [
        _difference(what, Counter(map(value, used)), Counter(map(value, not_used)))
        for what, value in _PROPERTIES.items()
    ]
    files = [{one.source.uri: one.content.evidence for one in of_class}.values() for of_class in (used, not_used)]
    evidence = [[one for one in of_class if one] for of_class in files]  # one of a file, however many slices it has
    if min(map(len, evidence)) >= _ENOUGH:
        for what, field in (("lowest number", "low"), ("highest number", "high")):
            counts = [Counter(f"{getattr(one, field):g}" for one in of_class) for of_class in evidence]
            lines.append(_difference(what, *map(_cuts, counts)))
    return [line for line in lines if line]


def _cuts(values: "Counter[str]") -> "Counter[str]":
    """Joins the numbers that only few slices have: they come from the patient, not from a tool."""
    total, joined = sum(values.values()), Counter[str]()
    for value, count in values.items():
        joined[value if count >= _CUT_SHARE * total else "various numbers"] += count
    return joined


def _difference(what: str, used: "Counter[str]", not_used: "Counter[str]") -> str:
    """Returns a line about the value whose shares differ most, "" where no value's shares differ by a tenth."""
    shares = {
        value: (used[value] / sum(used.values()), not_used[value] / sum(not_used.values()))
        for value in sorted(used | not_used)
    }
    value, (in_used, in_not_used) = max(shares.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    if abs(in_used - in_not_used) < _LEAST_DIFFERENCE:
        return ""
    return f"{in_used:.0%} of the used and {in_not_used:.0%} of the not-used slices have the {what} {value}"


_SHOWN: Mapping[str, Callable[[np.ndarray], float]] = {
    "the darkest grey level": lambda pixels: float(pixels.min()),
    "the brightest grey level": lambda pixels: float(pixels.max()),
    "the share of black pixels": lambda pixels: float((pixels == 0).mean()),
    "the share of white pixels": lambda pixels: float((pixels == 255).mean()),
}


def _differences_that_show(used: Sequence[Labelled], not_used: Sequence[Labelled]) -> list[str]:
    """Returns a line for each property of the pictures that alone tells used from not-used slices."""
    if min(len(used), len(not_used)) < _ENOUGH:
        return []
    with ThreadPoolExecutor(_READERS) as readers:
        pictures = [
            [slice_.pixels for slice_ in readers.map(load, _spread(of_class)) if slice_.pixels is not None]
            for of_class in (used, not_used)
        ]
    counts = [len(of_class) for of_class in pictures]
    if min(counts) < _ENOUGH:
        return []
    labels = np.repeat([1, 0], counts)
    lines = []
    for what, value in _SHOWN.items():
        area = roc_auc_score(labels, [value(pixels) for of_class in pictures for pixels in of_class])
        if max(area, 1 - area) >= _LEAST_AUC:
            seen = f"{counts[0]} used and {counts[1]} not-used slices"
            lines.append(f"{what} alone tells used from not used (AUC {area:.2f} in {seen})")
    return lines


def _spread(slices: Sequence[Labelled]) -> list[Source]:
    places = sorted({round(place) for place in np.linspace(0, len(slices) - 1, _SEEN)})
    return [slices[place].source for place in places]
