"""The share of used among unknown patients: against plain references, its errors, its coverage, and little data."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.patients import PatientScores
from gansfp.statistics.resampling import bootstrap_weights
from gansfp.statistics.share import least_share, share_of_used

SHARES = (0, 0.05, 0.1, 0.25, 0.5, 0.75, 1)


def of_one_fit(used, not_used, unknown):
    labels = np.repeat([USED, NOT_USED, UNKNOWN], [len(used), len(not_used), len(unknown)])
    scores = np.concatenate([used, not_used, unknown])[None]
    return PatientScores(scores, labels, np.where(labels == UNKNOWN, -1, 0), np.ones(len(labels), int))


def mixture(rng, apart, labelled=60, unknown=130, share=0.5):
    """Normal scores of patients; used ones are `apart` standard deviations higher. Returns the true share too."""
    used = round(share * unknown)
    scores = (
        apart + rng.normal(size=labelled),
        rng.normal(size=labelled),
        np.r_[apart + rng.normal(size=used), rng.normal(size=unknown - used)],
    )
    return of_one_fit(*scores), used / unknown


def test_the_share_equals_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    labels = np.repeat([USED, NOT_USED, UNKNOWN], [20, 30, 25])
    folds = np.where(labels == UNKNOWN, -1, np.arange(75) % 2)
    scores = np.where(np.isin(np.arange(75), [*range(20), *range(50, 58)]), 2.0, 0.0) + rng.normal(size=(2, 75))
    got = share_of_used(PatientScores(scores, labels, folds, np.ones(75, int)), resamples=400, seed=3)
    held_out = np.array([scores[folds[i], i] for i in range(50)])
    mean, sd = held_out.mean(), held_out.std()
    model = LogisticRegression(C=10, class_weight="balanced", tol=1e-10).fit(
        (held_out[:, None] - mean) / sd, labels[:50]
    )
    probability = [
        np.mean([model.predict_proba([[(s - mean) / sd]])[0, 1] for s in ([held_out[i]] if i < 50 else scores[:, i])])
        for i in range(75)
    ]

    def share(rows):
        used, not_used, unknown = (np.mean([probability[i] for i in rows if labels[i] == k]) for k in (1, 0, -1))
        return (unknown - not_used) / (used - not_used)

    (weights,) = bootstrap_weights(np.repeat([0, 1, 2], [20, 30, 25]), 400, 3, 400)
    drawn = [share([i for i in range(75) for _ in range(int(w[i]))]) for w in weights]
    tail = 100 * stats.norm.cdf(-np.sqrt(20 / 19) * stats.t(19).ppf(0.975))
    low, high = np.clip(np.percentile(drawn, [tail, 100 - tail]), 0, 1)
    assert got.value == pytest.approx(share(range(75)), abs=1e-5)
    assert (got.low, got.high) == (np.floor(low * 25) / 25, np.ceil(high * 25) / 25)


@pytest.mark.parametrize(("apart", "error"), [(4, 0.05), (2, 0.10)])
@pytest.mark.parametrize(("labelled", "unknown"), [(30, 60), (60, 130)])
def test_the_share_is_close_and_its_interval_covers(apart, error, labelled, unknown):
    rng = np.random.default_rng(1)
    errors, covered = [], 0
    for share in SHARES:
        for pack in range(10):
            patients, true = mixture(rng, apart, labelled, unknown, share)
            got = share_of_used(patients, 500, pack)
            assert 0 <= got.low <= got.value <= got.high <= 1
            errors.append(abs(got.value - true))
            covered += got.low - 1e-9 <= true <= got.high + 1e-9
    assert np.mean(errors) <= error
    assert covered >= 70 * 193 / 210


def test_a_calibration_that_does_not_fit_shifts_nothing():
    rng = np.random.default_rng(2)
    values = []
    for _ in range(40):
        used = 3 * (rng.random(160) > 0.3) + rng.exponential(size=160)  # 3 of 10 used patients leave no trace
        not_used = rng.exponential(size=160)
        values.append(share_of_used(of_one_fit(used[:60], not_used[:60], np.r_[used[60:], not_used[60:]]), 50).value)
    assert np.mean(values) == pytest.approx(0.5, abs=3 * np.std(values) / np.sqrt(40))


def test_overlap_widens_the_interval_up_to_nothing_known():
    rng = np.random.default_rng(3)
    widths = {}
    for apart in (4, 2, 1, 0):
        intervals = [share_of_used(mixture(rng, apart)[0], 500) for _ in range(20)]
        widths[apart] = np.mean([interval.high - interval.low for interval in intervals])
    assert widths[4] < widths[2] < widths[1] < widths[0]
    assert widths[0] > 0.95
    reverse = share_of_used(mixture(rng, -3)[0], 500)  # used patients that score lower are no measure of use
    assert (reverse.value, reverse.low, reverse.high) == (0.5, 0, 1)


def test_little_data_gives_the_whole_interval_or_an_error():
    nothing_known = (0.5, 0.0, 1.0)
    many = np.random.default_rng(4).normal(size=40)
    for used, not_used, unknown in (
        ([5.0], many, many),
        (many + 5, [0.0], many),
        (many + 5, many, [5.0]),
        ([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]),
        (many, many, many),
    ):
        got = share_of_used(of_one_fit(used, not_used, unknown), 300)
        assert (got.value, got.low, got.high) == nothing_known
    for used, not_used, unknown in (([], many, many), (many, [], many), (many, many, [])):
        with pytest.raises(UsageError, match="one patient or more of each"):
            share_of_used(of_one_fit(used, not_used, unknown))


def test_the_seed_determines_the_interval_and_blocks_change_nothing(monkeypatch):
    patients = mixture(np.random.default_rng(5), 2)[0]
    first = share_of_used(patients, 300, seed=1)
    assert first == share_of_used(patients, 300, seed=1)
    seen = {share_of_used(patients, 300, seed=seed).high for seed in range(8)}
    assert len(seen) > 1
    monkeypatch.setattr("gansfp.statistics.share._CELLS", 250 * 100)
    assert share_of_used(patients, 300, seed=1).value == first.value


def plain_least_share(not_used, unknown, rng, draws=2000):
    """Takes every number of not-used patients from the largest down, and shuffles real ranks."""
    m, u = len(not_used), len(unknown)
    for k in range(u, 0, -1):
        sd = [stats.betabinom(k, rank, m + 1 - rank).std() for rank in range(1, m + 1)]
        ordered = sorted(not_used)
        observed = max((k * (j + 1) / (m + 1) - sum(unknown <= ordered[j])) / sd[j] for j in range(m))
        reached = 0
        for _ in range(draws):
            ranks = rng.permutation(m + k)
            low = np.sort(ranks[:m])
            below = low - np.arange(m)  # how many of the k lie below each
            reached += max((k * np.arange(1, m + 1) / (m + 1) - below) / sd) >= observed - 1e-12
        if (1 + reached) / (1 + draws) > 0.05:
            return 1 - k / u
    return 1.0


@pytest.mark.parametrize(("share", "apart"), [(0, 0), (0.3, 4), (0.6, 2), (1, 5)])
def test_the_lower_bound_equals_a_plain_search(share, apart):
    rng = np.random.default_rng(6)
    used = round(share * 15)
    not_used, unknown = rng.normal(size=12), np.r_[apart + rng.normal(size=used), rng.normal(size=15 - used)]
    expected = plain_least_share(not_used, unknown, rng, 1000)
    assert least_share(not_used, unknown) == pytest.approx(expected, abs=1.5 / 15)  # both draw at random


def test_the_lower_bound_is_zero_without_a_leak_and_rarely_above_the_share():
    rng = np.random.default_rng(7)
    for null in (stats.norm(), stats.t(3)):
        bounds = [least_share(null.rvs(40, random_state=rng), null.rvs(60, random_state=rng), 1) for _ in range(80)]
        assert np.mean(np.array(bounds) > 0) <= 0.1
    bounds = [
        least_share(rng.normal(size=40), np.r_[4 + rng.normal(size=30), rng.normal(size=30)], 1) for _ in range(50)
    ]
    assert np.mean(np.array(bounds) > 0.5) <= 0.12
    assert np.mean(bounds) > 0.35


def test_the_lower_bound_compares_scores_of_one_fit_with_scores_of_one_fit():
    rng, by_mean, by_one_fit = np.random.default_rng(8), [], []
    labels = np.repeat([NOT_USED, UNKNOWN], [400, 800])
    folds = np.where(labels == UNKNOWN, -1, np.arange(1200) % 5)
    for seed in range(30):  # without a leak; fits agree in a part of what they say
        scores = rng.normal(size=1200) + 2 * rng.normal(size=(5, 1200))
        patients = PatientScores(scores, labels, folds, np.ones(1200, int))
        not_used = patients.held_out(NOT_USED)
        by_mean.append(least_share(not_used, patients.unknown().mean(0), seed))
        by_one_fit.append(least_share(not_used, patients.unknown_by_one_fit(seed), seed))
    assert np.mean(np.array(by_mean) > 0) > 0.5  # a mean over fits spreads less: no low scores
    assert np.mean(np.array(by_one_fit) > 0) <= 5 / 30  # 5 % is 1.5; P(more than 5) is 0.3 %


def test_each_fit_scores_as_large_a_share_of_unknown_as_of_not_used_patients():
    labels = np.repeat([NOT_USED, UNKNOWN], [10, 20])
    folds = np.where(labels == UNKNOWN, -1, np.repeat([0, 0, 0, 1], [5, 2, 1, 22]))
    patients = PatientScores(np.array([[0.0] * 30, [1.0] * 30]), labels, folds, np.ones(30, int))
    assert patients.unknown_by_one_fit(0).sum() == 4  # 2 of 10 not-used patients are in fold 1
    assert set(map(tuple, (patients.unknown_by_one_fit(seed) for seed in (3, 3)))) == {
        tuple(patients.unknown_by_one_fit(3))
    }


def test_the_lower_bound_of_little_data():
    assert least_share(np.array([0.0]), np.array([5.0])) == 0
    assert least_share(np.zeros(50), np.zeros(50)) == 0
    assert least_share(np.zeros(50), np.ones(50)) > 0.9
    assert least_share(np.ones(50), np.zeros(50)) == 0
    for not_used, unknown in ((np.empty(0), np.ones(3)), (np.ones(3), np.empty(0))):
        with pytest.raises(UsageError, match="one or more of each"):
            least_share(not_used, unknown)
