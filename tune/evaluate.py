"""One trial's work, without Ray: the rows of trials.parquet that one prepared embedding gives."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from gansfp.collection.catalog import Catalog
from gansfp.decision.decision import decide_by_other_folds
from gansfp.decision.stacking import area_under_curve
from gansfp.errors import DataError, UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.scoring import distances
from gansfp.scoring.attribution import Clustering, best_k, results, spaces
from gansfp.scoring.cluster_splitting import halves, own_clearness, score_splits, split, split_limit
from gansfp.scoring.clustering_space import Space, exact_bytes
from gansfp.scoring.known_generators import KnownScore, score_on_known
from gansfp.scoring.membership import MembershipSet, Sweep, scores
from gansfp.statistics.metrics import decision_metrics
from gansfp.statistics.resampling import stratified_group_folds
from tune.space import clusterings

FOLDS = 5
_SPACES = 3  # held by an attribution trial: of the test slices, of the known ones, and of a part of these

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("set", pa.string()),
        ("configuration", pa.string()),  # all of it, as JSON
        ("backbone", pa.string()),
        ("view", pa.string()),
        ("components", pa.float64()),
        ("method", pa.string()),
        ("linkage", pa.string()),
        ("metric", pa.string()),
        ("k", pa.int64()),
        ("rule", pa.string()),
        ("status", pa.string()),  # ok or failed
        ("error", pa.string()),
        ("auc", pa.float64()),  # membership: cross-validated on the labelled slices
        ("f1", pa.float64()),
        ("balanced_accuracy", pa.float64()),
        ("ari_known", pa.float64()),  # attribution: on the known generators, their number to be found
        ("ari_known_given_k", pa.float64()),  # the same with their number given
        ("silhouette", pa.float64()),  # of the test slices
        ("margin", pa.float64()),  # how much clearer the splits made are than those refused, on known generators
        ("chosen_k", pa.bool_()),  # whether this number of clusters is the configuration's own choice
        ("seconds", pa.float64()),  # of the whole trial, which the rows share
        ("scores", pa.list_(pa.float32())),  # membership: of every real slice, attribution: the test slices' clusters
        ("known", pa.list_(pa.int64())),  # attribution, chosen_k: the known slices' clusters, found in the same way
    ]
)


@dataclass(frozen=True, eq=False)
class SetRows:
    """One membership set by rows of the task's images. folds: -1 for unknown slices."""

    name: str
    generated: np.ndarray
    real: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray


@dataclass(frozen=True, eq=False)
class AttributionRows:
    """The attribution slices by rows of the task's images; generators: of the known ones."""

    known: np.ndarray
    generators: np.ndarray
    test: np.ndarray


def membership_sets(catalog: Catalog, readable: np.ndarray, seed: int) -> list[SetRows]:
    """The sets that a search can choose for. catalog: of the membership images; readable: (n,) bool.

    Raises DataError where a set lacks generated, used or not used slices, or enough groups of each to cross-validate.
    """
    sets, roles, groups = catalog.column("set"), catalog.column("role"), catalog.groups()
    labels = np.select([roles == "used", roles == "not_used"], [USED, NOT_USED], UNKNOWN)
    found = []
    for name in catalog.sets():
        here = (sets == name) & readable
        generated, real = np.flatnonzero(here & (roles == "generated")), np.flatnonzero(here & (roles != "generated"))
        for role in ("generated", "used", "not_used"):
            if not (here & (roles == role)).any():
                raise DataError(
                    f"membership set {name!r}: got no readable {role} slices, expected some in train/{role}"
                )
        real = real[np.argsort(labels[real] == UNKNOWN, kind="stable")]
        known = labels[real] != UNKNOWN
        folds = np.full(len(real), -1)
        try:
            folds[known] = stratified_group_folds(labels[real][known], groups[real][known], FOLDS, seed)
        except UsageError as error:
            raise DataError(f"membership set {name!r}: {error}") from error
        found.append(SetRows(name, generated, real, labels[real], groups[real], folds))
    if not found:
        raise DataError(f"{catalog.data}: got no membership sets, expected membership/<set>/train/...")
    return found


