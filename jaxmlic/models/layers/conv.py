"""Depthwise and pointwise convolutions, and linear layers over the last dimension, that are fast on every platform.

XLA's grouped convolution is many times slower than it need be on the CPU, and the right thing on GPU and TPU. So
`depthwise_conv` is k*k shifted multiply-adds on the CPU, gradients included, and a grouped convolution elsewhere; which
one is chosen when the program is lowered. Parameters are the same for both ([k, k, 1, C], HWIO, as `nn.Conv` has them).
`pointwise_conv` is a matrix product on the CPU and a convolution elsewhere: XLA's GPU compiler dies of a product whose
operand is a strided slice (openxla/xla#47381).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


# He et al.'s initialisation over the outputs, as EfficientNet's own code has it.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's and Flax's 'SAME': the output has ceil(size / stride) rows, the odd row of padding comes last."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Depthwise convolution, 'SAME': x [B, H, W, C], kernel [k, k, 1, C] -> [B, ceil(H/stride), ceil(W/stride), C].

    Reverse-mode derivatives of any order are its own; forward mode (`jax.jvp`) is refused by JAX.
    """
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(_shifted, stride=stride), default=partial(grouped_conv, stride=stride)
    )


def grouped_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The same convolution as XLA's own grouped one: what GPU and TPU run, and the reference of the tests."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv(x, kernel, stride), (x, kernel)


