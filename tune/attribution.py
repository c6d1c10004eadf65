"""The attribution task of a search: its slices, and the rows that one trial gives."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gansfp.collection.catalog import Catalog
from gansfp.decision.places import write_places
from gansfp.decision.search_result import Configuration, Scalar, Search, SearchedIds, SearchResult, Trial
from gansfp.decision.shortcuts import read_shortcuts, write_shortcuts
from gansfp.decision.stamped import is_current
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, UsageError
from gansfp.scoring.attribution import COVARIANCES, INITS, SETTINGS, Clustering, best_k, prepare, results, spaces
from gansfp.scoring.cluster_splitting import (
    bisect_clusters,
    bisection_limits,
    find_bisections,
    generator_silhouettes,
    score_bisections,
)
from gansfp.scoring.clustering_space import ClusteringSpace, exact_bytes
from gansfp.scoring.known_generators import KnownScore, name_clusters, score_on_known
from gansfp.scoring.neighbourhoods import places_in_a_plane
from gansfp.scoring.projections import fitted_rows
from tune.membership import NETWORKS
from tune.problem import ForEachPair, Task, TaskSlices, TrialOptions, Vectors
from tune.rows import Row
from tune.traces import read_known, traces_of

_SPACES = 3  # held by a trial: of the test slices, of the known ones, and of a part of these


@dataclass(frozen=True, eq=False)
class AttributionSlices(TaskSlices):
    """The attribution slices, by rows of the task's images.

    known: (m,) rows of the slices of known generators; generators: (m,) str, theirs; test: (n,) rows.
    """

    known: np.ndarray
    generators: np.ndarray
    test: np.ndarray

    def evaluate(self, trial: Trial, vectors: Vectors, options: TrialOptions) -> list[Row]:
        """Each clustering at each number of clusters: judged on the known generators, applied to the test slices.

        A clustering that fails (a mixture too wide for its memory, say) is one row with its error; the others go on.
        """
        ks = options.sweeps.attribution
        possible = [k for k in ks if k < len(self.test)]
        if not possible:
            raise UsageError(f"k: got {list(ks)} for {len(self.test)} test slices, expected fewer clusters than slices")
        limit = self._limit_of_a_space(options.limit)
        clusterings = clusterings_of(trial, options.seed)
        of_test = vectors[self.test]
        ((known, _),) = spaces(vectors[self.known], clusterings, options.device, limit)
        ((test, _),) = spaces(of_test, clusterings, options.device, limit)
        plain = {clustering: replace(clustering, components=0, standardise=False) for clustering in clusterings}
        judged = score_on_known(known, self.generators, list(plain.values()))
        approximation = test.approximation | {f"known_{name}": value for name, value in known.approximation.items()}
        fitted_to = fitted_rows(*of_test.shape)
        if trial.components and fitted_to < len(of_test):
            approximation["fitted_to"] = fitted_to
        rows = []
        for clustering in clusterings:
            row = _row(clustering, {**trial.as_dict(), **approximation, **_described(clustering)})
            try:
                counted = _by_silhouette(row, test, known, judged[plain[clustering]], plain[clustering], possible)
                if clustering.linkage == "ward" and clustering.method == "hierarchical":
                    counted.append(_by_bisection(row, test, known, self.generators, clustering))
                rows += counted
            except UsageError as error:
                rows.append(replace(row, status="failed", error=str(error)))
        return rows

    def ids(self, images: Catalog) -> SearchedIds:
        """The test slices and the known generators' slices."""
        ids = images.ids
        return SearchedIds(ids.tolist(), test=ids[self.test].tolist(), known=ids[self.known].tolist())

    def fingerprint(self, images: Catalog) -> list[object]:
        """The rows and the generators."""
        return [self.known.tolist(), self.generators.tolist(), self.test.tolist()]

    def square_bytes(self) -> int:
        """Of the test slices, the known ones, and the largest part of these."""
        largest = np.unique(self.generators, return_counts=True)[1].max()
        return exact_bytes(len(self.test)) + exact_bytes(len(self.known)) + exact_bytes(int(largest))

    def _limit_of_a_space(self, limit: int) -> int:
        """All of the limit where everything is exact within it, else an equal part."""
        return limit if self.square_bytes() <= limit else limit // _SPACES

    def vector_bytes(self, width: int) -> int:
        """Of all slices, known and test, once as read and once as prepared."""
        return 2 * 4 * width * (len(self.known) + len(self.test))

    def most_clusters(self) -> int:
        """One fewer than the test has slices."""
        return len(self.test) - 1

    def leave_for_final(self, search: Search, for_each_pair: ForEachPair, images: Catalog) -> SearchResult:
        """Names the clusters of the best row after the known generators that they resemble, and writes where the slices
        lie, and how far files and grey levels alone tell generators apart."""
        best = search.result.best[""]
        choices = best.configuration.choices
        sources = [search.result.digest, search.result.ids.known, dict(choices)]
        digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
        if not is_current(read_shortcuts, search.folder, digest):
            known = read_known(images, self.known, self.generators)
            write_shortcuts(search.folder, {"": traces_of(known, choices) if known else []}, digest)
        labels = search.rows("").of_row(best.row).astype(np.int64)
        look = functools.partial(self.names_and_places, labels=labels, choices=choices)
        ((names, places),) = for_each_pair([best.configuration.pair], look)
        ids = images.ids[np.concatenate([self.known, self.test])].tolist()
        write_places(search.folder, ids, places, [*self.generators.tolist(), *[""] * len(self.test)])
        return replace(search.result, names=names)

    def names_and_places(
        self, pair: Pair, vectors: Vectors, *, labels: np.ndarray, choices: Mapping[str, Scalar]
    ) -> tuple[dict[int, str], np.ndarray]:
        """The known generator, or "new", that each cluster of the test slices resembles; and where all slices lie in a
        picture, the known generators' first, (n, 2) float32.

        labels: (n,) clusters; choices: of the configuration that made them.
        """
        both = vectors[np.concatenate([self.known, self.test])]
        components = choices["components"]
        assert not isinstance(components, str)
        both = prepare(both, bool(choices["standardise"]), components)
        known, test = both[: len(self.known)], both[len(self.known) :]
        names = {name.cluster: name.generator for name in name_clusters(labels, test, known, self.generators)}
        return names, places_in_a_plane(both)


