"""Estimates the number of generators from a dendrogram and the known generators.

The mean silhouette over all slices prefers few clusters where some generators are far apart: it then leaves two close
generators in one cluster. This module follows Ward's dendrogram from the root instead. It bisects a cluster where the
silhouette of its two children exceeds that of every known generator by a margin, because each known generator is one
generator by definition. It also bisects a cluster if a bisection further down has a silhouette that clearly exceeds
every silhouette inside a known generator's own dendrogram. So the known generators show what a single generator looks
like in this embedding, and one cluster is a possible answer. Ward's linkage gives compact children of similar size,
where other linkages separate outliers first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gansfp.errors import UsageError
from gansfp.scoring.attribution import by_size
from gansfp.scoring.clustering_space import ClusteringSpace, silhouettes
from gansfp.statistics.metrics import partition_metrics

REQUIRED_MARGIN = 0.2  # of the distance between the known generators' silhouette and 1
MIN_SLICES = 8  # or 2 % of the slices, if that is more: a smaller child is outliers, not a generator
MAX_TRIALS = 60  # of pairs (generators to find, generator held out); of more pairs, a random part is tried


@dataclass(frozen=True, eq=False)
class BisectedClusters:
    """The clusters that the bisections gave.

    labels: (n,) int64, numbered by falling size; worst_accepted: the smallest silhouette of a bisection that was made,
    0 for none; best_rejected: the largest silhouette of a bisection that was not made, 0 for none.
    """

    labels: np.ndarray
    worst_accepted: float
    best_rejected: float


@dataclass(frozen=True)
class BisectionScore:
    """How well bisections find known generators again when one of them is treated as unknown.

    ari: mean adjusted Rand index; margin: mean difference of worst_accepted and best_rejected; worst_labels: (m,)
    labels of all known slices, with that generator held out for which the index is lowest.
    """

    ari: float
    margin: float
    worst_labels: np.ndarray


@dataclass(frozen=True)
class BisectionSilhouettes:
    """Silhouettes that single generators reach, or the limits that follow from them.

    root: of the first bisection of a generator; maximum: the largest of any bisection in its dendrogram.
    """

    root: float
    maximum: float


@dataclass(frozen=True, eq=False)
class Bisections:
    """Ward's dendrogram of a space, with the silhouette of every possible bisection.

    tree: Z (m-1, 4); leaf: (n,) of each slice; members: leaves under each of the 2m - 1 nodes; sizes: (2m - 1,) slices
    of the silhouette sample under each; silhouettes: (2m - 1,) of each node's two children, nan for a leaf, and where a
    child is too small.
    """

    tree: np.ndarray
    leaf: np.ndarray
    members: list[np.ndarray]
    sizes: np.ndarray
    silhouettes: np.ndarray


def find_bisections(space: ClusteringSpace) -> Bisections:
    """Returns the bisections of a space, for `bisect_clusters` to choose from under any limits."""
    tree, distances = space.tree("ward", "euclidean"), space.distances("euclidean")
    leaves = len(tree) + 1
    leaf_of_sample = space.leaf[space.silhouette_sample]
    order = np.argsort(leaf_of_sample, kind="stable")
    sample_of_leaf = np.split(order, np.cumsum(np.bincount(leaf_of_sample, minlength=leaves))[:-1])
    members, sampled = (_under(tree, of_leaf) for of_leaf in ([np.array([i]) for i in range(leaves)], sample_of_leaf))
    sizes = np.array([len(rows) for rows in sampled])
    smallest = max(MIN_SLICES, len(leaf_of_sample) // 50)
    of_nodes = np.full(len(members), np.nan)
    for node, (left, right) in enumerate(tree[:, :2].astype(np.int64), start=leaves):
        if min(sizes[left], sizes[right]) >= smallest:
            rows = np.concatenate([sampled[left], sampled[right]])
            sides = np.repeat([0, 1], [sizes[left], sizes[right]])
            of_nodes[node] = silhouettes(distances[np.ix_(rows, rows)], [sides])[0]
    return Bisections(tree, space.leaf, members, sizes, of_nodes)


def bisect_clusters(bisections: Bisections, limits: BisectionSilhouettes) -> BisectedClusters:
    """Clusters the n slices of a space: bisects nodes from the root down while the limits allow it.

    A node is bisected if its silhouette exceeds `limits.root`, or if its silhouette or one below it exceeds
    `limits.maximum`. Where one of two children is too small to be a generator, its slices are outliers: they go with
    the other child, which is bisected instead.
    """
    tree, of_nodes, leaves = bisections.tree, bisections.silhouettes, len(bisections.tree) + 1
    holds_certain = np.zeros(2 * leaves - 1, bool)  # nodes above limits.maximum, and those that contain one
    for node, (left, right) in enumerate(tree[:, :2].astype(np.int64), start=leaves):
        holds_certain[node] = of_nodes[node] > limits.maximum or holds_certain[left] or holds_certain[right]
    accepted = holds_certain | (of_nodes > limits.root)
    labels = np.zeros(leaves, np.int64)
    clusters, made, rejected = 0, [1.0], [0.0]
    stack: list[tuple[int, np.ndarray]] = [(2 * leaves - 2, np.zeros(0, np.int64))]  # a node, and its outliers
    while stack:
        node, outliers = stack.pop()
        if node >= leaves and np.isnan(of_nodes[node]):
            small, large = sorted(tree[node - leaves, :2].astype(np.int64), key=lambda child: bisections.sizes[child])
            stack.append((large, np.concatenate([outliers, bisections.members[small]])))
        elif accepted[node]:
            made.append(float(of_nodes[node]))
            left, right = tree[node - leaves, :2].astype(np.int64)
            stack += [(left, outliers), (right, np.zeros(0, np.int64))]
        else:
            rejected.append(float(np.nan_to_num(of_nodes[node])))
            labels[np.concatenate([bisections.members[node], outliers])] = clusters
            clusters += 1
    worst_accepted = min(made) if len(made) > 1 else 0.0
    return BisectedClusters(by_size(labels[bisections.leaf]), worst_accepted, max(rejected))


def generator_silhouettes(space: ClusteringSpace) -> BisectionSilhouettes:
    """Returns the silhouettes inside a single generator's slices, apart from outliers; 0 for too few slices."""
    if len(space.x) < 2 * MIN_SLICES:
        return BisectionSilhouettes(0.0, 0.0)
    of_nodes = find_bisections(space).silhouettes
    defined = of_nodes[~np.isnan(of_nodes)]
    if not len(defined):
        return BisectionSilhouettes(0.0, 0.0)
    return BisectionSilhouettes(float(defined[-1]), float(defined.max()))


