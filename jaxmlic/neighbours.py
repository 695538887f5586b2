"""Nearest neighbours in feature space, exactly and in blocks, and the sparse graphs that propagation runs on.

Memory grows with N (k + D): no matrix over all pairs exists. Nothing here is random.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from jaxmlic.errors import UserError

METRICS = ("cosine", "euclidean")
_BLOCK = 1 << 24  # numbers that a block of the search holds at a time: 64 MB
_SPARE = 16  # neighbours more than asked for, so that rounding in the product cannot push out a true one


def knn(features: np.ndarray, k: int, metric: str = "cosine") -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other points of each point, exactly, in blocks on the default device.

    Args:
      features: [N, D], any float type; computed in float32.
      k: neighbours of each; with fewer than k other points, all of them.
      metric: "cosine" (of a row of zeros 0 with all others), or "euclidean".

    Returns:
      (indices, values): int32 [N, K] and float32 [N, K], K = min(k, N - 1), nearest first and equals in the order of
      rows. The values are cosines, or squared Euclidean distances; copies of a point have exactly 0.

    Raises:
      UserError: a feature is not finite.
      ValueError: features are not [N, D], k < 1, another metric.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not len(features) or k < 1 or metric not in METRICS:
        raise ValueError(f"features {features.shape}, k={k}, metric={metric!r}: [N, D], at least 1, one of {METRICS}")
    points = features.astype(np.float32)
    if not (finite := np.isfinite(points).all(1)).all():
        raise UserError(f"features of image {int(np.argmin(finite))} (of {len(points)}) are not finite")
    if metric == "cosine":
        length = np.linalg.norm(points, axis=1, keepdims=True)
        points /= np.where(length > 0, length, 1)
    else:
        points -= points.mean(0)  # distances stay, and the product loses fewer digits
    num_points, dim = points.shape
    k = min(k, num_points - 1)
    if k == 0:
        return np.zeros((num_points, 0), np.int32), np.zeros((num_points, 0), np.float32)
    candidates = min(k + _SPARE, num_points - 1)
    block = max(1, min(num_points, _BLOCK // max(num_points, candidates * max(dim, 64))))
    on_device = jnp.asarray(points)
    offset = 0.5 * jnp.sum(on_device**2, axis=1) if metric == "euclidean" else jnp.zeros(num_points)
    indices = np.empty((num_points, k), np.int32)
    values = np.empty((num_points, k), np.float32)
    for start in range(0, num_points, block):
        # The last block starts earlier, so that all have one shape.
        rows = np.arange(min(start, num_points - block), min(start, num_points - block) + block, dtype=np.int32)
        found = _nearest(on_device, offset, rows, k, candidates, metric)
        indices[rows], values[rows] = jax.device_get(found)
    return indices, values


@functools.partial(jax.jit, static_argnames=("k", "candidates", "metric"))
def _nearest(
    points: jax.Array, offset: jax.Array, rows: jax.Array, k: int, candidates: int, metric: str
) -> tuple[jax.Array, jax.Array]:
    """`knn` of some rows int32 [B] among points [N, D]; closeness is the product with a point less its offset [N]."""
    queries = points[rows]  # [B, D]
    closeness = jnp.dot(queries, points.T, precision=jax.lax.Precision.HIGHEST) - offset[None, :]  # [B, N]
    closeness = closeness.at[jnp.arange(len(rows)), rows].set(-jnp.inf)
    near = jnp.sort(_largest(closeness, candidates), axis=1)  # [B, candidates], in the order of rows for ties
    others = points[near]  # [B, candidates, D]
    if metric == "cosine":
        value = jnp.sum(queries[:, None, :] * others, axis=2)
        _, place = jax.lax.top_k(value, k)
    else:
        value = jnp.sum((queries[:, None, :] - others) ** 2, axis=2)
        _, place = jax.lax.top_k(-value, k)
    return jnp.take_along_axis(near, place, axis=1), jnp.take_along_axis(value, place, axis=1)


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
