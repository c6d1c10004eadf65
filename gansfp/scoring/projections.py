"""Principal components and z-scores of embeddings, and fewer numbers for k-means to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from gansfp.errors import UsageError
from gansfp.rows import ChosenRows, Rows
from gansfp.scoring.distances import mean_of_rows, strips, tensor

# Slices that span the components where there are more than that, of vectors of more numbers than that: the square
# matrix of vectors of 4,096 numbers would take four times the memory and twice the time.
MOST_FITTED = 2048
MOST_MEASURED = 8192  # slices whose variance along these combinations is measured: more change no component to notice
MAX_COORDINATES = 2000  # slices; for more, the Gram matrix takes longer than it saves
LEADING = 256  # principal components that k-means reads of more slices than that
_BLOCK = 1024  # rows that are copied at once


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components, the strongest first.

    mean: (d,) float32; components: (k, d) float32 of unit norm; variance_ratio: (k,) float64, the share of the variance
    along each. fitted_to: how many slices span them.
    """

    mean: np.ndarray
    components: np.ndarray
    variance_ratio: np.ndarray
    fitted_to: int

    @property
    def rank(self) -> int:
        """How many components have a variance that is more than a rounding error."""
        return int((self.variance_ratio > 1e-6 * self.variance_ratio.max(initial=0)).sum())

    def transform(self, x: Rows, device: str = "cpu", block: int = 1024) -> np.ndarray:
        """Returns the coordinates of x along the components, (n, k) float32. x: (n, d) float32."""
        mean, basis = tensor(self.mean, device), tensor(self.components, device).T
        parts = [((tensor(x[i : i + block], device) - mean) @ basis).cpu().numpy() for i in range(0, len(x), block)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.components)), dtype=np.float32)

    def leading(self, components: int | float) -> Projection:
        """Returns the first components: how many, or a share in (0, 1) for the fewest that keep this share of the
        variance; all where there are fewer."""
        count = kept(self.variance_ratio, components)
        return replace(self, components=self.components[:count], variance_ratio=self.variance_ratio[:count])


def kept(variance_ratio: np.ndarray, components: int | float) -> int:
    """Returns how many components are kept: a number, or the fewest that have this share in (0, 1) of the variance."""
    if isinstance(components, (int, np.integer)):
        return int(components)
    return int(np.searchsorted(np.cumsum(variance_ratio), components, side="right")) + 1


def fitted_rows(n: int, d: int) -> int:
    """Returns how many of n slices of d numbers span the principal components that `pca` finds.

    The square matrix of the slices or of the numbers, whichever is smaller, is in memory about four times.
    """
    return min(n, MOST_FITTED) if d > MOST_FITTED else n


def pca(x: Rows, components: int | float, device: str = "cpu", seed: int = 0, at_least: int = 0) -> Projection:
    """Returns the principal components of x (n, d) float32.

    components: how many, or a share in (0, 1) for the fewest that keep this share of the variance; with `at_least` no
    fewer than that, or all that there are. Computed from the eigenvectors of the (n, n) Gram or the (d, d) covariance
    matrix, whichever is smaller, in float64: in float32 the components of slices that repeat each other would not be
    orthogonal. Equal to sklearn.decomposition.PCA(svd_solver="full"); signs are chosen so that each component's largest
    loading is positive. A component beyond the rank of x (duplicates) explains nothing and may be a zero vector.

    Of many long vectors (fitted_rows) these are the principal components of at most MOST_MEASURED slices within the
    span of a random part of them (Rayleigh and Ritz; Halko, Martinsson and Tropp 2011); where a number is asked for,
    within that of twice as many components of this part. Raises UsageError for more components than there are.
    """
    fitted = fitted_rows(*x.shape)
    most = min(fitted - 1, x.shape[1])
    whole = isinstance(components, (int, np.integer))
    if not (1 <= components <= most if whole else 0 < components < 1 and most >= 1):
        raise UsageError(
            f"PCA components: got {components!r} for {fitted} slices of {x.shape[1]} numbers, expected 1 to {most} or "
            "a share of the variance between 0 and 1"
        )

    def count(ratio: np.ndarray) -> int:
        return min(max(kept(ratio, components), at_least), most)

    if fitted == len(x):
        mean, ratio, basis = _principal(x, count, device)
    else:
        drawn = np.random.default_rng(seed).permutation(len(x))
        spanning = min(most, 2 * max(int(components), at_least)) if whole else most
        span = _principal(x[np.sort(drawn[:fitted])], lambda _: spanning, device)[2]
        most = spanning
        mean, ratio, basis = _principal_within(ChosenRows(x, np.sort(drawn[:MOST_MEASURED])), span, count)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = torch.where(largest < 0, -basis, basis).T.contiguous()
    return Projection(mean.float().cpu().numpy(), basis.float().cpu().numpy(), ratio, fitted)


