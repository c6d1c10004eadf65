"""How fast the search is: sweeps of k from shared distances, trials, permutations and resamples."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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

from gansfp import store
from gansfp.errors import GansfpError
from gansfp.runtime.cluster import ClusterConfig, start_ray
from gansfp.runtime.progress import Progress
from gansfp.scoring.membership import MembershipSet, Sweep, scores
from gansfp.statistics.intervals import membership_figures
from gansfp.statistics.permutation import p_values_ari, p_values_auc
from jobs.benchmarks.measure import Bench, Row, Target
from tune import evaluate, trials
from tune.space import grid

KS = tuple(range(2, 32))
LINKAGES = ("ward", "average", "complete")
RULES = 2  # min and avg
REAL = 500  # real slices that are scored
SETS = ("one", "two", "three")
SET = (260, 250, 120)  # generated, real and labelled slices of each set that is searched, as jobs.simulate makes them
SET_WIDTH = 1024
JUDGED = 5000  # generated slices, from which on the sweep has a target
FEW = 8  # trials of one configuration, and repetitions of a plain loop, from which the time of all is told
RESAMPLES = 2000

log = logging.getLogger(__name__)


def _vectors(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """(count, width) float32 in some clusters of their own."""
    centres = rng.standard_normal((8, width))
    return (centres[rng.integers(8, size=count)] + rng.standard_normal((count, width))).astype(np.float32)


def _set(generated: int, real: int, labelled: int, width: int, seed: int = 0) -> dict[str, Any]:
    """The arrays of one membership set."""
    rng = np.random.default_rng(seed)
    known = np.arange(real) < labelled
    return {
        "generated": _vectors(rng, generated, width),
        "real": _vectors(rng, real, width),
        "labels": np.where(known, np.arange(real) % 2, -1),
        "groups": np.arange(real),
        "folds": np.where(known, np.arange(real) // 2 % 5, -1),
    }


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def sweep(bench: Bench) -> list[Row]:
    """All cuts of all dendrograms, as the search makes and scores them, against a clustering anew for each."""
    return [_sweep(bench, generated) for generated in bench.sizes.sweep]


def _sweep(bench: Bench, generated: int) -> Row:
    sizes = bench.sizes
    arrays = _set(generated, REAL, REAL, sizes.width)
    ks = tuple(k for k in KS if k <= generated)
    wanted = Sweep(methods=("clusters",), ks=ks, linkages=LINKAGES)
    configurations = len(ks) * RULES * len(LINKAGES)
    log.info("benchmark: %d configurations of k, rule and linkage for %s slices", configurations, f"{generated:,}")
    ours = median(_timed(lambda: list(scores(MembershipSet(**arrays), wanted))) for _ in range(sizes.repeats))
    every = sizes.every_linkage or generated < max(sizes.sweep)
    refits = {
        linkage: _timed(partial(AgglomerativeClustering(8, linkage=linkage).fit, arrays["generated"]))
        for linkage in (LINKAGES if every else LINKAGES[:1])
    }
    other = configurations * float(np.mean(list(refits.values())))
    told = ", ".join(f"{linkage} {seconds:.2f} s" for linkage, seconds in refits.items())
    return Row(
        "sweep",
        f"{len(ks)} k x min, avg x {len(LINKAGES)} linkages, {generated:,} x {sizes.width:,}",
        ours,
        "s",
        "AgglomerativeClustering for each",
        other,
        other / ours,
        Target(100) if generated >= JUDGED else None,
        f"ours with distances and the scores of {REAL} slices; theirs {configurations} times the time of one fit "
        f"({told}), without any score",
    )


class OneConfiguration(trials.Problem):
    """A problem whose trials score a single configuration each."""

    def run(self, trial: dict[str, Any], device: str) -> float:
        """Runs a trial and leaves its rows, as the search's own trials do."""
        vectors = ray.get(self.vectors[trial["backbone"], trial["view"]])
        one = Sweep(methods=("reverse",))
        started = time.monotonic()
        found = evaluate.evaluate_membership(trial, vectors, self.rows, one, device, self.config.seed)
        sink = pa.BufferOutputStream()
        pq.write_table(evaluate.table(self.config.task, trial, found, started), sink)
        store.write_bytes_atomically(self.place(trial), sink.getvalue())
        return float(found[0]["auc"])


def _sets() -> tuple[np.ndarray, list[evaluate.SetRows]]:
    """The embedding of several sets, (n, SET_WIDTH) float32, and the rows of each in it."""
    vectors: list[np.ndarray] = []
    sets = []
    for number, name in enumerate(SETS):
        arrays = _set(*SET, SET_WIDTH, seed=number)
        start = sum(map(len, vectors))
        real = start + np.arange(len(arrays["real"]))
        generated = real[-1] + 1 + np.arange(len(arrays["generated"]))
        vectors += [arrays["real"], arrays["generated"]]
        sets.append(evaluate.SetRows(name, generated, real, arrays["labels"], arrays["groups"], arrays["folds"]))
    return np.concatenate(vectors), sets


