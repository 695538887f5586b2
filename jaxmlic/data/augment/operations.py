"""RandAugment's operations (Cubuk et al., 2020) on a batch: each image draws its own, and all go through one program.

Strengths are torchvision's: linear in the magnitude, 0 to 30. Two things differ, so that shapes are static and nothing
is resampled twice: all geometric operations of an image are one matrix, applied with its crop and before its colours,
with the border repeated beyond the image; and pixels stay float. Equalize is left out: it needs a histogram an image.

    drawn = draw(key, batch, ops, magnitude)
    images = recolour(crop_and_flip(key, images, size, matrices=matrices(drawn), ...), drawn)
"""

import flax.struct
import jax
import jax.numpy as jnp

STRONGEST = 30.0
_GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_COLOUR = ("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast")
NAMES = ("identity", *_GEOMETRY, *_COLOUR)
_SHEAR, _SHIFT, _ANGLE, _BLEND = 0.3, 150 / 331, jnp.pi / 6, 0.9  # at the greatest magnitude
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, PIL's grey
_CLOSE = 1e-3  # channels whose values span less have no contrast to stretch


@flax.struct.dataclass
class Drawn:
    """What each image of a batch gets: kinds int32 [ops, B], places in NAMES; amounts float32 [ops, B] in -1..1, the
    strength with its sign."""

    kinds: jax.Array
    amounts: jax.Array


def draw(key: jax.Array, batch: int, ops: int, magnitude: float) -> Drawn:
    """`ops` operations for each of `batch` images, drawn uniformly from NAMES, each sign with probability 1/2."""
    k_kind, k_sign = jax.random.split(key)
    kinds = jax.random.randint(k_kind, (ops, batch), 0, len(NAMES))
    signs = jnp.where(jax.random.bernoulli(k_sign, 0.5, (ops, batch)), 1.0, -1.0)
    return Drawn(kinds, signs * (magnitude / STRONGEST))


def matrices(drawn: Drawn) -> jax.Array:
    """float32 [B, 2, 3]: where a pixel of the result (x, y, 1) is read, from the centre in shares of the side.

    The first operation that an image drew is the first that is done to it.
    """
    whole = jnp.broadcast_to(jnp.eye(3), (drawn.kinds.shape[1], 3, 3))
    for kinds, amounts in zip(drawn.kinds, drawn.amounts, strict=True):
        whole = jnp.einsum("bij,bjk->bik", whole, _matrix(kinds, amounts), precision=jax.lax.Precision.HIGHEST)
    return whole[:, :2]


def _matrix(kinds: jax.Array, amounts: jax.Array) -> jax.Array:
    """float32 [B, 3, 3] of one operation an image; the identity for those that are not geometric."""

    def amount(name: str) -> jax.Array:
        return jnp.where(kinds == NAMES.index(name), amounts, 0.0)

    angle = amount("rotate") * _ANGLE
    zero, one = jnp.zeros_like(amounts), jnp.ones_like(amounts)
    rows = (
        (jnp.cos(angle), jnp.sin(angle) + _SHEAR * amount("shear_x"), _SHIFT * amount("translate_x")),
        (_SHEAR * amount("shear_y") - jnp.sin(angle), jnp.cos(angle), _SHIFT * amount("translate_y")),
        (zero, zero, one),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def recolour(images: jax.Array, drawn: Drawn) -> jax.Array:
    """Images float32 [B, H, W, 3] in 0..255 after the colour operations that each has drawn, one after the other."""
    for kinds, amounts in zip(drawn.kinds, drawn.amounts, strict=True):
        images = _recolour(images, kinds, amounts)
    return images


def _recolour(images: jax.Array, kinds: jax.Array, amounts: jax.Array) -> jax.Array:
    """One operation an image. All are computed as one formula whose numbers leave an image alone that drew another."""
    kinds, amounts = (v[:, None, None, None] for v in (kinds, amounts))

    def drew(name: str) -> jax.Array:
        return kinds == NAMES.index(name)

    grey = jnp.sum(images * jnp.array(_LUMA).reshape(1, 1, 1, 3), axis=-1, keepdims=True)
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    # PIL's enhancers blend with an image of little interest: black, grey, one grey, smooth.
    dull = jnp.where(drew("color"), grey, jnp.where(drew("contrast"), grey.mean((1, 2), keepdims=True), 0.0))
    dull = jnp.where(drew("sharpness"), _smooth(images), dull)
    blends = drew("brightness") | drew("color") | drew("contrast") | drew("sharpness")
    blended = jnp.clip(dull + (1.0 + _BLEND * amounts) * (images - dull), 0.0, 255.0)
    bits = 8.0 - jnp.round(4.0 * jnp.abs(amounts))
    step = 2.0 ** (8.0 - bits)
    solarized = jnp.where(images >= 255.0 * (1.0 - jnp.abs(amounts)), 255.0 - images, images)
    stretched = jnp.where(high - low > _CLOSE, (images - low) * (255.0 / jnp.maximum(high - low, _CLOSE)), images)
    result = jnp.where(blends, blended, images)
    result = jnp.where(drew("posterize"), jnp.floor(images / step) * step, result)
    result = jnp.where(drew("solarize"), solarized, result)
    return jnp.where(drew("autocontrast"), stretched, result)


def _smooth(images: jax.Array) -> jax.Array:
    """PIL's SMOOTH: the mean of 3 x 3 pixels, the one in the middle five times; the border stays."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    boxes = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = (boxes + 4.0 * images[:, 1:-1, 1:-1]) / 13.0
    return jnp.asarray(images).at[:, 1:-1, 1:-1].set(inner)
