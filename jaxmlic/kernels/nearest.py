"""Labels from the nearest training images: the two passes of 2PKNN, and the neighbours that TagProp weighs.

2PKNN is that of Verma and Jawahar (Image Annotation Using Metric Learning in Semantic Neighbourhoods, ECCV 2012),
without its learned metric. Pass one takes for each label the nearest images that have it, so that rare labels are among
the neighbours too; pass two sums exp(-bandwidth d) over the neighbours with a label.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.kernels.functions import BLOCK, squared_distances


@functools.partial(jax.jit, static_argnames="count")
def nearest(
    points: jax.Array, queries: jax.Array, count: int, own: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The nearest points of each query: int32 [Q, K] and squared distances float32 [Q, K], ties by index.

    Args:
      points: [N, D].
      queries: [Q, D].
      count: K, below N where `own` is given.
      own: int32 [Q], the point that each query is, which is left out; None where queries are no points.
    """

    def one(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        query, place = row
        distance = squared_distances(query[None], points)[0]
        distance = distance.at[place].set(jnp.inf, mode="drop")
        closeness, found = jax.lax.top_k(-distance, count)
        return found, -closeness

    size = max(1, min(len(queries), BLOCK // len(points)))
    # A place behind the last point stands for none.
    places = jnp.full(len(queries), len(points), jnp.int32) if own is None else jnp.asarray(own, jnp.int32)
    return jax.lax.map(one, (queries, places), batch_size=size)


@jax.jit
def two_pass(
    points: jax.Array,
    positive: jax.Array,
    queries: jax.Array,
    group_size: jax.typing.ArrayLike,
    bandwidths: jax.Array,
) -> jax.Array:
    """Scores of 2PKNN float32 [Q, S, C], at least 0, for each of S bandwidths.

    Args:
      points: [N, D].
      positive: bool [N, C], the labels of the points; unknown ones are absent.
      queries: [Q, D].
      group_size: K1, images that pass one takes of each label; ties by index.
      bandwidths: float32 [S], of the second pass.
    """

    positive = jnp.asarray(positive)

    def one(query: jax.Array) -> jax.Array:
        distance = squared_distances(query[None], points)[0]
        order = jnp.argsort(distance, stable=True)
        rank = jnp.zeros(len(points), jnp.int32).at[order].set(jnp.arange(len(points), dtype=jnp.int32))[:, None]

        def further(_: int, last: jax.Array) -> jax.Array:
            """int32 [C]: of each label the rank of the next image that has it, N where there is none."""
            return jnp.min(rank, axis=0, where=positive & (rank > last[None]), initial=len(points))

        last = jax.lax.fori_loop(0, jnp.int32(group_size), further, jnp.full(positive.shape[1], -1, jnp.int32))
        among = jnp.any(positive & (rank <= last[None]), axis=1)
        weight = jnp.exp(-bandwidths[:, None] * distance[None]) * among[None]  # [S, N]
        return jnp.dot(weight, positive.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

    size = max(1, min(len(queries), BLOCK // positive.size))
    return jax.lax.map(one, queries, batch_size=size)


def two_pass_held_out(
    points: jax.Array, positive: np.ndarray, group_sizes: Sequence[int], bandwidths: np.ndarray, rows: int = 512
) -> np.ndarray:
    """`two_pass` of every point by all others, float32 [G, S, N, C] for G group sizes and S bandwidths.

    On the host, label by label: of N images it compares only those that have the label, which for many labels is a
    small part of what the jitted function reads. rows: queries at a time.
    """
    members = [np.flatnonzero(column) for column in np.asarray(positive).T]
    values = np.asarray(positive, np.float32)
    scores = np.zeros((len(group_sizes), len(bandwidths), *values.shape), np.float32)
    for start in range(0, len(points), rows):
        part = np.arange(start, min(start + rows, len(points)))
        distance = np.array(_pairwise(points[part], points))
        distance[np.arange(len(part)), part] = np.inf
        among = np.zeros((len(group_sizes), *distance.shape), bool)
        for own in members:
            order = own[np.argsort(distance[:, own], axis=1, kind="stable")[:, : max(group_sizes)]]
            for chosen, size in zip(among, group_sizes, strict=True):
                np.put_along_axis(chosen, order[:, :size], True, axis=1)
        for width, out in zip(bandwidths, scores.swapaxes(0, 1), strict=True):
            weight = np.exp(-width * distance)
            out[:, part] = (weight[None] * among) @ values
    return scores


_pairwise = jax.jit(squared_distances)
