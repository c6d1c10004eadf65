"""Confidence intervals: against plain bootstraps, their coverage, and the cases without an interval."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from gansfp.errors import UsageError
from gansfp.statistics.intervals import (
    Estimate,
    SetDecisions,
    attribution_figures,
    mean_f1,
    membership_figures,
    support,
)
from gansfp.statistics.metrics import (
    MEMBERSHIP_METRICS,
    MembershipMetric,
    cells_by_group,
    decision_metrics,
    membership_chance,
    partition_metrics,
    partition_of_shares,
    partitions,
)
from gansfp.statistics.resampling import bootstrap_weights, group_labels

MEMBERSHIP = [
    "accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "kappa",
    "auc",
    "tpr_at_fpr_0.01",
    "tpr_at_fpr_0.1",
]


def challenge(seed, patients=40, slices=5, effect=1.0):
    """Slices whose scores are correlated within a patient: truth, score, groups."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), slices)
    truth = (groups % 2 == 0).astype(int)
    return truth, effect * truth + rng.normal(size=patients)[groups] + 0.5 * rng.normal(size=len(groups)), groups


def test_membership_figures_equal_a_plain_bootstrap_of_whole_groups():
    truth, score, groups = challenge(0, patients=12)
    groups[truth == 1][:3] = 0
    prediction = (score > 0.5).astype(int)
    got = membership_figures(truth, score, prediction, groups, resamples=80, seed=7)
    assert list(got) == MEMBERSHIP
    assert {name: got[name].value for name in MEMBERSHIP[:6]} == decision_metrics(truth, prediction)
    (weights,) = bootstrap_weights(group_labels(truth, groups), 80, 7, 80)
    samples = []
    for w in weights.astype(int):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in range(12) for _ in range(w[g])])
        t, s, p = truth[rows], score[rows], prediction[rows]
        assert t.sum() == truth.sum(), "the strata keep the number of used slices where groups are equally large"
        samples.append((sk.f1_score(t, p), sk.cohen_kappa_score(t, p), sk.roc_auc_score(t, s)))
    for name, drawn in zip(("f1", "kappa", "auc"), np.transpose(samples), strict=True):
        assert (got[name].low, got[name].high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-12)


def test_the_seed_determines_the_intervals_and_blocks_do_not_change_the_values(monkeypatch):
    truth, score, groups = challenge(1)
    prediction = (score > 0.5).astype(int)
    first = membership_figures(truth, score, prediction, groups, 200, seed=1)
    assert first == membership_figures(truth, score, prediction, groups, 200, seed=1)
    assert first != membership_figures(truth, score, prediction, groups, 200, seed=2)
    monkeypatch.setattr("gansfp.statistics.intervals._CELLS", 999)
    in_blocks = membership_figures(truth, score, prediction, groups, 200, seed=1)
    assert {name: f.value for name, f in first.items()} == {name: f.value for name, f in in_blocks.items()}


def test_group_intervals_cover_and_naive_ones_do_not():
    rounds, covered, naive = 150, 0, 0
    truth_auc = sk.roc_auc_score(*challenge(99, patients=40000, slices=1)[:2])
    for seed in range(rounds):
        truth, score, groups = challenge(seed)
        prediction = (score > 0.5).astype(int)
        figure = membership_figures(truth, score, prediction, groups, 300, seed)["auc"]
        covered += figure.low <= truth_auc <= figure.high
        figure = membership_figures(truth, score, prediction, None, 300, seed)["auc"]
        naive += figure.low <= truth_auc <= figure.high
    assert 0.88 <= covered / rounds <= 0.99
    assert naive / rounds < 0.75


@pytest.mark.parametrize("error", [0.3, 0.7])
def test_attribution_intervals_cover(error):
    shares = (np.eye(4) * (1 - error) + error / 4) / 4
    expected = partition_of_shares(shares)
    rounds, covered = 150, dict.fromkeys(expected, 0)
    for seed in range(rounds):
        cells = np.random.default_rng(seed).choice(16, size=100, p=shares.ravel())
        for name, figure in attribution_figures(cells // 4, cells % 4, None, 300, seed).items():
            covered[name] += figure.low <= expected[name] <= figure.high
    for name, count in covered.items():
        assert count / rounds >= 0.87, (name, count / rounds)


def test_the_resamples_of_ari_are_not_biased_upwards():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 10)
    truth, labels = rng.integers(0, 3, 12)[groups], rng.integers(0, 3, 120)
    value = partition_metrics(truth, labels)["ari"]
    (weights,) = bootstrap_weights(np.zeros(12), 1000, 0, 1000)
    rows = [np.concatenate([np.flatnonzero(groups == g).repeat(int(w[g])) for g in range(12)]) for w in weights[:300]]
    plain = np.mean([sk.adjusted_rand_score(truth[r], labels[r]) for r in rows])
    corrected = partitions(weights, cells_by_group(truth, labels, groups), 12 / 11)["ari"].mean()
    assert plain - value > 0.01, "the plain bootstrap counts the agreement of copies"
    assert abs(corrected - value) < (plain - value) / 4
    figure = attribution_figures(truth, labels, groups, 1000)["ari"]
    assert figure.low <= value <= figure.high


