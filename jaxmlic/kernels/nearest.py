"""Labels from the nearest training images: the two passes of 2PKNN, and the neighbours that TagProp weighs.

2PKNN is that of Verma and Jawahar (Image Annotation Using Metric Learning in Semantic Neighbourhoods, ECCV 2012),
without its learned metric. Pass one takes for each label the nearest images that have it, so that rare labels are among
the neighbours too; pass two sums exp(-bandwidth d) over the neighbours with a label.
"""

import functools

import jax
import jax.numpy as jnp

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
    return jax.lax.map(one, (queries, _places(points, queries, own)), batch_size=size)


@jax.jit
def two_pass(
    points: jax.Array,
    positive: jax.Array,
    queries: jax.Array,
    group_size: jax.typing.ArrayLike,
    bandwidths: jax.Array,
    own: jax.Array | None = None,
) -> jax.Array:
    """Scores of 2PKNN float32 [Q, S, C], at least 0, for each of S bandwidths.

    Args:
      points: [N, D].
      positive: bool [N, C], the labels of the points; unknown ones are absent.
      queries: [Q, D].
      group_size: K1, images that pass one takes of each label; ties by index.
      bandwidths: float32 [S], of the second pass.
      own: as of `nearest`.
    """

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        query, place = row
        distance = squared_distances(query[None], points)[0]
        distance = distance.at[place].set(jnp.inf, mode="drop")
        order = jnp.argsort(distance, stable=True)
        sorted_labels = positive[order]  # [N, C]
        among = sorted_labels & (jnp.cumsum(sorted_labels, axis=0, dtype=jnp.int32) <= group_size)
        weight = jnp.exp(-bandwidths[:, None] * distance[order][None]) * among.any(axis=1)[None]  # [S, N]
        return jnp.dot(weight, sorted_labels.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

    size = max(1, min(len(queries), BLOCK // positive.size))
    return jax.lax.map(one, (queries, _places(points, queries, own)), batch_size=size)


def _places(points: jax.Array, queries: jax.Array, own: jax.Array | None) -> jax.Array:
    """`own`, or a place behind the last point for each query."""
    return jnp.full(len(queries), len(points), jnp.int32) if own is None else jnp.asarray(own, jnp.int32)
