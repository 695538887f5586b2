"""What transformer trunks have in common: linear layers over tokens, layer norm, attention, the hidden layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models.layers.conv import Linear

Array = jax.Array

init = nn.initializers.truncated_normal(0.02)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), OpenAI's approximation."""
    return x * jax.nn.sigmoid(1.702 * x)


GELUS: dict[str, Callable[[Array], Array]] = {
    "exact": partial(jax.nn.gelu, approximate=False),
    "tanh": partial(jax.nn.gelu, approximate=True),
    "quick": quick_gelu,
}


def linear(x: Array, features: int, dtype: Any, name: str, *, use_bias: bool = True) -> Array:
    """[..., D] -> [..., features], a submodule `name` of the module whose compact method calls this."""
    return Linear(features, use_bias=use_bias, dtype=dtype, kernel_init=init, name=name)(x)


def layer_norm(x: Array, epsilon: float, dtype: Any, name: str) -> Array:
    """Over the channels, statistics in float32; a submodule `name` of the module whose compact method calls this."""
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)(x)


def hidden_layer(x: Array, expansion: int, gelu: str, dtype: Any) -> Array:
    """[..., D] -> [..., D] by way of `fc1`, expansion * D units, GELU and `fc2`; for use in a compact method."""
    hidden = GELUS[gelu](linear(x, expansion * x.shape[-1], dtype, "fc1"))
    return linear(hidden, x.shape[-1], dtype, "fc2")


class Attention(nn.Module):
    """Self-attention of several heads: tokens [B, N, D], bias [1 or B, heads, N, N] or None -> [B, N, D].

    Softmax in float32. Submodules `qkv`, D -> 3 D in the order query, key, value, and `proj`.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, bias: Array | None = None) -> Array:
        batch, count, width = x.shape
        qkv = linear(x, 3 * width, self.dtype, "qkv").reshape(batch, count, 3, self.heads, width // self.heads)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias)
        return linear(y.reshape(x.shape), width, self.dtype, "proj")


def image_input(mean: tuple[float, ...], deviation: tuple[float, ...], image: Array) -> Array:
    """Pixels 0..255 in RGB (uint8 or float) [B, H, W, 3] -> float32, less a mean, over a deviation (of 0..1)."""
    shift, scale = (255 * jnp.array(v, jnp.float32).reshape(1, 1, 1, 3) for v in (mean, deviation))
    return (image.astype(jnp.float32) - shift) / scale