def search(bench: Bench) -> list[Row]:
    """Configurations a second of the search's own trials, against one trial a configuration."""
    vectors, sets = _sets()
    pairs = [(f"highpass-w{2 * number + 3}-32", "full") for number in range(-(-bench.sizes.trials // 2))]
    todo = grid("membership", pairs)[: bench.sizes.trials]
    config = trials.SearchConfig("membership", gpus=0)
    start_ray(ClusterConfig("local"))
    try:
        shipped = dict.fromkeys(pairs, ray.put(vectors))
        keys = {pair: json.dumps(pair) for pair in pairs}

        def seconds(kind: type[trials.Problem], name: str, some: list[dict[str, Any]]) -> float:
            searched = sets[:1] if kind is OneConfiguration else sets
            problem = kind(config, os.path.join(bench.folder, name), shipped, keys, searched)
            with Progress(f"search {name}", len(some), "trials") as progress:
                return _timed(lambda: trials.run_trials(problem, some, len(some), pairs, progress))

        log.info("benchmark: a search of %d trials, and %d trials of one configuration", len(todo), len(todo))
        seconds(OneConfiguration, "warm", todo[:1])
        ours, single = seconds(trials.Problem, "shared", todo), seconds(OneConfiguration, "single", todo)
    finally:
        ray.shutdown()
    tables = [trials.read_table(entry.path) for entry in os.scandir(os.path.join(bench.folder, "shared", "trials"))]
    for error in (error for table in tables for error in table["error"].to_pylist() if error):
        raise GansfpError(f"a trial failed: {error}")
    found = sum(table.num_rows for table in tables)
    return [
        Row(
            "search",
            f"search, {len(todo)} trials of {found:,} configurations",
            found / ours,
            "configurations/s",
            "one trial a configuration",
            len(todo) / single,
            (found / ours) / (len(todo) / single),
            Target(200, of_value=True),
            f"{len(SETS)} sets of {SET[0]} generated and {SET[1]} real slices, {SET_WIDTH:,} numbers each; Ray is up, "
            "Ray Tune's own start is part of both; trials of one configuration score reverse retrieval of one set",
        )
    ]


def statistics(bench: Bench) -> list[Row]:
    """Permutations of the whole search's best, and bootstrap resamples, against plain loops over scikit-learn."""
    n, permutations = bench.sizes.configurations, bench.sizes.permutations
    rng = np.random.default_rng(0)
    truth, score = rng.permutation(np.arange(n) % 2), rng.standard_normal((n, n))
    clusters = rng.integers(8, size=(160, n))
    generators = rng.integers(6, size=n)
    log.info("benchmark: %s permutations of %s configurations of %s slices", f"{permutations:,}", f"{n:,}", f"{n:,}")
    best_auc = _timed(lambda: p_values_auc(truth, score, permutations=permutations))
    best_ari = _timed(lambda: p_values_ari(generators, clusters, permutations=permutations))
    plain_auc = _each(lambda: roc_auc_score(rng.permutation(truth), score[0])) * n
    plain_ari = _each(lambda: adjusted_rand_score(rng.permutation(generators), clusters[0])) * len(clusters)

    def resampled() -> None:
        drawn = rng.integers(n, size=n)
        labels, called = truth[drawn], score[0][drawn] > 0
        for figure in (accuracy_score, precision_score, recall_score, f1_score, cohen_kappa_score):
            figure(labels, called)
        roc_auc_score(labels, score[0][drawn])
        roc_curve(labels, score[0][drawn])

    figures = _timed(lambda: membership_figures(truth, score[0], score[0] > 0, resamples=RESAMPLES))
    whole = f"{permutations:,} permutations of the best AUC of {n:,} configurations, {n:,} slices"
    minute = Target(60, at_least=False, of_value=True) if (n, permutations) == (1000, 1000) else None
    return [
        Row("statistics", whole, best_auc, "s", target=minute),
        _rate("permutations of the best AUC", permutations / best_auc, "roc_auc_score for each", 1 / plain_auc),
        _rate(
            f"permutations of the best ARI of {len(clusters)} clusterings",
            permutations / best_ari,
            "adjusted_rand_score for each",
            1 / plain_ari,
        ),
        _rate(
            f"bootstrap resamples of the membership figures, {n:,} slices",
            RESAMPLES / figures,
            "scikit-learn's figures for each",
            1 / _each(resampled),
        ),
    ]


def _each(work: Callable[[], Any]) -> float:
    """Seconds of one repetition, the middle one of some."""
    return median(_timed(work) for _ in range(FEW))


def _rate(name: str, ours: float, against: str, theirs: float) -> Row:
    return Row("statistics", name, ours, "1/s", against, theirs, ours / theirs, note=f"theirs from {FEW} repetitions")
