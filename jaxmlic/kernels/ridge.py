"""Kernel ridge regression of labels in closed form, with exact scores of held-out images.

Each class is a least-squares problem on targets z (see `folds`): the dual coefficients are G z, G = (K + ridge I)^-1,
and scores the class means plus K(x, train) G z.

One Cholesky factor, inverted, serves all folds of a ridge. Scores of the images b of a fold, as if the fit, its
means among it, had never seen them, are

    z_b - (G_bb)^-1 (G z)_b + mean, of targets z made with the mean of the other images,

exactly what refitting without the fold gives (only the embedding of the points has seen all images, not their labels).
An eigendecomposition would serve every ridge of a bandwidth, but takes as long as several factors.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.kernels.folds import Folds, mean_ap
from jaxmlic.kernels.functions import kernel, product

_EXACT = jax.lax.Precision.HIGHEST


class Selection(NamedTuple):
    """The ridge and bandwidth with the best mean average precision of held-out images.

    Attributes:
      ridge, bandwidth: the ones chosen.
      scores: float32 [N, C] of each image by the fit to the images of the other folds.
      grid: (bandwidth, ridge, mAP) of each that was tried; NaN where no class has a positive or float32 gave way.
    """

    ridge: float
    bandwidth: float
    scores: np.ndarray
    grid: list[tuple[float, float, float]]


@functools.partial(jax.jit, static_argnames="name")
def fit(
    points: jax.Array,
    right: jax.Array,
    name: str,
    bandwidth: jax.typing.ArrayLike,
    ridge: jax.typing.ArrayLike,
) -> jax.Array:
    """The dual coefficients float32 [N, C] of `targets`, `right` float32 [N, C].

    Two rounds of iterative refinement take away most of what a float32 factor loses where the ridge is small; NaN where
    it finds the system not definite.
    """
    factor = _factor(kernel(points, points, name, bandwidth), ridge)
    dual = jax.scipy.linalg.cho_solve(factor, right)
    for _ in range(2):
        residual = right - product(points, points, dual, name, bandwidth) - ridge * dual
        dual = dual + jax.scipy.linalg.cho_solve(factor, residual)
    return dual


def select(
    points: jax.Array,
    labels: np.ndarray,
    fold_of: np.ndarray,
    name: str,
    bandwidths: Sequence[float],
    ridges: Sequence[float],
    report: Callable[[], None] = lambda: None,
) -> Selection:
    """The best of all pairs by the mAP of held-out images; of equal ones the first. Test images have no part in it.

    The mAP is the mean over the classes with a positive. Ridges are above 0.

    report: called after each bandwidth.
    """
    folds, grid, best = Folds(labels, fold_of), [], None
    for bandwidth in bandwidths:
        found = kernel(points, points, name, bandwidth)
        for ridge in ridges:
            scores = folds.scores(np.asarray(_held_out(found, folds.right, folds.members, ridge)))
            value = mean_ap(scores, labels)
            grid.append((float(bandwidth), float(ridge), value))
            if best is None or np.nan_to_num(value, nan=-1.0) > np.nan_to_num(best[0], nan=-1.0):
                best = (value, Selection(float(ridge), float(bandwidth), scores, grid))
        del found
        report()
    return best[1]


def _factor(matrix: jax.Array, ridge: jax.typing.ArrayLike) -> tuple[jax.Array, bool]:
    return jax.scipy.linalg.cho_factor(matrix + ridge * jnp.eye(len(matrix)), lower=True)


@jax.jit
def _held_out(matrix: jax.Array, right: jax.Array, members: jax.Array, ridge: jax.typing.ArrayLike) -> jax.Array:
    """K_b,-b (K_-b,-b + ridge I)^-1 right_-b for each fold b, [N, C]. members: int32 [F, B], padded with -1.

    matrix: the kernel [N, N].
    """
    # R with G = R' R: of G itself only the blocks of the folds are made.
    root = jax.scipy.linalg.solve_triangular(_factor(matrix, ridge)[0], jnp.eye(len(matrix)), lower=True)
    solved = jnp.dot(root.T, jnp.dot(root, right, precision=_EXACT), precision=_EXACT)
    if members.shape[1] == 1:
        return right - solved / jnp.sum(root * root, axis=0)[:, None]

    def one(rows: jax.Array) -> jax.Array:
        there = rows >= 0
        columns = jnp.where(there[None], root[:, rows], 0.0)  # [N, B]
        block = jnp.dot(columns.T, columns, precision=_EXACT) + jnp.diag(1.0 - there)
        factor = jax.scipy.linalg.cho_factor(block, lower=True)
        return right[rows] - jax.scipy.linalg.cho_solve(factor, jnp.where(there[:, None], solved[rows], 0.0))

    held = jax.lax.map(one, members)  # [F, B, C]
    flat = members.reshape(-1)
    # Padding goes to a row that is cut off.
    out = jnp.zeros((len(right) + 1, right.shape[1]), right.dtype)
    return out.at[jnp.where(flat < 0, len(right), flat)].set(held.reshape(len(flat), -1))[:-1]
