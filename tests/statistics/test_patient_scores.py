"""Patients: scores that compare whatever the number of slices, p-values against plain counts, and lists that hold."""

import numpy as np
import pytest
from scipy import stats

from gansfp.errors import UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.statistics.logistic import logistic
from gansfp.statistics.patients import (
    SCALES,
    SHAPES,
    PatientScores,
    conformal_p_values,
    false_accusations_at_most,
    list_patients,
    q_values,
    score_patients,
    variance_components,
)

NULLS = {
    "normal": stats.norm(),
    "skewed": stats.expon(loc=-1),
    "long tail": stats.lognorm(0.5, loc=-1.13, scale=1),
    "heavy": stats.t(3, scale=3**-0.5),
}


def of_one_fit(not_used, unknown):
    """Patients with one slice each whose scores learned from no labels."""
    labels = np.repeat([NOT_USED, UNKNOWN], [len(not_used), len(unknown)])
    ones = np.ones(len(labels), int)
    return PatientScores(np.concatenate([not_used, unknown])[None], labels, np.where(labels == UNKNOWN, -1, 0), ones)


def slices_of(rng, patients, most=20, within=1.0, between=0.5):
    """Scores of slices with patient effects, and the codes of their patients."""
    codes = np.repeat(np.arange(patients), rng.integers(1, most + 1, patients))
    score = np.sqrt(between) * rng.normal(size=patients)[codes] + np.sqrt(within) * rng.normal(size=len(codes))
    return score, codes


def test_variance_components_equal_the_textbook_and_find_the_true_ones():
    rng = np.random.default_rng(0)
    score, codes = slices_of(rng, 12)
    groups = [score[codes == code].tolist() for code in range(12)]
    n, grand = len(score), sum(sum(group) for group in groups) / len(score)
    inside = outside = squares = 0.0
    for group in groups:
        mean = sum(group) / len(group)
        inside += sum((value - mean) ** 2 for value in group)
        outside += len(group) * (mean - grand) ** 2
        squares += len(group) ** 2
    within = inside / (n - 12)
    between = (outside / 11 - within) / ((n - squares / n) / 11)
    assert variance_components(score, codes) == pytest.approx((within, between))
    assert variance_components(score, codes * 7 + 3) == pytest.approx((within, between)), "codes may have gaps"
    assert variance_components(*slices_of(rng, 5000)) == pytest.approx((1, 0.5), rel=0.05)


def test_variance_components_of_little_data():
    assert variance_components(np.array([1.0, 2.0, 6.0]), np.arange(3)) == (0, pytest.approx(7)), "one slice each"
    assert variance_components(np.array([1.0, 2.0, 6.0]), np.zeros(3, int)) == (pytest.approx(7), 0), "one patient"
    assert variance_components(np.array([1.0, -1.0, 1.0, -1.0]), np.array([0, 0, 1, 1]))[1] == 0, "never negative"
    assert variance_components(np.array([2.0]), np.array([0])) == (0, 0)


def test_patient_scores_equal_a_plain_reference():
    rng = np.random.default_rng(1)
    score, codes = slices_of(rng, 30, most=6)
    label = np.repeat([USED, NOT_USED, UNKNOWN], 10)
    fold = np.where(label == UNKNOWN, -1, np.arange(30) % 2)
    scores = np.stack([score, score + 0.3 * rng.normal(size=len(score))])
    got = score_patients(scores, label[codes], fold[codes], codes)
    rows = [row for row in range(len(codes)) if label[codes[row]] == NOT_USED]
    within, between = variance_components(np.array([scores[fold[codes[row]], row] for row in rows]), codes[rows])
    sd = [np.sqrt(within / np.sum(codes == patient) + between) for patient in range(30)]
    means = [[row[codes == patient].mean() for patient in range(30)] for row in scores]
    weights = [sd[patient] ** -2 for patient in range(10, 20)]
    centre = sum(w * means[fold[p]][p] for w, p in zip(weights, range(10, 20), strict=True)) / sum(weights)
    np.testing.assert_allclose(got.scores, [[(row[p] - centre) / sd[p] for p in range(30)] for row in means])
    np.testing.assert_allclose(got.held_out(USED), [got.scores[p % 2, p] for p in range(10)])
    np.testing.assert_array_equal(got.unknown(), got.scores[:, 20:])
    assert got.labels.tolist() == label.tolist()
    assert got.slices.tolist() == np.bincount(codes).tolist()


