"""Attention over the positions of a feature map: steps 1 to 3 of MSCNN-LCE-MIC."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class SpatialAttention(nn.Module):
    """Where a map agrees with the whole image: eqs 3 to 5 of MSCNN-LCE-MIC (steps 1 to 3).

    The global vector is projected to the map's width, its product with the vector at each position is the compatibility
    score, the softmax of the scores over positions are the weights, and the weighted sum is the attended vector. The
    projection is the parameter `projection` [G, D] over sqrt(G D): the same functions, but a step on so many weights
    does not drive the softmax to a single position. It starts at zero, so that training starts from the mean.

    Step 1 says both "added together" and, in eq 3, the inner product. A sum would add the same to the score of every
    position, and the softmax would lose the global vector; so it is the product.
    """

    @nn.compact
    def __call__(self, local: Array, whole: Array) -> tuple[Array, Array]:
        """local [B, h, w, D] and whole [B, G] -> attended [B, D] and weights [B, h, w] that sum to one; float32."""
        batch, height, width, channels = local.shape
        query = nn.Dense(channels, use_bias=False, kernel_init=nn.initializers.zeros, name="projection")(whole)
        query = query / (whole.shape[-1] * channels) ** 0.5  # [B, D]
        flat = local.reshape(batch, height * width, channels).astype(jnp.float32)  # [B, n, D]
        compatibility = jnp.einsum("bnd,bd->bn", flat, query)  # [B, n], eq 3
        weights = nn.softmax(compatibility, axis=-1)  # [B, n], eq 4
        attended = jnp.einsum("bn,bnd->bd", weights, flat)  # [B, D], eq 5
        return attended, weights.reshape(batch, height, width)
