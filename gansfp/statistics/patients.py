"""Which patients were used: a score a patient, conformal p-values, and a list with a bounded false discovery rate.

A patient counts once, however many slices it has. The reference is the patients that were certainly not used. Their
scores, and those of the unknown patients, must come from a fit that did not see their labels (cross-fitting); a score
that learns from no labels has a single fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED

FDR = 0.1  # the share of wrong names that a list may have on average
TAIL = 3  # the largest third of the not-used scores shows how their tail falls,
MOST, FEWEST = 50, 5  # but at most so many scores, and not fewer
SHAPES = np.linspace(-0.3, 1.0, 14)  # of the generalised Pareto distribution: from a bounded to a very heavy tail
SCALES = np.exp(np.linspace(-1.5, 1.5, 31))  # of it, in means of the excesses


@dataclass(frozen=True, eq=False)
class PatientScores:
    """The scores of all patients of a set by the fits of cross-validation, comparable between patients.

    scores: (f, g) float64, row i is by the fit that did not see fold i, in standard deviations of not-used patients
    above their mean; labels: (g,) USED, NOT_USED or UNKNOWN; folds: (g,) int, -1 for unknown patients; slices: (g,)
    int, how many each has. Patients are in the order of their codes.
    """

    scores: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    slices: np.ndarray

    def held_out(self, label: int) -> np.ndarray:
        """Returns the scores of patients with this label, USED or NOT_USED, each by the fit without it: (patients,)."""
        patients = np.flatnonzero(self.labels == label)
        return self.scores[self.folds[patients], patients]

    def unknown(self) -> np.ndarray:
        """Returns the scores of the unknown patients by every fit: (f, u)."""
        return self.scores[:, self.labels == UNKNOWN]

    def unknown_by_one_fit(self, seed: int) -> np.ndarray:
        """Returns the score of each unknown patient by one fit, drawn at random: (u,). Each fit scores about the same
        share of the unknown patients as of the not-used ones.

        So the scores of unknown patients who were not used have the distribution of `held_out(NOT_USED)`. The mean over
        all fits would spread less.
        """
        rng = np.random.default_rng([seed, 1])
        unknown, folds = self.unknown(), rng.permutation(self.folds[self.labels == NOT_USED])
        fits = rng.permutation(np.resize(folds, unknown.shape[1]))
        return unknown[fits, np.arange(unknown.shape[1])]


@dataclass(frozen=True, eq=False)
class PatientList:
    """The unknown patients. Each array is (u,).

    patients: int64, the codes; slices: int64; score: float64, the mean over fits; p: conformal p-values; q: the
    smallest false discovery rate whose list has the patient; named: bool, whether the list has it.
    """

    patients: np.ndarray
    slices: np.ndarray
    score: np.ndarray
    p: np.ndarray
    q: np.ndarray
    named: np.ndarray


def score_patients(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, codes: np.ndarray) -> PatientScores:
    """Returns one score a patient and fit, so that not-used patients of 1 and of 20 slices spread alike.

    scores: (f, n), row i of the fit without fold i (one row where nothing learns from labels), higher = more likely
    used; labels: (n,) USED, NOT_USED or UNKNOWN; folds: (n,) 0..f-1, -1 for unknown slices; codes: (n,) of group_codes.
    Raises UsageError where the folds have no row.

    The score is the mean over the slices, minus the mean of not-used patients, divided by sqrt(within / slices +
    between): the variance of a mean of one-way random effects (Searle, Casella and McCulloch 1992). A patient with a
    used slice counts as used, one with slices of an unknown label and no used slice as unknown. Without not-used
    patients all patients serve as the reference.
    """
    if folds.max(initial=-1) >= len(scores):
        raise UsageError(f"scores: got {len(scores)} rows for {folds.max() + 1} folds, expected one row a fold")
    slices = np.bincount(codes)
    of_patient = np.full(len(slices), NOT_USED)
    of_patient[codes[labels == UNKNOWN]] = UNKNOWN
    of_patient[codes[labels == USED]] = USED
    fold = np.full(len(slices), -1)
    np.maximum.at(fold, codes, folds)
    fold[of_patient == UNKNOWN] = -1
    reference = of_patient == NOT_USED if (of_patient == NOT_USED).any() else np.full(len(slices), True)
    rows = np.flatnonzero(reference[codes])
    within, between = variance_components(scores[fold[codes[rows]], rows], codes[rows])
    variance = within / slices + between
    variance = np.where(variance > 0, variance, 1)
    means = np.stack([np.bincount(codes, row, len(slices)) for row in scores]) / slices
    patients = np.flatnonzero(reference)
    centre = np.average(means[fold[patients], patients], weights=1 / variance[patients])
    return PatientScores((means - centre) / np.sqrt(variance), of_patient, fold, slices)


def variance_components(scores: np.ndarray, codes: np.ndarray) -> tuple[float, float]:
    """Returns the variance of slices within patients and between patients, by moments of the analysis of variance.

    scores: (n,); codes: (n,) int. Where every patient has one slice, all variance counts as between patients. Source:
    Searle, Casella and McCulloch, Variance components, 1992, section 3.6 (unbalanced data).
    """
    codes = np.unique(codes, return_inverse=True)[1]
    slices = np.bincount(codes)
    n, count = len(scores), len(slices)
    means = np.bincount(codes, scores) / slices
    inside = float(np.square(scores - means[codes]).sum())
    outside = float(slices @ np.square(means - scores.mean()))
    within = inside / (n - count) if n > count else 0.0
    if count < 2:
        return within, 0.0
    per_patient = (n - float(slices @ slices) / n) / (count - 1)
    return within, max(0.0, (outside / (count - 1) - within) / per_patient)


def conformal_p_values(patients: PatientScores) -> np.ndarray:
    """Returns for each unknown patient the probability that a not-used one scores as high: (u,) in (0, 1].

    p = (1 + how many of the m not-used patients score as high) / (m + 1): conformal p-values (Vovk, Gammerman and
    Shafer 2005; Bates, Candes, Lei, Romano and Sesia 2023). Each not-used patient is compared in the fit without its
    fold (cross-conformal, Vovk 2015). They hold for any distribution of the scores, but none is below 1 / (m + 1).

    A patient above all not-used ones has the 1 multiplied by the chance, given that, to be as far above
    (`_chance_beyond`). Otherwise 60 not-used patients could never name 13 used among 130: that needs p below 0.01. In
    simulations with exponential, lognormal and t3 scores the false discovery rate holds.
    """
    reference = patients.held_out(NOT_USED)
    folds = patients.folds[patients.labels == NOT_USED]
    unknown = patients.unknown()
    as_high = np.zeros(unknown.shape[1], dtype=np.int64)
    for fold in np.unique(folds):
        ordered = np.sort(reference[folds == fold])
        as_high += len(ordered) - np.searchsorted(ordered, unknown[fold], "left")
    beyond = np.ones(unknown.shape[1])
    above = np.flatnonzero(as_high == 0)
    if len(reference) // TAIL >= FEWEST and len(above):
        beyond[above] = _chance_beyond(reference, unknown[:, above]).mean(0)
    return (as_high + beyond) / (len(reference) + 1)


def _chance_beyond(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the chance that a score above the largest of `reference` (m,) is as large as each of `scores`.

    Excesses over a high threshold follow a generalised Pareto distribution (Pickands 1975). Its shape and scale are not
    estimated but averaged over, by the likelihood of the largest scores of the reference; all shapes of SHAPES, and all
    logarithms of scales, are equally likely before. So few scores allow heavy tails, and the chance falls slowly.
    """
    ordered = np.sort(reference)
    count = min(len(ordered) // TAIL, MOST)
    threshold, largest = ordered[-count - 1], ordered[-1]
    excess = ordered[-count:] - threshold
    if largest == threshold:
        return np.ones(scores.shape)
    shape, scale = (grid.ravel()[:, None] for grid in np.meshgrid(SHAPES, SCALES * excess.mean(), indexing="ij"))
    shape = np.where(np.abs(shape) < 1e-9, 1e-9, shape)

    def log_survival(excesses: np.ndarray) -> np.ndarray:
        rest = 1 + shape * excesses / scale
        return np.where(rest > 0, -np.log(np.where(rest > 0, rest, 1)) / shape, -np.inf)

    log_likelihood = ((1 + shape) * log_survival(excess) - np.log(scale)).sum(1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    further = np.maximum(scores, largest).ravel()
    survival = weight @ np.exp(log_survival(further - threshold))
    return (survival / (weight @ np.exp(log_survival(np.array([largest - threshold]))))).reshape(scores.shape)


def q_values(p: np.ndarray) -> np.ndarray:
    """Returns the smallest false discovery rate at which each p-value is rejected: (n,).

    Benjamini and Hochberg (1995), times the share of true nulls estimated from the p-values above one half (Storey
    2002). Conformal p-values that share a reference depend on each other positively, so the rate holds (Bates et al.
    2023; with Storey's estimate: Mary and Roquain 2022).
    """
    n = len(p)
    nulls = min(1.0, (1 + (p > 0.5).sum()) / (n * 0.5)) if n else 1.0
    order = np.argsort(p, kind="stable")
    q = np.empty(n)
    q[order] = np.minimum.accumulate((p[order] * n * nulls / np.arange(1, n + 1))[::-1])[::-1]
    return np.minimum(q, 1)


def list_patients(patients: PatientScores, fdr: float = FDR) -> PatientList:
    """Returns the list of unknown patients, of which those with q-values up to `fdr` are named.

    On average over such lists, at most the share `fdr` of the named patients is named wrongly; without a leak the list
    is empty with probability 1 - fdr. Raises UsageError where fdr is not between 0 and 1.
    """
    if not 0 < fdr < 1:
        raise UsageError(f"fdr: got {fdr:g}, expected a number between 0 and 1")
    codes = np.flatnonzero(patients.labels == UNKNOWN)
    p = conformal_p_values(patients)
    q = q_values(p)
    return PatientList(codes, patients.slices[codes], patients.unknown().mean(0), p, q, q <= fdr)


def false_accusations_at_most(n: int, wrong: int = 0) -> float:
    """Returns the largest rate of false accusations that `wrong` of n not-used patients allow, at 95 % (one-sided).

    Clopper and Pearson (1934); 1 - 0.05 ** (1 / n) for none of n, and 1 without patients.
    """
    return float(beta.ppf(0.95, wrong + 1, n - wrong)) if wrong < n else 1.0
