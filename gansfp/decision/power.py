"""How small a leak would this audit have seen? Simulated audits of a leak that is planted into the user's own data.

A simulated generator copies a share of its slices from used ones: deformed, and blended with another patient's slice.
Copies of not-used slices stand for them (decision/planted.py), so that no real leak mixes in. Each simulated audit
draws patients of both classes, chooses and combines scores by the labels of some, and tests the others as the audit
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from gansfp.decision.blind import normal_scores, units_of
from gansfp.decision.controls import ConditionalTest
from gansfp.decision.decide import FinalConfig
from gansfp.decision.judged import DecidedSet
from gansfp.decision.planted import Planted, Space
from gansfp.decision.pool import Pool
from gansfp.decision.stacking import Nested, count_refits
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring.distances import smallest
from gansfp.scoring.embedded_set import TINY
from gansfp.scoring.membership import mean_nearest
from gansfp.statistics.permutation import p_values_auc
from gansfp.statistics.resampling import group_codes, stratified_group_folds

SEEN = 0.8  # the share of leaks that must be found
MATTERS = 0.1  # copies among the generated slices: a leak that an audit should not miss
FOLDS = 5
NEIGHBOURS = (1, 5)
COARSE, OF_EACH = 8, 4  # sizes from the smallest to the largest, and audits of each
ROUNDS, OF_ROUND = 4, 20  # then audits near the size that is looked for
MOST_COPIES = 4.0  # of each used slice: more change nothing
POINTS = 21  # of the curve that is kept
STEEP, SPREAD = 4.0, 0.5  # where nothing is certain yet: how steep the curve is, and how far that may be off (log)


@dataclass(frozen=True)
class Power:
    """What an audit would have seen.

    smallest: the share of copies among the generated slices from which SEEN of all leaks are found; None where even a
    generator that does nothing but copy is found less often. of_matters: the share of leaks of the size MATTERS that is
    found. blend: the share of another patient's slice in each copy. audits: simulated. curve: the share of copies among
    the generated slices, rising, and the share of such leaks that is found, by the fitted curve.
    """

    smallest: float | None
    of_matters: float
    blend: float
    audits: int
    curve: tuple[tuple[float, float], ...] = ()

    def __str__(self) -> str:
        blended = f"deformed and blended to {self.blend:.0%} with another patient's slice"
        if self.smallest is None:
            return f"not even a generator whose slices are all copies, {blended}, would have been found"
        every = max(1, round(1 / self.smallest))
        which = "every synthetic slice" if every == 1 else f"one synthetic slice in {every:,}"
        return f"a leak in which {which} is a copy, {blended}, would have been found with {SEEN:.0%}"

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        smallest = None if self.smallest is None else {"share_of_generated": self.smallest, "blend": self.blend}
        return {
            "smallest_leak": smallest,
            "curve": [{"share_of_generated": round(size, 6), "found": round(found, 4)} for size, found in self.curve],
            "found": SEEN,
            "leak_that_matters": MATTERS,
            "power_of_leak_that_matters": self.of_matters,
            "blend": self.blend,
            "audits": self.audits,
        }


@dataclass(frozen=True, eq=False)
class Layout:
    """The audit that is simulated.

    planted: the copies. patients, partners: (n,) str, the patients of the copied slices and of those that are blended
    in. fitted: how many used and not-used patients choose and fit the scores. test: the conditional test of the
    patients that are judged. copies: of each used slice, where all generated slices are copies.
    """

    planted: Planted
    patients: np.ndarray
    partners: np.ndarray
    fitted: tuple[int, int]
    test: ConditionalTest
    copies: float

    @cached_property
    def codes(self) -> np.ndarray:
        """(n,) the patients as numbers from 0."""
        return group_codes(self.patients, len(self.patients))

    @cached_property
    def of_others(self) -> np.ndarray:
        """(n, n) bool: whether a copy has nothing of the patient of a slice."""
        return (self.patients[:, None] != self.patients) & (self.patients[:, None] != self.partners)


def layout_of(of_set: DecidedSet, planted: Planted, test: ConditionalTest) -> Layout:
    """The layout of a set. As many of the unknown slices count as used as of the labelled ones."""
    known = of_set.labels != UNKNOWN
    labels = units_of(of_set.groups[known], of_set.labels[known]).labels
    used = len(known) * float((of_set.labels[known] == USED).mean())
    return Layout(
        planted,
        of_set.groups[planted.rows],
        of_set.groups[planted.partners],
        (int((labels == USED).sum()), int((labels == NOT_USED).sum())),
        test,
        len(of_set.ids.generated) / used,
    )


def measure_power(layout: Layout, config: FinalConfig) -> Power:
    """Simulates audits of leaks of many sizes, and reads the two figures from a logistic curve through what was found.

    Sizes are spread evenly first, then drawn around the one that is looked for, as in adaptive psychophysics (Watson
    and Pelli 1983).
    """
    largest = min(1.0, MOST_COPIES / layout.copies)
    sizes = np.geomspace(largest / 100, largest, COARSE).repeat(OF_EACH)
    found = np.zeros(0, bool)
    # In one thread: the steps are so small that threads wait for each other, and two take longer than one.
    with threadpool_limits(1, user_api="blas"):
        for number in range(ROUNDS + 1):
            if number:
                rng = np.random.default_rng([config.seed, 14, number])
                aimed = np.exp(_size(*_curve(sizes, found), SEEN)) * 2.0 ** rng.uniform(-1, 1, OF_ROUND)
                sizes = np.append(sizes, np.clip(aimed, largest / 100, largest))
            todo = list(enumerate(sizes))[len(found) :]
            found = np.append(found, [is_found(layout, size, config, number) for number, size in todo])
    start, steepness = _curve(sizes, found)
    smallest = float(np.exp(_size(start, steepness, SEEN)))
    of_matters = float(expit(start + steepness * np.log(min(MATTERS, largest))))
    drawn = np.geomspace(largest / 100, largest, POINTS)
    curve = tuple(zip(drawn.tolist(), expit(start + steepness * np.log(drawn)).tolist(), strict=True))
    return Power(smallest if smallest <= largest else None, of_matters, layout.planted.blend, len(sizes), curve)


def _size(start: float, steepness: float, found: float) -> float:
    return float((logit(found) - start) / steepness)


def _curve(sizes: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """The logistic curve of the share found over log sizes: its height at 0 and its steepness, above 0.

    The most likely one, where the logarithm of the steepness is normal around log(STEEP) with the spread SPREAD: few
    audits alone may give a step.
    """
    logarithms, sign = np.log(sizes), np.where(found, 1.0, -1.0)

    def loss(parameters: np.ndarray) -> float:
        middle, log_steepness = parameters
        margin = sign * np.exp(log_steepness) * (logarithms - middle)
        return float(np.logaddexp(0, -margin).sum() + ((log_steepness - np.log(STEEP)) / SPREAD) ** 2 / 2)

    start = np.array([logarithms.mean(), np.log(STEEP)])
    bounds = [(logarithms.min() - 2, logarithms.max() + 2), (None, None)]
    middle, log_steepness = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
    steepness = float(np.exp(log_steepness))
    return -steepness * float(middle), steepness


def is_found(layout: Layout, size: float, config: FinalConfig, number: int) -> bool:
    """Whether one simulated audit finds a leak. size: the share of copies among the generated slices; number: of the
    audit, which decides what is drawn."""
    rng = np.random.default_rng([config.seed, 15, number])
    present = rng.random(len(layout.codes)) < -np.expm1(-size * layout.copies)
    drawn = _draw(layout, rng)
    as_used, as_not_used = (
        np.concatenate([_scores(space, seen) for space in layout.planted.spaces])
        for seen in (np.broadcast_to(present, layout.of_others.shape), present & layout.of_others)
    )
    scores = np.where(drawn.used == 1, as_used[:, drawn.slices], as_not_used[:, drawn.slices])
    fitted, judged = ~drawn.judged, drawn.judged
    labels, folds = np.where(fitted, drawn.used, UNKNOWN), np.full(len(drawn.used), -1)
    folds[fitted] = stratified_group_folds(labels[fitted], drawn.units[fitted], FOLDS, number)
    # As decide_membership decides about unknown slices, without what it does for labelled ones.
    nested = Nested(Pool(scores, folds), labels, config.combine)
    score = nested.fit(nested.choose()).score[judged]
    tried = np.concatenate([score[None], scores[:, judged]])
    permutations = count_refits(config.permutations, config.alpha)
    p = p_values_auc(drawn.used[judged], tried, drawn.units[judged], 0, permutations, number)
    if max(p.p_value, p.p_value_selected) >= config.alpha:
        return False
    of_units = np.bincount(drawn.units[judged], score) / np.bincount(drawn.units[judged])
    return layout.test(normal_scores(of_units), permutations, number).p_value < config.alpha


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The slices of one simulated audit: rows of the copied slices; used: (m,) 0/1; units: (m,) the number of the
    patient, those that are judged and those that are not from 0; judged: (m,) bool."""

    slices: np.ndarray
    used: np.ndarray
    units: np.ndarray
    judged: np.ndarray


