"""Kernel ridge regression without a kernel matrix: conjugate gradients on blocked products, for many images.

The system (K + ridge I) X = Z is preconditioned by a Nystrom approximation of K from some of the images (Frangella,
Tropp and Udell, Randomized Nystrom Preconditioning, 2021): without it the number of steps grows with the root of the
largest eigenvalue, which grows with the number of images.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.kernels.functions import BLOCK, kernel, product
from jaxmlic.kernels.ridge import class_means, targets

LANDMARKS = 1000  # images that the preconditioner is made from
_EXACT = jax.lax.Precision.HIGHEST


def solve(
    points: jax.Array,
    right: jax.Array,
    name: str,
    bandwidth: float,
    ridge: float,
    *,
    members: np.ndarray | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 500,
    landmarks: int = LANDMARKS,
    seed: int = 0,
    block: int = BLOCK,
) -> tuple[jax.Array, int]:
    """(K + ridge I)^-1 right, float32 [N, C], and the number of steps.

    Args:
      points: [N, D].
      right: float32 [N, C].
      name, bandwidth: of the kernel.
      ridge: above 0.
      members: bool [N]; the system of these images alone, the solution is 0 at the others. None for all.
      tolerance: relative residual of a column at which it is solved.
      max_steps: at which it ends all the same.
      landmarks, seed: images of the preconditioner, and of their draw; 0 for none.
      block: see `product`.
    """
    inside = np.ones(len(points), bool) if members is None else np.asarray(members)
    count = min(landmarks, int(inside.sum()))
    if count:
        rows = np.random.default_rng(seed).choice(np.flatnonzero(inside), count, replace=False)
        basis, values = _nystrom(points, np.sort(rows), name, bandwidth, block)
    else:
        basis, values = jnp.zeros((len(points), 1)), jnp.zeros(1)
    found, steps = _conjugate_gradients(
        points, right, inside, basis, values, name, bandwidth, ridge, tolerance, max_steps, block
    )
    return found, int(steps)


@functools.partial(jax.jit, static_argnames=("name", "block"))
def _nystrom(
    points: jax.Array, rows: jax.Array, name: str, bandwidth: jax.typing.ArrayLike, block: int
) -> tuple[jax.Array, jax.Array]:
    """(U [N, M], values [M]) of the approximation U diag(values) U' of the kernel, from images int [M]."""
    own = kernel(points[rows], points[rows], name, bandwidth)
    shift = 1e-5 * jnp.trace(own) / len(rows)
    values, vectors = jnp.linalg.eigh(own)
    root = vectors / jnp.sqrt(jnp.maximum(values, 0.0) + shift)[None, :]
    half = product(points, points[rows], root, name, bandwidth, block)  # [N, M], K ~ half half'
    squares, rotation = jnp.linalg.eigh(jnp.dot(half.T, half, precision=_EXACT))
    kept = squares > 1e-6 * squares[-1]
    scale = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, squares, 1.0)), 0.0)
    return jnp.dot(half, rotation, precision=_EXACT) * scale[None, :], jnp.where(kept, squares, 0.0)


@functools.partial(jax.jit, static_argnames=("name", "block"))
def _conjugate_gradients(
    points: jax.Array,
    right: jax.Array,
    inside: jax.Array,
    basis: jax.Array,
    values: jax.Array,
    name: str,
    bandwidth: jax.typing.ArrayLike,
    ridge: jax.typing.ArrayLike,
    tolerance: jax.typing.ArrayLike,
    max_steps: jax.typing.ArrayLike,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    """All columns at once, each with its own step lengths and its own end."""
    mask = inside.astype(jnp.float32)[:, None]
    rest = values.min() + ridge  # what stands for the eigenvalues outside the basis
    gain = rest / (values + ridge) - 1.0  # [M]

    def precondition(residual: jax.Array) -> jax.Array:
        inner = jnp.dot(basis.T, residual, precision=_EXACT) * gain[:, None]
        return mask * (residual + jnp.dot(basis, inner, precision=_EXACT))

    def step(carry: tuple) -> tuple:
        solution, residual, direction, strength, number = carry
        image = mask * (product(points, points, direction, name, bandwidth, block) + ridge * direction)
        active = jnp.sum(residual**2, axis=0) > goal
        curvature = jnp.sum(direction * image, axis=0)
        length = jnp.where(active, strength / jnp.where(curvature > 0, curvature, 1.0), 0.0)[None, :]
        solution, residual = solution + length * direction, residual - length * image
        better = precondition(residual)
        new = jnp.sum(residual * better, axis=0)
        share = jnp.where(active, new / jnp.where(strength > 0, strength, 1.0), 0.0)[None, :]
        return solution, residual, better + share * direction, jnp.where(active, new, strength), number + 1

    def unsolved(carry: tuple) -> jax.Array:
        return (carry[-1] < max_steps) & jnp.any(jnp.sum(carry[1] ** 2, axis=0) > goal)

    right = mask * right
    goal = tolerance**2 * jnp.sum(right**2, axis=0)
    first = precondition(right)
    start = (jnp.zeros_like(right), right, first, jnp.sum(right * first, axis=0), jnp.int32(0))
    solution, *_, number = jax.lax.while_loop(unsolved, step, start)
    return solution, number


def out_of_fold(
    points: jax.Array,
    labels: np.ndarray,
    fold_of: np.ndarray,
    name: str,
    bandwidth: float,
    ridge: float,
    report: Callable[[], None] = lambda: None,
    **options: float,
) -> np.ndarray:
    """As `ridge.out_of_fold`, by one solution for each fold: scores float32 [N, C].

    report: called after each fold. options: of `solve`.
    """
    block = options.get("block", BLOCK)
    scores = np.zeros(labels.shape, np.float32)
    for fold in np.unique(fold_of):
        own = fold_of == fold
        hidden = np.where(own[:, None], np.int8(-1), labels)
        dual, _ = solve(points, targets(hidden), name, bandwidth, ridge, members=~own, **options)
        held = product(points[np.flatnonzero(own)], points, dual, name, bandwidth, block)
        scores[own] = np.asarray(held) + class_means(hidden)[None]
        report()
    return scores
