"""Distances and nearest neighbours of embeddings.

Distances to many rows are computed in strips. Euclidean and cosine distances come from matrix products in float32,
which take less than half the time of float64. Such a product loses the small distances between near-identical slices,
which membership inference looks for. Therefore every pair that comes out near gets a second look in float64, from the
difference of its two rows (in a crowd of near pairs every distance comes from a product in float64, and copies alone
get that look), and `nearest` orders the nearest rows by float64 distances, so that ties do not depend on the device.
Functions whose memory grows with the square of the number of slices say so; clustering_space.py limits it.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.spatial.distance import cdist

from gansfp.errors import UsageError
from gansfp.rows import Rows, mapped, parts

# Bytes: 3,952 slices are compared exactly. A fixed number, so that a seed gives the same result on every machine.
MAX_MEMORY = 250_000_000
PAIRS = 1 << 22  # distances that are computed at once where only the nearest are kept: 16 MB
PIECE = 1 << 20  # of these, distances in one strip: what is computed from a strip takes several times its memory
# The rounding error of a product in float32 is at most about 2e-7 of the two squared norms. Above this share of them a
# squared distance is right to 4e-6, the distance to 2e-6; below it, float64 takes a second look.
NEAR = 1 / 16
SAME = 1e-10  # the same for a product in float64, whose rounding error is at most some 1e-15 of the squared norms
FEW = 1 / 64  # share of near pairs up to which looking at each is faster than a whole product in float64
SPARE = 8  # rows beside the nearest ones that also get a second look, because rounding may have changed their order


class _Euclidean:
    """Distances to the rows of y (m, d), which are prepared once: shifted to their mean, and on a GPU in its memory.

    The shift changes no distance. Without it, the norms of features that share a large mean would hide the distances.
    """

    def __init__(self, y: Rows, device: str) -> None:
        self._device, self._parts = device, list(parts(y))
        self._centre = mean_of_rows(y, device).float()
        centre = self._centre.cpu().numpy()
        self._y, self._shifted = y, mapped(y, lambda rows: rows - centre)
        self._on_gpu: list[torch.Tensor] = []
        if device != "cpu":  # moved once, not with each strip
            self._on_gpu = [tensor(self._shifted[part], device) for part in self._parts]
        squares = [shifted.square().sum(1) for _, shifted in self._shifted_parts(0)]
        self._squares = torch.cat(squares) if squares else torch.zeros(0, device=device)

    def __call__(self, x: np.ndarray, start: int = 0) -> np.ndarray:
        """Returns the distances of x (n, d) float32 to the rows of y from `start`: (n, m - start) float32."""
        rows = tensor(x, self._device)
        shifted_rows = rows - self._centre
        squares = shifted_rows.square().sum(1, keepdim=True)
        apart = torch.empty((len(x), len(self._y) - start), device=self._device)
        for part, shifted in self._shifted_parts(start):
            columns = slice(part.start - start, part.stop - start)
            apart[:, columns] = self._squared(rows, shifted_rows, squares, part, shifted)
        return apart.clamp_(min=0).sqrt_().cpu().numpy()

    def _shifted_parts(self, start: int) -> Iterator[tuple[slice, torch.Tensor]]:
        for number, part in enumerate(self._parts):
            first = max(part.start, start)
            if first < part.stop:
                rows = slice(first, part.stop)
                if self._on_gpu:
                    yield rows, self._on_gpu[number][first - part.start :]
                else:
                    yield rows, tensor(self._shifted[rows], self._device)

    def _squared(
        self,
        rows: torch.Tensor,
        shifted_rows: torch.Tensor,
        squares_of_rows: torch.Tensor,
        part: slice,
        shifted: torch.Tensor,
    ) -> torch.Tensor:
        squares = squares_of_rows + self._squares[part]
        apart = torch.addmm(squares, shifted_rows, shifted.T, alpha=-2)
        near = apart < squares.mul_(NEAR)
        count = int(near.sum())
        if count > FEW * near.numel():
            apart = self._squared_in_float64(rows, part)
            near = apart < squares.mul_(SAME / NEAR)
            count = int(near.sum())
        if 0 < count <= FEW * near.numel():
            first, second = near.nonzero(as_tuple=True)
            apart[first, second] = self._looked_at(rows, first, second + part.start)
        return apart

    def _looked_at(self, rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        step = max(1, PIECE // rows.shape[1])  # six times as much is in memory
        squares = []
        for start in range(0, len(first), step):
            of_y = tensor(self._y[second[start : start + step].cpu().numpy()], self._device)
            squares.append((rows[first[start : start + step]].double() - of_y).square_().sum(1).float())
        return torch.cat(squares)

    def _squared_in_float64(self, rows: torch.Tensor, part: slice) -> torch.Tensor:
        x = rows.double() - self._centre
        squared = []
        for start in range(part.start, part.stop, 1024):  # in parts, so that float64 takes little memory
            y = tensor(self._y[start : min(start + 1024, part.stop)], self._device).double() - self._centre
            squared.append((x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (x @ y.T)).clamp_(min=0).float())
        return torch.cat(squared, 1)


class _Cosine:
    """One minus the cosine: half the squared euclidean distance of the rows at norm 1. That of a zero vector is 1."""

    def __init__(self, y: Rows, device: str) -> None:
        self._empty = np.concatenate([_unit(y[part])[1] for part in parts(y)] or [np.zeros(0, bool)])
        self._euclidean = _Euclidean(mapped(y, lambda rows: _unit(rows)[0]), device)

    def __call__(self, x: np.ndarray, start: int = 0) -> np.ndarray:
        """As _Euclidean."""
        unit, empty = _unit(x)
        apart = np.square(self._euclidean(unit, start)) / 2
        apart[empty] = 1
        apart[:, self._empty[start:]] = 1
        return np.minimum(apart, 2)


def _unit(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows at norm 1 (n, d) float32, and which are zero (n,) bool; these stay zero."""
    unit, empty = np.empty(x.shape, np.float32), np.empty(len(x), bool)
    for part in strips(*x.shape):
        rows = x[part].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        empty[part] = norms[:, 0] == 0
        unit[part] = rows / np.where(norms > 0, norms, 1)
    return unit, empty