def _draw(layout: Layout, rng: np.random.Generator) -> _Drawn:
    """Draws patients with replacement, those that fit and those that are judged from different halves: a patient who
    is in both would be judged by what was fitted to it."""
    patients = rng.permutation(layout.codes.max() + 1)
    half = len(patients) // 2
    used = [np.repeat([USED, NOT_USED], layout.fitted), layout.test.labels]
    parts = []
    for of_patients, of_half, judged in zip(used, (patients[:half], patients[half:]), (False, True), strict=True):
        for unit, (label, patient) in enumerate(zip(of_patients, rng.choice(of_half, len(of_patients)), strict=True)):
            rows = np.flatnonzero(layout.codes == patient)
            n = len(rows)
            parts.append((rows, np.full(n, label), np.full(n, unit), np.full(n, judged)))
    return _Drawn(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _scores(space: Space, seen: np.ndarray) -> np.ndarray:
    """Scores (c, n) of the nearest neighbours, with and without the real slices as reference, as scoring.membership has
    them. seen: (n, k) bool, the copies that a slice is compared with."""
    to_copies = np.where(seen, space.to_copies, np.float32(np.inf))
    near = smallest(np.concatenate([space.near_generated, to_copies], axis=1), max(NEIGHBOURS))
    rows = []
    for m in NEIGHBOURS:
        generated, real = mean_nearest(near, m), mean_nearest(space.near_real, m)
        if space.logarithm:
            generated, real = np.log(generated + TINY), np.log(real + TINY)
        rows += [-generated, real - generated]
    return np.stack(rows)
