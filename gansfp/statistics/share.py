"""How many of the unknown patients were used: an estimate with an interval, and a lower bound without used patients."""

from __future__ import annotations

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from scipy.stats import t as student

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, USED
from gansfp.statistics.intervals import Estimate
from gansfp.statistics.logistic import logistic
from gansfp.statistics.patients import PatientScores
from gansfp.statistics.resampling import bootstrap_weights

STRENGTH = 10.0  # inverse regularisation of the calibration, as scikit-learn's C, on scores of unit variance
SAMPLES = 1000  # drawn counts behind a lower bound
POINTS = 50  # the most scores at which the two samples are compared
_CELLS = 1 << 22  # numbers in one block of resamples: bounds the memory


def share_of_used(patients: PatientScores, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Returns the share of used among the unknown patients with its 95 % interval, all within 0..1 and never nan.

    The unknown patients are a mixture of used and not-used ones, so the mean of any function of the score lies between
    the means of the two: share = (unknown - not used) / (used - not used). With the probability of a logistic
    calibration as the function, the share varies little (scaled probability average: Bella, Ferri, Hernandez-Orallo and
    Ramirez-Quintana 2010). A calibration that does not fit costs precision, but shifts nothing.

    The interval is a percentile interval over resamples of whole patients, of the used, the not used and the unknown,
    expanded for small samples (Hesterberg 2015). Its limits are rounded outwards to whole patients. Where used patients
    do not reliably score higher than not-used ones (not in 97.5 % of the resamples), nothing is known: the value is 0.5
    and the interval 0 to 1. Raises UsageError where one of the three has no patients.
    """
    used, not_used, unknown = patients.held_out(USED), patients.held_out(NOT_USED), patients.unknown()
    counts = {"used": len(used), "not used": len(not_used), "unknown": unknown.shape[1]}
    if not all(counts.values()):
        raise UsageError(f"share of used patients: got {counts}, expected one patient or more of each")
    values = _calibrated(used, not_used, unknown)
    strata = np.repeat([0, 1, 2], [len(of_kind) for of_kind in values])
    difference, excess = _differences(np.ones((1, len(strata))), values)
    blocks = bootstrap_weights(strata, resamples, seed, max(1, _CELLS // len(strata)))
    differences, excesses = np.concatenate([_differences(w, values) for w in blocks], axis=1)
    apart = differences > 0
    tail = _tail(min(counts.values()))
    if np.mean(~apart) >= tail:
        return Estimate(0.5, 0.0, 1.0)
    shares = excesses / np.where(apart, differences, 1)
    low = np.percentile(np.where(apart, shares, 0), 100 * tail)  # where they are not apart, any share is possible
    high = np.percentile(np.where(apart, shares, 1), 100 - 100 * tail)
    value = float(np.clip(excess[0] / difference[0], 0, 1))
    u = counts["unknown"]
    low, high = np.floor(np.clip(low, 0, value) * u) / u, np.ceil(np.clip(high, value, 1) * u) / u
    return Estimate(value, float(low), float(high))


def _tail(n: int) -> float:
    """Returns the share of resamples beyond each limit of a 95 % interval; n: patients of the smallest sample.

    A bootstrap of n patients is too narrow by sqrt((n - 1) / n), and as a normal distribution is beside Student's.
    Source: Hesterberg, What teachers should know about the bootstrap, 2015.
    """
    return float(norm.cdf(-np.sqrt(n / (n - 1)) * student.ppf(0.975, n - 1))) if n > 1 else 0.0


def _calibrated(used: np.ndarray, not_used: np.ndarray, unknown: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the calibrated probability of each used, not-used and unknown patient; the last averaged over fits."""
    labelled = np.concatenate([used, not_used])
    centre, spread = labelled.mean(), labelled.std()
    if spread == 0:
        return tuple(np.zeros(scores.shape[-1]) for scores in (used, not_used, unknown))
    column = ((labelled - centre) / spread)[:, None]
    slopes, intercept = logistic(column, np.arange(len(labelled)) < len(used), STRENGTH)
    slope = max(float(slopes[0]), 0.0)  # a higher score never speaks against use
    by_fit = (used[None], not_used[None], unknown)
    return tuple(expit(slope * (scores - centre) / spread + intercept).mean(0) for scores in by_fit)


def _differences(weights: np.ndarray, values: tuple[np.ndarray, ...]) -> np.ndarray:
    """Returns mean(used) - mean(not used) and mean(unknown) - mean(not used) of each resample: (2, resamples).

    weights: (resamples, patients); values: of the used, the not used and the unknown patients, in this order.
    """
    ends = np.cumsum([len(of_kind) for of_kind in values])[:-1]
    used, not_used, unknown = (
        w @ of_kind / len(of_kind) for w, of_kind in zip(np.split(weights, ends, axis=1), values, strict=True)
    )
    return np.stack([used - not_used, unknown - not_used])


def least_share(not_used: np.ndarray, unknown: np.ndarray, seed: int = 0) -> float:
    """Returns a lower 95 % bound of the share of used among these unknown patients, from not-used ones alone.

    not_used: (m,), unknown: (u,): a score a patient, for all alike, so each by one fit: PatientScores.held_out and
    unknown_by_one_fit. That of a not-used one did not learn from its label. Without a leak the bound is 0 with a
    probability of 95 %, whatever the distribution of the scores.

    Used patients score high, so the unknown patients lack low scores. If k of them are not used, then at most as many
    unknown patients as of these k lie below each score of a not-used patient. The number of these k follows from their
    ranks alone. The bound belongs to the largest k for which the unknown patients do not lack too many; the largest
    standardised lack over all scores is compared with drawn ones. Source: the lower bounds of Genovese and Wasserman
    (2004) and of Meinshausen and Rice (2006), for two samples. Raises UsageError where one has no patients.
    """
    if not len(not_used) or not len(unknown):
        raise UsageError(
            f"least share of used patients: got {len(not_used)} not-used and {len(unknown)} unknown patients, "
            "expected one or more of each"
        )
    m, u = len(not_used), len(unknown)
    ranks = np.unique(np.linspace(1, m, min(m, POINTS)).astype(np.int64))
    below = np.searchsorted(np.sort(unknown), np.sort(not_used)[ranks - 1], "right")
    rng = np.random.default_rng(seed)
    # The shares of any distribution between its order statistics are gaps of uniform order statistics.
    gaps = rng.dirichlet(np.diff([0, *ranks, m + 1]), size=SAMPLES)
    possible, excluded = 0, u + 1  # numbers of not-used among the unknown
    while excluded - possible > 1:
        k = (possible + excluded) // 2
        drawn = np.cumsum(rng.multinomial(k, gaps), axis=1)[:, :-1]
        as_large = (_largest_lack(drawn, k, ranks, m) >= _largest_lack(below[None], k, ranks, m)).sum()
        possible, excluded = (possible, k) if (1 + as_large) / (1 + SAMPLES) <= 0.05 else (k, excluded)
    return 1 - possible / u


def _largest_lack(below: np.ndarray, k: int, ranks: np.ndarray, m: int) -> np.ndarray:
    """Returns the largest standardised lack over all ranks of each row: (rows,).

    below: (rows, ranks), how many lie at or below the scores with these ranks among m. The number of k not-used
    patients there is beta-binomial.
    """
    share = ranks / (m + 1)
    variance = k * share * (1 - share) * (m + 1 + k) / (m + 2)
    return ((k * share - below) / np.sqrt(variance)).max(1)
