"""The convolutional part of the 14-layer CIFAR network of CNN-LSTM-RMLC (James and Lakshmi, 3.2.4): C1 to S9.

A grey 32x32 image becomes 4x4 positions of 128 channels. Six 3x3 convolutions with ReLU and three sub-samplings have
640, 36928, 128, 73856, 147584, 256, 295168, 295040 and 256 parameters, as the paper counts them. A sub-sampling is the
maximum of 2x2 times a learned scale plus a learned bias, one of each per map, without an activation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models.layers import conv, pixels, pooling, rectifier
from jaxmlic.models.trunks import remat

Array = jax.Array

STRIDE = 8
LEVELS = ("S3", "S6", "S9")
# Names of this trunk in a config, with the fields each stands for. Algorithm 2 has 5x5 kernels and leaky ReLU, where
# 3.2.4 has 3x3 and ReLU; the slope is not given.
NAMES = {"cifar14": {}, "cifar14_algorithm2": {"kernel": 5, "slope": 0.01}}
_LAYERS = (
    ("C1", 64),
    ("C2", 64),
    ("S3", 64),
    ("C4", 128),
    ("C5", 128),
    ("S6", 128),
    ("C7", 256),
    ("C8", 128),
    ("S9", 128),
)


def preprocess(image: Array) -> Array:
    """Pixels 0..255, RGB [B, H, W, 3] or grey [B, H, W, 1] (uint8 or float) -> grey float32 [B, H, W, 1] in -2..2."""
    image = image.astype(jnp.float32)
    if image.shape[-1] == 3:
        image = jnp.sum(image * jnp.array(pixels.LUMA).reshape(1, 1, 1, 3), axis=-1, keepdims=True)
    return (image - 127.5) / 64.0


class SubSampling(nn.Module):
    """[B, H, W, C] -> [B, floor(H/2), floor(W/2), C]: 2x2 max pool times `scale` plus `bias`, both float32 [C]."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        scale, bias = (v.astype(self.dtype).reshape(1, 1, 1, -1) for v in (scale, bias))
        return nn.max_pool(x, (2, 2), (2, 2)) * scale + bias


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, floor(H/8), floor(W/8), 128], stages)` for grey x [B, H, W, 1].

    `stages` holds each layer under the paper's name, "C1" to "S9"; the last is the feature map. UserError for images
    with a side below 8 pixels.

    kernel: side of the convolutions' kernels.
    slope: of the activation below 0.
    dtype: of the computation; parameters are float32.
    """

    kernel: int = 3
    slope: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        del train  # nothing here differs in training
        pooling.check_image_size(x, STRIDE)
        stages = {}
        x = x.astype(self.dtype)
        for first in range(0, len(_LAYERS), 3):
            x, maps = remat.stage(partial(_run_stage, layers=_LAYERS[first : first + 3]), self, x)
            stages |= maps
        return x, stages


def _run_stage(trunk: Trunk, x: Array, layers: Sequence[tuple[str, int]]) -> tuple[Array, dict[str, Array]]:
    """Two convolutions and a sub-sampling; and their maps by name."""
    maps = {}
    for name, channels in layers:
        x = maps[name] = remat.block(partial(_run_layer, name=name, channels=channels), trunk, x)
    return x, maps


def _run_layer(trunk: Trunk, x: Array, name: str, channels: int) -> Array:
    if name.startswith("S"):
        return SubSampling(trunk.dtype, name=name)(x)
    size = (trunk.kernel, trunk.kernel)
    x = nn.Conv(channels, size, dtype=trunk.dtype, kernel_init=conv.conv_init, name=name)(x)
    return nn.leaky_relu(x, trunk.slope) if trunk.slope else rectifier.relu(x)
