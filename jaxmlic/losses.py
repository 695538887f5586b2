"""Losses under one contract: logits [..., C] and labels [..., C] in {1, 0, -1} -> one value per example.

-1 is unknown: it contributes nothing to the value or the gradient. The caller reduces over examples.
"""

import chex
import jax
import jax.numpy as jnp


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Independent sigmoid cross-entropy, summed over the known labels of an example and divided by C.

    Args:
      logits: float [..., C]; computed in float32 whatever the dtype.
      labels: int [..., C], 1 present, 0 absent, -1 unknown.

    Returns:
      float32 [...]: the mean over classes, with 0 for an unknown label (so that an example weighs as much as it knows).
    """
    chex.assert_equal_shape([logits, labels])
    logits = logits.astype(jnp.float32)
    sign = 2.0 * (labels == 1) - 1.0
    # -log sigmoid(+-z) = softplus(-+z): one stable term for both cases.
    return jnp.mean(jnp.where(labels == -1, 0.0, jax.nn.softplus(-sign * logits)), axis=-1)