def attribution_rows(catalog: Catalog, readable: np.ndarray) -> AttributionRows:
    """The attribution slices. Raises DataError without test slices, or with fewer than two known generators."""
    known = np.flatnonzero(readable & (catalog.column("role") == "generated"))
    test = np.flatnonzero(readable & (catalog.column("role") == "unknown"))
    generators = catalog.column("generator")[known]
    if len(set(generators.tolist())) < 2:
        raise DataError(
            f"attribution: got {len(set(generators.tolist()))} known generators, expected 2 or more folders in "
            "attribution/train, to choose a clustering by"
        )
    if not len(test):
        raise DataError("attribution: got no readable test slices, expected some in attribution/test")
    return AttributionRows(known, generators, test)


def square_bytes(rows: Sequence[SetRows] | AttributionRows) -> int:
    """What a trial takes at most for distances and dendrograms, all of it exact, beside its embedding.

    Of attribution's known slices a part is looked at beside the whole; membership's sets come one after the other.
    """
    if isinstance(rows, AttributionRows):
        return _SPACES * exact_bytes(max(len(rows.known), len(rows.test)))
    return max(exact_bytes(len(one.generated)) for one in rows)


def evaluate_membership(
    trial: dict[str, Any],
    vectors: np.ndarray,
    sets: Sequence[SetRows],
    sweep: Sweep,
    device: str,
    seed: int,
    limit: int = distances.MAX_MEMORY,
) -> list[dict[str, Any]]:
    """The rows of one embedding for all sets. vectors: (images of the task, d) float32; limit: bytes for what grows by
    the square of the slices; what is approximated to keep it is said in the configurations."""
    rows = []
    for one in sets:
        generated, real = vectors[one.generated], vectors[one.real]
        told: dict[str, int] = {}
        if trial["components"]:
            both = np.concatenate([generated, real])
            told = _fitted(both, limit)
            basis = distances.pca(both, trial["components"], device, limit, seed)
            generated, real = basis.transform(generated, device), basis.transform(real, device)
        data = MembershipSet(generated, real, one.labels, one.groups, one.folds, trial["metric"], device, seed, limit)
        labelled = one.labels != UNKNOWN
        for parameters, exact in scores(data, sweep):
            found = exact.astype(np.float32)  # at once, so that all that is decided is decided on what is written
            row: dict[str, Any] = {
                "set": one.name,
                "configuration": json.dumps({**trial, **told, **parameters}),
                "metric": parameters.get("metric", trial["metric"]),
                "scores": found,
            }
            row |= {name: parameters[name] for name in ("method", "linkage", "k", "rule") if name in parameters}
            row |= _cross_validated(found[labelled], one.labels[labelled], one.folds[labelled])
            rows.append(row)
    return rows


def _fitted(x: np.ndarray, limit: int) -> dict[str, int]:
    """For the record: how many slices principal components are fitted to, where not to all."""
    used = distances.fitted_rows(len(x), x.shape[1], limit)
    return {"fitted_to": used} if used < len(x) else {}


