"""ConvNeXt.

Source: Liu et al., "A ConvNet for the 2020s" (2022), and `torchvision/models/convnext.py`. Weights of torchvision, timm
(`convnext_tiny`, `_small`, `_base`), the authors and Hugging Face have their own names for the same arrays. Rows and
columns of pixels that a stride of 4 (then 2, 2, 2) leaves over are not seen, as in all of these.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.models.layers import conv, pooling
from jaxmlic.models.trunks import remat, transformer
from jaxmlic.models.weights.renaming import State, compiled, renamed

Array = jax.Array

STRIDE = 32
LEVELS = ("stage2", "stage3", "stage4")
TORCH_CLASSIFIER = ("classifier.2", "head.fc")
_SIZES = {
    "tiny": {"depths": (3, 3, 9, 3), "widths": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "widths": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)},
}
# Names of this trunk in a config, with the fields each stands for.
NAMES: dict[str, dict[str, Any]] = {f"convnext_{size}": fields for size, fields in _SIZES.items()}
NAMES |= {f"{name}_pooled": fields | {"pooled": True} for name, fields in NAMES.items()}
_KERNEL, _EXPANSION, _EPSILON = 7, 4, 1e-6
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

preprocess = partial(transformer.image_input, *_IMAGENET)


class Block(nn.Module):
    """7x7 depthwise convolution, layer norm and a hidden layer, scaled and added to the input [B, H, W, D]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        bias = self.param("conv_dw_bias", nn.initializers.zeros, (width,), jnp.float32)
        y = conv.DepthwiseConv(_KERNEL, dtype=self.dtype, name="conv_dw")(x) + _shared(bias, self.dtype)
        y = transformer.layer_norm(y, _EPSILON, self.dtype, "norm")
        y = transformer.hidden_layer(y, _EXPANSION, "exact", self.dtype)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,), jnp.float32)
        return x + y * _shared(gamma, self.dtype)


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, H // 32, W // 32, D], stages)`; D is the last of `widths`.

    depths: blocks of each of the four stages.
    widths: their channels.
    pooled: the feature map is the image's vector, [B, 1, 1, D]: the mean over positions, normed.
    dtype: of the computation; parameters are float32.

    `stages` holds "stage1" to "stage4" (strides 4, 8, 16, 32), of which the last is the feature map, and "pooled".
    """

    depths: tuple[int, ...] = _SIZES["tiny"]["depths"]
    widths: tuple[int, ...] = _SIZES["tiny"]["widths"]
    pooled: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        pooling.check_image_size(x, STRIDE)
        stages = {}

        def run_block(trunk: nn.Module, x: Array, name: str) -> Array:
            return Block(self.dtype, name=name)(x)

        def run_stage(trunk: nn.Module, x: Array, stage: int) -> Array:
            for i in range(self.depths[stage - 1]):
                x = remat.block(partial(run_block, name=f"stage{stage}_{i}"), trunk, x)
            return x

        x = x.astype(self.dtype)
        for stage, width in enumerate(self.widths, start=1):
            if stage == 1:
                x = self._conv(width, 4, "stem")(x)
                x = transformer.layer_norm(x, _EPSILON, self.dtype, "stem_norm")
            else:
                x = transformer.layer_norm(x, _EPSILON, self.dtype, f"stage{stage}_norm")
                x = self._conv(width, 2, f"stage{stage}_conv")(x)
            x = stages[f"stage{stage}"] = remat.stage(partial(run_stage, stage=stage), self, x)
        vector = pooling.global_avg_pool(x.astype(jnp.float32))[:, None, None]
        stages["pooled"] = transformer.layer_norm(vector, _EPSILON, self.dtype, "norm")
        return stages["pooled"] if self.pooled else x, stages

    def _conv(self, channels: int, stride: int, name: str) -> nn.Conv:
        init, kernel = transformer.init, (stride, stride)
        return nn.Conv(channels, kernel, stride, padding="VALID", dtype=self.dtype, kernel_init=init, name=name)


def _shared(vector: Array, dtype: Any) -> Array:
    return vector.astype(dtype).reshape(1, 1, 1, -1)


def stage_of(module: str, depths: tuple[int, ...] = _SIZES["tiny"]["depths"], **_: Any) -> int:
    """The stage of one of the trunk's modules, such as "stage2_0": 0 for the stem, 1 to 4, 5 for the last norm."""
    ends = {"stem": 0, "stem_norm": 0, "norm": len(depths) + 1}
    return ends[module] if module in ends else int(module.removeprefix("stage").partition("_")[0])


