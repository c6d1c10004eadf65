"""Decides by the baselines. The grey levels of the files are read once, on the Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import GansfpError
from gansfp.images import slices
from gansfp.published.baselines import attribute_baseline, decide_baseline, grey_properties
from gansfp.published.systems import FOLDER, LABEL_OF_ROLE, REAL_KINDS, TO_ATTRIBUTE, SliceKind, select_kinds
from gansfp.runtime.progress import Progress
from gansfp.runtime.tasks import Call, run_calls

CHUNK = 256  # slices in one task
GENERATORS = 4  # clusters of the attribution baselines, the number that the published systems use for the test slices
UNREADABLE = (math.nan, math.nan)

GreyLevels = Mapping[str, tuple[float, float]]  # sha256 of a file -> mean grey level, number of grey levels
Predictions = dict[str, np.ndarray]  # by set, or under "attribution": (n,) int64 for the slices to decide about


def read_grey_levels(catalog: Catalog, tasks: Sequence[str], work: str, start_ray: Callable[[], int]) -> GreyLevels:
    """Returns the grey levels of all slices that the baselines of these tasks use; nan for slices that cannot be read.

    Slices whose grey levels are in WORK/results/reproduction/grey.parquet are not read again. start_ray: starts Ray if
    there is work to do, and returns the number of GPUs.
    """
    kinds: set[SliceKind] = set(REAL_KINDS) if "membership" in tasks else set()
    kinds |= {TO_ATTRIBUTE} if "attribution" in tasks else set()
    images = select_kinds(catalog, frozenset(kinds)).select(status="ok")
    place = store.join(work, "results", FOLDER, "grey.parquet")
    levels = _read_file(place)
    sources = dict(zip(images.hashes().values(), images.sources(), strict=True))
    to_do = sorted(sources.keys() - levels.keys())
    if not to_do:
        return levels
    chunks = [to_do[first : first + CHUNK] for first in range(0, len(to_do), CHUNK)]
    calls = {
        str(number): Call(grey_levels_of, (chunk, [sources[name] for name in chunk]))
        for number, chunk in enumerate(chunks)
    }
    with Progress("grey levels", len(to_do)) as progress:
        for number, outcome in run_calls(calls, start_ray()):
            if outcome.error:
                raise GansfpError(f"grey levels: {outcome.error}")
            levels |= outcome.value
            progress.add(len(chunks[int(number)]))
    means, counts = [mean for mean, _ in levels.values()], [count for _, count in levels.values()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"sha256": list(levels), "mean": means, "levels": counts}), sink)
    store.write_bytes_atomically(place, sink.getvalue())
    return levels


def grey_levels_of(hashes: Sequence[str], sources: Sequence[slices.Source]) -> dict[str, tuple[float, float]]:
    """Task: returns the grey levels of some slices by their hashes."""
    pixels = [slices.load(source).pixels for source in sources]
    levels = [UNREADABLE if picture is None else grey_properties(picture) for picture in pixels]
    return dict(zip(hashes, levels, strict=True))


def predictions(name: str, task: str, catalog: Catalog, levels: GreyLevels, seed: int) -> Predictions:
    """Applies a baseline of gansfp.published.baselines.BASELINES to the slices to decide about.

    A slice that cannot be read is not used, or in the largest cluster. Raises GansfpError if the collection lacks what
    the baseline needs.
    """
    if task == "attribution":
        test = catalog.unattributed()
        properties, readable = _file_properties(test, levels)
        clusters = np.zeros(len(test), np.int64)
        clusters[readable] = attribute_baseline(name, int(readable.sum()), GENERATORS, properties, seed)
        return {"attribution": clusters}
    decided: Predictions = {}
    for set_name in catalog.sets_to_decide():
        real = select_kinds(catalog.of_set(set_name), frozenset(REAL_KINDS))
        properties, readable = _file_properties(real, levels)
        roles = real.column("role")
        labels = np.array([LABEL_OF_ROLE[role] for role in roles])
        used = np.zeros(len(real), np.int64)
        try:
            used[readable] = decide_baseline(name, labels[readable], properties, seed).prediction
        except GansfpError as error:
            raise type(error)(f"set {set_name}: {error}") from error
        decided[set_name] = used[roles == "unknown"]
    return decided


def _file_properties(images: Catalog, levels: GreyLevels) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the FILE_PROPERTIES of the readable slices, float64, and which slices are readable, (n,) bool."""
    grey = np.array([levels.get(sha256, UNREADABLE) for sha256 in images.hashes().values()]).reshape(-1, 2)
    readable = np.isfinite(grey).all(1)
    properties = {"bytes": images.column("bytes").astype(float), "mean_grey": grey[:, 0], "grey_levels": grey[:, 1]}
    return {name: values[readable] for name, values in properties.items()}, readable


def _read_file(place: str) -> dict[str, tuple[float, float]]:
    """Reads the grey levels of an earlier run, without the slices that it could not read: their files may be there now.

    Returns none if there is no file or it cannot be read.
    """
    try:
        table = store.read_parquet(place)
        columns = (table[name].to_pylist() for name in ("sha256", "mean", "levels"))
        levels = {sha256: (mean, count) for sha256, mean, count in zip(*columns, strict=True)}
        return {sha256: of_file for sha256, of_file in levels.items() if not math.isnan(of_file[0])}
    except (OSError, KeyError, pa.ArrowInvalid):
        return {}
