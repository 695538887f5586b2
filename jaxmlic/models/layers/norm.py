"""Batch norm and group norm with their ReLU, each one pass over the map and one own gradient; and dropout."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError
from jaxmlic.models.layers import rectifier

Array = jax.Array


class BatchNorm(nn.Module):
    """Batch norm over all but the channels, then `relu` or `relu6`; TensorFlow's epsilon 1e-3 and momentum 0.99.

    use_running_average: normalise by the running statistics and leave them be; otherwise by the batch's, float32, which
        then move the running ones (biased variance, as in Flax). Under a mesh the batch is the global one.
    momentum: weight of the old running statistics: 0.9 is what PyTorch calls 0.1.
    Parameters `scale`, `bias` [C], batch_stats `mean`, `var` [C], all float32.
    """

    use_running_average: bool
    relu6: bool = False
    relu: bool = False
    dtype: Any = jnp.float32
    momentum: float = 0.99
    epsilon: float = 1e-3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = _moments(x)
            if not self.is_initializing():
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * gain
        shared = (*(1,) * (x.ndim - 1), x.shape[-1])
        top = 6.0 if self.relu6 else jnp.inf if self.relu else None
        return _affine(x, gain.reshape(shared), offset.reshape(shared), top, rectifier.rule()).astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalises each image's channels in `groups` groups, then ReLU if `relu`: `nn.GroupNorm` with less traffic.

    Statistics are float32 and come from one reading, first per channel, then per group. Training and evaluation are one
    function and no image sees another. Parameters `scale`, `bias` [C] float32. UserError if groups does not divide C.
    """

    groups: int = 8
    relu: bool = False
    dtype: Any = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.groups:
            raise UserError(f"group norm: {self.groups} groups do not divide {channels} channels; change one of them")
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        flat = x.reshape(batch, -1, channels).astype(jnp.float32)  # [B, H*W, C]
        grouped = (batch, self.groups, channels // self.groups)
        mean = flat.mean(1).reshape(grouped).mean(2, keepdims=True)  # [B, groups, 1]
        square = (flat * flat).mean(1).reshape(grouped).mean(2, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.epsilon)
        gain = inverse * scale.reshape(1, *grouped[1:])  # [B, groups, C / groups]
        offset = bias.reshape(1, *grouped[1:]) - mean * gain
        per_image = (batch, *(1,) * (x.ndim - 2), channels)
        top = jnp.inf if self.relu else None
        y = _affine(x, gain.reshape(per_image), offset.reshape(per_image), top, rectifier.rule())
        return y.astype(self.dtype)


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and variance [C] of [..., C] in float32, from one reading: E[x^2] - E[x]^2, not below zero."""
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    mean = jnp.mean(x, axis=0)
    return mean, jnp.maximum(jnp.mean(x * x, axis=0) - mean * mean, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _affine(x: Array, gain: Array, offset: Array, top: float | None, rule: str) -> Array:
    """x * gain + offset, clipped to 0..top unless top is None; in x's dtype.

    gain and offset have x's number of axes, of size 1 where they are shared. Its own gradient keeps x and nothing else.
    rule: of `rectifier`, for the way back through the clipping.
    """
    del rule
    y = x * gain + offset
    return (y if top is None else jnp.clip(y, 0, top)).astype(x.dtype)


def _affine_forward(
    x: Array, gain: Array, offset: Array, top: float | None, rule: str
) -> tuple[Array, tuple[Array, ...]]:
    return _affine(x, gain, offset, top, rule), (x, gain, offset)


def _affine_backward(top: float | None, rule: str, saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array]:
    x, gain, offset = saved
    if top is not None:
        y = x * gain + offset
        grad = rectifier.pass_back(grad, (y > 0) & (y < top), rule)
    grad = grad.astype(jnp.float32)
    shared = tuple(axis for axis, size in enumerate(gain.shape) if size == 1)
    grad_gain, grad_offset = (grad * x).sum(shared, keepdims=True), grad.sum(shared, keepdims=True)
    return (grad * gain).astype(x.dtype), grad_gain, grad_offset


_affine.defvjp(_affine_forward, _affine_backward)


def check_batch_norm(mode: str) -> bool:
    """True for "frozen", False for "train"; anything else raises UserError."""
    if mode not in ("train", "frozen"):
        raise UserError(f'batch_norm is {mode!r}; use "train" or "frozen"')
    return mode == "frozen"


class Dropout(nn.Dropout):
    """`nn.Dropout`, bit for bit, whose rate may also be a traced number: runs of other rates share a program.

    Its name is `nn.Dropout`'s because Flax folds names into keys.
    """

    def __call__(self, inputs: Array, deterministic: bool | None = None) -> Array:
        if not isinstance(self.rate, jax.core.Tracer):
            return super().__call__(inputs, deterministic=deterministic)
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return inputs
        keep = 1.0 - self.rate
        mask = jax.random.bernoulli(self.make_rng(self.rng_collection), keep, inputs.shape)
        # Nothing is kept at a rate of 1; another divisor than 0 keeps its gradient from being NaN.
        scaled = inputs / jnp.where(keep > 0, keep, 1.0).astype(inputs.dtype)
        return jnp.where(mask, scaled, jnp.zeros_like(inputs))
