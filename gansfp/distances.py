"""Distances, principal components and dendrograms: what clustering, scores and neighbours stand on.

Large products run in torch on the given device, block by block, in float64: float32 products lose the small distances
between near-identical slices, which are what membership inference looks for, and would make ties depend on the device.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import scipy.cluster.hierarchy as hierarchy
import torch
from scipy.spatial.distance import squareform

from gansfp.errors import UsageError

_log = logging.getLogger(__name__)


def _euclidean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.double(), y.double()
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)
    return squares.clamp_(min=0).sqrt_()


def _manhattan(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, y, p=1)


def _cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # normalize leaves a zero vector zero, so that its similarity to everything is 0 and its distance 1
    x = torch.nn.functional.normalize(x.double(), eps=1e-300)
    y = torch.nn.functional.normalize(y.double(), eps=1e-300)
    return (1 - x @ y.T).clamp_(0, 2)


METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "euclidean": _euclidean,
    "manhattan": _manhattan,
    "cosine": _cosine,
}
LINKAGES = ("ward", "average", "complete", "single")


def matrix_bytes(n: int, m: int) -> int:
    """Memory in bytes of an (n, m) float32 distance matrix, to be stated before it is taken."""
    return 4 * n * m


def pairwise(
    x: np.ndarray, y: np.ndarray, metric: str = "euclidean", device: str = "cpu", block: int = 1024
) -> np.ndarray:
    """Distances of every row of x to every row of y.

    x: (n, d) float32, y: (m, d) float32, finite. Returns (n, m) float32, computed `block` by `block` rows: beside the
    result it takes about 32 * block * d bytes on the device.

    Equal to scipy.spatial.distance.cdist, but for a zero vector under cosine, whose distance to everything is 1. The
    euclidean distance comes from one matrix product, |x|^2 + |y|^2 - 2xy; in float64 its cancellation leaves identical
    rows at most about 1e-7 of their norm apart. Raises UsageError for an unknown metric and for rows of different
    lengths.
    """
    _state(x, y, metric)
    return _blockwise(x, y, metric, device, block)


def self_distances(x: np.ndarray, metric: str = "euclidean", device: str = "cpu", block: int = 1024) -> np.ndarray:
    """pairwise(x, x), exactly symmetric and with an exactly zero diagonal, at half the work.

    x: (n, d) float32; returns (n, n) float32.
    """
    _state(x, x, metric)
    out = np.empty((len(x), len(x)), dtype=np.float32)
    for i in range(0, len(x), block):
        strip = _blockwise(x[i : i + block], x[i:], metric, device, block)
        out[i : i + block, i:] = strip
        out[i:, i : i + block] = strip.T
        corner = np.triu(strip[:, : len(strip)], 1)
        out[i : i + block, i : i + block] = corner + corner.T
    return out


def _state(x: np.ndarray, y: np.ndarray, metric: str) -> None:
    """Check what is asked, and say how much memory it takes before it is taken."""
    if metric not in METRICS:
        raise UsageError(f"distance metric: got {metric!r}, expected one of {sorted(METRICS)}")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"distances: got embeddings of shapes {x.shape} and {y.shape}, expected (n, d) and (m, d)")
    _log.debug("%s distances: %d x %d, %.1f MB", metric, len(x), len(y), matrix_bytes(len(x), len(y)) / 1e6)


def _blockwise(x: np.ndarray, y: np.ndarray, metric: str, device: str, block: int) -> np.ndarray:
    out = np.empty((len(x), len(y)), dtype=np.float32)
    for i in range(0, len(x), block):
        rows = _tensor(x[i : i + block], device)
        for j in range(0, len(y), block):
            columns = _tensor(y[j : j + block], device)
            out[i : i + block, j : j + block] = METRICS[metric](rows, columns).cpu().numpy()
    return out


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components. mean: (d,), components: (k, d) of unit norm, variance_ratio: (k,), all float32."""

    mean: np.ndarray
    components: np.ndarray
    variance_ratio: np.ndarray

    def transform(self, x: np.ndarray, device: str = "cpu", block: int = 4096) -> np.ndarray:
        """Coordinates of x along the components. x: (n, d) float32; returns (n, k) float32."""
        mean, basis = _tensor(self.mean, device), _tensor(self.components, device).T
        parts = [((_tensor(x[i : i + block], device) - mean) @ basis).cpu().numpy() for i in range(0, len(x), block)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.components)), dtype=np.float32)


