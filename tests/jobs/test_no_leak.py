"""Where a generator was trained on other slices, p-values are small no more often than chance; with a leak they are.

Twenty simulated sets, each dealt anew from one phantom archive, go the whole way from slices to p-values. Three are
looked at: of the test slices, of the test slices as the best of all tried, and of the labelled slices without truth.
"""

import json

import numpy as np
import pytest
import torch

from gansfp.decision.decision import cross_validated_report, decide_membership, membership_report
from gansfp.embedding.weight_free import highpass
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring.membership import Sweep, learns_from_labels
from gansfp.simulation.challenge import SETS, SimulationConfig, membership_set, phantom_source
from gansfp.simulation.generators import generate
from gansfp.statistics.resampling import stratified_group_folds
from tune.evaluate import SetRows, evaluate_membership

SEEDS = 20
PERMUTATIONS = 60
WINDOWS = (7, 15)
SWEEP = Sweep(ks=(2, 8), linkages=("ward", "kmeans"), class_ks=(1, 4), neighbours=(1, 5), spans=(10, 30))


def config(seed, leak):
    return SimulationConfig.tiny(seed=seed, labelled=30, unknown=60, leak=leak, slices_per_patient=2)


def vectors(pixels, window):
    n = len(pixels)
    whole = torch.tensor([0.0, 0, 256, 256]).expand(n, 4)
    regions = torch.ones(n, 256, 256, dtype=torch.bool)
    return highpass(torch.from_numpy(pixels), regions, whole, window=window, side=32).numpy()


@pytest.fixture(scope="module")
def archive():
    """Slices of 110 patients, and what was embedded of each, by its bytes: (windows, numbers)."""
    source = phantom_source(config(0, 0.0), patients=110)
    embedded = np.stack([vectors(source.pixels, window) for window in WINDOWS], axis=1)
    return source, {pixels.tobytes(): row for pixels, row in zip(source.pixels, embedded, strict=True)}


def p_values(seed, leak, archive):
    """(of the test slices, of the best of all tried there, of the labelled slices, of the best of all tried there)."""
    told, (source, embedded) = config(seed, leak), archive
    dealt = membership_set(told, "warp", source)
    generated = generate(SETS["warp"].generator, dealt.training, 60, seed, told.settings())
    parts = (dealt.used, dealt.not_used, dealt.unknown)
    groups = np.concatenate([part.patients for part in parts]).astype(str)
    labels = np.repeat([USED, NOT_USED, UNKNOWN], [len(part.pixels) for part in parts])
    known, folds = labels != UNKNOWN, np.full(len(labels), -1)
    folds[known] = stratified_group_folds(labels[known], groups[known], 5, seed)
    rows = SetRows("set", np.arange(60), 60 + np.arange(len(labels)), labels, groups, folds)
    tried, learns = [], []
    real = np.stack([embedded[pixels.tobytes()] for part in parts for pixels in part.pixels])
    for number, window in enumerate(WINDOWS):
        both = np.concatenate([vectors(generated, window), real[:, number]])
        for row in evaluate_membership({"components": 0, "metric": "euclidean"}, both, [rows], SWEEP, "cpu", 0):
            tried.append(row["scores"])
            learns.append(learns_from_labels(json.loads(row["configuration"])))
    scores, learns = np.stack(tried), np.array(learns)
    verdict = decide_membership(scores, labels, folds, learns=learns)
    score, decision = verdict.combined.score[~known], verdict.decision[~known]
    truth = dealt.unknown_used.astype(int)
    test = membership_report(truth, score, decision, groups[~known], scores[:, ~known], PERMUTATIONS, seed)
    without = cross_validated_report(verdict, scores, labels, folds, groups, PERMUTATIONS, seed, learns=learns)
    return [report[name] for report in (test, without) for name in ("p_value", "p_value_selected")]


@pytest.mark.slow
def test_without_a_leak_p_values_are_rarely_small(archive):
    found = np.array([p_values(seed, 0.0, archive) for seed in range(SEEDS)])
    assert ((found < 0.05).mean(0) <= 0.15).all(), found
    assert (found.mean(0) > 0.3).all(), found  # nor huddled below a half


def test_with_a_leak_they_are_small(archive):
    found = np.array([p_values(seed, 0.85, archive) for seed in range(3)])
    assert (found < 0.05).all(), found
