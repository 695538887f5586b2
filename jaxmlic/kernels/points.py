"""Descriptors of images as points, whose squared distance is the weighted mean of the descriptors' distances.

The distance of one descriptor is divided by its mean over the training images, so that descriptors of different size
and spread count by their weights alone:

    d(x, y) = sum_m w_m |x_m - y_m|^2 / mean_m,   sum_m w_m = 1.

Each part of a point is its descriptor times sqrt(w_m / mean_m), so d is the squared distance of points, and kernels,
neighbours and products of it need no descriptor any more. With `unit` the descriptors are divided by their length
first, and |x_m - y_m|^2 is 2 - 2 cos.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Embedding:
    """How descriptors become points; numbers of the training images.

    Attributes:
      centre, scale: float32 [D], a descriptor becomes (x - centre) * scale, before it is divided by its length.
      factor: float32 [M], what each descriptor is multiplied by in the end.
    """

    centre: jax.Array
    scale: jax.Array
    factor: jax.Array


def fit_embedding(
    descriptors: Sequence[np.ndarray],
    weights: Sequence[float] = (),
    *,
    unit: bool,
    standardise: Sequence[bool] = (),
) -> Embedding:
    """The embedding of training images.

    Args:
      descriptors: M arrays float [N, D_m].
      weights: of the descriptors, M numbers above 0; () for equal ones.
      unit: descriptors are compared by direction: distances 2 - 2 cos.
      standardise: for each descriptor whether each of its numbers is shifted and scaled to mean 0 and deviation 1 over
        the images; () for none. Without `unit` all descriptors are shifted to mean 0, which leaves distances as they
        are.
    """
    standardise = tuple(standardise) or (False,) * len(descriptors)
    share = np.asarray(weights or np.ones(len(descriptors)), np.float64)
    if share.shape != (len(descriptors),) or not (share > 0).all():
        raise ValueError(f"{len(descriptors)} descriptors need as many weights above 0, not {tuple(weights)}")
    share = share / share.sum()
    centres, scales, factors = [], [], []
    for values, scaled, weight in zip(descriptors, standardise, share, strict=True):
        values = np.asarray(values, np.float64)
        centre = values.mean(0) if scaled or not unit else np.zeros(values.shape[1])
        deviation = values.std(0) if scaled else np.ones(values.shape[1])
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-6 * np.abs(centre))
        centred = (values - centre) * scale
        if unit:
            length = np.linalg.norm(centred, axis=1, keepdims=True)
            centred = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
        # The mean of |x - y|^2 over all pairs of images, each with itself among them.
        mean = 2 * ((centred**2).sum(1).mean() - (centred.mean(0) ** 2).sum())
        factors.append(np.sqrt(weight / mean) if mean > 1e-12 else 0.0)
        centres.append(centre)
        scales.append(scale)
    whole = (np.concatenate(centres), np.concatenate(scales), np.array(factors))
    return Embedding(*(x.astype(np.float32) for x in whole))


def embed(embedding: Embedding, descriptors: Sequence[jax.Array], *, unit: bool) -> jax.Array:
    """Points float32 [N, D] of descriptors [N, D_m]; see `fit_embedding`. A descriptor of zeros stays one."""
    parts, start = [], 0
    for number, values in enumerate(descriptors):
        own = slice(start, start + values.shape[1])
        start = own.stop
        part = (values.astype(jnp.float32) - embedding.centre[None, own]) * embedding.scale[None, own]
        if unit:
            length = jnp.linalg.norm(part, axis=1, keepdims=True)
            part = part / jnp.where(length > 0, length, 1.0)
        parts.append(part * embedding.factor[number])
    return jnp.concatenate(parts, axis=1)