def _cross_validated(score: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    decided = decision_metrics(labels, decide_by_other_folds(score, labels, folds, "balanced_accuracy"))
    return {
        "auc": float(area_under_curve(score[None], labels == USED)[0]),
        "f1": decided["f1"],
        "balanced_accuracy": (decided["recall"] + decided["specificity"]) / 2,
    }


def evaluate_attribution(
    trial: dict[str, Any],
    vectors: np.ndarray,
    rows: AttributionRows,
    ks: Sequence[int],
    device: str,
    seed: int,
    limit: int = distances.MAX_MEMORY,
) -> list[dict[str, Any]]:
    """The rows of one embedding: each clustering at each k, judged on the known generators, applied to the test.

    A clustering that fails (a mixture too wide for its memory, say) is one row with its error; the others go on. limit:
    as in evaluate_membership.
    """
    possible = [k for k in ks if k < len(rows.test)]
    if not possible:
        raise UsageError(f"k: got {list(ks)} for {len(rows.test)} test slices, expected fewer clusters than slices")
    tried = clusterings(trial["components"], trial["standardise"], seed)
    ((known, _),) = spaces(vectors[rows.known], tried, device, limit // _SPACES)
    ((test, _),) = spaces(vectors[rows.test], tried, device, limit // _SPACES)
    plain = {clustering: replace(clustering, components=0, standardise=False) for clustering in tried}
    judged = score_on_known(known, rows.generators, list(plain.values()))
    told = test.approximation | {f"known_{name}": value for name, value in known.approximation.items()}
    if trial["components"]:
        told |= _fitted(vectors[rows.test], limit // _SPACES)
    found = []
    for clustering in tried:
        configuration = {**trial, **told, **_described(clustering)}
        row: dict[str, Any] = {
            "method": clustering.method,
            "linkage": clustering.linkage if clustering.method == "hierarchical" else None,
            "metric": clustering.metric,
        }
        try:
            parts = _by_silhouette(test, known, judged[plain[clustering]], plain[clustering], possible)
            if clustering.linkage == "ward" and clustering.method == "hierarchical":
                parts.append(_by_splits(test, known, rows.generators, clustering))
        except UsageError as error:
            parts = [{"status": "failed", "error": str(error)}]
        for part in parts:
            of_part = {name: part[name] for name in ("count", "k") if name in part}
            rest = {name: value for name, value in part.items() if name != "count"}
            found.append({**row, "configuration": json.dumps({**configuration, **of_part}), **rest})
    return found


def _by_silhouette(
    test: Space, known: Space, judged: KnownScore | UsageError, clustering: Clustering, ks: Sequence[int]
) -> list[dict[str, Any]]:
    """One row for each k; the mean silhouette chooses among them."""
    if isinstance(judged, UsageError):
        raise judged
    of_test = {result.k: result for result in results(test, clustering, ks)}
    chosen = best_k({k: result.silhouettes[k] for k, result in of_test.items()})
    of_known = {result.k: result for result in results(known, clustering, [k for k in ks if k < len(known.x)])}
    again = of_known[best_k({k: result.silhouettes[k] for k, result in of_known.items()})]
    return [
        {
            "count": "silhouette",
            "k": k,
            "ari_known": judged.auto,
            "ari_known_given_k": judged.given,
            "silhouette": result.silhouettes[k],
            "margin": 0.0,
            "chosen_k": k == chosen,
            "scores": result.labels.astype(np.float32),
            "known": again.labels if k == chosen else None,
        }
        for k, result in of_test.items()
    ]


def _by_splits(test: Space, known: Space, generators: np.ndarray, clustering: Clustering) -> dict[str, Any]:
    """The row of a dendrogram that is split as long as no known generator would be."""
    own = [own_clearness(known.part(np.flatnonzero(generators == g))) for g in np.unique(generators)]
    judged = score_splits(known, generators, own, clustering.seed)
    labels = split(halves(test), split_limit(own)).labels
    return {
        "count": "splits",
        "k": int(labels.max()) + 1,
        "ari_known": judged.ari,
        "ari_known_given_k": judged.ari,
        "silhouette": float(test.silhouettes(clustering.metric, [labels])[0]) if labels.any() else -1.0,
        "margin": judged.margin,
        "chosen_k": True,
        "scores": labels.astype(np.float32),
        "known": judged.worst,
    }


_SETTINGS: dict[str, tuple[str, ...]] = {
    "hierarchical": ("linkage", "metric"),
    "gmm": ("covariance", "init"),
    "kmeans": (),
}


def _described(clustering: Clustering) -> dict[str, Any]:
    names = _SETTINGS[clustering.method]
    return {"method": clustering.method, **{name: getattr(clustering, name) for name in names}}


def table(task: str, trial: dict[str, Any], rows: list[dict[str, Any]], started: float, error: str = "") -> pa.Table:
    """The rows of one trial as a table of SCHEMA; a trial that failed is one row with its error."""
    rows = rows or [{"configuration": json.dumps(trial)}]
    common = {
        "task": task,
        "backbone": trial["backbone"],
        "view": trial["view"],
        "components": float(trial["components"]),
        "status": "failed" if error else "ok",
        "error": error,
        "seconds": time.monotonic() - started,
    }
    return pa.Table.from_pylist([{**common, **row} for row in rows], schema=SCHEMA)
