"""What a membership search leaves for the final step, so that this reads no embeddings.

nearest.parquet: the generated slices nearest to each real slice. real.parquet: what real slices show by themselves.
planted.parquet: how near planted copies lie. shortcuts.json: what could make a set easier or harder than it seems.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from gansfp.collection.catalog import Catalog
from gansfp.decision.nearest_slices import nearest_table, read_nearest, write_nearest
from gansfp.decision.planted import Planted, Space, read_planted, write_planted
from gansfp.decision.real_slices import read_real_slices, write_real_slices
from gansfp.decision.search_result import Search
from gansfp.decision.shortcuts import Shortcut, read_shortcuts, write_shortcuts
from gansfp.decision.stamped import is_current
from gansfp.embedding.shards import Pair
from gansfp.images import slices
from gansfp.images.slices import Source
from gansfp.labels import NOT_USED
from gansfp.rows import Rows
from gansfp.scoring import distances
from gansfp.scoring.membership import Sweep
from gansfp.scoring.projections import pca
from tune.planted import Copies, Plant, make_copies, measure, panel
from tune.problem import COPY_BLEND, ForEachPair, Vectors
from tune.set_slices import SetSlices
from tune.variety import shortcuts_of

OWN = 32  # numbers of a real slice in each embedding that the blind control looks at
FITTED_TO = 1024
VERSION = 2  # of what the files hold; 2: nearest slices of labelled slices too
NEAREST = 3  # generated slices named beside each decision


def leave_for_final(
    sets: Sequence[SetSlices], search: Search, for_each_pair: ForEachPair, images: Catalog, controls: Sequence[Pair]
) -> None:
    """Writes the four files, unless they are there. controls: embeddings that were not searched."""
    result, folder = search.result, search.folder
    plant = Plant(float(str(result.search.get("copy_blend", COPY_BLEND))), int(str(result.search["seed"])))
    # All that decides what these files hold.
    sources = [VERSION, result.identities, result.ids.as_dict(), result.digest, asdict(plant)]
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
    files = (read_nearest, read_real_slices, read_planted, read_shortcuts)
    if all(is_current(read, folder, digest) for read in files):
        return
    searched = [pair for pair in search.pairs if pair not in controls]
    measured = panel(searched)
    copies = _copies(sets, images, measured, plant)
    compute = functools.partial(left_by, sets=sets, copies=copies, looked_at=[*measured, *searched][0])
    nearest: list[pa.Table] = []
    own: dict[Pair, dict[str, np.ndarray]] = {}
    shortcuts: dict[str, list[Shortcut]] = {}
    spaces: dict[str, list[Space]] = {name: [] for name in copies}
    for pair, left in zip(search.pairs, for_each_pair(search.pairs, compute), strict=True):
        own[pair], shortcuts = left.own, left.shortcuts or shortcuts
        if pair in searched:
            for name, rows in left.nearest.items():
                ids = result.ids.sets[name]
                nearest.append(nearest_table(name, pair, ids.real, ids.generated, rows))
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
    """What one embedding leaves, by set.

    nearest: rows (n, at most NEAREST), among its generated slices, of those nearest to each real slice, by euclidean
    distances. own: see own_numbers. spaces: see planted.measure. shortcuts: see variety.shortcuts_of.
    """

    nearest: dict[str, np.ndarray] = field(default_factory=dict)
    own: dict[str, np.ndarray] = field(default_factory=dict)
    spaces: dict[str, list[Space]] = field(default_factory=dict)
    shortcuts: dict[str, list[Shortcut]] = field(default_factory=dict)


def left_by(
    pair: Pair, vectors: Vectors, sets: Sequence[SetSlices], copies: Mapping[str, Copies], looked_at: Pair
) -> _Left:
    """What an embedding leaves. copies: by set; looked_at: the embedding whose vectors tell shortcuts."""
    left = _Left()
    for of_set in sets:
        both = of_set.vectors(vectors)
        generated, real = of_set.divided(both)
        left.nearest[of_set.name] = distances.nearest(real, generated, NEAREST)[1]
        left.own[of_set.name] = own_numbers(real)
        if pair == looked_at:
            left.shortcuts[of_set.name] = shortcuts_of(of_set, generated, real)
        planted = copies.get(of_set.name)
        if planted and pair in planted.vectors:
            embedded = of_set.with_axes(both)
            left.spaces[of_set.name] = measure(embedded, planted, pair, Sweep().whitened)
    return left


def own_numbers(real: Rows) -> np.ndarray:
    """The real slices (n, d) of a set along their leading principal components, or their vectors where these are as
    short: (n, at most OWN) float32."""
    if real.shape[1] <= OWN:
        return real[:]
    # Fitted to at most a thousand slices: that is enough for the leading components, and takes less than a second.
    fitted = real[np.sort(np.random.default_rng(0).permutation(len(real))[:FITTED_TO])]
    return pca(fitted, min(OWN, len(fitted) - 1)).transform(real)
