"""Dendrograms: hierarchical clustering of distances, the cuts of a dendrogram, and the centres of their clusters."""

from collections.abc import Iterable

import numpy as np
import scipy.cluster.hierarchy as hierarchy
import torch

from gansfp.errors import UsageError
from gansfp.rows import Rows

LINKAGES = ("ward", "average", "complete", "single")


def dendrogram(
    distances: np.ndarray, linkage: str = "ward", metric: str = "euclidean", weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns scipy's linkage matrix Z (n-1, 4) float64 for self_distances (n, n) of that metric.

    weights: (n,) how many slices each row represents, as if the row were repeated so often; None for one each. Takes
    8 * n^2 bytes: a condensed copy in float64 and scipy's copy of that, or one square copy. Raises UsageError for an
    unknown linkage, for ward with a metric other than euclidean, and for fewer than two slices.
    """
    if linkage not in LINKAGES:
        raise UsageError(f"linkage: got {linkage!r}, expected one of {list(LINKAGES)}")
    if linkage == "ward" and metric != "euclidean":
        raise UsageError(f"linkage 'ward' needs the metric 'euclidean', got {metric!r}")
    if len(distances) < 2:
        raise UsageError(f"hierarchical clustering: got {len(distances)} slices, expected at least 2")
    if weights is None or linkage in ("complete", "single"):  # repeated rows do not change these two
        n = len(distances)
        ends = np.cumsum(np.arange(n - 1, -1, -1))
        condensed = np.empty(n * (n - 1) // 2)
        for i, end in enumerate(ends[:-1]):
            condensed[end - (n - 1 - i) : end] = distances[i, i + 1 :]
        return hierarchy.linkage(condensed, linkage)
    return weighted_dendrogram(distances, linkage, weights)


def weighted_dendrogram(distances: np.ndarray, linkage: str, weights: np.ndarray) -> np.ndarray:
    """Returns Z (n-1, 4) of ward or average linkage, where row i represents weights[i] slices at the same point.

    Uses nearest-neighbour chains (Murtagh 1983) with the formulas of Lance and Williams (1967), as scipy does for rows
    of equal weight. For duplicates the result equals scipy's tree above the nodes that join the duplicates. Heights are
    scipy's, sizes are sums of weights. distances: (n, n) float32 of self_distances. Takes one copy in float64, 8 * n^2
    bytes.
    """
    between, size = distances.astype(np.float64), weights.astype(np.float64)
    n = len(between)
    if linkage == "ward":  # the squared distance with these weights is twice the growth of the within-cluster variance
        for i in range(n):
            between[i] = np.square(between[i]) * (2 * size[i] * size / (size[i] + size))
    np.fill_diagonal(between, np.inf)
    merged, heights = np.empty((n - 1, 2), np.int64), np.empty(n - 1)
    active = np.ones(n, bool)
    chain: list[int] = []
    for step in range(n - 1):
        if not chain:
            chain.append(int(active.argmax()))
        while True:
            a = chain[-1]
            b = int(between[a].argmin())
            if len(chain) > 1 and between[a, chain[-2]] <= between[a, b]:  # of equals the previous one of the chain
                b = chain[-2]
                break
            chain.append(b)
        del chain[-2:]
        merged[step], heights[step] = (a, b), between[a, b]
        if linkage == "ward":
            joined = (size[a] + size) * between[a] + (size[b] + size) * between[b] - size * between[a, b]
            joined /= size[a] + size[b] + size
        else:
            joined = (size[a] * between[a] + size[b] * between[b]) / (size[a] + size[b])
        joined[b] = np.inf
        size[b] += size[a]
        active[a] = False
        between[b], between[:, b] = joined, joined
        between[a], between[:, a] = np.inf, np.inf
    return _ordered(merged, np.sqrt(heights) if linkage == "ward" else heights, weights)


def _ordered(merged: np.ndarray, heights: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns Z of merges that name any member of each side, sorted by height.

    merged: (n-1, 2); heights: (n-1,); a merge comes after those that made its two sides.
    """
    n = len(merged) + 1
    tree, parent = np.empty((n - 1, 4)), np.arange(2 * n - 1)
    size = np.concatenate([weights, np.zeros(n - 1)])
    order = np.argsort(heights, kind="stable")
    for step, (a, b) in enumerate(merged[order], start=n):
        roots = []
        for node in (a, b):
            while parent[node] != node:
                parent[node] = parent[parent[node]]
                node = parent[node]
            roots.append(node)
        parent[roots] = step
        size[step] = size[roots].sum()
        tree[step - n] = (*sorted(roots), heights[order[step - n]], size[step])
    return tree


def cuts(tree: np.ndarray, ks: Iterable[int]) -> dict[int, np.ndarray]:
    """Returns the labels of a dendrogram cut into exactly k clusters, for every k: {k: (n,) int64 in 0..k-1}.

    tree: Z of `dendrogram`. Clusters are numbered by their first member. Raises UsageError for a k below 1 or above the
    number of slices.
    """
    nodes = {k: _nodes(tree, k) for k in ks}
    return {k: _numbered_by_first(roots)[0] for k, roots in nodes.items()}


def cluster_centres(x: Rows, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the mean of each cluster, (k, d) float32. x: (n, d), labels: (n,) in 0..k-1, no cluster empty; weights:
    (n,), or None for equal weights."""
    sums = torch.zeros((int(labels.max()) + 1, x.shape[1]), dtype=torch.float64)
    for start in range(0, len(x), 1024):  # in parts, so that float64 takes little memory
        part = torch.from_numpy(x[start : start + 1024]).double()
        if weights is not None:
            part *= torch.from_numpy(weights[start : start + 1024, None])
        sums.index_add_(0, torch.from_numpy(labels[start : start + 1024]), part)
    return (sums.numpy() / np.bincount(labels, weights)[:, None]).astype(np.float32)


def dendrogram_centres(
    x: Rows, tree: np.ndarray, ks: Iterable[int], weights: np.ndarray | None = None
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Returns the centres of all cuts of one dendrogram. Each is computed once, because the cuts at k and k + 1 differ
    in one merge only.

    x: (n, d), tree: Z of `dendrogram`, weights: (n,) how many slices each row is the mean of, or None. Returns the
    centres (m, d) float32, m < 2 * max(ks), and for every k the rows (k,) of its clusters' centres, in the order of
    `cuts`. So one call of `pairwise` gives the distances to all centres, and each k selects its columns.
    """
    ks = sorted(set(ks), reverse=True)
    n = len(tree) + 1
    roots = {k: _nodes(tree, k) for k in ks}
    finest, _ = _numbered_by_first(roots[ks[0]])
    counts = np.bincount(finest, weights)
    sums = cluster_centres(x, finest, weights).astype(np.float64) * counts[:, None]
    centres: dict[int, np.ndarray] = {}
    sizes: dict[int, float] = {}
    for node, total, size in zip(_first_nodes(roots[ks[0]]), sums, counts, strict=True):
        centres[node], sizes[node] = total, float(size)
    for step in range(n - ks[0], n - ks[-1]):  # the merges between the finest and the coarsest cut, bottom up
        a, b = int(tree[step, 0]), int(tree[step, 1])
        centres[n + step], sizes[n + step] = centres[a] + centres[b], sizes[a] + sizes[b]
    row_of = {node: row for row, node in enumerate(centres)}
    means = np.stack([centres[node] / sizes[node] for node in centres]).astype(np.float32)
    return means, {k: np.array([row_of[node] for node in _first_nodes(roots[k])]) for k in ks}


def _nodes(tree: np.ndarray, k: int) -> np.ndarray:
    """Returns the node of the tree that is the cluster of each slice, for k clusters: (n,) ints in 0..2n-2."""
    n = len(tree) + 1
    if not 1 <= k <= n:
        raise UsageError(f"clusters: got k={k} for {n} slices, expected 1 to {n}")
    parent = np.arange(2 * n - k)
    merged = tree[: n - k, :2].astype(np.int64)
    parent[merged] = np.arange(n, 2 * n - k)[:, None]
    while not np.array_equal(parent, above := parent[parent]):  # the reach of pointers doubles each time
        parent = above
    return parent[:n]


def _numbered_by_first(roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels 0.. in order of first appearance (n,), and the index of each label's first member (k,)."""
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse], np.sort(first)


def _first_nodes(roots: np.ndarray) -> list[int]:
    """Returns the nodes in order of their first slice."""
    return [int(node) for node in roots[_numbered_by_first(roots)[1]]]
