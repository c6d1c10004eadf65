"""Distances, nearest neighbours and principal components of embeddings.

Large products run in torch on the given device, block by block, in float64. Products in float32 would lose the small
distances between near-identical slices, which membership inference looks for, and ties would depend on the device.
Functions whose memory grows with the square of the number of slices say so; clustering_space.py limits it.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from scipy.spatial.distance import cdist

from gansfp.errors import UsageError

_log = logging.getLogger(__name__)


def _euclidean(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.double(), y.double()
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)
    return squares.clamp_(min=0).sqrt_()


def _manhattan(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.device.type == "cpu":  # on a CPU scipy takes half the time of PyTorch
        return torch.from_numpy(cdist(x.numpy(), y.numpy(), "cityblock"))
    return torch.cdist(x, y, p=1)


def _cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # normalize keeps a zero vector zero, so that its similarity to every vector is 0 and its distance 1
    x = torch.nn.functional.normalize(x.double(), eps=1e-300)
    y = torch.nn.functional.normalize(y.double(), eps=1e-300)
    return (1 - x @ y.T).clamp_(0, 2)


METRICS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "euclidean": _euclidean,
    "manhattan": _manhattan,
    "cosine": _cosine,
}
MAX_MEMORY = 4_000_000_000  # bytes; a fixed number, so that a seed gives the same result on every machine
MAX_COORDINATES = 2000  # slices; for more, the Gram matrix takes longer than it saves
PAIRS = 1 << 22  # distances in one strip where only the nearest are kept: 16 MB


def matrix_bytes(n: int, m: int) -> int:
    """Returns the bytes of an (n, m) float32 distance matrix."""
    return 4 * n * m


def pairwise(
    x: np.ndarray, y: np.ndarray, metric: str = "euclidean", device: str = "cpu", block: int = 1024
) -> np.ndarray:
    """Returns the distances of every row of x to every row of y: (n, m) float32.

    x: (n, d) float32, y: (m, d) float32, finite. Computed in blocks of `block` by `block` rows: beside the result it
    takes about 32 * block * d bytes on the device.

    Equal to scipy.spatial.distance.cdist, except for a zero vector with cosine: its distance to every vector is 1. The
    euclidean distance comes from one matrix product, |x|^2 + |y|^2 - 2xy. In float64 its cancellation error puts
    identical rows at most about 1e-7 of their norm apart. Raises UsageError for an unknown metric and for rows of
    different lengths.
    """
    _check(x, y, metric)
    return _blockwise(x, y, metric, device, block)


def self_distances(x: np.ndarray, metric: str = "euclidean", device: str = "cpu", block: int = 256) -> np.ndarray:
    """Returns pairwise(x, x), exactly symmetric and with an exactly zero diagonal, at half the work.

    x: (n, d) float32; returns (n, n) float32.
    """
    _check(x, x, metric)
    distances = np.empty((len(x), len(x)), dtype=np.float32)
    for i in range(0, len(x), block):
        strip = _blockwise(x[i : i + block], x[i:], metric, device, block)
        distances[i : i + block, i:] = strip
        distances[i:, i : i + block] = strip.T
        corner = np.triu(strip[:, : len(strip)], 1)
        distances[i : i + block, i : i + block] = corner + corner.T
    return distances


def nearest(
    x: np.ndarray, y: np.ndarray, count: int, metric: str = "euclidean", device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances (n, count) float32 to the nearest rows of y of each row of x, rising, and these rows
    (n, count).

    There are fewer columns where y has fewer rows. Of equally near rows the first comes first. x: (n, d), y: (m, d)
    float32. Beside the result it takes the memory of PAIRS distances, or of m.
    """
    count = min(count, len(y))
    near, rows = np.empty((len(x), count), np.float32), np.empty((len(x), count), np.int64)
    for part in strips(len(x), len(y)):
        distances = pairwise(x[part], y, metric, device)
        rows[part] = np.argsort(distances, axis=1, kind="stable")[:, :count]
        near[part] = np.take_along_axis(distances, rows[part], axis=1)
    return near, rows


def smallest(distance: np.ndarray, count: int) -> np.ndarray:
    """Returns the `count` smallest entries of each row, rising. distance: (n, c); returns (n, at most count)."""
    count = min(count, distance.shape[1])
    return np.sort(np.partition(distance, count - 1, axis=1)[:, :count], axis=1)


def strips(n: int, m: int) -> Iterator[slice]:
    """Yields n rows in parts. The rows of a part have at most PAIRS distances to m other rows, or it is one row."""
    step = max(1, PAIRS // max(m, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _check(x: np.ndarray, y: np.ndarray, metric: str) -> None:
    """Raises UsageError for what cannot be computed, and logs how much memory the distances will take."""
    if metric not in METRICS:
        raise UsageError(f"distance metric: got {metric!r}, expected one of {sorted(METRICS)}")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"distances: got embeddings of shapes {x.shape} and {y.shape}, expected (n, d) and (m, d)")
    _log.debug("%s distances: %d x %d, %.1f MB", metric, len(x), len(y), matrix_bytes(len(x), len(y)) / 1e6)


