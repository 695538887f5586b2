"""Augmentation on the device: pure functions of (key, batch), traced into the training step."""

import jax
import jax.numpy as jnp

from jaxmlic.data.augment import operations
from jaxmlic.data.augment.geometry import crop_and_flip, draw_flips, random_boxes, resample, whole
from jaxmlic.data.augment.mixing import cut_out, mix
from jaxmlic.errors import UserError, check_choice, check_least

__all__ = [
    "augment",
    "check",
    "check_no_pixels",
    "crop_and_flip",
    "cut_out",
    "draw_flips",
    "mix",
    "random_boxes",
    "resample",
    "whole",
]

MIXUP = ("off", "every_epoch", "every_second_epoch")


def augment(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    size: int,
    epoch: jax.Array,
    *,
    mixup: str,
    ops: int = 0,
    magnitude: float = 0.0,
    cutout: float = 0.0,
    **crop,
) -> tuple[jax.Array, jax.Array]:
    """Crop, flip, operations, cutout and mixup, in this order: everything that `config.augment` asks for.

    Args:
      key: one key for the batch.
      images: uint8 or float [B, H, W, 3], 0..255, without padding.
      labels: int8 [B, C] in {1, 0, -1}.
      size: side of the result.
      epoch: int32 [], the epoch that the batch begins in, from 0.
      mixup: one of `MIXUP`; "every_second_epoch" mixes in epochs 0, 2, 4, ...
      ops: operations an image, each drawn from `operations.NAMES`, of strength `magnitude`, 0 to 30.
      cutout: side of the square that `cut_out` covers, as a share of the image's; 0 = none.
      **crop: the keywords of `crop_and_flip`.

    Returns:
      Images float32 [B, size, size, 3] and labels [B, C].

    Raises:
      UserError: a field that `check` refuses.
    """
    check(mixup=mixup, ops=ops, magnitude=magnitude, cutout=cutout)
    if ops:
        drawn = operations.draw(jax.random.fold_in(key, 3), len(images), ops, magnitude)
        images = crop_and_flip(key, images, size, matrices=operations.matrices(drawn), **crop)
        images = operations.recolour(images, drawn)
    else:
        images = crop_and_flip(key, images, size, **crop)
    if cutout:
        images = cut_out(jax.random.fold_in(key, 4), images, cutout)
    if mixup == "off":
        return images, labels
    everyone = jnp.arange(len(images))
    partners = jax.random.permutation(jax.random.fold_in(key, 2), everyone)
    if mixup == "every_second_epoch":
        # An image that is its own partner stays as it is, bit for bit: one program for both kinds of epoch.
        partners = jnp.where(epoch % 2 == 0, partners, everyone)
    return mix(images, labels, partners)


def check_no_pixels(what: str, *, mixup: str, ops: int, cutout: float, **others) -> None:
    """Raises UserError for a field of `config.augment` that works on pixels, which `what` has not."""
    del others
    for name, value, off in (("mixup", mixup, "off"), ("ops", ops, 0), ("cutout", cutout, 0.0)):
        if value != off:
            raise UserError(f"config.augment.{name} works on pixels, which {what} cannot give: set it to {off!r}")


def check(*, mixup: str, ops: int, magnitude: float, cutout: float, **crop) -> None:
    """Raises UserError for values of `config.augment` that mean nothing. The fields of `crop` are not looked at."""
    del crop
    check_choice("augment.mixup", mixup, MIXUP)
    check_least("augment.ops", ops, 0)
    if ops and not 0 < magnitude <= operations.STRONGEST:
        raise UserError(
            f"config.augment.magnitude = {magnitude!r}; it lies in 0 < magnitude <= {operations.STRONGEST:g}"
        )
    if not 0 <= cutout < 1:
        raise UserError(f"config.augment.cutout = {cutout!r}; it is a share of the image's side, 0 <= cutout < 1")
