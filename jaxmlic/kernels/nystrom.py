"""Kernel ridge regression for many images: least squares on the features of landmarks, without a matrix N x N.

With landmarks Z, M images of train, the features

    phi(x) = k(x, Z) U diag(s)^(-1/2),   k(Z, Z) = U diag(s) U',

have products that approach the kernel (Nystrom; Williams and Seeger, Using the Nystrom Method to Speed Up Kernel
Machines, 2001), and equal it where all images are landmarks. The classifier is the ridge regression on them. Its system
is a sum over images, so that of all folds but one is the sum less the fold's own share: held-out scores are exact, as
if the fit had never seen them. Memory grows with N (D + C) + F M^2, the classifier with M (D + C), time with N M^2.

The linear kernel needs no landmarks: with the D unit vectors in their place the features are the points themselves.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.kernels.folds import Folds, mean_ap
from jaxmlic.kernels.functions import BLOCK, kernel, product

_EXACT = jax.lax.Precision.HIGHEST
_LEAST = 1e-6  # of the largest eigenvalue of k(Z, Z): below it float32 tells nothing


class Fit(NamedTuple):
    """The ridge and bandwidth with the best mean average precision of held-out images, and the classifier.

    Attributes:
      ridge, bandwidth: the ones chosen.
      scores: float32 [N, C] of the held-out images.
      grid: (bandwidth, ridge, mAP) of each that was tried; NaN where no class has a positive or float32 gave way.
      dual: float32 [M, C]: scores are the class means plus k(x, landmarks) dual.
    """

    ridge: float
    bandwidth: float
    scores: np.ndarray
    grid: list[tuple[float, float, float]]
    dual: jax.Array


def select(
    points: jax.Array,
    landmarks: jax.Array,
    labels: np.ndarray,
    fold_of: np.ndarray,
    name: str,
    bandwidths: Sequence[float],
    ridges: Sequence[float],
    report: Callable[[], None] = lambda: None,
) -> Fit:
    """The best of all pairs by the mAP of held-out images, of equal ones the first, fitted to all images.

    Args:
      points: [N, D].
      landmarks: [M, D], some of them; the unit vectors [D, D] for the linear kernel.
      labels: int8 [N, C] in {1, 0, -1}.
      fold_of: int [N], see `folds.folds_of`.
      name: of the kernel, see `functions.KERNELS`.
      bandwidths, ridges: above 0.
      report: called after each fold of each bandwidth.
    """
    folds, grid, best = Folds(labels, fold_of), [], None
    alphas = np.asarray(ridges, np.float32)
    for bandwidth in bandwidths:
        root = _root(landmarks, name, bandwidth)
        parts = [_moments(points, rows, folds.right, landmarks, root, name, bandwidth) for rows in folds.members]
        whole = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
        held = np.zeros((len(ridges), *folds.right.shape), np.float32)
        for rows, own in zip(folds.members, parts, strict=True):
            solved = _solutions(*jax.tree.map(jnp.subtract, whole, own), root, alphas)  # [L, M, K]
            for number, dual in enumerate(solved):
                found = product(points[rows], landmarks, dual, name, bandwidth)
                held[number, rows[rows >= 0]] = np.asarray(found)[rows >= 0]
            report()
        for number, ridge in enumerate(ridges):
            scores = folds.scores(held[number])
            value = mean_ap(scores, labels)
            grid.append((float(bandwidth), float(ridge), value))
            if best is None or np.nan_to_num(value, nan=-1.0) > np.nan_to_num(best[0], nan=-1.0):
                dual = folds.of_targets(_solutions(*whole, root, alphas[number : number + 1])[0])
                best = (value, Fit(float(ridge), float(bandwidth), scores, grid, dual))
    return best[1]


@functools.partial(jax.jit, static_argnames="name")
def _root(landmarks: jax.Array, name: str, bandwidth: jax.typing.ArrayLike) -> jax.Array:
    """U diag(s)^(-1/2) [M, M] of the landmarks' kernel; 0 in place of directions that float32 cannot tell from 0."""
    values, vectors = jnp.linalg.eigh(kernel(landmarks, landmarks, name, bandwidth))
    kept = values > _LEAST * values[-1]
    return vectors * jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1.0)), 0.0)[None, :]


@functools.partial(jax.jit, static_argnames=("name", "block"))
def _moments(
    points: jax.Array,
    rows: jax.Array,
    right: jax.Array,
    landmarks: jax.Array,
    root: jax.Array,
    name: str,
    bandwidth: jax.typing.ArrayLike,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """(phi' phi [M, M], phi' right [M, K]) of some images, rows int32 [B] padded with -1; right [N, K] of all."""
    size = min(len(rows), max(1, block // len(landmarks)))
    rows = jnp.pad(rows, (0, -len(rows) % size), constant_values=-1).reshape(-1, size)

    def add(sums: tuple[jax.Array, jax.Array], part: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        features = jnp.dot(kernel(points[part], landmarks, name, bandwidth), root, precision=_EXACT)
        features = jnp.where((part >= 0)[:, None], features, 0.0)
        grown = (jnp.dot(features.T, x, precision=_EXACT) for x in (features, right[part]))
        return tuple(a + b for a, b in zip(sums, grown, strict=True)), None

    count = root.shape[1]
    return jax.lax.scan(add, (jnp.zeros((count, count)), jnp.zeros((count, right.shape[1]))), rows)[0]


@jax.jit
def _solutions(gram: jax.Array, moment: jax.Array, root: jax.Array, ridges: jax.Array) -> jax.Array:
    """root (gram + ridge I)^-1 moment of each ridge, [L, M, K]; NaN where float32 finds the system not definite."""

    def one(ridge: jax.Array) -> jax.Array:
        factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(len(gram)), lower=True)
        return jnp.dot(root, jax.scipy.linalg.cho_solve(factor, moment), precision=_EXACT)

    return jax.lax.map(one, ridges)