def find_slices(images: Catalog, readable: np.ndarray, seed: int) -> AttributionSlices:
    """The attribution slices. Raises DataError without test slices, or with fewer than two known generators."""
    if not len(images):
        raise DataError(f"{images.data}: got no attribution images, expected a folder attribution/")
    known = np.flatnonzero(readable & (images.column("role") == "generated"))
    test = np.flatnonzero(readable & (images.column("role") == "unknown"))
    generators = images.column("generator")[known]
    if len(set(generators.tolist())) < 2:
        raise DataError(
            f"attribution: got {len(set(generators.tolist()))} known generators, expected 2 or more folders in "
            "attribution/train, to choose a clustering by"
        )
    if not len(test):
        raise DataError("attribution: got no readable test slices, expected some in attribution/test")
    return AttributionSlices(known, generators, test)


def clusterings_of(trial: Trial, seed: int) -> list[Clustering]:
    """The clusterings that a trial sweeps; no full covariances, for which slices are too few."""

    def clustering(method: str, linkage: str = "ward", metric: str = "euclidean", **mixture: str) -> Clustering:
        components, standardise = trial.components, bool(trial.standardise)
        return Clustering(method, linkage, metric, components=components, standardise=standardise, seed=seed, **mixture)

    swept = [clustering("hierarchical", linkage) for linkage in ("ward", "average", "complete")]
    swept.append(clustering("hierarchical", "average", "cosine"))
    swept.append(clustering("kmeans"))
    if trial.components:
        swept += [
            clustering("gmm", covariance=covariance, init=init)
            for covariance in COVARIANCES
            for init in INITS
            if covariance in ("diag", "spherical") and init in ("kmeans", "k-means++")
        ]
    return swept


