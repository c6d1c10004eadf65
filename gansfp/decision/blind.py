"""The blind control: how well do real slices by themselves tell used from not used, without any generated slice?

Where they do, used and not-used slices come from different sources, and a membership score may only see the difference.
Blind baselines beat published attacks on many data sets (Das, Zhang and Tramer 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu, norm, rankdata

from gansfp.collection.catalog import Catalog
from gansfp.embedding.measures import FILES, MEASURES, Measure
from gansfp.embedding.shards import Pair
from gansfp.labels import UNKNOWN
from gansfp.statistics.resampling import group_codes

MEASURED = ("measures", "full")  # the embedding whose columns are MEASURES
SOURCE = "source of the pictures"


@dataclass(frozen=True, eq=False)
class Facts:
    """What the real slices of a set show by themselves.

    measures: names of the columns of measured (n, m) float64; pictures: by embedding (n, d) float64, a few numbers.
    """

    measures: tuple[Measure, ...]
    measured: np.ndarray
    pictures: Mapping[Pair, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """In what used and not-used patients differ by themselves.

    kind: such as "noise". what: the measurement. auc: of this measurement alone, at least 0.5. p_value: corrected for
    the number of measurements.
    """

    kind: str
    what: str
    auc: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Units:
    """What keeps its label as a whole: a patient, or the slices of one label of a patient who has both.

    codes: (n,) the unit of each slice; labels: (u,).
    """

    codes: np.ndarray
    labels: np.ndarray

    def means(self, of_slices: np.ndarray) -> np.ndarray:
        """The mean of each unit over its slices, (u, ...) float64. of_slices: (n, ...)."""
        sums = np.zeros((len(self.labels), *of_slices.shape[1:]))
        np.add.at(sums, self.codes, of_slices)
        counts = np.bincount(self.codes, minlength=len(self.labels))
        return sums / counts.reshape(-1, *[1] * (of_slices.ndim - 1))

    def first(self, of_slices: np.ndarray) -> np.ndarray:
        """The value of one slice of each unit, (u,), for what all its slices share. of_slices: (n,)."""
        return of_slices[np.unique(self.codes, return_index=True)[1]]


def units_of(groups: np.ndarray, labels: np.ndarray) -> Units:
    """The units of slices with these groups (n,) str and labels (n,) int."""
    both = np.stack([group_codes(groups, len(labels)), labels])
    unique, codes = np.unique(both, axis=1, return_inverse=True)
    return Units(codes.reshape(-1), unique[1])


def collect_facts(own: Mapping[Pair, np.ndarray], real: Sequence[str], images: Catalog) -> Facts:
    """The facts of the real slices with these ids, from what the search left of them and from the catalog."""
    row_of = {image_id: row for row, image_id in enumerate(images.ids.tolist())}
    of_files, values = _file_facts(images, np.array([row_of[image_id] for image_id in real]))
    pictures = {pair: of_pair.astype(np.float64) for pair, of_pair in own.items() if pair != MEASURED}
    measures, measured = of_files, values
    if MEASURED in own:
        measures, measured = (*MEASURES, *of_files), np.column_stack([own[MEASURED].astype(np.float64), values])
    differ = measured.max(0) > measured.min(0)
    return Facts(tuple(m for m, kept in zip(measures, differ, strict=True) if kept), measured[:, differ], pictures)


def _file_facts(images: Catalog, rows: np.ndarray) -> tuple[tuple[Measure, ...], np.ndarray]:
    """What the files themselves tell: (n, m). Words such as the format become a column of 0 and 1 for each word."""
    names, columns = [], []
    frames = np.maximum(images.column("frames")[rows], 1)
    sizes = {"size of the file": np.log1p(images.column("bytes")[rows] / frames)}
    for name in ("width", "height", "bits"):
        sizes[f"{name} in the file"] = images.column(name)[rows].astype(np.float64)
    for name, column in sizes.items():
        names.append(name)
        columns.append(column)
    for name in ("format", "mode", "reading"):
        words = images.column(name)[rows]
        for word in np.unique(words):
            names.append(f"{name} {word}")
            columns.append((words == word).astype(np.float64))
    return tuple(Measure(name, FILES) for name in names), np.column_stack(columns)


def blocks(facts: Facts, rows: np.ndarray, units: Units) -> list[np.ndarray]:
    """The features of units for statistics.conditional, one block a kind: each (u, d), columns standardised.

    rows: (n,) of facts, the slices of the units. Measurements are ranked first, so that one odd slice counts little.
    Their squares stand beside them, because one class may lie between two parts of the other.
    """
    features = []
    if facts.measures:
        ranked = normal_scores(units.means(facts.measured[rows]))
        features.append(_standardised(np.column_stack([ranked, np.square(ranked)])))
    features += [_standardised(units.means(of_pair[rows])) for of_pair in facts.pictures.values()]
    return features


def normal_scores(values: np.ndarray) -> np.ndarray:
    """Ranks of each column of (n, ...) as quantiles of the normal distribution (van der Waerden 1952)."""
    return norm.ppf((rankdata(values, axis=0) - 0.5) / len(values))


def _standardised(columns: np.ndarray) -> np.ndarray:
    spread = columns.std(0)
    return (columns - columns.mean(0)) / np.where(spread > 1e-9, spread, np.inf)


def find_differences(facts: Facts, rows: np.ndarray, units: Units, alpha: float) -> tuple[Difference, ...]:
    """The measurements in which units of the two classes differ, the clearest of each kind, the clearest kind first.

    rows: (n,) of facts, the slices of the units, whose labels are 0 and 1. Mann-Whitney tests (1947) of the units'
    means, corrected by Holm (1979) for the number of measurements.
    """
    if UNKNOWN in units.labels or min(np.bincount(units.labels, minlength=2)) < 1:
        return ()
    means, used = units.means(facts.measured[rows]), units.labels == 1
    found: list[Difference] = []
    for measure, values in zip(facts.measures, means.T, strict=True):
        test = mannwhitneyu(values[used], values[~used])
        auc = test.statistic / (used.sum() * (~used).sum())
        found.append(Difference(measure.kind, measure.name, float(max(auc, 1 - auc)), float(test.pvalue)))
    found.sort(key=lambda difference: difference.p_value)
    kept: dict[str, Difference] = {}
    corrected = 0.0
    for place, difference in enumerate(found):
        corrected = max(corrected, min(1.0, (len(found) - place) * difference.p_value))
        if corrected >= alpha:
            break
        kept.setdefault(difference.kind, Difference(difference.kind, difference.what, difference.auc, corrected))
    return tuple(kept.values())