Axes = tuple[torch.Tensor, np.ndarray, torch.Tensor]  # mean (d,), shares of the variance (k,), components (d, k)


def _principal(x: Rows, count: Callable[[np.ndarray], int], device: str) -> Axes:
    """Principal components of x. count: says how many, from the shares of the variance of all of them."""
    n, d = x.shape
    mean = mean_of_rows(x, device)
    rows = tensor(x[:], device) if n <= d else None  # as many as the square matrix has
    square = _gram(rows, mean) if rows is not None else _covariance(x, mean, None)
    variances, vectors = (a.flip(-1) for a in torch.linalg.eigh(square))
    ratio = _shares(variances, float(variances.double().clamp(min=0).sum()))
    ratio = ratio[: count(ratio)]
    basis = vectors[:, : len(ratio)]
    if rows is not None:
        basis = _combined(rows, mean, basis)
    return mean, ratio, basis


def _combined(rows: torch.Tensor, mean: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns combinations of the centred rows (n, d) at norm 1, (d, k) float32; zero where nothing but rounding errors
    is left. weights: (n, k) float64."""
    basis = torch.empty((rows.shape[1], weights.shape[1]), device=rows.device)
    squares = torch.zeros(weights.shape[1], dtype=torch.float64, device=rows.device)
    for part in _blocks(rows.shape[1]):
        of_part = (rows[:, part].double() - mean[part]).T @ weights
        squares += of_part.square().sum(0)
        basis[part] = of_part.float()
    norms = squares.sqrt()
    scales = torch.where(norms > 1e-7 * norms.max(), 1 / norms.clamp(min=1e-300), torch.zeros_like(norms))
    return basis.mul_(scales.float())


def _principal_within(x: Rows, span: torch.Tensor, count: Callable[[np.ndarray], int]) -> Axes:
    """Principal components of x among the combinations of orthonormal columns. span: (d, k)."""
    mean = mean_of_rows(x, str(span.device))
    variances, vectors = (a.flip(-1) for a in torch.linalg.eigh(_covariance(x, mean, span)))
    blocks = (_centred(x, mean, part, torch.float32) for part in _blocks(len(x)))
    ratio = _shares(variances, sum(float(block.square().sum(dtype=torch.float64)) for block in blocks))
    ratio = ratio[: count(ratio)]
    return mean, ratio, span @ vectors[:, : len(ratio)]


def _shares(variances: torch.Tensor, total: float) -> np.ndarray:
    return (variances.double().clamp(min=0) / max(total, 1e-300)).cpu().numpy()


def _gram(rows: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Returns the Gram matrix of the centred rows (n, d), (n, n), summed over blocks of columns."""
    n, d = rows.shape
    square = torch.zeros((n, n), dtype=torch.float64, device=rows.device)
    for part in _blocks(d):
        centred = rows[:, part].double() - mean[part]
        square += centred @ centred.T
    return square


def _covariance(x: Rows, mean: torch.Tensor, span: torch.Tensor | None) -> torch.Tensor:
    """Returns n times the covariance matrix of rows (n, d), (d, d), or of their coordinates along the columns of `span`
    (d, k), (k, k). Summed over blocks of rows, in float64; along `span` in float32, which is enough there, because
    orthogonal components come of every symmetric matrix of coordinates."""
    side, dtype = (len(mean), torch.float64) if span is None else (span.shape[1], torch.float32)
    square = torch.zeros((side, side), dtype=dtype, device=mean.device)
    for part in _blocks(len(x)):
        centred = _centred(x, mean, part, square.dtype)
        if span is not None:
            centred = centred @ span
        square += centred.T @ centred
    return square


def _centred(x: Rows, mean: torch.Tensor, part: slice, dtype: torch.dtype) -> torch.Tensor:
    return tensor(x[part.start : min(part.stop, len(x))], str(mean.device)).to(dtype) - mean.to(dtype)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))


def coordinates(x: Rows, device: str = "cpu") -> np.ndarray:
    """Returns coordinates with the euclidean distances of x (n, d) float32, in fewer numbers for k-means to read.

    They are (n, n - 1) float64 along all principal components, from the Gram matrix (classical scaling). For more
    slices than numbers, and for more than MAX_COORDINATES slices, they are x in float64.
    """
    n, d = x.shape
    if not 1 < n <= min(d, MAX_COORDINATES):
        return x[:].astype(np.float64)
    rows = tensor(x[:], device).double()
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
