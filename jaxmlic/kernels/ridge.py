"""Kernel ridge regression of labels in closed form, with exact scores of held-out images.

Each class is a least-squares problem on targets z (see `folds`): the dual coefficients are G z, G = (K + ridge I)^-1,
and scores the class means plus K(x, train) G z.

One eigendecomposition K = Q diag(e) Q' serves every ridge: G = Q diag(1 / (e + ridge)) Q'. Scores of the images b of a
fold, as if the fit, its means among it, had never seen them, are

    z_b - (G_bb)^-1 (G z)_b + mean, of targets z made with the mean of the other images,

exactly what refitting without the fold gives (only the embedding of the points has seen all images, not their labels).
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


class Spectrum(NamedTuple):
    """Eigenvalues float32 [N], at least 0, and eigenvectors [N, N] of a kernel."""

    values: jax.Array
    vectors: jax.Array


class Selection(NamedTuple):
    """The ridge and bandwidth with the best mean average precision of held-out images.

    Attributes:
      ridge, bandwidth: the ones chosen.
      scores: float32 [N, C] of the held-out images, see `out_of_fold`.
      grid: (bandwidth, ridge, mAP) of each that was tried; NaN where no class has a positive.
      spectrum: of the kernel with this bandwidth.
    """

    ridge: float
    bandwidth: float
    scores: np.ndarray
    grid: list[tuple[float, float, float]]
    spectrum: Spectrum


@functools.partial(jax.jit, static_argnames="name")
def spectrum(points: jax.Array, name: str, bandwidth: jax.typing.ArrayLike) -> Spectrum:
    """Of the kernel of points [N, D] with themselves."""
    values, vectors = jnp.linalg.eigh(kernel(points, points, name, bandwidth))
    return Spectrum(jnp.maximum(values, 0.0), vectors)


@jax.jit
def solve(found: Spectrum, right: jax.Array, ridge: jax.typing.ArrayLike) -> jax.Array:
    """(K + ridge I)^-1 right, float32 [N, C]."""
    rotated = jnp.dot(found.vectors.T, right, precision=_EXACT)
    return jnp.dot(found.vectors, rotated / (found.values + ridge)[:, None], precision=_EXACT)


@functools.partial(jax.jit, static_argnames="name")
def fit(
    points: jax.Array,
    right: jax.Array,
    found: Spectrum,
    name: str,
    bandwidth: jax.typing.ArrayLike,
    ridge: jax.typing.ArrayLike,
) -> jax.Array:
    """The dual coefficients float32 [N, C] of `targets`, `right` float32 [N, C].

    Two rounds of iterative refinement take away most of what float32 eigenvectors lose where the ridge is small.
    """
    dual = solve(found, right, ridge)
    for _ in range(2):
        residual = right - product(points, points, dual, name, bandwidth) - ridge * dual
        dual = dual + solve(found, residual, ridge)
    return dual


def out_of_fold(found: Spectrum, labels: np.ndarray, fold_of: np.ndarray, ridge: float) -> np.ndarray:
    """Scores float32 [N, C] of each image by the fit to the images of the other folds, without refitting.

    Args:
      found: spectrum of the kernel of all N images.
      labels: int8 [N, C] in {1, 0, -1}.
      fold_of: int [N], see `folds_of`.
      ridge: above 0.
    """
    folds = Folds(labels, fold_of)
    return folds.scores(np.asarray(_held_out(found, folds.right, folds.members, ridge)))


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

    The mAP is the mean over the classes with a positive. One eigendecomposition a bandwidth; ridges are above 0.

    report: called after each bandwidth.
    """
    folds, grid, best = Folds(labels, fold_of), [], None
    for bandwidth in bandwidths:
        found = spectrum(points, name, bandwidth)
        for ridge in ridges:
            scores = folds.scores(np.asarray(_held_out(found, folds.right, folds.members, ridge)))
            value = mean_ap(scores, labels)
            grid.append((float(bandwidth), float(ridge), value))
            if best is None or np.nan_to_num(value, nan=-1.0) > np.nan_to_num(best[0], nan=-1.0):
                best = (value, Selection(float(ridge), float(bandwidth), scores, grid, found))
        del found
        report()
    return best[1]


@jax.jit
def _held_out(found: Spectrum, right: jax.Array, members: jax.Array, ridge: jax.typing.ArrayLike) -> jax.Array:
    """K_b,-b (K_-b,-b + ridge I)^-1 right_-b for each fold b, [N, C]. members: int32 [F, B], padded with -1."""
    inverse = 1.0 / (found.values + ridge)
    solved = solve(found, right, ridge)
    if members.shape[1] == 1:
        diagonal = jnp.sum(found.vectors**2 * inverse[None, :], axis=1)
        return right - solved / diagonal[:, None]

    def one(rows: jax.Array) -> jax.Array:
        there = rows >= 0
        vectors = jnp.where(there[:, None], found.vectors[rows], 0.0)  # [B, N]
        block = jnp.dot(vectors * inverse[None, :], vectors.T, precision=_EXACT) + jnp.diag(1.0 - there)
        factor = jax.scipy.linalg.cho_factor(block, lower=True)
        return right[rows] - jax.scipy.linalg.cho_solve(factor, jnp.where(there[:, None], solved[rows], 0.0))

    held = jax.lax.map(one, members)  # [F, B, C]
    flat = members.reshape(-1)
    # Padding goes to a row that is cut off.
    out = jnp.zeros((len(right) + 1, right.shape[1]), right.dtype)
    return out.at[jnp.where(flat < 0, len(right), flat)].set(held.reshape(len(flat), -1))[:-1]
