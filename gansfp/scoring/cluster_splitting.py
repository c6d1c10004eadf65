"""How many generators there are, asked cluster by cluster: would any known generator fall apart as clearly as this?

The mean silhouette over all slices prefers few clusters where some generators are far apart: it then leaves two that
are close in one. Here a dendrogram is followed from its root, and a cluster is split in two where the silhouette of the
halves is clearly above that of the halves of every known generator, which are one by definition; or where a split
further down is clearly above everything in a known generator's own dendrogram. So the known generators say what one
generator looks like in this embedding, and one cluster is a possible answer. The dendrogram is Ward's: its halves are
compact and of like size, where other linkages split off strays first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gansfp.errors import UsageError
from gansfp.scoring.attribution import by_size
from gansfp.scoring.clustering_space import Space, silhouettes
from gansfp.statistics.metrics import partition_metrics

HEADROOM = 0.2  # of what lies between the known generators' silhouette and 1: how much clearer a split has to be
SMALLEST = 8  # slices, or 2 % of them: fewer are outliers, not a generator
MOST_SUBSETS = 60  # of (generators to find, generator that is kept out), beyond which a random part is tried


@dataclass(frozen=True, eq=False)
class Splits:
    """labels: (n,) int64, numbered by falling size. weakest: silhouette of the least clear split that was made, 0 for
    none; strongest_refused: of the clearest cluster that was left whole."""

    labels: np.ndarray
    weakest: float
    strongest_refused: float


@dataclass(frozen=True)
class SplitScore:
    """How well splitting finds known generators again when one of them is not known.

    ari: mean adjusted Rand index; margin: mean of how far the splits made are clearer than those refused; worst: (m,)
    labels of all known slices with that one kept out which serves worst.
    """

    ari: float
    margin: float
    worst: np.ndarray


@dataclass(frozen=True)
class Clearness:
    """Silhouettes that single generators reach: of their first split, and of any in their dendrograms; or limits."""

    first: float
    any: float


@dataclass(frozen=True, eq=False)
class Halves:
    """Ward's dendrogram of a space, and how clear each of its splits is.

    leaf: (n,) of each slice; members: leaves under each of the 2m - 1 nodes; sizes: slices under each that judge;
    clear: (2m - 1,) silhouette of each node's two halves, nan for a leaf, and where a half is too small.
    """

    tree: np.ndarray
    leaf: np.ndarray
    members: list[np.ndarray]
    sizes: np.ndarray
    clear: np.ndarray


def halves(space: Space) -> Halves:
    """What `split` follows, computed once for every limit."""
    tree, distances = space.tree("ward", "euclidean"), space.distances("euclidean")
    judges = space.leaf[space.silhouette_sample]
    order = np.argsort(judges, kind="stable")
    of_leaf = np.split(order, np.cumsum(np.bincount(judges, minlength=len(tree) + 1))[:-1])
    members, judging = (_under(tree, one) for one in ([np.array([i]) for i in range(len(tree) + 1)], of_leaf))
    sizes = np.array([len(rows) for rows in judging])
    smallest = max(SMALLEST, len(judges) // 50)
    clear = np.full(len(members), np.nan)
    for node, (left, right) in enumerate(tree[:, :2].astype(np.int64), start=len(tree) + 1):
        if min(sizes[left], sizes[right]) >= smallest:
            rows = np.concatenate([judging[left], judging[right]])
            sides = np.repeat([0, 1], [sizes[left], sizes[right]])
            clear[node] = silhouettes(distances[np.ix_(rows, rows)], [sides])[0]
    return Halves(tree, space.leaf, members, sizes, clear)


def split(found: Halves, limit: Clearness) -> Splits:
    """Splits the slices (n) of a space where that is clearer than `limit.first`, or leads to one above `limit.any`."""
    tree, clear, m = found.tree, found.clear, len(found.tree) + 1
    deeper = np.zeros(2 * m - 1, bool)  # nodes that are clear beyond doubt, or hold one that is
    for node, (left, right) in enumerate(tree[:, :2].astype(np.int64), start=m):
        deeper[node] = clear[node] > limit.any or deeper[left] or deeper[right]
    wanted = deeper | (clear > limit.first)
    labels = np.zeros(m, np.int64)
    leaves, made, refused = 0, [1.0], [0.0]
    stack: list[tuple[int, np.ndarray]] = [(2 * m - 2, np.zeros(0, np.int64))]  # node, outliers that go with it
    while stack:
        node, outliers = stack.pop()
        if not wanted[node]:
            refused.append(float(np.nan_to_num(clear[node])))
            labels[np.concatenate([found.members[node], outliers])] = leaves
            leaves += 1
            continue
        left, right = tree[node - m, :2].astype(np.int64)
        if np.isnan(clear[node]):  # one of the two is too small to be a generator
            small, large = sorted((left, right), key=lambda child: found.sizes[child])
            stack.append((large, np.concatenate([outliers, found.members[small]])))
        else:
            made.append(float(clear[node]))
            stack += [(left, outliers), (right, np.zeros(0, np.int64))]
    return Splits(by_size(labels[found.leaf]), min(made) if len(made) > 1 else 0.0, max(refused))


def own_clearness(space: Space) -> Clearness:
    """How clearly the slices of one generator fall apart, strays aside; 0 where there are too few to tell."""
    if len(space.x) < 2 * SMALLEST:
        return Clearness(0.0, 0.0)
    clear = halves(space).clear
    there = clear[~np.isnan(clear)]
    return Clearness(float(there[-1]), float(there.max())) if len(there) else Clearness(0.0, 0.0)


def split_limit(own: Sequence[Clearness]) -> Clearness:
    """What a split must exceed, from what single generators reach."""
    first, any_ = max(one.first for one in own), max(one.any for one in own)
    return Clearness(first + HEADROOM * (1 - first), any_ + HEADROOM * (1 - any_))


def score_splits(known: Space, generators: np.ndarray, own: Sequence[Clearness], seed: int = 0) -> SplitScore:
    """Tries the rule where the truth is known, always with a generator to find that it has not seen.

    known: m slices; generators: (m,) str; own: own_clearness of each, by name. For subsets of two or more generators
    and each of their members kept out, the limit comes from the others. Raises UsageError for fewer than two
    generators.
    """
    names, codes = np.unique(generators, return_inverse=True)
    if len(names) < 2:
        raise UsageError(f"got {len(names)} known generators, and choosing a clustering needs at least 2")
    tried = [
        (subset, out) for size in range(len(names), 1, -1) for subset in _subsets(len(names), size) for out in subset
    ]
    if len(tried) > MOST_SUBSETS:
        order = np.random.default_rng(seed).permutation(len(tried))[:MOST_SUBSETS]
        tried = tried[: len(names)] + [tried[i] for i in np.sort(order) if i >= len(names)]
    values, worst = [], None
    held: tuple[tuple[int, ...], np.ndarray, Halves] | None = None  # of one subset at a time, whoever is kept out
    for subset, out in tried:
        if held is None or held[0] != subset:
            rows = np.flatnonzero(np.isin(codes, subset))
            held = subset, rows, halves(known.part(rows) if len(rows) < len(codes) else known)
        _, rows, of_subset = held
        found = split(of_subset, split_limit([own[g] for g in subset if g != out]))
        ari = partition_metrics(codes[rows], found.labels)["ari"]
        values.append((ari, found.weakest - found.strongest_refused))
        if len(subset) == len(names) and (worst is None or ari < worst[0]):
            worst = ari, found.labels
    assert worst is not None
    ari, margin = (float(value) for value in np.mean(values, axis=0))
    return SplitScore(ari, margin, worst[1])


def _subsets(count: int, size: int) -> list[tuple[int, ...]]:
    return list(combinations(range(count), size)) if count <= 10 or size in (2, count) else []


def _under(tree: np.ndarray, of_leaf: list[np.ndarray]) -> list[np.ndarray]:
    """What lies under every node of a dendrogram: 2m - 1 arrays, from those of its m leaves."""
    found = list(of_leaf)
    for left, right in tree[:, :2].astype(np.int64):
        found.append(np.concatenate([found[left], found[right]]))
    return found
