"""The k nearest neighbours of each point in feature space. No matrix over all pairs is ever held."""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import progress, sharding
from jaxmlic.errors import UserError

METRICS = ("cosine", "euclidean")
SEARCHES = ("exact", "approximate")
_BLOCK = 1 << 22  # numbers that a block of an accelerator's search holds at a time: 16 MB
_MARGIN = 16  # candidates beyond k, so that rounding in the matrix product cannot drop a true neighbour
_PART = 2048  # rows that are prepared at a time
_ROWS = 32  # rows whose candidates are compared at a time: what stays in the processor's cache
_QUERIES = 8192  # rows of one call of faiss
# Of the approximate index: principal components, candidates a neighbour, cells searched, and training points for each
# centre and component. Chosen for a recall of 0.98 on 1,280 features of photographs.
_COMPONENTS, _FACTOR, _CELLS, _TRAIN = 128, 3, 32, 64


class _Points(NamedTuple):
    """Features [N, D] as a matrix product compares them.

    Attributes:
      values: float32 [N, D], rows of length 1 (cosine), or with the mean of all rows subtracted (Euclidean).
      length: float32 [N], what each row was divided by; 1 for Euclidean distances.
      offset: float32 [N], half the squared length of a row, which its products are too large by; 0 for cosines.
    """

    values: np.ndarray
    length: np.ndarray
    offset: np.ndarray


def knn(
    features: np.ndarray, k: int, metric: str = "cosine", *, search: str = "exact"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other points of each point.

    "exact" compares all pairs: with faiss's flat search on a CPU, in blocks on an accelerator. "approximate" compares
    each point only with those in the nearest cells of an inverted file, and so misses some neighbours; its time grows
    with N^1.5 D instead of N^2 D. Both find k + 16 or more candidates by float32 matrix products, and then compute the
    values, and by them the order, pair by pair. The index is trained from a fixed seed: on one machine, with one number
    of threads, every run gives the same result.

    Args:
      features: [N, D], any float type; computed in float32.
      k: neighbours of each; with fewer than k other points, all of them.
      metric: "cosine" (a row of zeros has cosine 0 with every other row), or "euclidean".
      search: "exact" or "approximate".

    Returns:
      (indices, values): int32 [N, K] and float32 [N, K], K = min(k, N - 1), nearest first, ties by index. The values
      are cosines, or squared Euclidean distances; copies of a point have distance 0 exactly, and where there are more
      than k + 16 copies, rounding decides which of them are found. Where an approximate search finds fewer than K
      neighbours, the last indices are -1.

    Raises:
      UserError: a feature is not finite.
      ValueError: features are not [N, D], k < 1, another metric or search.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not len(features) or k < 1 or metric not in METRICS:
        raise ValueError(f"features {features.shape}, k={k}, metric={metric!r}: [N, D], at least 1, one of {METRICS}")
    if search not in SEARCHES:
        raise ValueError(f"search={search!r} is not one of {SEARCHES}")
    points = _prepare(features, metric)
    num_points = len(features)
    k = min(k, num_points - 1)
    if k == 0:
        return np.zeros((num_points, 0), np.int32), np.zeros((num_points, 0), np.float32)
    num_candidates = min((k if search == "exact" else _FACTOR * k) + _MARGIN, num_points - 1)
    on_cpu, candidates = jax.default_backend() == "cpu", None
    if search == "approximate":
        candidates = _candidates_by_cells(points.values, num_candidates + 1)  # the point itself is one of them
    elif on_cpu:
        candidates = _candidates_by_product(points.values, num_candidates + 1, metric)
    if not on_cpu:
        return _on_device(points, k, num_candidates, candidates, metric)
    length = points.length if metric == "cosine" else None
    del points  # a copy of the features, which the comparison does not need
    return _compare(features, length, candidates, k)


def _prepare(features: np.ndarray, metric: str) -> _Points:
    """The points of features [N, D]. UserError for a feature that is not finite."""
    values = features.astype(np.float32, order="C")
    parts = [slice(start, start + _PART) for start in range(0, len(values), _PART)]
    length, offset = np.ones(len(values), np.float32), np.zeros(len(values), np.float32)
    total = np.zeros(values.shape[1])
    for part in parts:
        rows = values[part]
        finite = np.isfinite(rows).all(1)
        if not finite.all():
            row = part.start + int(np.argmin(finite))
            raise UserError(f"features of image {row} (of {len(features)}) are not finite")
        if metric == "cosine":
            norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))
            length[part] = np.where(norm > 0, norm, 1)
            rows /= length[part, None]
        else:
            total += rows.sum(0, dtype=np.float64)
    if metric == "euclidean":
        mean = (total / len(values)).astype(np.float32)  # distances stay, and products lose fewer digits
        for part in parts:
            values[part] -= mean
            offset[part] = np.einsum("nd,nd->n", values[part], values[part]) / 2
    return _Points(values, length, offset)


