"""Crops, flips, rotations, shears and shifts: images seen through one bilinear resampling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def crop_and_flip(
    key: jax.Array,
    images: jax.Array,
    size: int,
    *,
    flip: bool,
    crop_area: Sequence[float] = (1.0, 1.0),
    crop_aspect: Sequence[float] = (3 / 4, 4 / 3),
    matrices: jax.Array | None = None,
) -> jax.Array:
    """Random resized crop, horizontal flip and an affine map in one bilinear resampling.

    Args:
      key: one key for the batch; every image gets its own draw.
      images: uint8 or float [B, H, W, 3], 0..255.
      size: side of the result.
      flip: mirror each image with probability 1/2.
      crop_area: share of the area a crop covers, drawn uniformly; (1, 1) keeps the whole image.
      crop_aspect: width / height of a crop relative to the image's, drawn log-uniformly.
      matrices: float32 [B, 2, 3], done to the cropped and flipped image: see `operations.matrices`; None for none.

    Returns:
      float32 [B, size, size, 3], 0..255.
    """
    mirrored = draw_flips(key, len(images), flip)
    cropped = tuple(crop_area) != (1.0, 1.0)
    if not cropped and matrices is None:
        return whole(images, size, mirrored)
    batch, height, width, _ = images.shape
    y0, x0, h, w = jnp.zeros(batch), jnp.zeros(batch), jnp.ones(batch), jnp.ones(batch)
    if cropped:
        y0, x0, h, w = random_boxes(key, batch, crop_area, crop_aspect)
    # A flip is a crop read from right to left.
    x0, w = jnp.where(mirrored, x0 + w, x0), jnp.where(mirrored, -w, w)
    if matrices is None:
        return resample(images, y0 * height, x0 * width, h * height, w * width, size)
    boxes = jnp.stack([x0 * width, y0 * height, w * width, h * height], axis=1)
    return resample_affine(images, boxes, matrices, size)


def draw_flips(key: jax.Array, batch: int, flip: bool) -> jax.Array:
    """bool [B]: which images `crop_and_flip` mirrors with this key."""
    return jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5 if flip else 0.0, (batch,))


def whole(images: jax.Array, size: int, mirrored: jax.Array) -> jax.Array:
    """float32 [B, size, size, 3] of images [B, H, W, 3] without a crop, those of `mirrored` bool [B] flipped."""
    batch, height, width, _ = images.shape
    if (height, width) == (size, size):
        images = images.astype(jnp.float32)
        return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    x0, w = jnp.where(mirrored, width, 0.0), jnp.where(mirrored, -1.0, 1.0) * width
    return resample(images, jnp.zeros(batch), x0, jnp.full(batch, float(height)), w, size)


def random_boxes(
    key: jax.Array, batch: int, area: Sequence[float], aspect: Sequence[float]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Top, left, height and width [B] in 0..1 of crops that lie inside the image.

    A drawn shape that is longer than the image on one side is shortened to it, so no draw is ever rejected.
    """
    k_area, k_aspect, k_y, k_x = jax.random.split(key, 4)
    share = jax.random.uniform(k_area, (batch,), minval=area[0], maxval=area[1])
    ratio = jnp.exp(jax.random.uniform(k_aspect, (batch,), minval=jnp.log(aspect[0]), maxval=jnp.log(aspect[1])))
    w = jnp.minimum(jnp.sqrt(share * ratio), 1.0)
    h = jnp.minimum(jnp.sqrt(share / ratio), 1.0)
    y0 = jax.random.uniform(k_y, (batch,)) * (1 - h)
    x0 = jax.random.uniform(k_x, (batch,)) * (1 - w)
    return y0, x0, h, w


def resample(images: jax.Array, y0: jax.Array, x0: jax.Array, h: jax.Array, w: jax.Array, size: int) -> jax.Array:
    """Bilinear `size` x `size` view of each image's box, in pixels; a negative `w` reads from right to left.

    Pixel centres are at half-integers (as in OpenCV and TensorFlow 2); outside the image the border is repeated.
    Rows first, then columns: two contiguous gathers, which the CPU does far faster than dense interpolation matrices.
    """
    steps = (jnp.arange(size)[None, :] + 0.5) / size  # [1, size]
    rows = gather_rows(images, y0[:, None] + steps * h[:, None] - 0.5)  # [B, size, W, 3]
    columns = gather_rows(rows.swapaxes(1, 2), x0[:, None] + steps * w[:, None] - 0.5)  # [B, size, size, 3] as x, y
    return columns.swapaxes(1, 2)


def gather_rows(images: jax.Array, positions: jax.Array) -> jax.Array:
    """Linear interpolation between rows: images [B, H, W, 3] at positions float [B, R] -> float32 [B, R, W, 3]."""
    last = images.shape[1] - 1
    positions = jnp.clip(positions, 0.0, last)
    low = jnp.floor(positions).astype(jnp.int32)
    share = (positions - low)[:, :, None, None]
    take = jax.vmap(lambda image, index: jnp.take(image, index, axis=0))
    below = take(images, low).astype(jnp.float32)
    above = take(images, jnp.minimum(low + 1, last)).astype(jnp.float32)
    return below + share * (above - below)


def resample_affine(images: jax.Array, boxes: jax.Array, matrices: jax.Array, size: int) -> jax.Array:
    """Bilinear `size` x `size` view of each image's box after an affine map, float32 [B, size, size, 3].

    Args:
      images: uint8 or float [B, H, W, 3].
      boxes: float32 [B, 4], left, top, width and height in pixels; a negative width reads from right to left.
      matrices: float32 [B, 2, 3]. The pixel at (x, y) of the result, from its centre in shares of the side, shows the
        place matrix (x, y, 1) of the box. What lies outside the box is read where the image goes on, and beyond the
        image its border is repeated.
      size: side of the result.
    """
    steps = (jnp.arange(size) + 0.5) / size - 0.5
    x, y = steps[None, None, :], steps[None, :, None]  # [1, 1, size], [1, size, 1]

    def place(row: int) -> jax.Array:
        """[B, size, size], in pixels of the image, x for row 0 and y for row 1."""
        a, b, shift = (matrices[:, row, i, None, None] for i in range(3))
        start, length = boxes[:, row, None, None], boxes[:, row + 2, None, None]
        return start + (a * x + b * y + shift + 0.5) * length - 0.5

    last_y, last_x = images.shape[1] - 1, images.shape[2] - 1
    xs, ys = jnp.clip(place(0), 0.0, last_x), jnp.clip(place(1), 0.0, last_y)
    left, top = jnp.floor(xs).astype(jnp.int32), jnp.floor(ys).astype(jnp.int32)
    right, bottom = jnp.minimum(left + 1, last_x), jnp.minimum(top + 1, last_y)
    take = jax.vmap(lambda image, rows, columns: image[rows, columns].astype(jnp.float32))
    share_x, share_y = (xs - left)[..., None], (ys - top)[..., None]
    above, below = (
        take(images, rows, left) * (1 - share_x) + take(images, rows, right) * share_x for rows in (top, bottom)
    )
    return above + share_y * (below - above)
