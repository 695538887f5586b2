"""The exact search for nearest neighbours on a CPU, with numpy alone: no copy of the features, each product once.

XLA's products take half as long again as numpy's there, and its compiler and buffers more memory than the search.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jaxmlic import sharding

_TILE = 2048  # points on either side of a product: 16 MB
_GROUP = 8  # columns of a tile that are looked at together
_ROWS = 32  # points whose candidates are compared at a time: what stays in the processor's cache


class Points:
    """Rows of features [N, D] as they are compared, a few at a time: float32, of length 1 or around their mean.

    Attributes:
      shape: (N, D).
      offset: float32 [N], what the product of a point with any other is too large by: half its squared length for
        Euclidean distances, else 0.
      finite: bool [N], whether all numbers of a row are.
    """

    def __init__(self, features: np.ndarray, metric: str):
        self.features, self.shape = features, features.shape
        self.by_length = metric == "cosine"
        count = self.shape[0]
        self.shift, self.scale = np.zeros(self.shape[1], np.float32), np.ones(count, np.float32)
        self.finite, self.offset = np.empty(count, bool), np.zeros(count, np.float32)
        total = np.zeros(self.shape[1])
        for part in _parts(count):
            rows = np.asarray(features[part], np.float32)
            self.finite[part] = np.isfinite(rows).all(1)
            if self.by_length:
                length = np.sqrt(np.einsum("nd,nd->n", rows, rows))
                self.scale[part] = np.where(length > 0, length, 1)
            else:
                total += rows.sum(0, dtype=np.float64)
        if not self.by_length and self.finite.all():
            self.shift = (total / count).astype(np.float32)  # distances stay, and products lose fewer digits
            for part in _parts(count):
                rows = self[part]
                self.offset[part] = np.einsum("nd,nd->n", rows, rows) / 2

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 [..., D]."""
        found = self.as_given(rows)
        if self.by_length:
            found /= self.scale[rows][..., None]
        else:
            found -= self.shift
        return found

    def as_given(self, rows: slice | np.ndarray) -> np.ndarray:
        """A copy, float32 [..., D], neither scaled nor shifted."""
        return self.features[rows].astype(np.float32, copy=isinstance(rows, slice))


def nearest_by_product(points: Points, count: int) -> np.ndarray:
    """int32 [N, count]: the others with the largest product less both offsets, of equals the first; largest first.

    A product of two tiles of points serves both: what the rows find among the columns, and the columns among the rows.
    """
    num_points = points.shape[0]
    index = np.full((num_points, count), -1, np.int32)
    value = np.full((num_points, count), -np.inf, np.float32)
    tiles = _parts(num_points)
    for number, first in enumerate(tiles):
        left = points[first]
        for second in tiles[number:]:
            same = second is first
            closeness = left @ (left if same else points[second]).T
            if not points.by_length:
                closeness -= points.offset[first][:, None]
                closeness -= points.offset[second][None, :]
            if same:
                np.fill_diagonal(closeness, -np.inf)
            keep_largest(index[first], value[first], closeness, second.start)
            if not same:
                keep_largest(index[second], value[second], closeness.T, first.start)
    return index


def compare(points: Points, near: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each point among its candidates int [N, M], compared exactly; -1 and itself are passed over.

    int32 and float32 [N, k]; where there are fewer, -1 and infinity (a cosine of minus infinity).
    """
    indices, values = np.empty((len(near), k), np.int32), np.empty((len(near), k), np.float32)

    def some(start: int) -> None:
        rows = np.arange(start, min(start + _ROWS, len(near)))
        indices[rows], values[rows] = _compare(points, rows, near[rows], k)

    with ThreadPoolExecutor(sharding.cores()) as pool:
        list(pool.map(some, range(0, len(near), _ROWS)))
    return indices, values


def _compare(points: Points, rows: np.ndarray, near: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    near = np.sort(near, axis=1)  # in the order of rows, for ties
    query, others = points.as_given(rows), points.as_given(near)  # [B, D], [B, M, D]
    if points.by_length:
        closeness = np.einsum("bmd,bd->bm", others, query) / (points.scale[rows][:, None] * points.scale[near])
    else:
        others -= query[:, None]
        closeness = -np.einsum("bmd,bmd->bm", others, others)
    closeness[(near < 0) | (near == rows[:, None])] = -np.inf
    place = np.argsort(-closeness, axis=1, kind="stable")[:, :k]
    closeness = np.take_along_axis(closeness, place, 1)
    indices = np.where(np.isfinite(closeness), np.take_along_axis(near, place, 1), -1)
    return indices, closeness if points.by_length else -closeness


def keep_largest(index: np.ndarray, value: np.ndarray, closeness: np.ndarray, start: int) -> None:
    """Merge closeness [B, W] of the points from `start` on into the largest so far, index and value [B, M], in place.

    `value` is sorted, largest first; of equals those that came first stay.
    """
    size, width = closeness.shape
    # Only what is above the least so far can enter, and soon that is little. The maximum over groups of columns, each
    # every step-th one, says where it is; and of M groups whose maximum is largest each has one that is as large.
    step = -(-width // _GROUP)
    least, count = value[:, -1:], value.shape[1]
    highest = closeness[:, :step].copy(order="K")
    for first in range(step, width, step):
        part = closeness[:, first : first + step]
        np.maximum(highest[:, : part.shape[1]], part, out=highest[:, : part.shape[1]])
    highest = np.ascontiguousarray(highest)
    enters = highest > least
    floor = np.full((size, 1), -np.inf, np.float32)
    if count <= step and np.count_nonzero(enters) > size * count:
        floor = np.partition(highest, step - count, axis=1)[:, step - count, None]
        enters &= highest >= floor
    row, group = np.nonzero(enters)
    if not len(row):
        return
    column = group[:, None] + step * np.arange(_GROUP)  # [groups, _GROUP]
    chosen = closeness[row[:, None], np.minimum(column, width - 1)]
    enters = (chosen > least[row]) & (chosen >= floor[row]) & (column < width)
    row, column, chosen = np.broadcast_to(row[:, None], enters.shape)[enters], column[enters], chosen[enters]
    order = np.argsort(row * width + column)  # for ties
    row, column, chosen = row[order], column[order], chosen[order]
    counts = np.bincount(row, minlength=size)
    place = count + np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    values = np.full((size, count + counts.max()), -np.inf, np.float32)
    indices = np.full(values.shape, -1, np.int32)
    values[:, :count], indices[:, :count] = value, index
    values[row, place], indices[row, place] = chosen, column + start
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    value[:], index[:] = np.take_along_axis(values, order, 1), np.take_along_axis(indices, order, 1)


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + _TILE, count)) for start in range(0, count, _TILE)]
