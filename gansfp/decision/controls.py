"""The controls that stand beside every membership attack: blind, conditional, member-only, matching.

What a set cannot have is None, and `missing` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import expit, logit
from scipy.stats import mannwhitneyu, norm
from threadpoolctl import threadpool_limits

from gansfp.decision.blind import SOURCE, Difference, Facts, Units, blocks, find_differences, normal_scores, units_of
from gansfp.decision.judged import Judged
from gansfp.decision.pool import Pool, area_under_curve
from gansfp.decision.stacking import count_refits, nested_for
from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.conditional import FURTHEST, Unexplained, conditional_labels, propensities
from gansfp.statistics.intervals import Estimate, membership_figures
from gansfp.statistics.resampling import group_codes, permuted_within_folds, stratified_group_folds

FOLDS = 5
HALVES = 20  # random halvings of each class for the member-only control
LEAST_PAIRS = 5
CALIPER = 0.2  # standard deviations of the blind score between two matched patients (Austin 2011)
# How strong a difference the blind control may have missed, as a share of the one that it sees. The slices never show
# all of a bias: where a body was moved, its place is measured together with the body's own place.
ALLOWANCE = 0.5


@dataclass(frozen=True)
class Conditional:
    """The test of a leak beyond what slices show by themselves. smallest: the p-value cannot fall below it."""

    p_value: float
    smallest: float


@dataclass(frozen=True)
class Controls:
    """The controls of one set.

    blind: the AUC, over patients, of what slices show by themselves. differences: in what the classes differ.
    member_only: by class, the mean AUC of its random halves and their range. matched: the attack's AUC among the
    patients of both classes that the blind score finds alike, and how many pairs they are. missing: reasons. test: the
    conditional one, for other scores.
    """

    blind: Estimate | None = None
    differences: tuple[Difference, ...] = ()
    conditional: Conditional | None = None
    member_only: Mapping[str, Estimate] = field(default_factory=dict)
    matched: tuple[Estimate, int] | None = None
    missing: tuple[str, ...] = ()
    test: ConditionalTest | None = None

    def as_dict(self) -> dict[str, object]:
        """As metrics.json holds it."""
        matched = None
        if self.matched:
            matched = {"auc": {**self.matched[0].as_dict(), "chance": 0.5}, "pairs": self.matched[1]}
        return {
            "blind": {"auc": {**self.blind.as_dict(), "chance": 0.5}} if self.blind else None,
            "differences": [vars(difference) for difference in self.differences],
            "p_value_conditional": self.conditional.p_value if self.conditional else None,
            "p_value_conditional_smallest": self.conditional.smallest if self.conditional else None,
            "member_only": {name: {**auc.as_dict(), "chance": 0.5} for name, auc in self.member_only.items()},
            "matched": matched,
            "missing": list(self.missing),
        }


@dataclass(frozen=True)
class ControlConfig:
    """alpha: the level of all tests; match: also compare matched patients."""

    alpha: float
    permutations: int
    seed: int
    match: bool = False


def control(judged: Judged, facts: Facts, config: ControlConfig) -> Controls:
    """The blind control of judged slices, and what depends on it; the member-only control comes from member_only."""
    units = units_of(judged.groups[judged.rows], judged.truth)
    counts = np.bincount(units.labels, minlength=2)
    differences = find_differences(facts, judged.rows, units, config.alpha)
    if counts.min() < 2:
        reason = f"{counts[USED]} used and {counts[NOT_USED]} not-used patients: a blind control needs 2 of each"
        return Controls(differences=differences, missing=(reason,))
    try:
        blind = _Blind(judged, facts, units, config.seed)
    except UsageError as error:
        return Controls(differences=differences, missing=(f"blind control: {error}",))
    auc = membership_figures(units.labels, blind.odds, (blind.odds > 0).astype(int), seed=config.seed)["auc"]
    conditional, test = _conditional(judged, units, blind, config)
    matched = _matched(judged, units, blind, config) if config.match else None
    too_few = f"matching: fewer than {LEAST_PAIRS} pairs of used and not-used patients are alike"
    missing = () if matched or not config.match else (too_few,)
    differences += _source(units, blind, differences, config.alpha)
    return Controls(auc, differences, conditional, matched=matched, missing=missing, test=test)


def _source(units: Units, blind: _Blind, differences: Sequence[Difference], alpha: float) -> tuple[Difference, ...]:
    """The difference that no measurement explains: the pictures tell the classes apart better than each of them."""
    if blind.of_pictures is None:
        return ()
    used = units.labels == USED
    auc = _auc(units.labels, blind.of_pictures)
    p_value = float(mannwhitneyu(blind.of_pictures[used], blind.of_pictures[~used], alternative="greater").pvalue)
    if p_value >= alpha or auc <= max((difference.auc for difference in differences), default=0.0):
        return ()
    return (Difference(SOURCE, "what the pictures show", auc, p_value),)


class _Blind:
    """The blind score of the judged units, fitted to all units whose label is known.

    odds: (u,) log odds of having been used; of_pictures: the same without measurements, None where no embedding was
    left. residual: maps scores of the judged units to what is not explained.
    """

    def __init__(self, judged: Judged, facts: Facts, units: Units, seed: int) -> None:
        known = np.flatnonzero(judged.labels != UNKNOWN)
        rows = np.concatenate([judged.rows, np.setdiff1d(known, judged.rows)])
        labels = np.concatenate([judged.truth, judged.labels[rows[len(judged.rows) :]]])
        is_judged = np.arange(len(rows)) < len(judged.rows)
        # A patient may have judged slices and others with the same label: two units of the same fold.
        everything = units_of(judged.groups[rows], labels + 2 * is_judged)
        of_judged = everything.labels >= 2
        labels = everything.labels % 2
        if judged.folds is None:
            self.folds = stratified_group_folds(labels, everything.first(judged.groups[rows]), FOLDS, seed)
        else:
            self.folds = everything.first(judged.folds)
        features = blocks(facts, rows, everything)
        self.of_judged, self.labels = of_judged, labels
        self.odds = logit(propensities(features, labels, self.folds))[of_judged]
        pictures = features[1:] if facts.measures else features
        self.of_pictures = logit(propensities(pictures, labels, self.folds))[of_judged] if pictures else None
        scores = everything.means(judged.combined[rows])
        for part in (of_judged, ~of_judged):  # fits of different folds give other scales than one fit to all
            if part.any():
                scores[part] = normal_scores(scores[part])
        self._scores = scores
        self._unexplained = Unexplained(features, self.folds, scores)

    def residuals(self, scores: np.ndarray | None = None) -> np.ndarray:
        """What slices by themselves do not explain of the judged units' scores (u,), by default the observed ones."""
        everything = self._scores.copy()
        if scores is not None:
            everything[self.of_judged] = normal_scores(scores)
        return self._unexplained.of(everything)[self.of_judged]


