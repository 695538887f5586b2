"""A linear unit a label in closed form: ridge regression, chosen by held-out scores, its scores made logits."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.kernels import folds, nystrom, ridge
from jaxmlic.metrics import average_precision
from jaxmlic.metrics.calibration import fit_platt

RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
EXACT_LIMIT = 3_000  # images whose matrix N x N is made
_FOLDS = 9
_LEAST_SLOPE = 1e-3  # of a logit by the score: their order stays


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """The linear unit of one label.

    Attributes:
      kernel: float32 [D].
      bias: of its logit.
      ridge: the chosen one, in units of the vectors' mean squared distance from their mean.
      average_precision: of the held-out scores.
    """

    kernel: np.ndarray
    bias: float
    ridge: float
    average_precision: float


def fit(vectors: np.ndarray, labels: np.ndarray, seed: int = 0, ridges: Sequence[float] = RIDGES) -> Unit:
    """The unit of a label from examples.

    (w, b) has the least |y - x w - b|^2 + ridge s^2 |w|^2, s^2 the mean of |x - mean|^2; the ridge is the one with the
    best average precision of held-out scores, of each image by a fit without it (of parts of a ninth above EXACT_LIMIT
    images). By these scores, too, slope and offset of the logit are fitted (Platt).

    Args:
      vectors: float [N, D].
      labels: int8 [N] in {1, 0, -1}; unknown ones (-1) count nowhere. Two positives and a negative or more.
      seed: of the parts.
      ridges: to choose from, above 0.
    """
    vectors, labels = vectors[labels >= 0].astype(np.float64), labels[labels >= 0, None]
    centre = vectors.mean(axis=0)
    size = np.sqrt(np.maximum(((vectors - centre) ** 2).sum(axis=1).mean(), 1e-24))
    points = jnp.asarray((vectors - centre) / size, jnp.float32)
    if len(labels) <= EXACT_LIMIT:
        found = ridge.select(points, labels, folds.folds_of(len(labels), 0, seed), "linear", (1.0,), ridges)
        dual = ridge.fit(points, folds.targets(labels), "linear", 1.0, found.ridge)
        weights = jnp.dot(points.T, dual, precision=jax.lax.Precision.HIGHEST)
    else:
        directions = np.eye(points.shape[1], dtype=np.float32)
        fold_of = folds.folds_of(len(labels), _FOLDS, seed)
        found = nystrom.select(points, directions, labels, fold_of, "linear", (1.0,), ridges)
        weights = found.dual
    slope, offset = fit_platt(found.scores, labels)
    slope = max(slope, _LEAST_SLOPE)
    kernel = slope * np.asarray(weights, np.float64)[:, 0] / size
    bias = slope * float(folds.class_means(labels)[0]) + offset - float(centre @ kernel)
    held_out = float(average_precision(found.scores, labels)[0])
    return Unit(kernel.astype(np.float32), bias, found.ridge, held_out)
