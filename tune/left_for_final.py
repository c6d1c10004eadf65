"""What a membership search leaves for the final step, so that this reads no embeddings.

nearest.parquet: the generated slices nearest to each unknown slice. real.parquet: what real slices show by themselves.
planted.parquet: how near planted copies lie. shortcuts.json: what could make a set easier or harder than it seems.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from gansfp.collection.catalog import Catalog
from gansfp.decision.planted import Planted, Space, read_planted, write_planted
from gansfp.decision.real_slices import read_real_slices, write_real_slices
from gansfp.decision.search_result import Search, nearest_rows, read_nearest, write_nearest
from gansfp.decision.shortcuts import Shortcut, read_shortcuts, write_shortcuts
from gansfp.embedding.shards import Pair
from gansfp.images import slices
from gansfp.images.slices import Source
from gansfp.labels import NOT_USED, UNKNOWN
from gansfp.scoring import distances
from gansfp.scoring.membership import Sweep
from gansfp.scoring.projections import pca
from tune.planted import Copies, Plant, make_copies, measure, panel
from tune.problem import COPY_BLEND, ForEachPair, Vectors
from tune.set_slices import SetSlices
from tune.variety import shortcuts_of

OWN = 32  # numbers of a real slice in each embedding that the blind control looks at
FITTED_TO = 1024
NEAREST = 3  # generated slices named beside each decision


def leave_for_final(
    sets: Sequence[SetSlices], search: Search, for_each_pair: ForEachPair, images: Catalog, controls: Sequence[Pair]
) -> None:
    """Writes the four files, unless they are there. controls: embeddings that were not searched."""
    result, folder = search.result, search.folder
    plant = Plant(float(str(result.search.get("copy_blend", COPY_BLEND))), int(str(result.search["seed"])))
    # All that decides what these files hold.
    sources = [result.identities, result.ids.as_dict(), result.digest, asdict(plant)]
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
    if all(read(folder, digest) is not None for read in (read_nearest, read_real_slices, read_planted, read_shortcuts)):
        return
    searched = [pair for pair in search.pairs if pair not in controls]
    measured = panel(searched)
    copies = _copies(sets, images, measured, plant)
    compute = functools.partial(_left, sets=sets, copies=copies, looked_at=[*measured, *searched][0])
    nearest, own = [], {}
    shortcuts: dict[str, list[Shortcut]] = {}
    spaces: dict[str, list[Space]] = {name: [] for name in copies}
    for pair, left in zip(search.pairs, for_each_pair(search.pairs, compute), strict=True):
        own[pair], shortcuts = left.own, left.shortcuts or shortcuts
        if pair in searched:
            nearest += nearest_rows(result.ids.sets, pair, left.nearest)
        for name, of_pair in left.spaces.items():
            spaces[name] += of_pair
    write_nearest(folder, nearest, digest)
    write_real_slices(folder, own, digest)
    planted = {name: Planted(c.rows, c.partners, spaces[name], plant.blend) for name, c in copies.items()}
    write_planted(folder, planted, digest)
    write_shortcuts(folder, shortcuts, digest)


def _copies(sets: Sequence[SetSlices], images: Catalog, pairs: Sequence[Pair], plant: Plant) -> dict[str, Copies]:
    """Copies of not-used slices of each set that has enough patients."""
    sources, found = images.sources(), {}
    for of_set in sets:
        rows = np.flatnonzero(of_set.labels == NOT_USED)
        pixels = functools.partial(_pixels, sources=sources, real=of_set.real)
        copies = make_copies(rows, of_set.groups[rows], pixels, pairs, plant)
        if copies:
            found[of_set.name] = copies
    return found


def _pixels(row: int, sources: Sequence[Source], real: np.ndarray) -> np.ndarray | None:
    return slices.load(sources[real[row]]).pixels


@dataclass(frozen=True, eq=False)
class _Left:
    """What one embedding leaves, by set: see the functions below, planted.measure and variety.shortcuts_of."""

    nearest: dict[str, list[list[int]]]
    own: dict[str, np.ndarray]
    spaces: dict[str, list[Space]]
    shortcuts: dict[str, list[Shortcut]]


def _left(
    pair: Pair, vectors: Vectors, sets: Sequence[SetSlices], copies: Mapping[str, Copies], looked_at: Pair
) -> _Left:
    nearest, own = nearest_generated(sets, vectors), own_numbers(sets, vectors)
    spaces = {
        of_set.name: measure(of_set.with_axes(vectors), copies[of_set.name], pair, Sweep().whitened)
        for of_set in sets
        if of_set.name in copies and pair in copies[of_set.name].vectors
    }
    shortcuts = {of_set.name: shortcuts_of(of_set, vectors) for of_set in sets if pair == looked_at}
    return _Left(nearest, own, spaces, shortcuts)


def nearest_generated(sets: Sequence[SetSlices], vectors: Vectors) -> dict[str, list[list[int]]]:
    """For each set the rows (u, at most NEAREST), among its generated slices, of those nearest to an unknown slice, by
    euclidean distances."""
    return {
        s.name: distances.nearest(vectors[s.real[s.labels == UNKNOWN]], vectors[s.generated], NEAREST)[1].tolist()
        for s in sets
    }


def own_numbers(sets: Sequence[SetSlices], vectors: Vectors) -> dict[str, np.ndarray]:
    """For each set (n, at most OWN) float32: its real slices along their leading principal components, or their vectors
    where these are as short."""
    return {of_set.name: _own_numbers(vectors[of_set.real]) for of_set in sets}


def _own_numbers(real: np.ndarray) -> np.ndarray:
    if real.shape[1] <= OWN:
        return real
    # Fitted to at most a thousand slices: that is enough for the leading components, and takes less than a second.
    return pca(real, min(OWN, len(real) - 1), limit=32 * FITTED_TO**2).transform(real)