def bisection_limits(of_generators: Sequence[BisectionSilhouettes]) -> BisectionSilhouettes:
    """Returns the silhouettes that a bisection must exceed, from those inside single generators."""
    root, maximum = max(own.root for own in of_generators), max(own.maximum for own in of_generators)
    return BisectionSilhouettes(root + REQUIRED_MARGIN * (1 - root), maximum + REQUIRED_MARGIN * (1 - maximum))


def score_bisections(
    known: ClusteringSpace, generators: np.ndarray, of_generators: Sequence[BisectionSilhouettes], seed: int = 0
) -> BisectionScore:
    """Tries the bisections on known generators, always with one of them held out of the limits.

    known: m slices; generators: (m,) str; of_generators: generator_silhouettes of each, ordered by name. The slices are
    those of subsets of two or more generators; for each member of a subset, the limits come from the other members.
    Raises UsageError for fewer than two generators.
    """
    names, codes = np.unique(generators, return_inverse=True)
    if len(names) < 2:
        raise UsageError(f"got {len(names)} known generators, and choosing a clustering needs at least 2")
    figures, worst = [], None
    cached: tuple[tuple[int, ...], np.ndarray, Bisections] | None = None  # of the latest subset
    for subset, held_out in _trials(len(names), seed):
        if cached is None or cached[0] != subset:
            rows = np.flatnonzero(np.isin(codes, subset))
            cached = subset, rows, find_bisections(known.subset(rows) if len(rows) < len(codes) else known)
        _, rows, bisections = cached
        clusters = bisect_clusters(bisections, bisection_limits([of_generators[g] for g in subset if g != held_out]))
        ari = partition_metrics(codes[rows], clusters.labels)["ari"]
        figures.append((ari, clusters.worst_accepted - clusters.best_rejected))
        if len(subset) == len(names) and (worst is None or ari < worst[0]):
            worst = ari, clusters.labels
    assert worst is not None
    ari, margin = (float(value) for value in np.mean(figures, axis=0))
    return BisectionScore(ari, margin, worst[1])


def _trials(count: int, seed: int) -> list[tuple[tuple[int, ...], int]]:
    """Returns pairs of a subset of `count` generators and the one held out of it: all of them, or MAX_TRIALS; always
    those with all generators, which come first."""
    trials = [(subset, out) for size in range(count, 1, -1) for subset in _subsets(count, size) for out in subset]
    if len(trials) <= MAX_TRIALS:
        return trials
    order = np.random.default_rng(seed).permutation(len(trials))[:MAX_TRIALS]
    return trials[:count] + [trials[i] for i in np.sort(order) if i >= count]


def _subsets(count: int, size: int) -> list[tuple[int, ...]]:
    return list(combinations(range(count), size)) if count <= 10 or size in (2, count) else []


def _under(tree: np.ndarray, of_leaf: list[np.ndarray]) -> list[np.ndarray]:
    """Returns what lies under every node of a dendrogram: 2m - 1 arrays, from those of its m leaves."""
    of_node = list(of_leaf)
    for left, right in tree[:, :2].astype(np.int64):
        of_node.append(np.concatenate([of_node[left], of_node[right]]))
    return of_node