class _Manhattan:
    """Sums of absolute differences, in float64: nothing cancels in them, and no product computes them."""

    def __init__(self, y: Rows, device: str) -> None:
        self._y, self._device = y, device

    def __call__(self, x: np.ndarray, start: int = 0) -> np.ndarray:
        """As _Euclidean."""
        apart = np.empty((len(x), len(self._y) - start), np.float32)
        for part in parts(self._y):
            first = max(part.start, start)
            if first < part.stop:
                apart[:, first - start : part.stop - start] = self._to(x, self._y[first : part.stop])
        return apart

    def _to(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if self._device == "cpu":  # on a CPU scipy takes two thirds of the time of PyTorch
            return cdist(x, y, "cityblock")
        rows, columns = (tensor(a, self._device).double() for a in (x, y))
        return torch.cdist(rows, columns, p=1).cpu().numpy()


Metric = type[_Euclidean] | type[_Cosine] | type[_Manhattan]
METRICS: dict[str, Metric] = {"euclidean": _Euclidean, "manhattan": _Manhattan, "cosine": _Cosine}


def distance_strips(
    x: Rows, y: Rows, metric: str = "euclidean", device: str = "cpu"
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the distances of every row of x to every row of y a strip at a time: rows of x, and (rows, m) float32.

    x: (n, d) float32, y: (m, d) float32, finite. A strip holds at most PIECE distances, or those of one row. Beside
    an array y a copy of it and a few strips are in memory; of rows on disk, parts of them. Equal to
    scipy.spatial.distance.cdist, except for a zero vector with cosine: its distance to every vector is 1. Raises
    UsageError for an unknown metric and for rows of different lengths.
    """
    _check(x, y, metric)
    to_y = METRICS[metric](y, device)
    for part in strips(len(x), max(len(y), x.shape[1])):  # in memory is also a copy of their rows
        together = to_y(x[part])
        for piece in strips(len(together), len(y), PIECE):
            yield slice(part.start + piece.start, part.start + piece.stop), together[piece]


def pairwise(x: Rows, y: Rows, metric: str = "euclidean", device: str = "cpu") -> np.ndarray:
    """Returns the distances of every row of x to every row of y, (n, m) float32; see distance_strips."""
    distances = np.empty((len(x), len(y)), dtype=np.float32)
    for part, strip in distance_strips(x, y, metric, device):
        distances[part] = strip
    return distances


def self_distances(x: Rows, metric: str = "euclidean", device: str = "cpu", block: int = 256) -> np.ndarray:
    """Returns pairwise(x, x), exactly symmetric and with an exactly zero diagonal, at half the work.

    x: (n, d) float32; returns (n, n) float32.
    """
    _check(x, x, metric)
    to_x = METRICS[metric](x, device)
    distances = np.empty((len(x), len(x)), dtype=np.float32)
    for i in range(0, len(x), block):
        strip = to_x(x[i : i + block], i)
        distances[i : i + block, i:] = strip
        distances[i:, i : i + block] = strip.T
        corner = np.triu(strip[:, : len(strip)], 1)
        distances[i : i + block, i : i + block] = corner + corner.T
    return distances


def nearest(x: Rows, y: Rows, count: int, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Returns the euclidean distances (n, count) float32 to the nearest rows of y of each row of x, rising, and these
    rows (n, count).

    There are fewer columns where y has fewer rows. Of equally near rows the first comes first. x: (n, d), y: (m, d)
    float32. Takes the memory of distance_strips.
    """
    count = min(count, len(y))
    looked = min(count + SPARE, len(y))
    near, rows = np.empty((len(x), count), np.float32), np.empty((len(x), count), np.int64)
    for part, strip in distance_strips(x, y, "euclidean", device):
        nearly = np.sort(np.argpartition(strip, looked - 1, axis=1)[:, :looked], axis=1)
        apart = _looked_at_again(x[part], y, nearly)
        order = np.argsort(apart, axis=1, kind="stable")[:, :count]
        near[part] = np.take_along_axis(apart, order, axis=1)
        rows[part] = np.take_along_axis(nearly, order, axis=1)
    return near, rows


def _looked_at_again(x: np.ndarray, y: Rows, rows: np.ndarray) -> np.ndarray:
    """Returns the distances of each row of x (n, d) to some rows of y, (n, c) float64. rows: (n, c)."""
    apart = np.empty(rows.shape)
    step = max(1, PAIRS // max(1, rows.shape[1] * x.shape[1]))
    for start in range(0, len(x), step):
        of_y = y[rows[start : start + step].ravel()].reshape(-1, rows.shape[1], x.shape[1])
        for row, to in enumerate(of_y, start):
            apart[row] = cdist(x[row : row + 1], to)[0]
    return apart


def smallest(distance: np.ndarray, count: int) -> np.ndarray:
    """Returns the `count` smallest entries of each row, rising, (n, at most count). distance: (n, c) float32."""
    count = min(count, distance.shape[1])
    return torch.from_numpy(distance).topk(count, largest=False, sorted=True).values.numpy()


def strips(n: int, m: int, pairs: int | None = None, /) -> Iterator[slice]:
    """Yields n rows in parts. The rows of a part have at most `pairs` distances to m other rows, or it is one row.
    pairs: None for PAIRS."""
    step = max(1, (pairs or PAIRS) // max(m, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _check(x: Rows, y: Rows, metric: str) -> None:
    """Raises UsageError for what cannot be computed."""
    if metric not in METRICS:
        raise UsageError(f"distance metric: got {metric!r}, expected one of {sorted(METRICS)}")
    if len(x.shape) != 2 or len(y.shape) != 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"distances: got embeddings of shapes {x.shape} and {y.shape}, expected (n, d) and (m, d)")


def mean_of_rows(x: Rows, device: str = "cpu") -> torch.Tensor:
    """Returns the mean (d,) float64 of rows (n, d) float32. Sums them in parts, so that float64 takes little memory."""
    sums = torch.zeros(x.shape[1], dtype=torch.float64, device=device)
    for part in strips(*x.shape):
        sums += tensor(x[part], device).sum(0, dtype=torch.float64)
    return sums / len(x)


def tensor(a: np.ndarray, device: str) -> torch.Tensor:
    """Returns an array as a float32 tensor on the device, on a CPU without a copy where it is float32 already."""
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device)