@dataclass(frozen=True, eq=False)
class ConditionalTest:
    """Permutes labels among patients according to the blind score; see statistics.conditional.

    The statistic is the covariance of the label and the score, each without what slices by themselves explain (Shah and
    Peters 2020, the generalised covariance measure): if one of the two explanations is right, it is 0 without a leak.
    The odds are moved in favour of the score, as if a difference were hidden that is ALLOWANCE times as strong as the
    visible one (Rosenbaum 2002, sensitivity analysis).

    labels: (u,) 0/1 of units; odds: (u,) log odds of the blind score; strata: (u,), labels are exchanged within them.
    """

    labels: np.ndarray
    odds: np.ndarray
    strata: np.ndarray

    def __call__(
        self, rest: np.ndarray, draws: int, seed: int, refit: Callable[[np.ndarray], Iterator[np.ndarray]] | None = None
    ) -> Conditional:
        """rest: (u,) what slices by themselves do not explain of the scores; refit: yields it for each of other
        labellings (b, u)."""
        visible = np.sqrt(2) * norm.ppf(np.clip(_auc(self.labels, self.odds), 0.5, 1 - FURTHEST))
        hidden = ALLOWANCE * visible * np.where(rest > np.median(rest), 1.0, -1.0)
        propensity = np.clip(expit(self.odds + hidden), FURTHEST, 1 - FURTHEST)
        drawn = conditional_labels(self.labels, propensity, self.strata, draws, seed)
        expected = expit(self.odds)

        labelings = np.concatenate([self.labels[None], drawn])
        if refit:
            with threadpool_limits(1, user_api="blas"):  # one thread, as in stacking.p_value_refitted
                rests = refit(labelings)
                reference, *of_drawn = [(labels - expected) @ of for labels, of in zip(labelings, rests, strict=True)]
        else:
            reference, *of_drawn = (labelings - expected) @ rest
        values = np.array(of_drawn)
        reached = int((values >= reference - 1e-9).sum())
        # Labellings that the propensities make certain come again and again: then no p-value can be small.
        same = float((drawn == self.labels).all(1).mean())
        return Conditional((1 + reached) / (1 + draws), max(1 / (1 + draws), same))