def _backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def cpu(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return _shifted_grad_input(x.shape, kernel, grad, stride), _shifted_grad_kernel(x, kernel, grad, stride)

    def default(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(grouped_conv, stride=stride), x, kernel)[1](grad)

    return jax.lax.platform_dependent(x, kernel, grad, cpu=cpu, default=default)


depthwise_conv.defvjp(_forward, _backward)


def _pad(x: Array, kernel: int, stride: int) -> Array:
    rows, columns = same_padding(x.shape[1], kernel, stride), same_padding(x.shape[2], kernel, stride)
    return jnp.pad(x, ((0, 0), rows, columns, (0, 0)))


def _shifted(x: Array, kernel: Array, stride: int) -> Array:
    k = kernel.shape[0]
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    padded, kernel = _pad(x, k, stride).astype(jnp.float32), kernel.astype(jnp.float32)
    out = None
    for i in range(k):
        for j in range(k):
            tap = padded[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
            term = tap * kernel[i : i + 1, j : j + 1]
            out = term if out is None else out + term
    return out.astype(x.dtype)


def _shifted_grad_input(shape: tuple[int, ...], kernel: Array, grad: Array, stride: int) -> Array:
    """d/dx: every input row is a sum over the few output rows that saw it.

    Input row s*n + p meets output row n + o through kernel row p + low - s*o. So each pair of offsets (o, q) gives the
    whole input gradient one multiply-add: the shifted `grad`, repeated s*s times, by an [s, s, C] table of the kernel.
    """
    k, s, (batch, height, width, channels) = kernel.shape[0], stride, shape
    rows, columns = -(-height // s), -(-width // s)
    row_taps = _meeting_taps(k, s, same_padding(height, k, s)[0])
    column_taps = _meeting_taps(k, s, same_padding(width, k, s)[0])
    margin = max(map(abs, (*row_taps, *column_taps)))
    padded = jnp.pad(grad, ((0, 0), (margin, margin), (margin, margin), (0, 0))).astype(jnp.float32)
    zeros = jnp.zeros((channels,), jnp.float32)
    out = None
    for o, row in row_taps.items():
        for q, column in column_taps.items():
            values = [zeros if None in (i, j) else kernel[i, j, 0].astype(jnp.float32) for i in row for j in column]
            table = jnp.stack(values).reshape(1, 1, s, 1, s, channels)
            seen = padded[:, margin + o : margin + o + rows, margin + q : margin + q + columns]
            term = seen[:, :, None, :, None] * table  # [B, rows, s, columns, s, C]
            out = term if out is None else out + term
    return out.reshape(batch, rows * s, columns * s, channels)[:, :height, :width].astype(grad.dtype)


def _meeting_taps(kernel: int, stride: int, low: int) -> dict[int, list[int | None]]:
    """Offset o of an output row -> for each phase p of the input row, the kernel row between them (None: too far)."""
    taps = {}
    for o in range(-kernel, kernel + 1):
        row = [p + low - stride * o for p in range(stride)]
        if any(0 <= i < kernel for i in row):
            taps[o] = [i if 0 <= i < kernel else None for i in row]
    return taps


def _shifted_grad_kernel(x: Array, kernel: Array, grad: Array, stride: int) -> Array:
    """d/dkernel, in bands of a few rows of one image that stay in the cache while all k*k taps read them.

    `lax.cond` keeps XLA from fusing the bands' dynamic slices into the multiply-adds, whose loops would not vectorise.
    """
    k, s, (batch, height, width, channels) = kernel.shape[0], stride, grad.shape
    bands = _num_bands(height, width * channels * (1 + s * s) * grad.dtype.itemsize)
    rows = -(-height // bands)
    padded = _pad(x, k, s)
    spare = bands * rows - height
    if spare:  # rows of zeros, so that the bands are equal
        grad = jnp.pad(grad, ((0, 0), (0, spare), (0, 0), (0, 0)))
        padded = jnp.pad(padded, ((0, 0), (0, spare * s), (0, 0), (0, 0)))

    def add_band(sums: list[Array], x_band: Array, grad_band: Array) -> list[Array]:
        out = []
        for j, total in enumerate(sums):
            for r in range(rows):
                columns = x_band[r * s : r * s + k, j : j + (width - 1) * s + 1 : s]  # [k, W, C]
                total = total + columns.astype(jnp.float32) * grad_band[r : r + 1].astype(jnp.float32)
            out.append(total)
        return out

    def step(n: Array, sums: list[Array]) -> list[Array]:
        image, band = n // bands, n % bands
        start = (image, band * rows * s, 0, 0)
        x_band = jax.lax.dynamic_slice(padded, start, (1, (rows - 1) * s + k, *padded.shape[2:]))[0]
        grad_band = jax.lax.dynamic_slice(grad, (image, band * rows, 0, 0), (1, rows, *grad.shape[2:]))[0]
        return jax.lax.cond(n < batch * bands, add_band, lambda sums, *_: sums, sums, x_band, grad_band)

    sums = [jnp.zeros((k, width, channels), jnp.float32) for _ in range(k)]
    sums = jax.lax.fori_loop(0, batch * bands, step, sums)
    return jnp.stack([total.sum(1) for total in sums], axis=1)[:, :, None].astype(kernel.dtype)


def _num_bands(rows: int, row_bytes: int, cache_bytes: int = 2**20, most_rows: int = 8) -> int:
    """Bands of at most 16 rows (each is unrolled) and about a core's cache."""
    return -(-rows // max(1, min(most_rows, cache_bytes // row_bytes)))


class DepthwiseConv(nn.Module):
    """One k x k filter per channel, no bias, 'SAME' padding. Parameter `kernel` [k, k, 1, C] float32."""

    kernel_size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", conv_init, shape, jnp.float32)
        return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def pointwise_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """1 x 1 convolution: x [B, H, W, C], kernel [1, 1, C, D] -> [B, ceil(H/stride), ceil(W/stride), D].

    Reverse-mode derivatives of any order are its own; forward mode (`jax.jvp`) is refused by JAX.
    """
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(matrix_product, stride=stride), default=partial(strided_conv, stride=stride)
    )


def matrix_product(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The same as a product of two matrices.

    XLA's gradient of a product over three dimensions is up to 20 times slower on the CPU.
    """
    x = x[:, ::stride, ::stride]
    return jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def strided_conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """The same as XLA's own convolution."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _pointwise_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return pointwise_conv(x, kernel, stride), (x, kernel)


def _pointwise_backward(stride: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    def through(forward: Callable, x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(partial(forward, stride=stride), x, kernel)[1](grad)

    return jax.lax.platform_dependent(
        *saved, grad, cpu=partial(through, matrix_product), default=partial(through, strided_conv)
    )


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


class PointwiseConv(nn.Module):
    """1 x 1 convolution, no bias. Parameter `kernel` [1, 1, C, channels] float32."""

    channels: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", conv_init, (1, 1, x.shape[-1], self.channels), jnp.float32)
        return pointwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


class Linear(nn.Dense):
    """`nn.Dense`, [..., D] -> [..., features], as a product of two matrices.

    XLA's gradient of a product over three or more dimensions takes two to three times as long on the CPU: it writes the
    transposed operand first. Parameters are those of `nn.Dense`.
    """

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return flat.reshape(*inputs.shape[:-1], self.features)
