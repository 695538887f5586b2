"""Kernels of points, and their products with other matrices in blocks of rows, so that memory is bounded."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

BLOCK = 1 << 24  # numbers of the kernel that a blocked product holds at a time: 64 MB
_EXACT = jax.lax.Precision.HIGHEST


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 [A, B] of points [A, D] and [B, D], at least 0."""
    lengths = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    return jnp.maximum(lengths - 2 * jnp.dot(a, b.T, precision=_EXACT), 0.0)


def _linear(a: jax.Array, b: jax.Array, bandwidth: jax.Array) -> jax.Array:
    return bandwidth * jnp.dot(a, b.T, precision=_EXACT)


def _exp(a: jax.Array, b: jax.Array, bandwidth: jax.Array) -> jax.Array:
    return jnp.exp(-bandwidth * squared_distances(a, b))


# By name: (points [A, D], points [B, D], bandwidth []) -> [A, B].
KERNELS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {"linear": _linear, "exp": _exp}


@functools.partial(jax.jit, static_argnames="name")
def kernel(a: jax.Array, b: jax.Array, name: str, bandwidth: jax.typing.ArrayLike) -> jax.Array:
    """The kernel float32 [A, B] of points [A, D] and [B, D].

    name: "linear", bandwidth times the product, or "exp", exp(-bandwidth |x - y|^2): a Gaussian (RBF) of the distance.
    """
    return KERNELS[name](a, b, jnp.float32(bandwidth))


@functools.partial(jax.jit, static_argnames=("name", "block"))
def product(
    a: jax.Array, b: jax.Array, right: jax.Array, name: str, bandwidth: jax.typing.ArrayLike, block: int = BLOCK
) -> jax.Array:
    """kernel(a, b) @ right float32 [A, C] of points [A, D], [B, D] and [B, C], without holding the kernel.

    block: the most numbers of the kernel that are held at a time; one row at least.
    """
    rows = min(len(a), max(1, block // len(b)))
    count = -(-len(a) // rows)
    padded = jnp.pad(a, ((0, count * rows - len(a)), (0, 0))).reshape(count, rows, -1)
    parts = jax.lax.map(
        lambda part: jnp.dot(KERNELS[name](part, b, jnp.float32(bandwidth)), right, precision=_EXACT), padded
    )
    return parts.reshape(count * rows, -1)[: len(a)]