def test_perfect_figures_keep_a_lower_limit():
    truth = np.repeat([0, 1], 20)
    got = membership_figures(truth, truth + 0.0, truth)
    lost = 1 - 0.025 ** (1 / 20)
    for name in ("precision", "recall", "specificity", "f1", "auc", "tpr_at_fpr_0.1"):
        assert (got[name].value, got[name].low, got[name].high) == (1, pytest.approx(1 - lost), 1)
    assert got["accuracy"].low == pytest.approx(0.025 ** (1 / 40))
    assert got["kappa"].low == pytest.approx(1 - 2 * lost)
    all_wrong = membership_figures(truth, -truth + 0.0, 1 - truth)
    recall = all_wrong["recall"]
    assert (recall.value, recall.low, recall.high) == (0, 0, pytest.approx(lost))
    for figure in attribution_figures(np.repeat(list("abcd"), 10), np.repeat([3, 1, 2, 0], 10)).values():
        assert figure.value == pytest.approx(1)
        assert 0.5 < figure.low < 0.95
        assert figure.high == pytest.approx(1)


def test_one_patient_of_a_class_gives_values_without_intervals():
    truth, groups = np.repeat([0, 1], 10), np.repeat([0, 1, 2, 3], 5)
    groups[truth == 1] = 9
    for figure in membership_figures(truth, np.arange(20.0), truth, groups).values():
        assert np.isfinite(figure.value)
        assert np.isnan([figure.low, figure.high]).all()
    for figure in attribution_figures(truth, truth, np.zeros(20, int)).values():
        assert np.isnan([figure.low, figure.high]).all()


def test_figures_are_json_with_null_for_what_is_undefined():
    assert json.loads(json.dumps(Estimate(0.5).as_dict(), allow_nan=False)) == {"value": 0.5, "low": None, "high": None}
    only_used = membership_figures(np.ones(5), np.arange(5.0), np.ones(5))
    text = json.dumps({name: figure.as_dict() for name, figure in only_used.items()}, allow_nan=False)
    assert json.loads(text)["auc"]["value"] is None


def test_mean_f1_is_the_mean_and_narrower_than_its_sets():
    sets = []
    for seed in (0, 1, 2):
        truth, score, groups = challenge(seed)
        sets.append(SetDecisions(truth=truth, prediction=(score > 0.5).astype(int), groups=groups))
    got = mean_f1(sets, 500)
    single = [mean_f1([s], 500) for s in sets]
    assert got.value == pytest.approx(np.mean([sk.f1_score(s.truth, s.prediction) for s in sets]))
    assert got.value == pytest.approx(np.mean([s.value for s in single]))
    assert got.high - got.low < min(s.high - s.low for s in single)
    with pytest.raises(UsageError, match="no sets"):
        mean_f1([])


def test_one_entry_of_the_table_adds_a_figure(monkeypatch):
    """The entry of Matthews' correlation gives its value, its chance level and the bound of its interval."""

    def mcc(tp, fp, fn, tn):
        return (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))

    monkeypatch.setitem(MEMBERSHIP_METRICS, "mcc", MembershipMetric(lambda s: 0.0, mcc, lowest=-1))
    truth, score, groups = challenge(3)
    prediction = (score > 0.5).astype(int)
    got = membership_figures(truth, score, prediction, groups, 200)
    assert list(got) == [*MEMBERSHIP, "mcc"]
    assert got["mcc"].value == pytest.approx(sk.matthews_corrcoef(truth, prediction))
    assert got["mcc"].low < got["mcc"].value < got["mcc"].high
    assert list(membership_chance(truth, prediction)) == [*MEMBERSHIP, "mcc"]
    perfect = membership_figures(truth, score, truth, groups, 200)
    assert perfect["mcc"].low == perfect["kappa"].low < 1


def test_support_counts_the_negatives_behind_the_rates():
    truth = np.repeat([0, 1], [250, 50])
    got = support(truth, np.arange(300) // 3)
    assert got == {
        "n": 300,
        "n_used": 50,
        "n_not_used": 250,
        "n_groups": 100,
        "negatives_at_fpr_0.01": 2,
        "negatives_at_fpr_0.1": 25,
    }
