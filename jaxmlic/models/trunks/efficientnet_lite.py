"""EfficientNet-Lite: EfficientNet without squeeze-excite, with ReLU6, stem and head of one size for every variant.

Source: Tan & Le, "EfficientNet" (2019), and the Lite variants of tensorflow/tpu
`models/official/efficientnet/lite/efficientnet_lite_builder.py`: padding 'SAME' as TensorFlow has it, batch norm with
epsilon 1e-3 and momentum 0.99, input (x - 127) / 128 in RGB.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models.layers import conv
from jaxmlic.models.layers.norm import BatchNorm, check_batch_norm
from jaxmlic.models.trunks import remat

Array = jax.Array

STRIDE = 32
LEVELS = ("stage3", "stage5", "head")
NUM_CHANNELS = 1280
STEM_CHANNELS = 32
TORCH_CLASSIFIER = ("_fc", "classifier")
# variant: (width, depth, the resolution it was trained at)
VARIANTS = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
# Names of this trunk in a config, with the fields each stands for.
NAMES = {"efficientnet_lite": {}} | {f"efficientnet_{v}": {"variant": v} for v in VARIANTS}
BATCH_NORM = tuple(NAMES)
# kernel, stride, expansion, channels, blocks of each stage at width and depth 1
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def preprocess(image: Array) -> Array:
    """Pixels 0..255 in RGB (uint8 or float) [B, H, W, 3] -> float32, (x - 127) / 128."""
    return (image.astype(jnp.float32) - 127.0) / 128.0


def round_channels(channels: float, width: float) -> int:
    """Channels times width, to the nearest multiple of 8 that loses no more than a tenth."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def block_specs(variant: str) -> list[tuple[int, int, int, int, int]]:
    """(stage 1..7, kernel, stride, expansion, channels) of every block; first and last stage keep their depth."""
    width, depth, _ = VARIANTS[variant]
    specs = []
    for stage, (kernel, stride, expansion, channels, blocks) in enumerate(_STAGES, start=1):
        repeats = blocks if stage in (1, len(_STAGES)) else math.ceil(blocks * depth)
        for i in range(repeats):
            specs.append((stage, kernel, stride if i == 0 else 1, expansion, round_channels(channels, width)))
    return specs


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 expansion, k x k depthwise, 1x1 projection; plus its input where the shapes allow."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    frozen: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(BatchNorm, self.frozen or not train, dtype=self.dtype)
        y = x
        if self.expansion != 1:
            y = conv.PointwiseConv(x.shape[-1] * self.expansion, dtype=self.dtype, name="expand_conv")(y)
            y = norm(relu6=True, name="bn0")(y)
        y = conv.DepthwiseConv(self.kernel, self.stride, self.dtype, name="depthwise_conv")(y)
        y = norm(relu6=True, name="bn1")(y)
        y = conv.PointwiseConv(self.channels, dtype=self.dtype, name="project_conv")(y)
        y = norm(name="bn2")(y)
        return x + y if x.shape == y.shape else y


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, ceil(H/32), ceil(W/32), 1280], stages)`.

    variant: "lite0" to "lite4".
    batch_norm: "train" normalises a training batch by its own statistics and updates the running ones;
        "frozen" keeps to the running averages and never changes them.
    dtype: of the computation; parameters and statistics are float32.

    `stages` holds "stem" (stride 2), "stage1" to "stage7" (2, 4, 8, 16, 16, 32, 32) and "head", the feature map.
    """

    variant: str = "lite0"
    batch_norm: str = "train"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        frozen = check_batch_norm(self.batch_norm)
        norm = partial(BatchNorm, frozen or not train, dtype=self.dtype)
        stages = {}
        x = x.astype(self.dtype)
        x = nn.Conv(
            STEM_CHANNELS, (3, 3), 2, use_bias=False, dtype=self.dtype, kernel_init=conv.conv_init, name="conv_stem"
        )(x)
        x = stages["stem"] = norm(relu6=True, name="bn0")(x)

        def run_block(trunk: nn.Module, x: Array, i: int) -> Array:
            return MBConv(*specs[i][1:], frozen, self.dtype, name=f"blocks_{i}")(x, train)

        def run_stage(trunk: nn.Module, x: Array, blocks: Sequence[int]) -> Array:
            for i in blocks:
                x = remat.block(partial(run_block, i=i), trunk, x)
            return x

        specs = block_specs(self.variant)
        for stage in range(1, len(_STAGES) + 1):
            blocks = [i for i, spec in enumerate(specs) if spec[0] == stage]
            x = stages[f"stage{stage}"] = remat.stage(partial(run_stage, blocks=blocks), self, x)
        x = conv.PointwiseConv(NUM_CHANNELS, dtype=self.dtype, name="conv_head")(x)
        x = stages["head"] = norm(relu6=True, name="bn1")(x)
        return x, stages


def stage_of(module: str, variant: str = "lite0") -> int:
    """The stage of one of the trunk's modules, such as "blocks_3": 0 for the stem, 1 to 7, 8 for what follows."""
    ends = {"conv_stem": 0, "bn0": 0, "conv_head": len(_STAGES) + 1, "bn1": len(_STAGES) + 1}
    return ends[module] if module in ends else block_specs(variant)[int(module.removeprefix("blocks_"))][0]


def torch_names(variant: str = "lite0") -> dict[tuple[str, ...], str]:
    """Variable -> its name in a PyTorch state dict: ("params", "blocks_0", "bn1", "bias") -> "_blocks.0._bn1.bias"."""
    names = {}

    def conv(*path: str) -> None:
        names["params", *path, "kernel"] = _torch_prefix(path) + ".weight"

    def norm(*path: str) -> None:
        prefix = _torch_prefix(path)
        names["params", *path, "scale"] = prefix + ".weight"
        names["params", *path, "bias"] = prefix + ".bias"
        names["batch_stats", *path, "mean"] = prefix + ".running_mean"
        names["batch_stats", *path, "var"] = prefix + ".running_var"

    conv("conv_stem"), norm("bn0")
    for i, (_, _, _, expansion, _) in enumerate(block_specs(variant)):
        block = f"blocks_{i}"
        if expansion != 1:
            conv(block, "expand_conv"), norm(block, "bn0")
        conv(block, "depthwise_conv"), norm(block, "bn1")
        conv(block, "project_conv"), norm(block, "bn2")
    conv("conv_head"), norm("bn1")
    return names


def timm_names(variant: str = "lite0") -> dict[tuple[str, ...], str]:
    """The same for timm's `tf_efficientnet_lite0` to 4: ("params", "blocks_1", "bn1", "bias") -> "blocks.1.0.bn2.bias".

    timm's own `efficientnet_lite0` has these names too, and is another network: padding the same on both sides, epsilon
    1e-5 and ImageNet's mean and deviation. A file does not tell them apart; take the `tf_` one.
    """
    prefixes = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2"}
    within, last_stage = 0, 1
    for i, (stage, _, _, expansion, _) in enumerate(block_specs(variant)):
        within, last_stage = (within + 1 if stage == last_stage and i else 0), stage
        if expansion == 1:
            layer_names = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
        else:
            layer_names = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2"}
            layer_names |= {"project_conv": "conv_pwl", "bn2": "bn3"}
        for ours, theirs in layer_names.items():
            prefixes[f"blocks_{i}/{ours}"] = f"blocks.{stage - 1}.{within}.{theirs}"
    return {
        (collection, *path, leaf): f"{prefixes['/'.join(path)]}.{name.rsplit('.', 1)[1]}"
        for (collection, *path, leaf), name in torch_names(variant).items()
    }


def _torch_prefix(path: tuple[str, ...]) -> str:
    return ".".join("_" + part.replace("blocks_", "blocks.") for part in path)
