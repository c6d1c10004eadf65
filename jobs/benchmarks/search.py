"""How fast the search is: sweeps of k that share distances, trials, permutations and resamples."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median

import numpy as np
import ray
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    cohen_kappa_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from gansfp.decision.search_result import Trial
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.labels import UNKNOWN
from gansfp.runtime.cluster import ClusterConfig, start_ray
from gansfp.runtime.progress import Progress
from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.scoring.membership import Sweep, scores
from gansfp.statistics.intervals import membership_figures
from gansfp.statistics.permutation import p_values_ari, p_values_auc
from jobs.benchmarks.measure import Bench, Row, Target
from tune.membership import MEMBERSHIP, MembershipSlices
from tune.problem import Problem, SearchConfig, Sweeps, read_table
from tune.set_slices import SetSlices
from tune.space import grid
from tune.trials import run_trials

KS = tuple(range(2, 32))
LINKAGES = ("ward", "average", "complete")
RULES = 2  # min and avg
REAL = 500  # real slices that are scored
SETS = ("one", "two", "three")
SET = (260, 250, 120)  # generated, real and labelled slices of each set that is searched, as jobs.simulate makes them
SET_WIDTH = 1024
LARGE_SWEEP = 5000  # generated slices: a sweep of so many or more has a target
FEW = 8  # repetitions of a plain loop, from which the time of all its repetitions is computed
RESAMPLES = 2000

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SetArrays:
    """The arrays of one membership set, as EmbeddedSet and SetSlices take them."""

    generated: np.ndarray
    real: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray

    def membership_set(self) -> EmbeddedSet:
        """Returns a new EmbeddedSet of these arrays, which has no distances in its memory yet."""
        return EmbeddedSet(self.generated, self.real, self.labels, self.groups, self.folds)


def _vectors(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Returns random vectors in eight clusters, (count, width) float32."""
    centres = rng.standard_normal((8, width))
    return (centres[rng.integers(8, size=count)] + rng.standard_normal((count, width))).astype(np.float32)


