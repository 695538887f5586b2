"""VGG16, with and without batch norm, and with or without its two hidden fully connected layers.

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks" (2015), configuration D, and
`torchvision/models/vgg.py`, whose names, adaptive pooling to 7x7 before the fully connected layers and input
(ImageNet's mean and deviation) are kept.

`vgg16_fc` is what a paper means that replaces only VGG's last layer: its feature map is [B, 1, 1, 4096], so that any
pooling of a head gives the output of the second fully connected layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models.layers import conv, pooling, rectifier
from jaxmlic.models.layers.norm import BatchNorm, check_batch_norm
from jaxmlic.models.trunks import remat
from jaxmlic.models.trunks.resnet import preprocess

__all__ = [
    "BATCH_NORM",
    "LEVELS",
    "NAMES",
    "STRIDE",
    "TORCH_CLASSIFIER",
    "TORCH_LEFT_OUT",
    "Trunk",
    "preprocess",
    "stage_of",
    "timm_names",
    "torch_names",
]

Array = jax.Array

STRIDE = 32
LEVELS = ("conv3_3", "conv4_3", "conv5_3")  # the 7th, 10th and 13th layer
TORCH_CLASSIFIER = ("classifier.6", "head.fc")
# The hidden layers, which the trunks without them leave out.
TORCH_LEFT_OUT = ("classifier.0", "classifier.3", "pre_logits.fc1", "pre_logits.fc2")
# Names of this trunk in a config, with the fields each stands for.
NAMES = {
    "vgg16": {},
    "vgg16_bn": {"batch_norm": "train"},
    "vgg16_fc": {"with_fc": True},
    "vgg16_bn_fc": {"batch_norm": "train", "with_fc": True},
}
BATCH_NORM = ("vgg16_bn", "vgg16_bn_fc")
FC_CHANNELS = 4096
_FC_POOL = (7, 7)
_DROPOUT = 0.5
# channels and convolutions of the five blocks; a 2x2 max pool ends each
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map, stages)`; UserError for images with a side below 32 pixels.

    The feature map is the last pool's [B, floor(H/32), floor(W/32), 512], or [B, 1, 1, 4096] with the fully connected
    layers. `stages` holds every convolution after its ReLU, "conv1_1" to "conv5_3" (strides 1, 2, 4, 8, 16; the 7th,
    10th and 13th are conv3_3, conv4_3 and conv5_3), then "pool5", and "fc6" and "fc7" where they are, before dropout.

    with_fc: 7x7 adaptive average pooling and the two fully connected layers, each with ReLU and dropout of 0.5, which
        in training needs the rng "dropout".
    batch_norm: batch norm (epsilon 1e-5) between each convolution and its ReLU: "train" normalises a training batch by
        its own statistics and updates the running ones; "frozen" keeps to the running averages and never changes them.
        None for the network without.
    dtype: of the computation; parameters and statistics are float32.
    """

    with_fc: bool = False
    batch_norm: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        frozen = self.batch_norm is not None and check_batch_norm(self.batch_norm)
        pooling.check_image_size(x, STRIDE)
        norm = partial(BatchNorm, frozen or not train, relu=True, dtype=self.dtype, momentum=0.9, epsilon=1e-5)
        stages = {}
        x = x.astype(self.dtype)
        for block, (channels, convolutions) in enumerate(_BLOCKS, start=1):

            def run_layer(trunk: nn.Module, x: Array, name: str, channels: int = channels) -> Array:
                x = nn.Conv(channels, (3, 3), dtype=self.dtype, kernel_init=conv.conv_init, name=f"conv{name}")(x)
                return norm(name=f"bn{name}")(x) if self.batch_norm else rectifier.relu(x)

            names = [f"{block}_{n}" for n in range(1, convolutions + 1)]
            x, maps = remat.stage(partial(_run_block, run_layer=run_layer, names=names), self, x)
            stages |= maps
        stages["pool5"] = x
        if self.with_fc:
            x = pooling.adaptive_avg_pool(x, _FC_POOL)
            for name in ("fc6", "fc7"):
                x = nn.DenseGeneral(
                    FC_CHANNELS,
                    axis=(1, 2, 3),
                    dtype=self.dtype,
                    kernel_init=nn.initializers.normal(0.01),
                    name=name,
                )(x)
                x = stages[name] = rectifier.relu(x)[:, None, None]  # [B, 1, 1, 4096]
                x = nn.Dropout(_DROPOUT, deterministic=not train)(x)
        return x, stages


def _run_block(
    trunk: nn.Module, x: Array, run_layer: Callable[..., Array], names: Sequence[str]
) -> tuple[Array, dict[str, Array]]:
    """The layers of a block and its pool; and the layers' maps by name."""
    maps = {}
    for name in names:
        x = maps[f"conv{name}"] = remat.block(partial(run_layer, name=name), trunk, x)
    return nn.max_pool(x, (2, 2), (2, 2)), maps


def stage_of(module: str, with_fc: bool = False, batch_norm: str | None = None) -> int:
    """The stage of one of the trunk's modules: 1 to 5 for "conv1_1" to "bn5_3", 6 for "fc6", 7 for "fc7"."""
    del with_fc, batch_norm
    return int(module.lstrip("abcdefghijklmnopqrstuvwxyz")[0])


def torch_names(with_fc: bool = False, batch_norm: str | None = None) -> dict[tuple[str, ...], str]:
    """Variable -> its name in torchvision's state dict: ("params", "conv1_2", "bias") -> "features.2.bias"."""
    names = {}
    index = 0  # in torchvision's `features`: convolution, (batch norm,) ReLU, and at a block's end the pool
    for block, (_, convolutions) in enumerate(_BLOCKS, start=1):
        for n in range(1, convolutions + 1):
            names["params", f"conv{block}_{n}", "kernel"] = f"features.{index}.weight"
            names["params", f"conv{block}_{n}", "bias"] = f"features.{index}.bias"
            if batch_norm:
                norm = f"bn{block}_{n}"
                names["params", norm, "scale"] = f"features.{index + 1}.weight"
                names["params", norm, "bias"] = f"features.{index + 1}.bias"
                names["batch_stats", norm, "mean"] = f"features.{index + 1}.running_mean"
                names["batch_stats", norm, "var"] = f"features.{index + 1}.running_var"
            index += 3 if batch_norm else 2
        index += 1
    return names | (_fc_names("classifier.0", "classifier.3") if with_fc else {})


def timm_names(with_fc: bool = False, batch_norm: str | None = None) -> dict[tuple[str, ...], str]:
    """The same for timm, where the fully connected layers are convolutions (the same ones on a map of 7x7)."""
    return torch_names(batch_norm=batch_norm) | (_fc_names("pre_logits.fc1", "pre_logits.fc2") if with_fc else {})


def _fc_names(fc6: str, fc7: str) -> dict[tuple[str, ...], str]:
    return {
        ("params", layer, kind): f"{prefix}.{name}"
        for layer, prefix in (("fc6", fc6), ("fc7", fc7))
        for kind, name in (("kernel", "weight"), ("bias", "bias"))
    }
