"""Six 3x3 convolutions with group norm, for pictures of about 48 pixels on a CPU."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models import layers

Array = jax.Array

STRIDE = 8
NAMES = {"small_cnn": {}}


def preprocess(image: Array) -> Array:
    """Pixels 0..255 in RGB (uint8 or float) [B, H, W, 3] -> float32 in about -2..2."""
    return (image.astype(jnp.float32) - 127.5) / 64.0


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, ceil(H/8), ceil(W/8), widths[-1]], stages)`; "stage1" to "stage3" at 2, 4, 8.

    widths: features of the stages, two convolutions each, the first with stride 2.
    groups: channels are normalised in this many groups of each image, so training and evaluation are one function.
    dtype: of the computation; parameters are float32.
    """

    widths: Sequence[int] = (32, 64, 128)
    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        del train  # group norm does not distinguish
        stages = {}
        x = x.astype(self.dtype)
        for i, width in enumerate(self.widths, start=1):
            for j, stride in enumerate((2, 1), start=1):
                x = nn.Conv(
                    width,
                    (3, 3),
                    stride,
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=layers.conv_init,
                    name=f"stage{i}_conv{j}",
                )(x)
                x = nn.relu(nn.GroupNorm(self.groups, dtype=self.dtype, name=f"stage{i}_norm{j}")(x))
            stages[f"stage{i}"] = x
        return x, stages
