"""Graph convolutions over labels: section D of MSCNN-LCE-MIC and ML-GCN."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class GraphConvolutions(nn.Module):
    """Label embeddings from word vectors by graph convolutions: H' = A H W, leaky ReLU of 0.2 between the layers.

    ML-GCN's layer: no bias, weights drawn from +-1 / sqrt(outputs). Parameters `kernel_0`, `kernel_1`, ...

    Attributes:
      widths: outputs of each layer, such as (1024, 2048).
    """

    widths: Sequence[int]

    @nn.compact
    def __call__(self, adjacency: Array, vectors: Array) -> Array:
        """adjacency [C, C] and vectors [C, D] -> embeddings [C, widths[-1]]."""
        x = vectors
        for layer, width in enumerate(self.widths):
            if layer:
                x = nn.leaky_relu(x, 0.2)
            kernel = self.param(f"kernel_{layer}", _uniform, (x.shape[-1], width), jnp.float32)
            # The product over labels costs C^2 times the columns: it is taken where there are fewer.
            x = adjacency @ x @ kernel if x.shape[-1] <= width else adjacency @ (x @ kernel)  # [C, width]
        return x


def _uniform(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    bound = shape[1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
