"""Six 3x3 convolutions with group norm, for pictures of about 48 pixels: trained from scratch on a CPU in minutes.

The resolution falls early (24, 12, 6 for 48 pixels), because on a CPU wide layers on small maps do several times the
multiply-adds per second of narrow layers on large ones, their gradients above all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models.layers import conv
from jaxmlic.models.layers.norm import GroupNorm
from jaxmlic.models.trunks import remat

Array = jax.Array

STRIDE = 8
LEVELS = ("stage1", "stage2", "stage3")
# Names of this trunk in a config, with the fields each stands for.
NAMES = {"small_cnn": {}, "small_cnn_wide": {"widths": (64, 128, 256)}}
_CONVOLUTIONS = (1, 2, 3)  # in each stage


def preprocess(image: Array) -> Array:
    """Pixels 0..255 in RGB (uint8 or float) [B, H, W, 3] -> float32 in about -2..2."""
    return (image.astype(jnp.float32) - 127.5) / 64.0


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, ceil(H/8), ceil(W/8), widths[2]], stages)`.

    `stages` holds "stage1" to "stage3" (strides 2, 4, 8; one, two, three convolutions); the last is the feature map.

    widths: channels of the three stages, multiples of 8 (the groups of the group norms).
    dtype: of the computation; parameters and statistics are float32.
    """

    widths: Sequence[int] = (32, 64, 96)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        del train  # group norm knows no difference
        stages = {}
        x = x.astype(self.dtype)
        for stage, (width, convolutions) in enumerate(zip(self.widths, _CONVOLUTIONS, strict=True), start=1):
            layers = [partial(_run_layer, name=f"stage{stage}_{i}", width=width) for i in range(convolutions)]
            x = stages[f"stage{stage}"] = remat.stage(partial(_run_stage, layers=layers), self, x)
        return x, stages


def stage_of(module: str, widths: Sequence[int] = ()) -> int:
    """The stage, 1 to 3, of one of the trunk's modules, such as "stage3_0_conv"."""
    del widths
    return int(module[len("stage")])


def _run_stage(trunk: Trunk, x: Array, layers: Sequence[Callable]) -> Array:
    for i, layer in enumerate(layers):
        x = remat.block(partial(layer, stride=2 if i == 0 else 1), trunk, x)
    return x


def _run_layer(trunk: Trunk, x: Array, name: str, width: int, stride: int) -> Array:
    x = nn.Conv(
        width,
        (3, 3),
        stride,
        use_bias=False,
        dtype=trunk.dtype,
        kernel_init=conv.conv_init,
        name=f"{name}_conv",
    )(x)
    return GroupNorm(relu=True, dtype=trunk.dtype, name=f"{name}_norm")(x)
