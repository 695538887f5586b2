"""ResNet, "v1.5": in a bottleneck the 3x3 convolution has the stride, not the first 1x1.

Source: He et al., "Deep Residual Learning for Image Recognition" (2016), and `torchvision/models/resnet.py`, whose
names, padding (the same on both sides), batch norm (epsilon 1e-5, momentum 0.1) and input (ImageNet's mean and
deviation) are kept. timm's `resnet18`, `resnet50` and `resnet101` have the same names.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models.layers import conv, rectifier
from jaxmlic.models.layers.norm import BatchNorm, check_batch_norm
from jaxmlic.models.trunks import remat

Array = jax.Array

STRIDE = 32
LEVELS = ("layer2", "layer3", "layer4")
TORCH_CLASSIFIER = ("fc",)
# depth: (bottleneck blocks, blocks of each of the four layers)
DEPTHS = {18: (False, (2, 2, 2, 2)), 50: (True, (3, 4, 6, 3)), 101: (True, (3, 4, 23, 3))}
# Names of this trunk in a config, with the fields each stands for.
NAMES = {f"resnet{depth}": {"depth": depth} for depth in DEPTHS}
BATCH_NORM = tuple(NAMES)
_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4  # of a bottleneck: channels out over channels of its 3x3 convolution
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_batch_norm = partial(BatchNorm, momentum=0.9, epsilon=1e-5)


def preprocess(image: Array) -> Array:
    """Pixels 0..255 in RGB (uint8 or float) [B, H, W, 3] -> float32, less ImageNet's mean, over its deviation."""
    mean, deviation = (255 * jnp.array(v, jnp.float32).reshape(1, 1, 1, 3) for v in (_MEAN, _DEVIATION))
    return (image.astype(jnp.float32) - mean) / deviation


def _conv3x3(channels: int, stride: int, dtype: Any, name: str) -> nn.Conv:
    return nn.Conv(
        channels, (3, 3), stride, padding=1, use_bias=False, dtype=dtype, kernel_init=conv.conv_init, name=name
    )


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, plus its input (projected where the shapes differ)."""

    width: int
    stride: int
    bottleneck: bool
    frozen: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = partial(_batch_norm, self.frozen or not train, dtype=self.dtype)
        if self.bottleneck:
            y = conv.PointwiseConv(self.width, dtype=self.dtype, name="conv1")(x)
            y = norm(relu=True, name="bn1")(y)
            y = _conv3x3(self.width, self.stride, self.dtype, "conv2")(y)
            y = norm(relu=True, name="bn2")(y)
            y = conv.PointwiseConv(self.width * _EXPANSION, dtype=self.dtype, name="conv3")(y)
            y = norm(name="bn3")(y)
        else:
            y = _conv3x3(self.width, self.stride, self.dtype, "conv1")(x)
            y = norm(relu=True, name="bn1")(y)
            y = _conv3x3(self.width, 1, self.dtype, "conv2")(y)
            y = norm(name="bn2")(y)
        if x.shape != y.shape:
            x = conv.PointwiseConv(y.shape[-1], self.stride, self.dtype, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x)
        return rectifier.relu(x + y)


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, ceil(H/32), ceil(W/32), D], stages)`; D is 512 for depth 18, else 2048.

    depth: 18, 50 or 101.
    batch_norm: "train" normalises a training batch by its own statistics and updates the running ones;
        "frozen" keeps to the running averages and never changes them.
    dtype: of the computation; parameters and statistics are float32.

    `stages` holds "stem" (stride 2, before its pooling) and "layer1" to "layer4" (4, 8, 16, 32); the last is the
    feature map.
    """

    depth: int = 50
    batch_norm: str = "train"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        frozen = check_batch_norm(self.batch_norm)
        bottleneck, blocks = DEPTHS[self.depth]
        stages = {}
        x = nn.Conv(
            64, (7, 7), 2, padding=3, use_bias=False, dtype=self.dtype, kernel_init=conv.conv_init, name="conv1"
        )(x.astype(self.dtype))
        x = stages["stem"] = _batch_norm(frozen or not train, relu=True, dtype=self.dtype, name="bn1")(x)
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

        def run_block(trunk: nn.Module, x: Array, layer: int, i: int) -> Array:
            stride = 2 if layer > 1 and i == 0 else 1
            width = _WIDTHS[layer - 1]
            return Block(width, stride, bottleneck, frozen, self.dtype, name=f"layer{layer}_{i}")(x, train)

        def run_layer(trunk: nn.Module, x: Array, layer: int) -> Array:
            for i in range(blocks[layer - 1]):
                x = remat.block(partial(run_block, layer=layer, i=i), trunk, x)
            return x

        for layer in range(1, len(blocks) + 1):
            x = stages[f"layer{layer}"] = remat.stage(partial(run_layer, layer=layer), self, x)
        return x, stages


def stage_of(module: str, depth: int = 50) -> int:
    """The stage of one of the trunk's modules, such as "layer2_0": 0 for the stem, 1 to 4."""
    del depth
    return int(module[len("layer")]) if module.startswith("layer") else 0


def torch_names(depth: int = 50) -> dict[tuple[str, ...], str]:
    """Variable -> its name in a PyTorch state dict: ("params", "layer1_0", "bn1", "bias") -> "layer1.0.bn1.bias"."""
    bottleneck, blocks = DEPTHS[depth]
    names = {}

    def conv_and_norm(conv: str, norm: str, *path: str) -> None:
        names["params", *path, conv, "kernel"] = _torch_prefix(*path, conv) + ".weight"
        prefix = _torch_prefix(*path, norm)
        names["params", *path, norm, "scale"] = prefix + ".weight"
        names["params", *path, norm, "bias"] = prefix + ".bias"
        names["batch_stats", *path, norm, "mean"] = prefix + ".running_mean"
        names["batch_stats", *path, norm, "var"] = prefix + ".running_var"

    conv_and_norm("conv1", "bn1")
    for layer, repeats in enumerate(blocks, start=1):
        for i in range(repeats):
            block = f"layer{layer}_{i}"
            for n in range(1, 4 if bottleneck else 3):
                conv_and_norm(f"conv{n}", f"bn{n}", block)
            if i == 0 and (bottleneck or layer > 1):
                conv_and_norm("downsample_conv", "downsample_bn", block)
    return names


def _torch_prefix(*path: str) -> str:
    name = ".".join(path).replace("downsample_conv", "downsample.0").replace("downsample_bn", "downsample.1")
    return name.replace("_", ".")
