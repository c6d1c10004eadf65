"""What the baselines of honesty say of a collection: the colour of its files is looked at on the cluster, once."""

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
from gansfp.published.baselines import BASELINES, attribute_baseline, decide_baseline, grey_figures
from gansfp.published.systems import FOLDER, LABELS, REAL, select
from gansfp.runtime.progress import Progress
from gansfp.runtime.tasks import Call, spread

CHUNK = 256  # slices a task
GENERATORS = 4  # clusters of the attribution baselines, as many as the published systems make of the test slices
NOT_A_SLICE = (math.nan, math.nan)

Grey = Mapping[str, tuple[float, float]]  # mean grey level and number of grey levels by content
Answers = dict[str, np.ndarray]  # by set, or "attribution": (n,) int64 of the slices to decide about


def grey(catalog: Catalog, tasks: Sequence[str], work: str, start: Callable[[], int]) -> Grey:
    """The grey levels of all slices that the baselines of these tasks look at; nan where one cannot be decoded.

    What WORK/results/reproduction/grey.parquet knows is not looked at again. start: brings Ray up where something is
    to be done, and returns the number of GPUs.
    """
    wanted = {*(REAL if "membership" in tasks else ())}
    wanted |= {("attribution", "test", "unknown")} if "attribution" in tasks else set()
    images = select(catalog, frozenset(wanted)).select(status="ok")
    place = store.join(work, "results", FOLDER, "grey.parquet")
    found = _read(place)
    uris = dict(zip(images.column("sha256").tolist(), images.column("uri").tolist(), strict=True))
    todo = sorted(uris.keys() - found.keys())
    if not todo:
        return found
    chunks = [todo[at : at + CHUNK] for at in range(0, len(todo), CHUNK)]
    calls = {str(number): Call(look, (chunk, [uris[x] for x in chunk])) for number, chunk in enumerate(chunks)}
    with Progress("grey levels", len(todo)) as progress:
        for number, outcome in spread(calls, start()):
            if outcome.error:
                raise GansfpError(f"grey levels: {outcome.error}")
            found |= outcome.value
            progress.add(len(chunks[int(number)]))
    columns = {"sha256": list(found), "mean": [x for x, _ in found.values()], "levels": [x for _, x in found.values()]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    store.write_bytes_atomically(place, sink.getvalue())
    return found


def look(contents: Sequence[str], uris: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Task: the grey levels of some slices by the sha256 of their files."""
    decoded = [slices.load(uri).pixels for uri in uris]
    each = [NOT_A_SLICE if pixels is None else grey_figures(pixels) for pixels in decoded]
    return dict(zip(contents, each, strict=True))


def answers(name: str, task: str, catalog: Catalog, levels: Grey, seed: int) -> Answers:
    """What a baseline of gansfp.published.baselines.BASELINES says of the slices to decide about; one that cannot be read is not
    used, or in the largest cluster. Raises GansfpError where the collection lacks what the baseline needs.
    """
    found: Answers = {}
    if task == "attribution":
        test = catalog.unattributed()
        figures, there = _figures(test, levels)
        found["attribution"] = np.zeros(len(test), np.int64)
        known = {key: values[there] for key, values in figures.items()}
        found["attribution"][there] = attribute_baseline(name, int(there.sum()), GENERATORS, known, seed)
        return found
    for set_name in catalog.sets_to_decide():
        real = select(catalog.of_set(set_name), frozenset(REAL))
        figures, there = _figures(real, levels)
        roles = real.column("role")
        labels = np.array([LABELS[role] for role in roles])
        told = np.zeros(len(real), np.int64)
        try:
            known = {key: values[there] for key, values in figures.items()}
            told[there] = decide_baseline(name, labels[there], known, seed).prediction
        except GansfpError as error:
            raise type(error)(f"set {set_name}: {error}") from error
        found[set_name] = told[roles == "unknown"]
    return found


def names(task: str) -> tuple[str, ...]:
    """The baselines of a task."""
    return BASELINES[task]


def _figures(images: Catalog, levels: Grey) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """FILE_FIGURES of the slices, (n,) float64 each; (n,) bool, those that can be read."""
    each = np.array([levels.get(sha256, NOT_A_SLICE) for sha256 in images.column("sha256").tolist()]).reshape(-1, 2)
    figures = {"bytes": images.column("bytes").astype(float), "mean_grey": each[:, 0], "grey_levels": each[:, 1]}
    return figures, np.isfinite(each).all(1)


def _read(place: str) -> dict[str, tuple[float, float]]:
    try:
        table = store.read_parquet(place)
        columns = (table[name].to_pylist() for name in ("sha256", "mean", "levels"))
        return {sha256: (mean, levels) for sha256, mean, levels in zip(*columns, strict=True)}
    except (OSError, KeyError, pa.ArrowInvalid):  # not there, or not ours: looked at anew
        return {}
