"""Without a leak, p-values are small no more often than by chance; with a leak they are small.

Twenty simulated sets, each dealt anew from one phantom archive, go through every step from slices to p-values. Checked
are the p-values of the test slices and of the labelled slices (without truth), each by itself and as the best of all
that were tried.
"""

import numpy as np
import pytest
import torch

from gansfp.decision.decide import FinalConfig, decide_membership
from gansfp.decision.evidence import cross_validated_evidence, membership_evidence
from gansfp.decision.search_result import Trial
from gansfp.embedding.weight_free import highpass
from gansfp.images.views import VIEWS
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring.membership import Sweep, learns_from_labels
from gansfp.simulation.challenge import SETS, SimulationConfig, phantom_archive, simulated_set
from gansfp.simulation.generators import generate
from gansfp.statistics.resampling import stratified_group_folds
from tune.membership import MembershipSlices
from tune.problem import Sweeps, TrialOptions
from tune.set_slices import SetSlices

SEEDS = 20
PERMUTATIONS = 60
WINDOWS = (7, 15)
SWEEP = Sweep(ks=(2, 8), linkages=("ward", "kmeans"), class_ks=(1, 4), neighbours=(1, 5), spans=(10, 30))


def config(seed, leak):
    return SimulationConfig.tiny(seed=seed, labelled=30, unknown=60, leak=leak, slices_per_patient=2)


def vectors(pixels, window):
    masks = torch.zeros(len(pixels), 256, 256, dtype=torch.bool)
    return highpass([(window, 32, VIEWS["full"])], torch.from_numpy(pixels), masks)[0].numpy()


@pytest.fixture(scope="module")
def archive():
    """Slices of 110 patients, and their embeddings (windows, numbers) by the bytes of the slice."""
    source = phantom_archive(config(0, 0.0), patients=110)
    embedded = np.stack([vectors(source.pixels, window) for window in WINDOWS], axis=1)
    return source, {pixels.tobytes(): row for pixels, row in zip(source.pixels, embedded, strict=True)}


def evaluated(slices, generated, real):
    """Scores (c, n) of all configurations, and whether each learns from labels (c,). real: (n, windows, numbers)."""
    options = TrialOptions(Sweeps(SWEEP, ()))
    scores, learns = [], []
    for number, window in enumerate(WINDOWS):
        both = np.concatenate([vectors(generated, window), real[:, number]])
        trial = Trial(f"highpass-w{window}-32", "full", 0, metric="euclidean")
        for row in slices.evaluate(trial, both, options):
            scores.append(row.scores)
            learns.append(learns_from_labels(row.configuration.choices))
    return np.stack(scores), np.array(learns)


def p_values(seed, leak, archive):
    """p_value and p_value_selected of the test slices, then both of the labelled slices."""
    simulation, (source, embedded) = config(seed, leak), archive
    dealt = simulated_set(simulation, "warp", source)
    generated = generate(SETS["warp"].generator, dealt.training, 60, seed, simulation.settings())
    parts = (dealt.used, dealt.not_used, dealt.unknown)
    groups = np.concatenate([part.patients for part in parts]).astype(str)
    labels = np.repeat([USED, NOT_USED, UNKNOWN], [len(part.pixels) for part in parts])
    labelled, folds = labels != UNKNOWN, np.full(len(labels), -1)
    folds[labelled] = stratified_group_folds(labels[labelled], groups[labelled], 5, seed)
    slices = SetSlices("set", np.arange(60), 60 + np.arange(len(labels)), labels, groups, folds)
    real = np.stack([embedded[pixels.tobytes()] for part in parts for pixels in part.pixels])
    scores, learns = evaluated(MembershipSlices((slices,)), generated, real)
    decided = decide_membership(scores, labels, folds, learns=learns)
    score, decision = decided.combined.score[~labelled], decided.decision[~labelled]
    truth = dealt.unknown_used.astype(int)
    final = FinalConfig(permutations=PERMUTATIONS, seed=seed)
    of_test = membership_evidence(truth, score, decision, groups[~labelled], scores[:, ~labelled], final)
    of_labelled = cross_validated_evidence(decided, scores, labels, folds, groups, final, learns)
    return [p for evidence in (of_test, of_labelled) for p in (evidence.p_value, evidence.p_value_selected)]


@pytest.mark.slow
def test_without_a_leak_p_values_are_rarely_small(archive):
    values = np.array([p_values(seed, 0.0, archive) for seed in range(SEEDS)])
    assert ((values < 0.05).mean(0) <= 0.15).all(), values
    assert (values.mean(0) > 0.3).all(), values  # and they do not gather below a half


def test_with_a_leak_they_are_small(archive):
    values = np.array([p_values(seed, 0.85, archive) for seed in range(3)])
    assert (values < 0.05).all(), values