def _row(clustering: Clustering, choices: Mapping[str, Scalar]) -> Row:
    """A row of this clustering, without what it came to."""
    linkage = clustering.linkage if clustering.method == "hierarchical" else None
    return Row(Configuration(choices), method=clustering.method, linkage=linkage, metric=clustering.metric)


def _counted(row: Row, count: str, k: int) -> Row:
    """The row with the number of clusters, and `count`, what found it."""
    return replace(row, k=k, configuration=Configuration({**row.configuration.choices, "count": count, "k": k}))


def _by_silhouette(
    row: Row,
    test: ClusteringSpace,
    known: ClusteringSpace,
    judged: KnownScore | UsageError,
    clustering: Clustering,
    ks: Sequence[int],
) -> list[Row]:
    """One row for each k; the mean silhouette chooses among them."""
    if isinstance(judged, UsageError):
        raise judged
    of_test = {result.k: result for result in results(test, clustering, ks)}
    chosen = best_k({k: result.silhouettes[k] for k, result in of_test.items()})
    of_known = {result.k: result for result in results(known, clustering, [k for k in ks if k < len(known.x)])}
    known_labels = of_known[best_k({k: result.silhouettes[k] for k, result in of_known.items()})].labels
    return [
        replace(
            _counted(row, "silhouette", k),
            ari_known=judged.auto,
            ari_known_given_k=judged.given,
            silhouette=result.silhouettes[k],
            margin=0.0,
            chosen_k=k == chosen,
            scores=result.labels.astype(np.float32),
            known=known_labels if k == chosen else None,
        )
        for k, result in of_test.items()
    ]


def _by_bisection(
    row: Row, test: ClusteringSpace, known: ClusteringSpace, generators: np.ndarray, clustering: Clustering
) -> Row:
    """The row of a dendrogram whose clusters are cut in two as long as no known generator would be."""
    of_generators = [
        generator_silhouettes(known.subset(np.flatnonzero(generators == name))) for name in np.unique(generators)
    ]
    judged = score_bisections(known, generators, of_generators, clustering.seed)
    labels = bisect_clusters(find_bisections(test), bisection_limits(of_generators)).labels
    return replace(
        _counted(row, "splits", int(labels.max()) + 1),
        ari_known=judged.ari,
        ari_known_given_k=judged.ari,
        silhouette=float(test.silhouettes(clustering.metric, [labels])[0]) if labels.any() else -1.0,
        margin=judged.margin,
        chosen_k=True,
        scores=labels.astype(np.float32),
        known=judged.worst_labels,
    )


def _described(clustering: Clustering) -> dict[str, Scalar]:
    return {"method": clustering.method} | {name: getattr(clustering, name) for name in SETTINGS[clustering.method]}


def _trials(pair: Pair, components: int | float) -> list[Trial]:
    return [Trial(*pair, components, standardise=standardise) for standardise in (False, True)]


def _order(choices: Mapping[str, Scalar], columns: Mapping[str, Scalar]) -> tuple[float, ...]:
    """By how well the known generators are found again, their number estimated too, to one decimal: what a few slices
    more or less say is noise. Then by the margin of the cuts there, then by the same with the number of generators
    given, then by the silhouette of the test slices."""
    ari, ari_given_k = round(float(columns["ari_known"]), 1), round(float(columns["ari_known_given_k"]), 3)
    return ari, float(columns["margin"]), ari_given_k, float(columns["silhouette"])


ATTRIBUTION = Task(
    name="attribution",
    default_pairs=(
        ("residual", "full"),
        ("lbp", "full"),
        *((network, view) for network in NETWORKS for view in ("full", "lungs", "outer")),
    ),
    trials=_trials,
    find_slices=find_slices,
    merit="ari_known",
    order=_order,
    describe=lambda columns: f"ARI {columns['ari_known']:.3f} on known generators",
    least_k=2,
)
