"""How many generators there are, asked cluster by cluster: would any known generator fall apart as clearly as this?

The mean silhouette over all slices prefers few clusters where some generators are far apart: it then leaves two that
are close in one. Here a dendrogram is followed from its root, and a cluster is split in two where the silhouette of the
halves is clearly above that of the halves of every known generator, which are one by definition. So the known
generators say what one generator looks like in this embedding, and one cluster is a possible answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gansfp.attribution import Space, by_size, silhouettes
from gansfp.errors import UsageError
from gansfp.metrics import partition_metrics

HEADROOM = 0.25  # of what lies between the known generators' silhouette and 1: how much clearer a split has to be
SMALLEST = 5  # slices, or 2 % of them: fewer are outliers, not a generator
MOST_SUBSETS = 60  # of (generators to find, generator that is kept out), beyond which a random part is tried


@dataclass(frozen=True, eq=False)
class Splits:
    """labels: (n,) int64, numbered by falling size. weakest: silhouette of the least clear split that was made, 0 for
    none; strongest_refused: of the clearest one that was not, 0 for none."""

    labels: np.ndarray
    weakest: float
    strongest_refused: float


@dataclass(frozen=True)
class SplitScore:
    """How well splitting finds known generators again when one of them is not known.

    ari: mean adjusted Rand index; margin: mean of how far the splits made are clearer than those refused.
    """

    ari: float
    margin: float
    worst: np.ndarray  # (n,) labels of all known slices, from the generator kept out that serves worst


def split(space: Space, linkage: str, metric: str, limit: float) -> Splits:
    """Follows the dendrogram of the space's slices and splits what is clearer than `limit`."""
    tree, distances = space.tree(linkage, metric), space.distances(metric)
    n = len(distances)
    smallest = max(SMALLEST, n // 50)
    members = _members(tree)
    labels, made, refused = np.zeros(n, np.int64), [1.0], [0.0]
    stack: list[tuple[int, np.ndarray]] = [(2 * n - 2, np.zeros(0, np.int64))]  # node, outliers that go with it
    count = 0
    while stack:
        node, outliers = stack.pop()
        while node >= n:
            left, right = int(tree[node - n, 0]), int(tree[node - n, 1])
            small, large = sorted((left, right), key=lambda child: len(members[child]))
            if len(members[small]) >= smallest:
                clear = _silhouette(distances, members[left], members[right])
                (made if clear > limit else refused).append(clear)
                if clear > limit:
                    stack += [(left, outliers), (right, np.zeros(0, np.int64))]
                    node = -1
                break
            node, outliers = large, np.concatenate([outliers, members[small]])
        if node >= 0:
            labels[np.concatenate([members[node], outliers])] = count
            count += 1
    return Splits(by_size(labels), min(made) if len(made) > 1 else 0.0, max(refused))


def own_silhouette(space: Space, linkage: str, metric: str) -> float:
    """How clearly the slices of one generator fall into two: the first split that is none of outliers; 0 for none."""
    if len(space.x) < 2 * SMALLEST:
        return 0.0
    return split(space, linkage, metric, limit=np.inf).strongest_refused


def split_limit(own: Sequence[float]) -> float:
    """The silhouette that a split must exceed, from those of single generators."""
    return max(own) + HEADROOM * (1 - max(own))


def score_splits(known: Space, generators: np.ndarray, linkage: str, metric: str, seed: int = 0) -> SplitScore:
    """Tries the rule where the truth is known, always with a generator to find that it has not seen.

    known: m slices; generators: (m,) str. For subsets of two or more generators and each of their members kept out, the
    limit comes from the others. Raises UsageError for fewer than two generators.
    """
    names, codes = np.unique(generators, return_inverse=True)
    if len(names) < 2:
        raise UsageError(f"got {len(names)} known generators, and choosing a clustering needs at least 2")
    own = [own_silhouette(known.part(np.flatnonzero(codes == g)), linkage, metric) for g in range(len(names))]
    tried = [
        (subset, out) for size in range(len(names), 1, -1) for subset in _subsets(len(names), size) for out in subset
    ]
    if len(tried) > MOST_SUBSETS:
        order = np.random.default_rng(seed).permutation(len(tried))[:MOST_SUBSETS]
        tried = tried[: len(names)] + [tried[i] for i in np.sort(order) if i >= len(names)]
    values, worst = [], None
    for subset, out in tried:
        rows = np.flatnonzero(np.isin(codes, subset))
        found = split(known.part(rows), linkage, metric, split_limit([own[g] for g in subset if g != out]))
        ari = partition_metrics(codes[rows], found.labels)["ari"]
        values.append((ari, found.weakest - found.strongest_refused))
        if len(subset) == len(names) and (worst is None or ari < worst[0]):
            worst = ari, found.labels
    assert worst is not None
    ari, margin = (float(value) for value in np.mean(values, axis=0))
    return SplitScore(ari, margin, worst[1])


def _subsets(count: int, size: int) -> list[tuple[int, ...]]:
    return list(combinations(range(count), size)) if count <= 10 or size in (2, count) else []


def _members(tree: np.ndarray) -> list[np.ndarray]:
    """The slices under every node of a dendrogram: 2n - 1 arrays."""
    found = [np.array([i]) for i in range(len(tree) + 1)]
    for left, right in tree[:, :2].astype(np.int64):
        found.append(np.concatenate([found[left], found[right]]))
    return found


def _silhouette(distances: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    rows = np.concatenate([left, right])
    halves = np.repeat([0, 1], [len(left), len(right)])
    return float(silhouettes(distances[np.ix_(rows, rows)], [halves])[0])
