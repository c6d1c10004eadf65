"""Distances and principal components: what clustering, scores and neighbours stand on.

Large products run in torch on the given device, block by block, in float64: float32 products lose the small distances
between near-identical slices, which are what membership inference looks for, and would make ties depend on the device.
What takes memory by the square of the number of slices says so; see clustering_space.py for too many slices.
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
    if x.device.type == "cpu":  # scipy's takes half the time of PyTorch's there
        return torch.from_numpy(cdist(x.numpy(), y.numpy(), "cityblock"))
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
MAX_MEMORY = 4_000_000_000  # bytes; a fixed number, so that a seed means the same on every machine
MOST_COORDINATES = 2000
PAIRS = 1 << 22  # distances that are looked at together where not all are kept: 16 MB


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


def self_distances(x: np.ndarray, metric: str = "euclidean", device: str = "cpu", block: int = 256) -> np.ndarray:
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


def nearest(
    x: np.ndarray, y: np.ndarray, most: int, metric: str = "euclidean", device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The `most` nearest rows of y to each row of x: their distances (n, most) float32, rising, and rows (n, most).

    Fewer where y has fewer; of equals the first. x: (n, d), y: (m, d) float32; beside the result it takes the memory of
    PAIRS distances, or of m.
    """
    most = min(most, len(y))
    apart, rows = np.empty((len(x), most), np.float32), np.empty((len(x), most), np.int64)
    for part in strips(len(x), len(y)):
        found = pairwise(x[part], y, metric, device)
        rows[part] = np.argsort(found, axis=1, kind="stable")[:, :most]
        apart[part] = np.take_along_axis(found, rows[part], axis=1)
    return apart, rows


def smallest(distance: np.ndarray, most: int) -> np.ndarray:
    """The `most` smallest entries of each row, rising. distance: (n, c); returns (n, at most most)."""
    most = min(most, distance.shape[1])
    return np.sort(np.partition(distance, most - 1, axis=1)[:, :most], axis=1)


def strips(n: int, m: int) -> Iterator[slice]:
    """n rows in parts that have at most PAIRS distances to m others each, or one row."""
    step = max(1, PAIRS // max(m, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


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


def fitted_rows(n: int, d: int, limit: int) -> int:
    """How many of n slices of d numbers principal components are fitted to within `limit` bytes: the square matrix of
    the slices or of the numbers, whichever is smaller, is held about four times in float64."""
    most = isqrt(limit // 32)
    return n if min(n, d) <= most else most


def pca(
    x: np.ndarray, components: int | float, device: str = "cpu", limit: int = MAX_MEMORY, seed: int = 0
) -> Projection:
    """Principal components of x (n, d) float32: a whole number, or as few as keep that share of the variance in (0, 1).

    Where their square matrix would take more than `limit` bytes, those of a random part of the slices (fitted_rows).
    From the eigenvectors of the smaller of the (n, n) Gram and the (d, d) covariance matrix, in float64. Equal to
    sklearn.decomposition.PCA(svd_solver="full"); the sign is such that each component's largest loading is positive. A
    component beyond the rank of x (duplicates) explains nothing and may be a zero vector. Raises UsageError for a
    number that x cannot give.
    """
    used = fitted_rows(len(x), x.shape[1], limit)
    if used < len(x):
        x = x[np.sort(np.random.default_rng(seed).permutation(len(x))[:used])]
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


def coordinates(x: np.ndarray, device: str = "cpu") -> np.ndarray:
    """x (n, d) float32 along its principal components, where euclidean distances are the same in fewer numbers.

    (n, n - 1) float64 from the Gram matrix alone (classical scaling), or x in float64 if that is no fewer numbers, or
    takes longer than it saves, for more than MOST_COORDINATES slices.
    """
    n, d = x.shape
    if not 1 < n <= min(d, MOST_COORDINATES):
        return x.astype(np.float64)
    rows = _tensor(x, device).double()
    rows -= rows.mean(0)
    variances, vectors = torch.linalg.eigh(rows @ rows.T)
    return (vectors * variances.clamp(min=0).sqrt()).flip(1)[:, :-1].cpu().numpy()


def standardise(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """z-scores of x by the mean and standard deviation of reference; a column that is constant there becomes 0.

    x: (n, d), reference: (m, d); returns (n, d) float32.
    """
    constant = reference.max(0) == reference.min(0)
    mean = reference.mean(0, dtype=np.float64)
    spread = np.where(constant, 1, reference.std(0, dtype=np.float64))
    out = np.empty(x.shape, np.float32)
    for part in strips(*x.shape):  # so that only a part is in float64
        out[part] = np.where(constant, 0, (x[part] - mean) / spread)
    return out


def _tensor(a: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device)
