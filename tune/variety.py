"""Shortcuts of a membership set: a generator without variety, and slices or patients that carry both labels."""

from __future__ import annotations

import numpy as np

from gansfp.decision.shortcuts import Shortcut
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.rows import Rows
from gansfp.scoring import distances
from gansfp.scoring.variety import effective_number
from gansfp.statistics.resampling import group_codes
from tune.set_slices import SetSlices

MOST = 1000  # slices of each kind that are compared
# Slices nearer than this share of the usual distance between a real slice and the nearest one of another patient are
# nearly the same picture.
SAME = 0.25
FEW_KINDS = 0.5  # of the effective number of as many real slices: below it, the generator repeats itself
MANY_COPIES = 0.05


def shortcuts_of(of_set: SetSlices, generated: Rows, real: Rows) -> list[Shortcut]:
    """What could make a set easier or harder than it seems, each with its figure. At most MOST slices of each kind.

    generated: (g, d), real: (n, d): the vectors of the set.
    """
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(real))[:MOST])
    real, labels, codes = real[chosen], of_set.labels[chosen], _patients(of_set)[chosen]
    generated = generated[np.sort(rng.permutation(len(generated))[:MOST])]
    among = distances.pairwise(real, real)
    among[codes[:, None] == codes] = np.inf
    nearest = among.min(1)
    if not np.isfinite(nearest).any():
        return []  # a single patient
    same = SAME * float(np.median(nearest[np.isfinite(nearest)]))
    n = min(len(generated), len(real))
    kinds, kinds_of_real = (effective_number(x[rng.permutation(len(x))[:n]]) for x in (generated, real))
    own = distances.self_distances(generated)
    np.fill_diagonal(own, np.inf)
    repeated, repeated_real = float((own.min(1) < same).mean()), float((nearest < same).mean())
    both = _in_both(among, labels, same)
    mixed = _of_both_labels(of_set)
    of_others = "nearly the same as a not-used one of another patient"
    return [
        Shortcut(
            f"effective number of different slices among {n:,} generated ones (Vendi score)",
            kinds,
            "among as many real ones",
            kinds_of_real,
            kinds < FEW_KINDS * kinds_of_real,
        ),
        Shortcut(
            "share of the generated slices that are nearly the same as another one",
            repeated,
            "of the real slices",
            repeated_real,
            repeated > max(MANY_COPIES, 2 * repeated_real),
        ),
        Shortcut(f"used slices that are {of_others}", both, "should be", 0, both > 0),
        Shortcut("patients who have both used and not-used slices", mixed, "should be", 0, mixed > 0),
    ]


def _patients(of_set: SetSlices) -> np.ndarray:
    return group_codes(of_set.groups, len(of_set.groups))


def _in_both(among: np.ndarray, labels: np.ndarray, same: float) -> int:
    """How many used slices are nearer than `same` to a not-used one. among: (n, n) distances; labels: (n,)."""
    between = among[labels == USED][:, labels == NOT_USED]
    return int((between < same).any(1).sum())


def _of_both_labels(of_set: SetSlices) -> int:
    codes, known = _patients(of_set), of_set.labels != UNKNOWN
    used, not_used = (np.unique(codes[known & (of_set.labels == label)]) for label in (USED, NOT_USED))
    return len(np.intersect1d(used, not_used))
