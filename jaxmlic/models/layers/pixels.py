"""What is done to an image before its trunk: Algorithm 2 of CNN-LSTM-RMLC. Pure functions on the device."""

import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of OpenCV and PIL


def grey(images: jax.Array) -> jax.Array:
    """RGB [B, H, W, 3] in 0..255 -> its grey on three channels, float32 [B, H, W, 3], for trunks that want colour."""
    luma = jnp.sum(images.astype(jnp.float32) * jnp.array(LUMA).reshape(1, 1, 1, 3), axis=-1, keepdims=True)
    return jnp.broadcast_to(luma, images.shape)


def enhance_edges(images: jax.Array, amount: float) -> jax.Array:
    """Unsharp masking with a Laplacian, images - amount * L, clipped to 0..255: float32 [B, H, W, D].

    L is the sum of the four neighbours less four times the pixel; beyond the border the image repeats its last row.
    """
    x = images.astype(jnp.float32)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return jnp.clip(x - amount * (around - 4.0 * x), 0.0, 255.0)
