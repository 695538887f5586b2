"""Images mixed with one another, and images with a part cut out."""

import jax
import jax.numpy as jnp


def mix(images: jax.Array, labels: jax.Array, partners: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean of every image and its partner, OR of their labels (Eq. 2 of Wang, Jia and Breckon, 2019).

    The OR is three-valued: present if either says present, else unknown if either is unknown, else absent.

    Args:
      images: float [B, H, W, 3].
      labels: int8 [B, C] in {1, 0, -1}.
      partners: int [B], rows of the (global) batch.
    """
    others = labels[partners]
    present, unknown = (labels == 1) | (others == 1), (labels == -1) | (others == -1)
    mixed = jnp.where(present, 1, jnp.where(unknown, -1, 0)).astype(labels.dtype)
    return (images + images[partners]) / 2, mixed


def cut_out(key: jax.Array, images: jax.Array, share: float) -> jax.Array:
    """Images with a square in their mean colour (DeVries and Taylor, 2017).

    The square's centre is drawn uniformly over the image, so part of it may lie outside.

    Args:
      key: one key for the batch; every image gets its own draw.
      images: float32 [B, S, S, 3].
      share: side of the square, of the image's.
    """
    batch, size = images.shape[:2]
    centre = jax.random.uniform(key, (2, batch, 1)) * size
    y, x = jnp.abs(jnp.arange(size)[None, None, :] + 0.5 - centre) < share * size / 2  # bool [B, S] each
    covered = y[:, :, None, None] & x[:, None, :, None]
    return jnp.where(covered, images.mean((1, 2), keepdims=True), images)