def test_not_used_patients_of_one_and_of_twenty_slices_spread_alike():
    rng = np.random.default_rng(2)
    codes = np.repeat(np.arange(4000), np.tile([1, 20], 2000))
    scores = np.sqrt(0.2) * rng.normal(size=4000)[codes] + rng.normal(size=len(codes)) + 5
    labels, folds = np.full(len(codes), NOT_USED), np.zeros(len(codes), int)
    got = score_patients(scores[None], labels, folds, codes).scores[0]
    assert [got[::2].std(), got[1::2].std()] == pytest.approx([1, 1], abs=0.05)
    assert [got[::2].mean(), got[1::2].mean()] == pytest.approx([0, 0], abs=0.08)


def test_a_used_slice_makes_the_patient_used_and_an_unknown_one_unknown():
    codes = np.array([0, 0, 1, 1, 2, 2, 3])
    labels = np.array([USED, NOT_USED, UNKNOWN, NOT_USED, UNKNOWN, USED, NOT_USED])
    folds = np.array([1, 1, -1, 0, -1, 0, 1])
    got = score_patients(np.zeros((2, 7)), labels, folds, codes)
    assert got.labels.tolist() == [USED, UNKNOWN, USED, NOT_USED]
    assert got.folds.tolist() == [1, -1, 0, 1]
    with pytest.raises(UsageError, match="got 1 rows for 2 folds"):
        score_patients(np.zeros((1, 7)), labels, folds, codes)


def test_p_values_equal_plain_counts_in_the_fits_of_the_folds():
    rng = np.random.default_rng(3)
    labels = np.repeat([NOT_USED, UNKNOWN, USED], [13, 40, 5])
    folds = np.where(labels == UNKNOWN, -1, np.arange(58) % 3)
    patients = PatientScores(rng.integers(0, 9, (3, 58)).astype(float), labels, folds, np.ones(58, int))
    expected = []
    for x in range(13, 53):
        as_high = sum(patients.scores[folds[c], c] >= patients.scores[folds[c], x] for c in range(13))
        expected.append((1 + as_high) / 14)
    np.testing.assert_allclose(conformal_p_values(patients), expected)  # too few patients for a tail


def test_p_values_beyond_all_not_used_patients_average_over_generalised_pareto_tails():
    not_used = np.random.default_rng(4).normal(size=60)
    largest, threshold = np.sort(not_used)[-1], np.sort(not_used)[-21]
    excesses = [x - threshold for x in not_used if x > threshold]
    unknown = np.array([largest - 0.1, largest, largest + 0.2, largest + 1, largest + 3])

    def survival(x):
        total = 0.0
        for shape in SHAPES:
            for scale in SCALES * np.mean(excesses):
                likelihood = np.prod(stats.genpareto.pdf(excesses, shape, scale=scale))
                total += likelihood * stats.genpareto.sf(x - threshold, shape, scale=scale)
        return total

    expected = [2, 2, *(survival(x) / survival(largest) for x in unknown[2:])]
    got = conformal_p_values(of_one_fit(not_used, unknown))
    np.testing.assert_allclose(got, np.array(expected) / 61, rtol=1e-6)
    assert got[-1] < got[3] / 2 < 1 / 122


@pytest.mark.parametrize("null", NULLS)
def test_p_values_of_not_used_patients_are_rarely_small(null):
    rng = np.random.default_rng(5)
    p = np.concatenate(
        [
            conformal_p_values(of_one_fit(NULLS[null].rvs(60, random_state=rng), NULLS[null].rvs(50, random_state=rng)))
            for _ in range(400)
        ]
    )
    for level, margin in ((0.3, 0.02), (0.1, 0.015), (0.03, 0.008), (0.003, 0.003)):
        assert np.mean(p <= level) <= level + margin


def test_q_values_equal_plain_steps():
    rng = np.random.default_rng(6)
    for p in (rng.random(40), np.r_[rng.random(20), rng.random(20) / 50], np.full(7, 0.3)):
        nulls = min(1, 2 * (1 + sum(p > 0.5)) / len(p))
        by_size = sorted(p)
        expected = [
            min(1, min(by_size[j] * len(p) * nulls / (j + 1) for j in range(len(p)) if by_size[j] >= value))
            for value in p
        ]
        np.testing.assert_allclose(q_values(p), expected)
    np.testing.assert_allclose(
        q_values(np.r_[p, 0.9, 0.9, 0.9, 0.9, 0.9]), stats.false_discovery_control([*p, *[0.9] * 5])
    )
    assert q_values(np.empty(0)).shape == (0,)