def pca(x: np.ndarray, components: int | float, device: str = "cpu") -> Projection:
    """Principal components of x (n, d) float32: a whole number, or as few as keep that share of the variance in (0, 1).

    From the eigenvectors of the smaller of the (n, n) Gram and the (d, d) covariance matrix, in float64. Equal to
    sklearn.decomposition.PCA(svd_solver="full"); the sign is such that each component's largest loading is positive. A
    component beyond the rank of x (duplicates) explains nothing and may be a zero vector. Raises UsageError for a
    number that x cannot give.
    """
    n, d = x.shape
    most = min(n - 1, d)
    whole = isinstance(components, (int, np.integer))
    if not (1 <= components <= most if whole else 0 < components < 1 and most >= 1):
        raise UsageError(
            f"PCA components: got {components!r} for {n} slices of {d} numbers, expected 1 to {most} or a "
            "share of the variance between 0 and 1"
        )
    rows = _tensor(x, device)
    mean = rows.mean(0, dtype=torch.float64)
    wide = n <= d
    # blocks along the long side, so that only one block at a time is in float64
    square = torch.zeros((min(n, d),) * 2, dtype=torch.float64, device=rows.device)
    for i in range(0, max(n, d), 4096):
        part = rows[:, i : i + 4096].double() - mean[i : i + 4096] if wide else (rows[i : i + 4096].double() - mean).T
        square += part @ part.T
    variances, vectors = (a.flip(-1) for a in torch.linalg.eigh(square))
    ratio = (variances.clamp(min=0) / variances.clamp(min=0).sum().clamp(min=1e-300)).cpu().numpy()
    count = int(components) if whole else int(np.searchsorted(np.cumsum(ratio), components, side="right")) + 1
    count = min(count, most)
    basis = vectors[:, :count]
    if wide:  # Gram: the components are the rows of x seen along its eigenvectors
        basis = torch.cat([(rows[:, i : i + 4096].double() - mean[i : i + 4096]).T @ basis for i in range(0, d, 4096)])
        norms = basis.norm(dim=0)
        basis = torch.where(norms > 1e-7 * norms.max(), basis / norms.clamp(min=1e-300), torch.zeros_like(basis))
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = torch.where(largest < 0, -basis, basis).T.contiguous()
    return Projection(mean.float().cpu().numpy(), basis.float().cpu().numpy(), ratio[:count].astype(np.float32))


def standardise(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """z-scores of x by the mean and standard deviation of reference; a column that is constant there becomes 0.

    x: (n, d), reference: (m, d); returns (n, d) float32.
    """
    constant = reference.max(0) == reference.min(0)
    spread = np.where(constant, 1, reference.std(0, dtype=np.float64))
    scores = (x - reference.mean(0, dtype=np.float64)) / spread
    return np.where(constant, 0, scores).astype(np.float32)


def dendrogram(distances: np.ndarray, linkage: str = "ward", metric: str = "euclidean") -> np.ndarray:
    """Hierarchical clustering as scipy's linkage matrix Z (n-1, 4) float64, from self_distances (n, n) of that metric.

    Takes a condensed float64 copy, 4 * n * (n - 1) bytes. Raises UsageError for an unknown linkage, for ward on
    anything but euclidean distances, and for fewer than two slices.
    """
    if linkage not in LINKAGES:
        raise UsageError(f"linkage: got {linkage!r}, expected one of {list(LINKAGES)}")
    if linkage == "ward" and metric != "euclidean":
        raise UsageError(f"linkage 'ward' needs the metric 'euclidean', got {metric!r}")
    if len(distances) < 2:
        raise UsageError(f"hierarchical clustering needs at least 2 slices, got {len(distances)}")
    return hierarchy.linkage(squareform(distances, checks=False), linkage)


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


def cluster_centres(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of each cluster. x: (n, d), labels: (n,) in 0..k-1, none empty; returns (k, d) float32."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return (np.add.reduceat(x[order], starts, dtype=np.float64) / sizes[:, None]).astype(np.float32)


def dendrogram_centres(x: np.ndarray, tree: np.ndarray, ks: Iterable[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The centres of all cuts of one dendrogram, each computed once: cuts at k and k + 1 differ in one merge only.

    x: (n, d), tree: Z of `dendrogram`. Returns the centres (m, d) float32, m < 2 * max(ks), and for every k the (k,)
    rows that are its clusters' centres, in the order of cut(tree, k). So the distances to all centres of all k are one
    `pairwise`, and one k is a choice of its columns.
    """
    ks = sorted(set(ks), reverse=True)
    n = len(tree) + 1
    roots = {k: _nodes(tree, k) for k in ks}
    finest, _ = _numbered_by_first(roots[ks[0]])
    sums = cluster_centres(x, finest).astype(np.float64) * np.bincount(finest)[:, None]
    centres: dict[int, np.ndarray] = {}
    sizes: dict[int, int] = {}
    for node, total, size in zip(_first_nodes(roots[ks[0]]), sums, np.bincount(finest), strict=True):
        centres[node], sizes[node] = total, int(size)
    for step in range(n - ks[0], n - ks[-1]):  # the merges between the finest and the coarsest cut, bottom up
        a, b = int(tree[step, 0]), int(tree[step, 1])
        centres[n + step], sizes[n + step] = centres[a] + centres[b], sizes[a] + sizes[b]
    row = {node: i for i, node in enumerate(centres)}
    means = np.stack([centres[node] / sizes[node] for node in centres]).astype(np.float32)
    return means, {k: np.array([row[node] for node in _first_nodes(roots[k])]) for k in ks}


def _tensor(a: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device)


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
