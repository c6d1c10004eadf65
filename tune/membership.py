"""The membership task of a search: its sets, and the rows that one trial gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gansfp.collection.catalog import Catalog
from gansfp.decision.decide import decide_by_other_folds
from gansfp.decision.pool import area_under_curve
from gansfp.decision.search_result import (
    Configuration,
    Scalar,
    Search,
    SearchedIds,
    SearchResult,
    SetIds,
    Trial,
)
from gansfp.device import release_memory
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, UsageError
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.rows import Rows, mapped
from gansfp.scoring import distances
from gansfp.scoring.clustering_space import exact_bytes
from gansfp.scoring.embedded_set import EmbeddedSet
from gansfp.scoring.membership import learns_from_labels, scores
from gansfp.scoring.projections import LEADING, MAX_COORDINATES, Projection, pca
from gansfp.statistics.metrics import decision_metrics
from gansfp.statistics.resampling import stratified_group_folds
from tune.left_for_final import leave_for_final
from tune.problem import ForEachPair, Task, TaskSlices, TrialOptions, Vectors
from tune.rows import Row
from tune.set_slices import USUAL_SHARE, SetSlices

FOLDS = 5


@dataclass(frozen=True, eq=False)
class MembershipSlices(TaskSlices):
    """The sets that a search can choose for."""

    sets: tuple[SetSlices, ...]

    def evaluate(self, trial: Trial, vectors: Vectors, options: TrialOptions) -> list[Row]:
        """The rows of one embedding for all sets, of which one at a time is in memory; what is approximated is in the
        configurations."""
        rows = []
        for of_set in self.sets:
            rows += _evaluate_set(trial, vectors, of_set, options)
            release_memory()
        return rows

    def ids(self, images: Catalog) -> SearchedIds:
        """The real and generated slices of each set."""
        ids = images.ids
        sets = {
            of_set.name: SetIds(
                ids[of_set.real].tolist(),
                ids[of_set.generated].tolist(),
                of_set.labels.tolist(),
                of_set.folds.tolist(),
                of_set.groups.tolist(),
            )
            for of_set in self.sets
        }
        return SearchedIds(ids.tolist(), sets)

    def fingerprint(self, images: Catalog) -> list[object]:
        """The slices of each set that can be read, and the labels and folds of the real ones."""
        ids = images.ids
        return [
            [ids[s.generated].tolist(), ids[s.real].tolist(), s.labels.tolist(), s.folds.tolist()] for s in self.sets
        ]

    def square_bytes(self) -> int:
        """Of the largest set, since sets are computed one after the other."""
        return max(exact_bytes(len(of_set.generated)) for of_set in self.sets)

    def vector_bytes(self, width: int) -> int:
        """Vectors lie on disk; in memory are the coordinates that k-means reads, in float64 at most."""
        return max(8 * len(of_set.rows) * min(width, LEADING) for of_set in self.sets)

    def most_clusters(self) -> int:
        """As many as the smallest set has generated slices."""
        return min(len(of_set.generated) for of_set in self.sets)

    def leave_for_final(self, search: Search, for_each_pair: ForEachPair, images: Catalog) -> SearchResult:
        """Writes what the final step needs of every embedding, because it chooses the embeddings."""
        leave_for_final(self.sets, search, for_each_pair, images, MEMBERSHIP.controls)
        return search.result


def find_sets(images: Catalog, readable: np.ndarray, seed: int) -> MembershipSlices:
    """The membership sets. images: of the membership task; readable: (n,) bool.

    Raises DataError where a set lacks generated, used or not used slices, or enough groups of each to cross-validate.
    """
    if not len(images):
        raise DataError(f"{images.data}: got no membership images, expected a folder membership/")
    set_names, roles, groups = images.column("set"), images.column("role"), images.groups()
    labels = np.select([roles == "used", roles == "not_used"], [USED, NOT_USED], UNKNOWN)
    sets = []
    for name in images.sets():
        of_set = (set_names == name) & readable
        for role in ("generated", "used", "not_used"):
            if not (of_set & (roles == role)).any():
                raise DataError(
                    f"membership set {name!r}: got no readable {role} slices, expected some in train/{role}"
                )
        generated = np.flatnonzero(of_set & (roles == "generated"))
        real = np.flatnonzero(of_set & (roles != "generated"))
        real = real[np.argsort(labels[real] == UNKNOWN, kind="stable")]
        labelled = labels[real] != UNKNOWN
        folds = np.full(len(real), -1)
        try:
            folds[labelled] = stratified_group_folds(labels[real][labelled], groups[real][labelled], FOLDS, seed)
        except UsageError as error:
            raise DataError(f"membership set {name!r}: {error}") from error
        sets.append(SetSlices(name, generated, real, labels[real], groups[real], folds))
    return MembershipSlices(tuple(sets))


def _embedded(
    trial: Trial, vectors: Vectors, of_set: SetSlices, options: TrialOptions
) -> tuple[EmbeddedSet, dict[str, Scalar]]:
    """The vectors of a set as the trial prepares them, and what is approximated."""
    if of_set.name not in options.rows:
        options.rows[of_set.name] = of_set.vectors(vectors)
    both = options.rows[of_set.name]
    approximation: dict[str, Scalar] = {}
    leading, metric = None, str(trial.metric)
    many = max(len(of_set.generated), len(of_set.real)) > MAX_COORDINATES and both.shape[1] > LEADING
    # Scores in whitened components do not depend on the metric: one trial of an embedding computes them.
    whitens = not trial.components and metric == "euclidean"
    axes = _axes(both, of_set.name, trial.components, options) if trial.components or many or whitens else None
    if axes and axes.fitted_to < len(both):
        approximation["fitted_to"] = axes.fitted_to
    if axes and many:
        leading = axes.leading(LEADING).transform(both, options.device)
        approximation["kmeans_components"] = leading.shape[1]
    if axes and trial.components:
        prepared = axes.leading(trial.components)
        both = mapped(both, lambda rows: prepared.transform(rows, options.device))
    members = (*of_set.divided(both), of_set.labels, of_set.groups, of_set.folds)
    device, seed, limit = options.device, options.seed, options.limit
    return EmbeddedSet(*members, metric, device, seed, limit, leading, axes if whitens else None), approximation


def _axes(both: Rows, name: str, components: int | float, options: TrialOptions) -> Projection:
    """The principal components of all slices of a set: at least those that a trial keeps, and those that scores read.

    Trials with a usual share of the variance share the same components, so that a trial gives the same rows whatever
    trials ran before it.
    """
    at_least = max(LEADING, *options.sweeps.membership.whitened)
    if components > USUAL_SHARE:
        return pca(both, components, options.device, options.seed, at_least)
    if name not in options.axes:
        options.axes[name] = pca(both, USUAL_SHARE, options.device, options.seed, at_least)
    return options.axes[name]


def _evaluate_set(trial: Trial, vectors: Vectors, of_set: SetSlices, options: TrialOptions) -> list[Row]:
    data, approximation = _embedded(trial, vectors, of_set, options)
    labelled = of_set.labels != UNKNOWN
    rows = []
    for parameters, exact_scores in scores(data, options.sweeps.membership):
        rounded = exact_scores.astype(np.float32)  # before any decision, so that decisions rest on what is written
        k = parameters.get("k")
        row = Row(
            Configuration({**trial.as_dict(), **approximation, **parameters}),
            set=of_set.name,
            method=_text(parameters.get("method")),
            linkage=_text(parameters.get("linkage")),
            metric=str(parameters.get("metric", data.metric)),
            k=None if k is None else int(k),
            rule=_text(parameters.get("rule")),
            scores=rounded,
        )
        rows.append(_cross_validated(row, rounded[labelled], of_set.labels[labelled], of_set.folds[labelled]))
    return rows


def _text(value: Scalar | None) -> str | None:
    return None if value is None else str(value)


def _cross_validated(row: Row, score: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> Row:
    figures = decision_metrics(labels, decide_by_other_folds(score, labels, folds, "balanced_accuracy"))
    return replace(
        row,
        auc=float(area_under_curve(score[None], labels == USED)[0]),
        f1=figures["f1"],
        balanced_accuracy=(figures["recall"] + figures["specificity"]) / 2,
    )


def _trials(pair: Pair, components: int | float) -> list[Trial]:
    # Between vectors of unit norm cosine orders as euclidean does, and manhattan hardly otherwise.
    metrics = ("euclidean",) if parse_backbone(pair[0]).unit_norm else distances.METRICS
    return [Trial(*pair, components, metric=metric) for metric in metrics]


def _order(choices: Mapping[str, Scalar], columns: Mapping[str, Scalar]) -> tuple[float, ...]:
    """By cross-validated AUC. Configurations that learn from labels come last, because their AUC flatters (see
    gansfp/decision/stacking.py)."""
    return float(not learns_from_labels(choices)), float(columns["auc"])


NETWORKS = ("mobilenetv2_100", "densenet121")

MEMBERSHIP = Task(
    name="membership",
    # Pooled features forget where things are and see little of what a generator remembers; small high-pass slices keep
    # it. Several windows, because generators differ in the scales that they draw well.
    default_pairs=(
        *((f"highpass-w{window}-64", "full") for window in (0, 7, 15, 31, 63)),
        *((f"highpass-w{window}-32", "full") for window in (7, 15)),
        *(("highpass-w15-64", view) for view in ("lungs", "outer")),
        *((network, view) for network in NETWORKS for view in ("full", "lungs", "outer")),
        *((f"{network}:sketch", "full") for network in NETWORKS),
    ),
    trials=_trials,
    find_slices=find_sets,
    merit="auc",
    order=_order,
    describe=lambda columns: f"AUC {columns['auc']:.3f}",
    least_k=1,
    controls=(("measures", "full"),),
)