@pytest.mark.parametrize("null", NULLS)
def test_lists_rarely_name_patients_wrongly(null):
    """Also where the not-used scores are skewed or heavy-tailed. Used patients are 4 standard deviations higher."""
    rng = np.random.default_rng(7)
    wrong, named, found = [], 0, {0.1: [], 0.3: [], 0.5: []}
    for _ in range(100):
        of = NULLS[null].rvs(60 + 130, random_state=rng)
        named += list_patients(of_one_fit(of[:60], of[60:])).named.any()
        for share, of_share in found.items():
            used = round(130 * share)
            unknown = np.r_[4 + rng.normal(size=used), of[60 : 190 - used]]
            got = list_patients(of_one_fit(of[:60], unknown)).named
            wrong.append(got[used:].sum() / max(1, got.sum()))
            of_share.append(got[:used].mean())
    assert named <= 16
    assert np.mean(wrong) <= 0.12
    assert np.mean(found[0.5]) > 0.9
    assert np.mean(found[0.3]) > 0.6
    assert np.mean(found[0.1]) > (0.7 if null == "normal" else 0.15)


def test_p_values_hold_where_the_scores_learn_from_labels():
    """Fits to the slices of other folds, 20 features, patients of 1 to 20 slices, no leak and a large one."""
    rng = np.random.default_rng(8)
    for effect, found in ((0.0, 0.0), (3.0, 0.9)):
        p, named, wrong = [], [], []
        for _ in range(25):
            label = np.repeat([USED, NOT_USED, UNKNOWN], [40, 40, 60])
            truth = np.r_[np.ones(40), np.zeros(40), np.ones(30), np.zeros(30)] * effect
            fold = np.where(label == UNKNOWN, -1, np.arange(140) % 5)
            codes = np.repeat(np.arange(140), rng.integers(1, 21, 140))
            columns = 0.7 * rng.normal(size=(140, 20))[codes] + rng.normal(size=(len(codes), 20))
            columns[:, 0] += truth[codes]
            fits = []
            for f in range(5):
                others = (fold[codes] >= 0) & (fold[codes] != f)
                slopes, intercept = logistic(columns[others], label[codes][others] == USED, 0.3)
                fits.append(columns @ slopes + intercept)
            got = list_patients(score_patients(np.stack(fits), label[codes], fold[codes], codes))
            p.append(got.p[30:])
            named.append(got.named[:30].mean())
            wrong.append(got.named[30:].sum() / max(1, got.named.sum()))
        assert np.mean(np.concatenate(p) <= 0.1) <= 0.13
        assert np.mean(named) >= found
        assert np.mean(wrong) <= 0.12


def test_lists_of_little_data_name_nobody():
    rng = np.random.default_rng(9)
    nobody_not_used = list_patients(of_one_fit(np.empty(0), rng.normal(size=5)))
    assert nobody_not_used.p.tolist() == [1] * 5
    assert not nobody_not_used.named.any()
    assert list_patients(of_one_fit(np.array([0.0]), np.array([9.0]))).p.tolist() == [0.5]
    constant = score_patients(np.ones((1, 50)), np.repeat([0, -1], 25), np.repeat([0, -1], 25), np.arange(50))
    assert constant.scores.tolist() == [[0.0] * 50]
    assert list_patients(constant).p.tolist() == [1] * 25
    alike = list_patients(of_one_fit(np.zeros(60), np.ones(3)))
    assert alike.p == pytest.approx(1 / 61), "not-used scores that are all equal have no tail"
    assert len(list_patients(of_one_fit(rng.normal(size=9), np.empty(0))).q) == 0
    only_unknown = score_patients(np.arange(6.0)[None], np.full(6, -1), np.full(6, -1), np.array([0, 0, 1, 1, 2, 2]))
    assert np.isfinite(only_unknown.scores).all()
    for fdr in (0, 1, float("nan")):
        with pytest.raises(UsageError, match="fdr"):
            list_patients(constant, fdr)


def test_a_list_has_the_unknown_patients_by_code():
    codes = np.repeat(np.arange(100), np.arange(100) % 3 + 1)
    score = np.where(codes >= 90, 50.0, 0) + np.random.default_rng(10).normal(size=len(codes))
    labels = np.where(codes % 2 == 0, NOT_USED, UNKNOWN)
    labels[codes >= 90] = UNKNOWN
    got = list_patients(score_patients(score[None], labels, np.minimum(labels, 0), codes), fdr=0.2)
    assert got.patients.tolist() == [*range(1, 90, 2), *range(90, 100)]
    assert got.slices.tolist() == [code % 3 + 1 for code in got.patients]
    assert got.named.tolist() == (got.q <= 0.2).tolist()
    assert got.named[-10:].all()
    assert got.named.sum() <= 15
    assert got.score[-10:].min() > 10 > got.score[:-10].max()


def test_false_accusations_allowed_by_none_of_n_and_by_some():
    assert false_accusations_at_most(60) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert false_accusations_at_most(0) == 1
    assert false_accusations_at_most(5, 5) == 1
    expected = stats.binomtest(3, 50, alternative="less").proportion_ci(0.95, "exact").high
    assert false_accusations_at_most(50, 3) == pytest.approx(expected)