def _compare(
    features: np.ndarray, length: np.ndarray | None, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each point among its candidates int [N, M]; -1 and the point itself are skipped.

    `length` float32 [N] gives cosines, None squared distances. int32 and float32 [N, k]; where there are fewer, -1 and
    infinity (a cosine of minus infinity).
    """
    indices, values = np.empty((len(features), k), np.int32), np.empty((len(features), k), np.float32)

    def compare_rows(start: int) -> None:
        rows = np.arange(start, min(start + _ROWS, len(features)))
        near = np.sort(candidates[rows], axis=1)  # by index, for ties
        query = features[rows].astype(np.float32, copy=False)  # [B, D]
        others = features[near].astype(np.float32, copy=False)  # [B, M, D], a new array
        if length is not None:
            closeness = np.einsum("bmd,bd->bm", others, query) / (length[rows][:, None] * length[near])
        else:
            others -= query[:, None]
            closeness = -np.einsum("bmd,bmd->bm", others, others)
        closeness[(near < 0) | (near == rows[:, None])] = -np.inf
        place = np.argsort(-closeness, axis=1, kind="stable")[:, :k]
        closeness = np.take_along_axis(closeness, place, 1)
        indices[rows] = np.where(np.isfinite(closeness), np.take_along_axis(near, place, 1), -1)
        values[rows] = closeness if length is not None else -closeness

    with (
        ThreadPoolExecutor(sharding.cores()) as pool,
        progress.Progress("comparing neighbours", len(features), transient=True) as bar,
    ):
        for _ in pool.map(compare_rows, range(0, len(features), _ROWS)):
            bar.advance(min(_ROWS, len(features) - bar.done))
    return indices, values


def _searching(num_points: int) -> progress.Progress:
    return progress.Progress("searching neighbours", num_points, transient=True)


# --- candidates by faiss


def _faiss() -> ModuleType:
    """faiss, imported late: training imports this package too, and needs neither the library nor its threads."""
    import faiss

    return faiss


def _candidates_by_product(values: np.ndarray, count: int, metric: str) -> np.ndarray:
    """int32 [N, count], the nearest points of each row of [N, D] by a float32 product with all, itself among them."""
    faiss = _faiss()
    by = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    candidates = np.empty((len(values), count), np.int32)
    with _searching(len(values)) as bar:
        for start in range(0, len(values), _QUERIES):
            part = slice(start, start + _QUERIES)
            candidates[part] = faiss.knn(values[part], values, count, metric=by)[1]
            bar.advance(len(values[part]))
    return candidates


def _candidates_by_cells(values: np.ndarray, count: int) -> np.ndarray:
    """int32 [N, count], points near each row of [N, D] by an inverted file, itself among them; -1 at the end.

    Distances are those of the first principal components. The points are divided among the cells around sqrt(N)
    centres, and only the cells nearest to a point are searched.
    """
    faiss = _faiss()
    if min(values.shape) > _COMPONENTS:
        projection = faiss.PCAMatrix(values.shape[1], _COMPONENTS)
        # Rows at equal steps, at most twice as many as are asked for.
        projection.train(values[:: max(1, len(values) // (_TRAIN * _COMPONENTS))])
        values = projection.apply(values)
    num_points, dim = values.shape
    num_cells = max(1, round(math.sqrt(num_points)))
    centres = faiss.Kmeans(dim, num_cells, niter=10, seed=0, min_points_per_centroid=1, max_points_per_centroid=_TRAIN)
    centres.train(values)
    index = faiss.IndexIVFFlat(centres.index, dim, num_cells)
    index.add(values)
    index.nprobe = min(_CELLS, num_cells)
    candidates = np.empty((num_points, count), np.int32)
    with _searching(num_points) as bar:
        for start in range(0, num_points, _QUERIES):
            part = values[start : start + _QUERIES]
            candidates[start : start + _QUERIES] = index.search(part, count)[1]
            bar.advance(len(part))
    return candidates


# --- on an accelerator


def _on_device(
    points: _Points, k: int, num_candidates: int, candidates: np.ndarray | None, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """`knn` in blocks of rows: among `candidates` int32 [N, M], or where None among those that a product finds."""
    num_points, dim = points.values.shape
    per_row = max(num_points if candidates is None else 0, num_candidates * max(dim, 64))
    block = min(num_points, max(1, _BLOCK // per_row))
    values_on_device, offset = jax.device_put(points.values), jax.device_put(points.offset)
    indices = np.empty((num_points, k), np.int32)
    values = np.empty((num_points, k), np.float32)
    with _searching(num_points) as bar:
        for start in range(0, num_points, block):
            # The last block starts earlier, so that all have one shape.
            rows = np.arange(min(start, num_points - block), min(start, num_points - block) + block, dtype=np.int32)
            if candidates is None:
                found = _nearest(values_on_device, offset, rows, k, num_candidates, metric)
            else:
                found = _nearest_of(values_on_device, rows, candidates[rows], k, metric)
            indices[rows], values[rows] = jax.device_get(found)
            bar.advance(min(block, num_points - start))
    return indices, values


@functools.partial(jax.jit, static_argnames=("k", "num_candidates", "metric"))
def _nearest(
    points: jax.Array, offset: jax.Array, rows: jax.Array, k: int, num_candidates: int, metric: str
) -> tuple[jax.Array, jax.Array]:
    """`knn` of rows int32 [B] among points [N, D]: closeness is the product minus the other point's offset [N]."""
    product = jnp.dot(points[rows], points.T, precision=jax.lax.Precision.HIGHEST)  # [B, N]
    closeness = product - offset[None, :]
    closeness = closeness.at[jnp.arange(len(rows)), rows].set(-jnp.inf)
    return _nearest_of(points, rows, _largest(closeness, num_candidates), k, metric)


@functools.partial(jax.jit, static_argnames=("k", "metric"))
def _nearest_of(
    points: jax.Array, rows: jax.Array, candidates: jax.Array, k: int, metric: str
) -> tuple[jax.Array, jax.Array]:
    """The k nearest of each row [B] among its candidates int32 [B, M]; -1 and the row itself are skipped."""
    near = jnp.sort(candidates, axis=1)  # by index, for ties
    query, others = points[rows][:, None], jax.lax.optimization_barrier(points[near])  # [B, 1, D], [B, M, D]
    closeness = jnp.sum(query * others, axis=2) if metric == "cosine" else -jnp.sum((query - others) ** 2, axis=2)
    closeness = jnp.where((near < 0) | (near == rows[:, None]), -jnp.inf, closeness)  # [B, M]
    value, place = jax.lax.top_k(closeness, k)
    value = value if metric == "cosine" else -value
    return jnp.where(jnp.isfinite(value), jnp.take_along_axis(near, place, axis=1), -1), value


def _largest(values: jax.Array, k: int) -> jax.Array:
    """Columns int32 [B, k] of the k largest of each row of [B, N], ties by index.

    In two steps where N is large: the k largest lie in the k groups of columns with the largest maxima.
    """
    size, width = values.shape
    group = 1 << max(0, round(math.log2(width / k) / 2))  # makes width / group + k * group, what is sorted, small
    if group < 4:
        return jax.lax.top_k(values, k)[1]
    num_groups = -(-width // group)
    padded = jnp.pad(values, ((0, 0), (0, num_groups * group - width)), constant_values=-jnp.inf)
    grouped = padded.reshape(size, num_groups, group)
    # By column, for ties.
    groups = jnp.sort(jax.lax.top_k(grouped.max(axis=2), k)[1], axis=1)  # [B, k]
    chosen = jnp.take_along_axis(grouped, groups[:, :, None], axis=1).reshape(size, k * group)
    place = jax.lax.top_k(chosen, k)[1]  # [B, k]
    return jnp.take_along_axis(groups, place // group, axis=1) * group + place % group
