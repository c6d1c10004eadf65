"""Real slices beside the synthetic slices nearest to them: which ones the report shows, and what it shows of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from gansfp.cores import cores
from gansfp.report.alignment import align, body_mask
from gansfp.report.pictures import Pictures, difference_picture, encode, lit

SHOWN = 5  # slices of each kind; each of another patient
ALL = 200  # with --pictures all: more would make a page that no browser opens quickly
SMALL = 128  # pixels of the further synthetic slices


@dataclass(frozen=True, eq=False)
class Compared:
    """A real slice beside its nearest synthetic ones.

    truth: 1 used, 0 not used, None where it is not known. prediction: None where the slice was not decided about.
    real, synthetic, difference, agreeing: pictures as data URIs, empty where they cannot be shown; `missing` says why.
    further: (id, picture) of the next nearest. agreement: the share of the body's area that agrees after alignment.
    """

    image_id: str
    patient: str
    score: float
    probability: float | None
    prediction: int | None
    truth: int | None
    nearest: tuple[str, ...]
    real: str = ""
    synthetic: str = ""
    difference: str = ""
    agreeing: str = ""
    further: tuple[tuple[str, str], ...] = ()
    agreement: float | None = None
    missing: str = ""


@dataclass(frozen=True, eq=False)
class Shown:
    """The slices of a set that the report shows: flagged as used, not flagged, and known not to be used."""

    flagged: Sequence[Compared] = ()
    others: Sequence[Compared] = ()
    coincidences: Sequence[Compared] = ()


def choose(decided: pa.Table | None, judged: pa.Table | None, everything: bool = False) -> Shown:
    """Chooses the slices of a set: the highest scores among the flagged; among the others every so many; the highest
    scores of the not-used. One of each patient.

    decided: membership-<set>.parquet, the unknown slices; judged: membership-<set>-judged.parquet. Where there are no
    unknown slices, the judged ones are chosen from. everything: all flagged slices.
    """
    truth = {row["catalog_id"]: row["truth"] for row in _rows(judged)}
    every = _rows(decided) or _rows(judged)
    every = [row for row in every if row["score"] is not None]
    flagged = _strongest([row for row in every if row["prediction"] == 1], ALL if everything else SHOWN)
    calm = _strongest([row for row in every if row["prediction"] == 0], len(every))
    places = np.unique(np.linspace(0, len(calm) - 1, min(SHOWN, len(calm))).round().astype(int))
    not_used = _strongest([row for row in _rows(judged) if row["truth"] == 0], SHOWN)
    return Shown(
        [_compared(row, truth) for row in flagged],
        [_compared(calm[place], truth) for place in places],
        [_compared(row, truth) for row in not_used],
    )


def _rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_pylist()


def _strongest(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """The rows with the highest scores, at most one of each patient."""
    chosen: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (-row["score"], row["catalog_id"])):
        chosen.setdefault(row["group"], row)
    return list(chosen.values())[:most]


def _compared(row: Mapping[str, Any], truth: Mapping[str, int]) -> Compared:
    probability = row["probability"]
    return Compared(
        row["catalog_id"],
        row["group"],
        row["score"],
        None if probability is None or math.isnan(probability) else probability,
        row["prediction"],
        truth.get(row["catalog_id"]),
        tuple(row["nearest"]),
    )


def with_pictures(shown: Shown, pictures: Pictures) -> Shown:
    """The same slices with their pictures."""
    if not pictures:
        return shown
    with ThreadPoolExecutor(cores()) as threads:
        parts = [
            list(threads.map(lambda one: _pictured(one, pictures), part))
            for part in (shown.flagged, shown.others, shown.coincidences)
        ]
    return Shown(*parts)


def _pictured(one: Compared, pictures: Pictures) -> Compared:
    real = pictures.pixels(one.image_id)
    if real is None:
        return replace(one, missing=pictures.missing.get(one.image_id, "it is not in the catalog"))
    if not one.nearest:
        return replace(one, real=encode(real), missing="the search left no nearest synthetic slices; run it again")
    synthetic = pictures.pixels(one.nearest[0])
    if synthetic is None:
        return replace(one, real=encode(real), missing=pictures.missing.get(one.nearest[0], "it is not in the catalog"))
    aligned = align(real, synthetic)
    others = [(image_id, pictures.pixels(image_id)) for image_id in one.nearest[1:]]
    return replace(
        one,
        real=encode(real),
        synthetic=encode(synthetic),
        difference=encode(difference_picture(np.where(body_mask(real), aligned.difference, 0))),
        agreeing=encode(lit(real, aligned.agrees)),
        further=tuple((image_id, encode(pixels, SMALL)) for image_id, pixels in others if pixels is not None),
        agreement=aligned.agreement,
    )