def torch_names(depths: tuple[int, ...] = _SIZES["tiny"]["depths"], **_: Any) -> dict[tuple[str, ...], str]:
    """Variable -> torchvision's name: ("params", "stage1_0", "norm", "scale") -> "features.1.0.block.2.weight"."""
    prefixes = {"stem": "features.0.0", "stem_norm": "features.0.1", "norm": "classifier.0"}
    blocks = {}
    for stage, depth in enumerate(depths, start=1):
        if stage > 1:
            prefixes |= {f"stage{stage}_norm": f"features.{2 * stage - 2}.0"}
            prefixes |= {f"stage{stage}_conv": f"features.{2 * stage - 2}.1"}
        blocks |= {f"stage{stage}_{i}": f"features.{2 * stage - 1}.{i}" for i in range(depth)}
    layers = {"conv_dw": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5", "gamma": "layer_scale"}
    return _names(prefixes, blocks, layers)


def timm_names(depths: tuple[int, ...] = _SIZES["tiny"]["depths"], **_: Any) -> dict[tuple[str, ...], str]:
    """The same for timm: ("params", "stage1_0", "norm", "scale") -> "stages.0.blocks.0.norm.weight"."""
    prefixes = {"stem": "stem.0", "stem_norm": "stem.1", "norm": "head.norm"}
    blocks = {}
    for stage, depth in enumerate(depths, start=1):
        if stage > 1:
            prefixes |= {f"stage{stage}_norm": f"stages.{stage - 1}.downsample.0"}
            prefixes |= {f"stage{stage}_conv": f"stages.{stage - 1}.downsample.1"}
        blocks |= {f"stage{stage}_{i}": f"stages.{stage - 1}.blocks.{i}" for i in range(depth)}
    layers = {"conv_dw": "conv_dw", "norm": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "gamma": "gamma"}
    return _names(prefixes, blocks, layers)


def _names(prefixes: dict[str, str], blocks: dict[str, str], layers: dict[str, str]) -> dict[tuple[str, ...], str]:
    names = {}

    def layer(path: tuple[str, ...], prefix: str) -> None:
        leaf = "scale" if path[-1].endswith("norm") else "kernel"
        names["params", *path, leaf], names["params", *path, "bias"] = f"{prefix}.weight", f"{prefix}.bias"

    for ours, prefix in prefixes.items():
        layer((ours,), prefix)
    for ours, prefix in blocks.items():
        names["params", ours, "gamma"] = f"{prefix}.{layers['gamma']}"
        names["params", ours, "conv_dw", "kernel"] = f"{prefix}.{layers['conv_dw']}.weight"
        names["params", ours, "conv_dw_bias"] = f"{prefix}.{layers['conv_dw']}.bias"
        for name in ("norm", "fc1", "fc2"):
            layer((ours, name), f"{prefix}.{layers[name]}")
    return names


# The authors' files, then Hugging Face's.
_RENAMED = compiled(
    (r"^convnext\.", ""),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"(?<=\d\.)dwconv\.", "conv_dw."),
    (r"(?<=\d\.)layernorm\.", "norm."),
    (r"(?<=\d\.)pwconv([12])\.", r"mlp.fc\1."),
    (r"(?<=\d\.)layer_scale_parameter$", "gamma"),
    (r"^(norm|layernorm)\.", "head.norm."),
    (r"^(head|classifier)\.(weight|bias)$", r"head.fc.\2"),
)


def convert_state(state: State, **_: Any) -> State:
    """The authors' and Hugging Face's names become timm's; others stay."""
    return renamed(state, _RENAMED)
