"""Dendrograms: hierarchical clustering of distances, its cuts, and the centres of their clusters."""

from collections.abc import Iterable

import numpy as np
import scipy.cluster.hierarchy as hierarchy
import torch

from gansfp.errors import UsageError

LINKAGES = ("ward", "average", "complete", "single")


def dendrogram(
    distances: np.ndarray, linkage: str = "ward", metric: str = "euclidean", weights: np.ndarray | None = None
) -> np.ndarray:
    """Hierarchical clustering as scipy's linkage matrix Z (n-1, 4) float64, from self_distances (n, n) of that metric.

    weights: (n,) how many slices each row stands for, as if it were there so often; None for one each. Takes 8 * n^2
    bytes: a condensed copy in float64 and scipy's copy of that, or one square copy. Raises UsageError for an unknown
    linkage, for ward on anything but euclidean distances, and for fewer than two slices.
    """
    if linkage not in LINKAGES:
        raise UsageError(f"linkage: got {linkage!r}, expected one of {list(LINKAGES)}")
    if linkage == "ward" and metric != "euclidean":
        raise UsageError(f"linkage 'ward' needs the metric 'euclidean', got {metric!r}")
    if len(distances) < 2:
        raise UsageError(f"hierarchical clustering needs at least 2 slices, got {len(distances)}")
    if weights is None or linkage in ("complete", "single"):  # to these it does not matter how often a row is there
        n = len(distances)
        ends = np.cumsum(np.arange(n - 1, -1, -1))
        condensed = np.empty(n * (n - 1) // 2)
        for i, end in enumerate(ends[:-1]):
            condensed[end - (n - 1 - i) : end] = distances[i, i + 1 :]
        return hierarchy.linkage(condensed, linkage)
    return weighted_dendrogram(distances, linkage, weights)


def weighted_dendrogram(distances: np.ndarray, linkage: str, weights: np.ndarray) -> np.ndarray:
    """Z (n-1, 4) of ward or average linkage where row i stands for weights[i] slices that are all where it is.

    By nearest-neighbour chains (Murtagh 1983) with the formulas of Lance and Williams (1967), as scipy's, whose rows
    all weigh the same. On duplicates it equals scipy's tree from where these are joined; heights are scipy's, sizes
    are sums of weights. distances: (n, n) float32 of self_distances; takes one copy in float64, 8 * n^2 bytes.
    """
    apart, size = distances.astype(np.float64), weights.astype(np.float64)
    n = len(apart)
    if linkage == "ward":  # the squared distance, so weighted, is twice the growth of the variance within
        for i in range(n):
            apart[i] = np.square(apart[i]) * (2 * size[i] * size / (size[i] + size))
    np.fill_diagonal(apart, np.inf)
    merged, heights = np.empty((n - 1, 2), np.int64), np.empty(n - 1)
    active = np.ones(n, bool)
    chain: list[int] = []
    for step in range(n - 1):
        if not chain:
            chain.append(int(active.argmax()))
        while True:
            a = chain[-1]
            b = int(apart[a].argmin())
            if len(chain) > 1 and apart[a, chain[-2]] <= apart[a, b]:  # of equals the one it came from
                b = chain[-2]
                break
            chain.append(b)
        del chain[-2:]
        merged[step], heights[step] = (a, b), apart[a, b]
        if linkage == "ward":
            joined = (size[a] + size) * apart[a] + (size[b] + size) * apart[b] - size * apart[a, b]
            joined /= size[a] + size[b] + size
        else:
            joined = (size[a] * apart[a] + size[b] * apart[b]) / (size[a] + size[b])
        joined[b] = np.inf
        size[b] += size[a]
        active[a] = False
        apart[b], apart[:, b] = joined, joined
        apart[a], apart[:, a] = np.inf, np.inf
    return _ordered(merged, np.sqrt(heights) if linkage == "ward" else heights, weights)


def _ordered(merged: np.ndarray, heights: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Z of merges that name any member of each side, in any order that puts no merge before those it is made of."""
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
    """Labels of a dendrogram cut into exactly k clusters, for every k asked: {k: (n,) int64 in 0..k-1}.

    tree: Z of `dendrogram`. Clusters are numbered by their first member. Raises UsageError for a k above the number of
    slices.
    """
    nodes = {k: _nodes(tree, k) for k in ks}
    return {k: _numbered_by_first(roots)[0] for k, roots in nodes.items()}


def cut(tree: np.ndarray, k: int) -> np.ndarray:
    """cuts for one k: (n,) int64 labels in 0..k-1."""
    return cuts(tree, [k])[k]


def cluster_centres(x: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of each cluster. x: (n, d), labels: (n,) in 0..k-1, none empty, weights: (n,) or None for equal ones;
    returns (k, d) float32."""
    sums = torch.zeros((int(labels.max()) + 1, x.shape[1]), dtype=torch.float64)
    for start in range(0, len(x), 4096):  # so that only a part is in float64
        part = torch.from_numpy(x[start : start + 4096]).double()
        if weights is not None:
            part *= torch.from_numpy(weights[start : start + 4096, None])
        sums.index_add_(0, torch.from_numpy(labels[start : start + 4096]), part)
    return (sums.numpy() / np.bincount(labels, weights)[:, None]).astype(np.float32)


def dendrogram_centres(
    x: np.ndarray, tree: np.ndarray, ks: Iterable[int], weights: np.ndarray | None = None
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The centres of all cuts of one dendrogram, each computed once: cuts at k and k + 1 differ in one merge only.

    x: (n, d), tree: Z of `dendrogram`, weights: (n,) how many slices each row is the mean of, or None. Returns the
    centres (m, d) float32, m < 2 * max(ks), and for every k the (k,) rows that are its clusters' centres, in the order
    of cut(tree, k). So the distances to all centres of all k are one `pairwise`, and one k is a choice of its columns.
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
    row = {node: i for i, node in enumerate(centres)}
    means = np.stack([centres[node] / sizes[node] for node in centres]).astype(np.float32)
    return means, {k: np.array([row[node] for node in _first_nodes(roots[k])]) for k in ks}


def _nodes(tree: np.ndarray, k: int) -> np.ndarray:
    """The node of the tree that each slice lies under when it is cut into k: (n,) ints in 0..2n-2."""
    n = len(tree) + 1
    if not 1 <= k <= n:
        raise UsageError(f"clusters: got k={k} for {n} slices, expected 1 to {n}")
    parent = np.arange(2 * n - k)
    merged = tree[: n - k, :2].astype(np.int64)
    parent[merged] = np.arange(n, 2 * n - k)[:, None]
    while not np.array_equal(parent, above := parent[parent]):  # pointers double their reach each time
        parent = above
    return parent[:n]


def _numbered_by_first(roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels 0.. in order of first appearance (n,), and the index of each label's first member (k,)."""
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse], np.sort(first)


def _first_nodes(roots: np.ndarray) -> list[int]:
    return [int(node) for node in roots[_numbered_by_first(roots)[1]]]