def _conditional(
    judged: Judged, units: Units, blind: _Blind, config: ControlConfig
) -> tuple[Conditional, ConditionalTest]:
    """The conditional test of the judged units, and what it found."""
    strata = np.zeros(len(units.labels)) if judged.folds is None else blind.folds[blind.of_judged]
    test = ConditionalTest(units.labels, blind.odds, strata)
    if not judged.refit:
        return test(blind.residuals(), config.permutations, config.seed), test
    refit = judged.refit

    def residuals(labelings: np.ndarray) -> Iterator[np.ndarray]:
        return (blind.residuals(units.means(score)) for score in refit(labelings[:, units.codes]))

    refits = count_refits(config.permutations, config.alpha)
    return test(blind.residuals(), refits, config.seed, residuals), test


def _auc(labels: np.ndarray, score: np.ndarray) -> float:
    return float(area_under_curve(score[None], labels == USED)[0])


def _matched(judged: Judged, units: Units, blind: _Blind, config: ControlConfig) -> tuple[Estimate, int] | None:
    """The attack's AUC among pairs of a used and a not-used patient whose blind scores differ by at most CALIPER
    standard deviations; the pairing has the smallest sum of differences (Rosenbaum 1989). None without LEAST_PAIRS."""
    used, not_used = np.flatnonzero(units.labels == USED), np.flatnonzero(units.labels == NOT_USED)
    apart = np.abs(blind.odds[used][:, None] - blind.odds[not_used])
    limit = CALIPER * blind.odds.std()
    first, second = linear_sum_assignment(np.where(apart <= limit, apart, 1e6))
    alike = apart[first, second] <= limit
    pairs = int(alike.sum())
    if pairs < LEAST_PAIRS:
        return None
    chosen = np.concatenate([used[first[alike]], not_used[second[alike]]])
    rows = np.isin(units.codes, chosen)
    groups = units.codes[rows].astype(str)
    truth, score = judged.truth[rows], judged.score[rows]
    figures = membership_figures(truth, score, (score > np.median(score)).astype(int), groups, seed=config.seed)
    return figures["auc"], pairs


def member_only(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, combination: str | None, seed: int
) -> tuple[dict[str, Estimate], tuple[str, ...]]:
    """The member-only control: halves of one class, called used and not used at random, through the same combination.

    scores: (c, n) of configurations that do not learn; labels, groups: (n,). Returns for each class the mean AUC of
    HALVES halvings of its patients, with their range instead of an interval, and reasons where there are none. Both
    halves are alike, so the AUCs show how far chance moves the AUC of this set: about 0.5, whatever the generator did.
    """
    found: dict[str, Estimate] = {}
    missing: list[str] = []
    for name, label in (("used", USED), ("not_used", NOT_USED)):
        rows = np.flatnonzero(labels == label)
        codes = group_codes(groups[rows], len(rows))
        patients = codes.max(initial=-1) + 1
        if patients < 2 * FOLDS:
            of_class = f"{patients} {name.replace('_', '-')} patients"
            missing.append(f"member-only control: {of_class}, at least {2 * FOLDS} are needed")
            continue
        aucs = _halves(scores[:, rows], codes, combination, seed)
        found[name] = Estimate(float(np.mean(aucs)), float(min(aucs)), float(max(aucs)))
    return found, tuple(missing)


def _halves(scores: np.ndarray, codes: np.ndarray, combination: str | None, seed: int) -> list[float]:
    half = (np.arange(codes.max() + 1) % 2)[codes]
    folds = stratified_group_folds(half, codes, FOLDS, seed)
    # Patients change halves within their fold, so that all halvings share the ranks of the scores.
    halves = permuted_within_folds(half, codes, folds, HALVES, seed + 1)
    with threadpool_limits(1, user_api="blas"):
        nested = nested_for(Pool(scores, folds), halves, combination)
        return [_auc(half, of_half.out_of_fold()) for half, of_half in zip(halves, nested, strict=True)]
