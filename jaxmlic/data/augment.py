"""Augmentation on the device: pure functions of (key, batch), traced into the training step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxmlic.errors import check_choice

MIXUP = ("off", "every_epoch", "every_second_epoch")


def augment(
    key: jax.Array, images: jax.Array, labels: jax.Array, size: int, epoch: jax.Array, *, mixup: str, **crop
) -> tuple[jax.Array, jax.Array]:
    """Crop, flip and mixup: everything that `config.augment` asks for.

    Args:
      key: one key for the batch.
      images: uint8 or float [B, H, W, 3], 0..255, without padding.
      labels: int8 [B, C] in {1, 0, -1}.
      size: side of the result.
      epoch: int32 [], the epoch that the batch begins in, from 0.
      mixup: one of `MIXUP`; "every_second_epoch" mixes in epochs 0, 2, 4, ...
      **crop: the keywords of `crop_and_flip`.

    Returns:
      Images float32 [B, size, size, 3] and labels [B, C].

    Raises:
      UserError: `mixup` is none of these.
    """
    check_mixup(mixup)
    images = crop_and_flip(key, images, size, **crop)
    if mixup == "off":
        return images, labels
    everyone = jnp.arange(len(images))
    partners = jax.random.permutation(jax.random.fold_in(key, 2), everyone)
    if mixup == "every_second_epoch":
        # An image that is its own partner stays as it is, bit for bit: one program for both kinds of epoch.
        partners = jnp.where(epoch % 2 == 0, partners, everyone)
    return mix(images, labels, partners)


def check_mixup(mixup: str) -> None:
    """Raises UserError if `mixup` is none of `MIXUP`."""
    check_choice("augment.mixup", mixup, MIXUP)


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


def crop_and_flip(
    key: jax.Array,
    images: jax.Array,
    size: int,
    *,
    flip: bool,
    crop_area: Sequence[float] = (1.0, 1.0),
    crop_aspect: Sequence[float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Random resized crop and horizontal flip in one bilinear resampling.

    Args:
      key: one key for the batch; every image gets its own draw.
      images: uint8 or float [B, H, W, 3], 0..255.
      size: side of the result.
      flip: mirror each image with probability 1/2.
      crop_area: share of the area a crop covers, drawn uniformly; (1, 1) keeps the whole image.
      crop_aspect: width / height of a crop relative to the image's, drawn log-uniformly.

    Returns:
      float32 [B, size, size, 3], 0..255.
    """
    mirrored = draw_flips(key, len(images), flip)
    if tuple(crop_area) == (1.0, 1.0):
        return whole(images, size, mirrored)
    _, height, width, _ = images.shape
    y0, x0, h, w = random_boxes(key, len(images), crop_area, crop_aspect)
    # A flip is a crop read from right to left.
    x0, w = jnp.where(mirrored, x0 + w, x0), jnp.where(mirrored, -w, w)
    return resample(images, y0 * height, x0 * width, h * height, w * width, size)


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
