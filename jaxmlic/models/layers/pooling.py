"""Feature maps to vectors, and to smaller maps."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError

Array = jax.Array


def global_avg_pool(x: Array) -> Array:
    """[B, h, w, D] -> [B, D], the mean over positions."""
    return jnp.mean(x, axis=(1, 2))


def global_max_pool(x: Array) -> Array:
    """[B, h, w, D] -> [B, D], the maximum over positions; of equal ones the first gets the gradient.

    The gradient of `jnp.max` asks which values equal the maximum. Where XLA computes both anew with other rounding none
    may, and 0 / 0 follows (seen on the CPU at optimisation level 0); here it goes where the arg max points.
    """
    flat = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, positions, D]
    best = jnp.argmax(flat, axis=1, keepdims=True)  # [B, 1, D]
    here = jnp.arange(flat.shape[1])[None, :, None] == best
    return jnp.sum(jnp.where(here, flat, 0), axis=1)


def unit_avg_pool(x: Array) -> Array:
    """[B, h, w, D] -> [B, D], the mean over positions divided by its length: products with unit vectors are cosines.

    1e-12 is added to the squared length, so that a vector of zeros stays one and has a gradient.
    """
    mean = global_avg_pool(x)
    return mean * jax.lax.rsqrt(jnp.sum(mean**2, axis=-1, keepdims=True) + 1e-12)


UNIT = "avg_unit"
POOLS = {
    "avg": global_avg_pool,
    "max": global_max_pool,
    UNIT: unit_avg_pool,
    "avg_max": lambda x: jnp.concatenate([global_avg_pool(x), global_max_pool(x)], axis=-1),
}


def adaptive_avg_pool(x: Array, size: tuple[int, int]) -> Array:
    """[B, H, W, D] -> [B, h, w, D] for size (h, w): `torch.nn.AdaptiveAvgPool2d`, for maps of any size.

    Row i is the mean of rows floor(i*H/h) to ceil((i+1)*H/h) - 1; windows overlap where h does not divide H, and repeat
    where the map is smaller than the pool. Sums are float32, the result has x's dtype.
    """
    rows, columns = _window_means(x.shape[1], size[0]), _window_means(x.shape[2], size[1])
    pooled = jnp.einsum("hH,bHWd->bhWd", rows, x.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("wW,bhWd->bhwd", columns, pooled, precision=jax.lax.Precision.HIGHEST).astype(x.dtype)


def _window_means(size: int, windows: int) -> np.ndarray:
    """float32 [windows, size]: the matrix that takes the mean over each window."""
    means = np.zeros((windows, size), np.float32)
    for i in range(windows):
        start, stop = i * size // windows, -(-(i + 1) * size // windows)
        means[i, start:stop] = 1 / (stop - start)
    return means


def check_image_size(x: Array, least: int) -> None:
    """UserError if images [B, H, W, ...] have a side below `least` pixels, where pooling would leave nothing."""
    height, width = x.shape[1:3]
    if min(height, width) < least:
        raise UserError(f"images of {height} x {width} pixels are too small for this trunk; it needs {least} x {least}")