def _blockwise(x: np.ndarray, y: np.ndarray, metric: str, device: str, block: int) -> np.ndarray:
    distances = np.empty((len(x), len(y)), dtype=np.float32)
    for i in range(0, len(x), block):
        rows = _tensor(x[i : i + block], device)
        for j in range(0, len(y), block):
            columns = _tensor(y[j : j + block], device)
            distances[i : i + block, j : j + block] = METRICS[metric](rows, columns).cpu().numpy()
    return distances


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components. mean: (d,), components: (k, d) of unit norm, variance_ratio: (k,), all float32."""

    mean: np.ndarray
    components: np.ndarray
    variance_ratio: np.ndarray

    def transform(self, x: np.ndarray, device: str = "cpu", block: int = 4096) -> np.ndarray:
        """Returns the coordinates of x along the components, (n, k) float32. x: (n, d) float32."""
        mean, basis = _tensor(self.mean, device), _tensor(self.components, device).T
        parts = [((_tensor(x[i : i + block], device) - mean) @ basis).cpu().numpy() for i in range(0, len(x), block)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.components)), dtype=np.float32)


def fitted_rows(n: int, d: int, limit: int) -> int:
    """Returns how many of n slices of d numbers `pca` is fitted to within `limit` bytes.

    The square matrix of the slices or of the numbers, whichever is smaller, is in memory about four times in float64.
    """
    largest = isqrt(limit // 32)
    return n if min(n, d) <= largest else largest


def pca(
    x: np.ndarray, components: int | float, device: str = "cpu", limit: int = MAX_MEMORY, seed: int = 0
) -> Projection:
    """Returns the principal components of x (n, d) float32.

    components: how many, or a share in (0, 1) for the fewest that keep this share of the variance. Where the square
    matrix would take more than `limit` bytes, they are fitted to a random part of the slices (fitted_rows). Computed
    from the eigenvectors of the (n, n) Gram or the (d, d) covariance matrix, whichever is smaller, in float64. Equal to
    sklearn.decomposition.PCA(svd_solver="full"); signs are chosen so that each component's largest loading is positive.
    A component beyond the rank of x (duplicates) explains nothing and may be a zero vector. Raises UsageError for more
    components than x has.
    """
    fitted = fitted_rows(len(x), x.shape[1], limit)
    if fitted < len(x):
        x = x[np.sort(np.random.default_rng(seed).permutation(len(x))[:fitted])]
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
    # in blocks along the longer side, so that only one block at a time is in float64
    square = torch.zeros((min(n, d),) * 2, dtype=torch.float64, device=rows.device)
    for i in range(0, max(n, d), 4096):
        part = rows[:, i : i + 4096].double() - mean[i : i + 4096] if wide else (rows[i : i + 4096].double() - mean).T
        square += part @ part.T
    variances, vectors = (a.flip(-1) for a in torch.linalg.eigh(square))
    ratio = (variances.clamp(min=0) / variances.clamp(min=0).sum().clamp(min=1e-300)).cpu().numpy()
    count = int(components) if whole else int(np.searchsorted(np.cumsum(ratio), components, side="right")) + 1
    count = min(count, most)
    basis = vectors[:, :count]
    if wide:  # Gram matrix: the components are combinations of the rows of x, with its eigenvectors as weights
        basis = torch.cat([(rows[:, i : i + 4096].double() - mean[i : i + 4096]).T @ basis for i in range(0, d, 4096)])
        norms = basis.norm(dim=0)
        basis = torch.where(norms > 1e-7 * norms.max(), basis / norms.clamp(min=1e-300), torch.zeros_like(basis))
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = torch.where(largest < 0, -basis, basis).T.contiguous()
    return Projection(mean.float().cpu().numpy(), basis.float().cpu().numpy(), ratio[:count].astype(np.float32))


def coordinates(x: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Returns coordinates with the euclidean distances of x (n, d) float32, in fewer numbers for k-means to read.

    They are (n, n - 1) float64 along all principal components, from the Gram matrix (classical scaling). For more
    slices than numbers, and for more than MAX_COORDINATES slices, they are x in float64.
    """
    n, d = x.shape
    if not 1 < n <= min(d, MAX_COORDINATES):
        return x.astype(np.float64)
    rows = _tensor(x, device).double()
    rows -= rows.mean(0)
    variances, vectors = torch.linalg.eigh(rows @ rows.T)
    return (vectors * variances.clamp(min=0).sqrt()).flip(1)[:, :-1].cpu().numpy()


def standardise(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Returns z-scores of x by the mean and standard deviation of reference; a column constant in reference becomes 0.

    x: (n, d), reference: (m, d); returns (n, d) float32.
    """
    constant = reference.max(0) == reference.min(0)
    mean = reference.mean(0, dtype=np.float64)
    spread = np.where(constant, 1, reference.std(0, dtype=np.float64))
    scores = np.empty(x.shape, np.float32)
    for part in strips(*x.shape):  # in parts, so that float64 takes little memory
        scores[part] = np.where(constant, 0, (x[part] - mean) / spread)
    return scores


def _tensor(a: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device)