def _set(generated: int, real: int, labelled: int, width: int, seed: int = 0) -> SetArrays:
    """Returns a set of random vectors. The first `labelled` real slices have labels: by turns not used and used."""
    rng, numbers = np.random.default_rng(seed), np.arange(real)
    return SetArrays(
        generated=_vectors(rng, generated, width),
        real=_vectors(rng, real, width),
        labels=np.where(numbers < labelled, numbers % 2, UNKNOWN),
        groups=numbers,
        folds=np.where(numbers < labelled, numbers // 2 % 5, -1),
    )


def _timed(work: Callable[[], object]) -> float:
    """Returns the seconds of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def sweep(bench: Bench) -> list[Row]:
    """Compares all cuts of all dendrograms, as the search makes and scores them, with a new clustering for each cut."""
    return [_sweep(bench, generated) for generated in bench.sizes.sweep]


def _sweep(bench: Bench, generated: int) -> Row:
    sizes = bench.sizes
    arrays = _set(generated, REAL, REAL, sizes.width)
    ks = tuple(k for k in KS if k <= generated)
    swept = Sweep(methods=("clusters",), ks=ks, linkages=LINKAGES)
    configurations = len(ks) * RULES * len(LINKAGES)
    log.info("benchmark: %d configurations of k, rule and linkage for %s slices", configurations, f"{generated:,}")
    ours = median(_timed(lambda: list(scores(arrays.membership_set(), swept))) for _ in range(sizes.repeats))
    fitted = LINKAGES if sizes.every_linkage or generated < max(sizes.sweep) else LINKAGES[:1]
    fits = {
        linkage: _timed(partial(AgglomerativeClustering(8, linkage=linkage).fit, arrays.generated))
        for linkage in fitted
    }
    theirs = configurations * float(np.mean(list(fits.values())))
    each_fit = ", ".join(f"{linkage} {seconds:.2f} s" for linkage, seconds in fits.items())
    return Row(
        "sweep",
        f"{len(ks)} k x min, avg x {len(LINKAGES)} linkages, {generated:,} x {sizes.width:,}",
        ours,
        "s",
        "AgglomerativeClustering for each",
        theirs,
        theirs / ours,
        Target(100) if generated >= LARGE_SWEEP else None,
        f"ours with distances and the scores of {REAL} slices; theirs {configurations} times the time of one fit "
        f"({each_fit}), without any score",
    )


class OneConfiguration(Problem):
    """A problem whose trials score a single configuration each."""

    @cached_property
    def sweeps(self) -> Sweeps:
        """The smallest sweep: reverse retrieval, which has no further choices."""
        return Sweeps(Sweep(methods=("reverse",)), ())


def _sets() -> tuple[np.ndarray, MembershipSlices]:
    """Returns the embedding of several sets, (n, SET_WIDTH) float32, and the rows of each set in it."""
    vectors: list[np.ndarray] = []
    sets = []
    for number, name in enumerate(SETS):
        arrays = _set(*SET, SET_WIDTH, seed=number)
        start = sum(map(len, vectors))
        real = start + np.arange(len(arrays.real))
        generated = real[-1] + 1 + np.arange(len(arrays.generated))
        vectors += [arrays.real, arrays.generated]
        sets.append(SetSlices(name, generated, real, arrays.labels, arrays.groups, arrays.folds))
    return np.concatenate(vectors), MembershipSlices(tuple(sets))


def _same_vectors(pair: Pair, reference: ray.ObjectRef) -> np.ndarray:
    """Returns the same vectors for every pair, from Ray's object store."""
    return ray.get(reference)


def search(bench: Bench) -> list[Row]:
    """Compares configurations a second of the search's own trials with those of one trial a configuration."""
    vectors, slices = _sets()
    pairs = [(f"highpass-w{2 * number + 3}-32", "full") for number in range(-(-bench.sizes.trials // 2))]
    todo = grid(MEMBERSHIP, pairs)[: bench.sizes.trials]
    config = SearchConfig("membership", gpus=0)
    start_ray(ClusterConfig("local"))
    try:
        vectors_of = partial(_same_vectors, reference=ray.put(vectors))
        keys = {pair: json.dumps(pair) for pair in pairs}

        def seconds(kind: type[Problem], name: str, chosen: Sequence[Trial], searched: MembershipSlices) -> float:
            problem = kind(config, MEMBERSHIP, os.path.join(bench.folder, name), vectors_of, keys, searched)
            with Progress(f"search {name}", len(chosen), "trials") as progress:
                return _timed(lambda: run_trials(problem, chosen, len(chosen), pairs, progress))

        log.info("benchmark: a search of %d trials, and %d trials of one configuration", len(todo), len(todo))
        one_set = MembershipSlices(slices.sets[:1])
        seconds(OneConfiguration, "warm", todo[:1], one_set)
        ours = seconds(Problem, "shared", todo, slices)
        single = seconds(OneConfiguration, "single", todo, one_set)
    finally:
        ray.shutdown()
    configurations = _count_rows(os.path.join(bench.folder, "shared", "trials"))
    return [
        Row(
            "search",
            f"search, {len(todo)} trials of {configurations:,} configurations",
            configurations / ours,
            "configurations/s",
            "one trial a configuration",
            len(todo) / single,
            (configurations / ours) / (len(todo) / single),
            Target(200, of_value=True),
            f"{len(SETS)} sets of {SET[0]} generated and {SET[1]} real slices, {SET_WIDTH:,} numbers each; Ray is up, "
            "Ray Tune's own start is part of both; trials of one configuration score reverse retrieval of one set",
        )
    ]


def _count_rows(folder: str) -> int:
    """Returns the number of rows that trials have left in a folder. Raises GansfpError where one of them failed."""
    tables = [read_table(entry.path) for entry in os.scandir(folder)]
    for error in (error for table in tables for error in table["error"].to_pylist() if error):
        raise GansfpError(f"a trial failed: {error}")
    return sum(table.num_rows for table in tables)


def statistics(bench: Bench) -> list[Row]:
    """Compares permutations of the whole search's best, and bootstrap resamples, with plain loops over scikit-learn."""
    n, permutations = bench.sizes.configurations, bench.sizes.permutations
    rng = np.random.default_rng(0)
    labels, score = rng.permutation(np.arange(n) % 2), rng.standard_normal((n, n))
    clusterings = rng.integers(8, size=(160, n))
    generators = rng.integers(6, size=n)
    log.info("benchmark: %s permutations of %s configurations of %s slices", f"{permutations:,}", f"{n:,}", f"{n:,}")
    best_auc = _timed(lambda: p_values_auc(labels, score, permutations=permutations))
    best_ari = _timed(lambda: p_values_ari(generators, clusterings, permutations=permutations))
    plain_auc = _middle(lambda: roc_auc_score(rng.permutation(labels), score[0])) * n
    plain_ari = _middle(lambda: adjusted_rand_score(rng.permutation(generators), clusterings[0])) * len(clusterings)
    figures = _timed(lambda: membership_figures(labels, score[0], score[0] > 0, resamples=RESAMPLES))
    plain_figures = _middle(lambda: _plain_figures(labels, score[0], rng.integers(n, size=n)))
    whole = f"{permutations:,} permutations of the best AUC of {n:,} configurations, {n:,} slices"
    minute = Target(60, at_least=False, of_value=True) if (n, permutations) == (1000, 1000) else None
    return [
        Row("statistics", whole, best_auc, "s", target=minute),
        _rate("permutations of the best AUC", permutations / best_auc, "roc_auc_score for each", 1 / plain_auc),
        _rate(
            f"permutations of the best ARI of {len(clusterings)} clusterings",
            permutations / best_ari,
            "adjusted_rand_score for each",
            1 / plain_ari,
        ),
        _rate(
            f"bootstrap resamples of the membership figures, {n:,} slices",
            RESAMPLES / figures,
            "scikit-learn's figures for each",
            1 / plain_figures,
        ),
    ]


def _plain_figures(labels: np.ndarray, score: np.ndarray, drawn: np.ndarray) -> None:
    """Computes scikit-learn's figures of one bootstrap resample. drawn: the rows of the resample."""
    truth, called = labels[drawn], score[drawn] > 0
    for figure in (accuracy_score, precision_score, recall_score, f1_score, cohen_kappa_score):
        figure(truth, called)
    roc_auc_score(truth, score[drawn])
    roc_curve(truth, score[drawn])


def _middle(work: Callable[[], object]) -> float:
    """Returns the median seconds of FEW calls."""
    return median(_timed(work) for _ in range(FEW))


def _rate(name: str, ours: float, against: str, theirs: float) -> Row:
    return Row("statistics", name, ours, "1/s", against, theirs, ours / theirs, note=f"theirs from {FEW} repetitions")
