"""Plants copies of labelled not-used slices and measures how near they lie, for decision/power.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gansfp.cores import cores
from gansfp.decision.planted import FEWEST_PATIENTS, Space
from gansfp.embedding.backbone import DeviceKind
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import SMALL_BATCH, Embedder
from gansfp.embedding.shards import Pair
from gansfp.images.views import get_view
from gansfp.scoring import distances
from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.simulation.generators import GeneratorSettings, blended_copy, displacement_of, most_alike
from gansfp.statistics.resampling import group_codes

DISPLACEMENT = displacement_of(GeneratorSettings.strength)  # as in set `warp` of the simulated challenge
MOST = 300  # slices that are copied
NEAREST = 5  # distances that are kept of each slice


@dataclass(frozen=True)
class Plant:
    """blend: the share of another patient's slice in a copy; seed: of everything that is drawn."""

    blend: float
    seed: int


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies of not-used slices of one set: one of each.

    rows: (n,) of the set's real slices; partners: (n,) rows of those that are blended in; vectors: by embedding, (n, d)
    float32 of the copies.
    """

    rows: np.ndarray
    partners: np.ndarray
    vectors: Mapping[Pair, np.ndarray]


def panel(pairs: Sequence[Pair]) -> list[Pair]:
    """The embeddings that copies are measured in: those of whole slices that need no weights, which are the quickest,
    and of the defaults those that see most."""
    return [
        pair
        for pair in pairs
        if isinstance(parse_backbone(pair[0]).kind, DeviceKind) and get_view(pair[1]).region == "all"
    ]


def make_copies(
    rows: np.ndarray, groups: np.ndarray, load: Callable[[int], np.ndarray | None], pairs: Sequence[Pair], plant: Plant
) -> Copies | None:
    """Copies not-used slices of patients drawn at random, and embeds the copies.

    At most MOST slices, and of each patient at most MOST / FEWEST_PATIENTS: of larger ones an audit sees a little more
    than is measured here.

    rows: (n,) of the set's real slices, those labelled not used; groups: (n,) their patients; load: gives the pixels
    (256, 256) uint8 of a row, None where it cannot be read. None where there are too few patients, or no embedding to
    measure in.
    """
    codes = group_codes(groups, len(groups))
    if codes.max(initial=-1) + 1 < FEWEST_PATIENTS or not pairs:
        return None
    rng = np.random.default_rng([plant.seed, 12])
    order, most = rng.permutation(codes.max() + 1), MOST // FEWEST_PATIENTS
    sizes = np.minimum(np.bincount(codes), most)[order].cumsum()
    patients = order[: max(FEWEST_PATIENTS, int((sizes <= MOST).sum()))]
    of_patients = [rng.permutation(np.flatnonzero(codes == patient))[:most] for patient in patients]
    chosen = np.sort(np.concatenate(of_patients))
    with ThreadPoolExecutor(cores()) as threads:
        loaded = list(threads.map(load, rows[chosen].tolist()))
        chosen = chosen[np.array([pixels is not None for pixels in loaded])]
        codes, pixels = codes[chosen], [of_slice for of_slice in loaded if of_slice is not None]
        if len(np.unique(codes)) < FEWEST_PATIENTS:
            return None
        partners = np.array([rng.choice(of_slice) for of_slice in most_alike(np.stack(pixels), codes)])

        def copied(place: int) -> np.ndarray:
            noise = np.random.default_rng([plant.seed, 13, place])
            return blended_copy(pixels[place], pixels[partners[place]], plant.blend, DISPLACEMENT, noise)

        copies = np.stack(list(threads.map(copied, range(len(pixels)))))
    vectors = Embedder(pairs, {}, batch_limit=SMALL_BATCH)(copies, np.zeros(copies.shape, bool))
    return Copies(rows[chosen], rows[chosen[partners]], vectors)


def measure(data: EmbeddedSet, copies: Copies, pair: Pair, whitened: Sequence[int]) -> list[Space]:
    """How near the copied slices lie to generated slices, to other patients' and to the copies.

    data: the set in this embedding with its axes; whitened: numbers of components, as in scoring.membership.
    """
    name, of_copies = " ".join(pair), copies.vectors[pair]
    spaces = [_space(name, True, data, copies, of_copies)]
    if data.axes is not None:
        for c in dict.fromkeys(min(c, data.axes.rank) for c in whitened if data.axes.rank):
            white = data.whitened(c)
            spaces.append(_space(f"{name} whitened {c}", False, white, copies, data.whiten(of_copies, c)))
    return spaces


def _space(name: str, logarithm: bool, data: EmbeddedSet, copies: Copies, of_copies: np.ndarray) -> Space:
    own = data.real[copies.rows]
    near_generated = distances.smallest(distances.pairwise(own, data.generated, data.metric), NEAREST)
    to_real = distances.pairwise(own, data.real, data.metric)
    to_real[data.codes[copies.rows][:, None] == data.codes] = np.inf
    near_real = distances.smallest(to_real, NEAREST)
    return Space(name, logarithm, near_generated, near_real, distances.pairwise(own, of_copies, data.metric))
