"""Nearest neighbours in feature space, in blocks, and the sparse graphs that propagation runs on.

Memory grows with N (k + D): no matrix over all pairs exists.
"""

import functools
import math
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from jaxmlic.errors import UserError
from jaxmlic.propagation import neighbours_host

METRICS = ("cosine", "euclidean")
SEARCHES = ("exact", "approximate")
_BLOCK = 1 << 22  # numbers that a block of an accelerator's search holds at a time: 16 MB
_SPARE = 16  # neighbours more than asked for, so that rounding in the product cannot push out a true one
# Of an index: dimensions, candidates a neighbour, cells searched, points for each centre and dimension to train on, and
# queries at a time. Chosen for a recall of 0.98 on 1,280 features of photographs.
_DIMS, _FACTOR, _CELLS, _TRAIN, _QUERIES = 128, 3, 32, 64, 8192


def knn(
    features: np.ndarray, k: int, metric: str = "cosine", *, search: str = "exact"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other points of each point, in blocks on the default device.

    "exact" compares all pairs. "approximate" compares each point only with those that an inverted file of the faiss
    library finds near it, and so misses some neighbours; in return its time grows with N^1.5 D, not N^2 D. The values
    and their order are computed in the same way for both. The index is trained from a fixed seed: on one machine, with
    one number of threads, its result is the same on every run.

    Args:
      features: [N, D], any float type; computed in float32.
      k: neighbours of each; with fewer than k other points, all of them.
      metric: "cosine" (of a row of zeros 0 with all others), or "euclidean".
      search: "exact" or "approximate".

    Returns:
      (indices, values): int32 [N, K] and float32 [N, K], K = min(k, N - 1), nearest first and equals in the order of
      rows. The values are cosines, or squared Euclidean distances; copies of a point have exactly 0. Where an
      approximate search finds fewer than K, the last indices are -1.

    Raises:
      UserError: a feature is not finite, or faiss is not installed.
      ValueError: features are not [N, D], k < 1, another metric or search.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not len(features) or k < 1 or metric not in METRICS:
        raise ValueError(f"features {features.shape}, k={k}, metric={metric!r}: [N, D], at least 1, one of {METRICS}")
    if search not in SEARCHES:
        raise ValueError(f"search={search!r} is not one of {SEARCHES}")
    points = neighbours_host.Points(features, metric)
    if not points.finite.all():
        raise UserError(f"features of image {int(np.argmin(points.finite))} (of {len(features)}) are not finite")
    num_points = len(features)
    k = min(k, num_points - 1)
    if k == 0:
        return np.zeros((num_points, 0), np.int32), np.zeros((num_points, 0), np.float32)
    candidates = min((k if search == "exact" else _FACTOR * k) + _SPARE, num_points - 1)
    near = _near_by_index(points[:], candidates + 1) if search == "approximate" else None  # itself among them
    if jax.default_backend() != "cpu":
        return _on_device(points, k, candidates, near, metric)
    near = neighbours_host.nearest_by_product(points, candidates) if near is None else near
    return neighbours_host.compare(points, near, k)


def _on_device(
    points: neighbours_host.Points, k: int, candidates: int, near: np.ndarray | None, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """`knn` in blocks of rows, among `candidates` that the product finds, or among those in `near` int32 [N, M]."""
    num_points, dim = points.shape
    per_row = max(num_points if near is None else 0, candidates * max(dim, 64))
    block = min(num_points, max(1, _BLOCK // per_row))
    on_device, offset = jax.device_put(points[:]), jax.device_put(points.offset)
    indices = np.empty((num_points, k), np.int32)
    values = np.empty((num_points, k), np.float32)
    for start in range(0, num_points, block):
        # The last block starts earlier, so that all have one shape.
        rows = np.arange(min(start, num_points - block), min(start, num_points - block) + block, dtype=np.int32)
        if near is None:
            found = _nearest(on_device, offset, rows, k, candidates, metric)
        else:
            found = _nearest_of(on_device, rows, near[rows], k, metric)
        indices[rows], values[rows] = jax.device_get(found)
    return indices, values


@functools.partial(jax.jit, static_argnames=("k", "candidates", "metric"))
def _nearest(
    points: jax.Array, offset: jax.Array, rows: jax.Array, k: int, candidates: int, metric: str
) -> tuple[jax.Array, jax.Array]:
    """`knn` of some rows int32 [B] among points [N, D]; closeness is the product less the point's offset [N]."""
    product = jnp.dot(points[rows], points.T, precision=jax.lax.Precision.HIGHEST)  # [B, N]
    closeness = product - offset[None, :]
    closeness = closeness.at[jnp.arange(len(rows)), rows].set(-jnp.inf)
    return _nearest_of(points, rows, _largest(closeness, candidates), k, metric)


@functools.partial(jax.jit, static_argnames=("k", "metric"))
def _nearest_of(
    points: jax.Array, rows: jax.Array, near: jax.Array, k: int, metric: str
) -> tuple[jax.Array, jax.Array]:
    """The k nearest of each row [B] among its candidates `near` int32 [B, M]; -1 and the row itself are passed over."""
    near = jnp.sort(near, axis=1)  # in the order of rows, for ties
    query, others = points[rows][:, None], jax.lax.optimization_barrier(points[near])  # [B, 1, D], [B, M, D]
    closeness = jnp.sum(query * others, axis=2) if metric == "cosine" else -jnp.sum((query - others) ** 2, axis=2)
    closeness = jnp.where((near < 0) | (near == rows[:, None]), -jnp.inf, closeness)  # [B, M]
    value, place = jax.lax.top_k(closeness, k)
    value = value if metric == "cosine" else -value
    return jnp.where(jnp.isfinite(value), jnp.take_along_axis(near, place, axis=1), -1), value


def index_library() -> ModuleType:
    """The module faiss, which an approximate search needs; UserError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError("approximate neighbours need the library faiss: pip install faiss-cpu") from None
    return faiss


def _near_by_index(points: np.ndarray, count: int) -> np.ndarray:
    """int32 [N, count], points near each point [N, D] by an inverted file, itself among them; -1 where it finds fewer.

    Distances are those of the first principal components. They are divided around sqrt(N) centres, and only the cells
    of those nearest to a point are searched.
    """
    faiss = index_library()
    if min(points.shape) > _DIMS:
        projection = faiss.PCAMatrix(points.shape[1], _DIMS)
        projection.train(_some(points, _TRAIN * _DIMS))
        points = projection.apply(points)
    num_points, dim = points.shape
    num_cells = max(1, round(math.sqrt(num_points)))
    centres = faiss.Kmeans(dim, num_cells, niter=10, seed=0, min_points_per_centroid=1, max_points_per_centroid=_TRAIN)
    centres.train(points)
    index = faiss.IndexIVFFlat(centres.index, dim, num_cells)
    index.add(points)
    index.nprobe = min(_CELLS, num_cells)
    near = np.empty((num_points, count), np.int32)
    for start in range(0, num_points, _QUERIES):
        near[start : start + _QUERIES] = index.search(points[start : start + _QUERIES], count)[1]
    return near


def _some(points: np.ndarray, count: int) -> np.ndarray:
    """Rows at equal distances, not more than twice `count`."""
    return points[:: max(1, len(points) // count)]


def _largest(values: jax.Array, k: int) -> jax.Array:
    """Columns int32 [B, k] of the k largest of each row of [B, N], of equals the first.

    In two steps where N is large: the k largest lie in those k groups of columns whose largest is largest.
    """
    size, width = values.shape
    group = 1 << max(0, round(math.log2(width / k) / 2))  # makes width / group + k * group, what is sorted, small
    if group < 4:
        return jax.lax.top_k(values, k)[1]
    num_groups = -(-width // group)
    padded = jnp.pad(values, ((0, 0), (0, num_groups * group - width)), constant_values=-jnp.inf)
    grouped = padded.reshape(size, num_groups, group)
    # In the order of columns, so that of equals the first come first.
    groups = jnp.sort(jax.lax.top_k(grouped.max(axis=2), k)[1], axis=1)  # [B, k]
    chosen = jnp.take_along_axis(grouped, groups[:, :, None], axis=1).reshape(size, k * group)
    place = jax.lax.top_k(chosen, k)[1]  # [B, k]
    return jnp.take_along_axis(groups, place // group, axis=1) * group + place % group


def heat_kernel_graph(
    indices: np.ndarray, squared_distances: np.ndarray, bandwidth: float | None = None
) -> sparse.csr_array:
    """Weights exp(-d^2 / t) between points of which one is among the nearest of the other.

    Args:
      indices: int [N, K]; -1 (an index that found fewer) and a point itself are passed over.
      squared_distances: [N, K], not negative.
      bandwidth: t; None for the mean squared distance to a neighbour, so that the scale of features does not matter.

    Returns:
      float64 [N, N], symmetric, with an empty diagonal.

    Raises:
      ValueError: shapes that do not fit, or a bandwidth that is not above 0.
    """
    rows, columns, squared = _edges(indices, squared_distances)
    if bandwidth is None:
        bandwidth = float(squared.mean()) if squared.any() else 1.0  # all of them copies
    if not bandwidth > 0:
        raise ValueError(f"bandwidth {bandwidth} is not above 0")
    weights = np.exp(-np.minimum(squared / bandwidth, 700))  # a weight of 0 would be no edge
    half = sparse.csr_array((weights, (rows, columns)), shape=(len(indices),) * 2)
    return half.maximum(half.T).tocsr()


def cosine_graph(indices: np.ndarray, cosines: np.ndarray, power: float = 3.0) -> sparse.csr_array:
    """W + W' with W_ij = max(cosine, 0)^power for j among the nearest of i (eq 9 of Iscen et al., gamma = 3).

    Args:
      indices: int [N, K]; -1 and a point itself are passed over.
      cosines: [N, K].
      power: gamma.

    Returns:
      float64 [N, N], symmetric, with an empty diagonal.

    Raises:
      ValueError: shapes that do not fit.
    """
    rows, columns, cosines = _edges(indices, cosines)
    positive = cosines > 0
    weights = cosines[positive] ** power
    half = sparse.csr_array((weights, (rows[positive], columns[positive])), shape=(len(indices),) * 2)
    return (half + half.T).tocsr()


def _edges(indices: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value (float64) of each true neighbour."""
    indices, values = np.asarray(indices), np.asarray(values)
    if indices.ndim != 2 or indices.shape != values.shape:
        raise ValueError(f"indices {indices.shape} and values {values.shape} are not both [N, K]")
    rows = np.repeat(np.arange(len(indices)), indices.shape[1])
    columns = indices.ravel()
    keep = (columns >= 0) & (columns != rows)
    return rows[keep], columns[keep], values.ravel()[keep].astype(np.float64)
