"""Swin transformer: attention within windows of a feature map, which every second block shifts by half a window.

Source: Liu et al., "Swin Transformer" (2021), and `torchvision/models/swin_transformer.py`, whose padding of maps that
windows or mergings do not divide is kept (zeros, below and right, before the shift). Weights of torchvision, timm
(`swin_tiny_patch4_window7_224` and so on), the authors and Hugging Face have their own names for the same arrays.
"""

import re
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.models.layers import pooling
from jaxmlic.models.trunks import remat, transformer
from jaxmlic.models.weights.renaming import State, compiled, fuse_qkv, renamed

Array = jax.Array

STRIDE = 32
LEVELS = ("stage2", "stage3", "stage4")
TORCH_CLASSIFIER = ("head", "head.fc", "classifier")
TORCH_LEFT_OUT = ("pooler",)
_SIZES = {
    "tiny": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "small": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "base": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
}
# Names of this trunk in a config, with the fields each stands for: torchvision's and timm's.
NAMES: dict[str, dict[str, Any]] = {f"swin_{size[0]}": fields for size, fields in _SIZES.items()}
NAMES |= {f"swin_{size}_patch4_window7": fields for size, fields in _SIZES.items()}
NAMES |= {"swin_base_patch4_window12": _SIZES["base"] | {"window": 12}}
_PATCH, _EXPANSION, _EPSILON = 4, 4, 1e-5
_OUTSIDE = -100.0  # added to the logits of positions that are no neighbours in the image
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

preprocess = partial(transformer.image_input, *_IMAGENET)


class Block(nn.Module):
    """Attention within windows and a hidden layer, each behind a layer norm and added to its input [B, H, W, D].

    shifted: by half a window, in a direction in which there are several.
    """

    heads: int
    window: int
    shifted: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = partial(transformer.layer_norm, epsilon=_EPSILON, dtype=self.dtype)
        x = x + self._attend(norm(x, name="norm1"))
        return x + transformer.hidden_layer(norm(x, name="norm2"), _EXPANSION, "exact", self.dtype)

    def _attend(self, x: Array) -> Array:
        (batch, height, width, channels), side = x.shape, self.window
        table = self.param("bias_table", transformer.init, ((2 * side - 1) ** 2, self.heads), jnp.float32)
        bias = table[_offsets(side).reshape(-1)].reshape(side**2, side**2, self.heads).transpose(2, 0, 1)
        rows, columns = -(-height // side), -(-width // side)
        x = jnp.pad(x, ((0, 0), (0, rows * side - height), (0, columns * side - width), (0, 0)))
        shift = tuple(side // 2 if self.shifted and count > 1 else 0 for count in (rows, columns))
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))
        windows = x.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
        bias = bias[None]  # [1, heads, N, N]
        if any(shift):
            apart = jnp.asarray(_apart(rows, columns, side, shift))[:, None]  # [windows, 1, N, N]
            bias = bias + jnp.where(apart, _OUTSIDE, 0.0)
            bias = jnp.broadcast_to(bias[None], (batch, *bias.shape)).reshape(-1, *bias.shape[1:])
        attention = transformer.Attention(self.heads, self.dtype, name="attn")
        y = attention(windows.reshape(-1, side**2, channels), bias.astype(self.dtype))
        y = y.reshape(batch, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
        y = jnp.roll(y.reshape(x.shape), shift, (1, 2))
        return y[:, :height, :width]


def _offsets(side: int) -> np.ndarray:
    """int [N, N]: for positions i and j of a window, the row of the bias table for the way from one to the other."""
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    rows, columns = np.moveaxis(places[:, None] - places[None] + side - 1, -1, 0)
    return rows * (2 * side - 1) + columns


def _apart(rows: int, columns: int, side: int, shift: tuple[int, int]) -> np.ndarray:
    """bool [windows, N, N]: which positions of a shifted window lie at opposite ends of the map."""
    ends = []
    for count, by in zip((rows, columns), shift, strict=True):
        place = np.arange(count * side)
        ends.append((place >= (count - 1) * side).astype(int) + (place >= count * side - by) if by else 0 * place)
    region = 3 * ends[0][:, None] + ends[1][None]
    region = region.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(-1, side**2)
    return region[:, :, None] != region[:, None]


class Merge(nn.Module):
    """Four neighbours side by side, normed, projected to twice the channels: [B, H, W, D] -> [B, H/2, W/2, 2 D]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        rows, columns = -(-height // 2), -(-width // 2)
        x = x.reshape(batch, rows, 2, columns, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = transformer.layer_norm(x.reshape(batch, rows, columns, 4 * channels), _EPSILON, self.dtype, "norm")
        return transformer.linear(x, 2 * channels, self.dtype, "reduction", use_bias=False)


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, h, w, 8 width], stages)`, the last stage normed.

    width: channels of the first stage.
    depths, heads: of each of the four stages, its blocks and their heads.
    window: side of the windows, in positions.
    dtype: of the computation; parameters are float32.

    `stages` holds "stage1" to "stage4" (strides 4, 8, 16, 32), before the last norm. The network's own vector of the
    image is the mean of the feature map.
    """

    width: int = 96
    depths: tuple[int, ...] = _SIZES["tiny"]["depths"]
    heads: tuple[int, ...] = _SIZES["tiny"]["heads"]
    window: int = 7
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        pooling.check_image_size(x, STRIDE)
        stages = {}

        def run_block(trunk: nn.Module, x: Array, stage: int, i: int) -> Array:
            return Block(self.heads[stage - 1], self.window, i % 2 == 1, self.dtype, name=f"stage{stage}_{i}")(x)

        def run_stage(trunk: nn.Module, x: Array, stage: int) -> Array:
            for i in range(self.depths[stage - 1]):
                x = remat.block(partial(run_block, stage=stage, i=i), trunk, x)
            return x

        patch, init = (_PATCH, _PATCH), transformer.init
        patches = nn.Conv(
            self.width, patch, _PATCH, padding="VALID", dtype=self.dtype, kernel_init=init, name="patches"
        )
        x = transformer.layer_norm(patches(x.astype(self.dtype)), _EPSILON, self.dtype, "patches_norm")
        for stage in range(1, len(self.depths) + 1):
            if stage > 1:
                x = Merge(self.dtype, name=f"stage{stage}_merge")(x)
            x = stages[f"stage{stage}"] = remat.stage(partial(run_stage, stage=stage), self, x)
        return transformer.layer_norm(x, _EPSILON, self.dtype, "norm"), stages


def stage_of(module: str, depths: tuple[int, ...] = _SIZES["tiny"]["depths"], **_: Any) -> int:
    """The stage of one of the trunk's modules, such as "stage2_0": 0 for the patches, 1 to 4, 5 for the last norm."""
    ends = {"patches": 0, "patches_norm": 0, "norm": len(depths) + 1}
    return ends[module] if module in ends else int(module.removeprefix("stage").partition("_")[0])


def torch_names(depths: tuple[int, ...] = _SIZES["tiny"]["depths"], **_: Any) -> dict[tuple[str, ...], str]:
    """Variable -> torchvision's name: ("params", "stage1_0", "norm1", "scale") -> "features.1.0.norm1.weight"."""
    stages = {f"stage{stage}": f"features.{2 * stage - 1}" for stage in range(1, len(depths) + 1)}
    merges = {f"stage{stage}_merge": f"features.{2 * stage - 2}" for stage in range(2, len(depths) + 1)}
    ends = {"patches": "features.0.0", "patches_norm": "features.0.2", "norm": "norm"}
    return _names(depths, ends, stages, merges, ("mlp.0", "mlp.3"))


def timm_names(depths: tuple[int, ...] = _SIZES["tiny"]["depths"], **_: Any) -> dict[tuple[str, ...], str]:
    """The same for timm: ("params", "stage1_0", "norm1", "scale") -> "layers.0.blocks.0.norm1.weight"."""
    stages = {f"stage{stage}": f"layers.{stage - 1}.blocks" for stage in range(1, len(depths) + 1)}
    merges = {f"stage{stage}_merge": f"layers.{stage - 1}.downsample" for stage in range(2, len(depths) + 1)}
    ends = {"patches": "patch_embed.proj", "patches_norm": "patch_embed.norm", "norm": "norm"}
    return _names(depths, ends, stages, merges, ("mlp.fc1", "mlp.fc2"))


def _names(
    depths: tuple[int, ...],
    ends: dict[str, str],
    stages: dict[str, str],
    merges: dict[str, str],
    hidden: tuple[str, str],
) -> dict[tuple[str, ...], str]:
    names = {}

    def layer(path: tuple[str, ...], prefix: str, *, bias: bool = True) -> None:
        leaf = "scale" if "norm" in path[-1] else "kernel"
        names["params", *path, leaf] = f"{prefix}.weight"
        if bias:
            names["params", *path, "bias"] = f"{prefix}.bias"

    for ours, prefix in ends.items():
        layer((ours,), prefix)
    for ours, prefix in merges.items():
        layer((ours, "norm"), f"{prefix}.norm")
        layer((ours, "reduction"), f"{prefix}.reduction", bias=False)
    for (ours, prefix), depth in zip(stages.items(), depths, strict=True):
        for i in range(depth):
            block, theirs = f"{ours}_{i}", f"{prefix}.{i}"
            names["params", block, "bias_table"] = f"{theirs}.attn.relative_position_bias_table"
            for path in (("norm1",), ("norm2",), ("attn", "qkv"), ("attn", "proj")):
                layer((block, *path), f"{theirs}.{'.'.join(path)}")
            layer((block, "fc1"), f"{theirs}.{hidden[0]}"), layer((block, "fc2"), f"{theirs}.{hidden[1]}")
    return names


_RENAMED = compiled(  # Hugging Face's: published files, and state dicts of transformers 5
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"(?<=\d\.)layernorm_before\.", "norm1."),
    (r"(?<=\d\.)layernorm_after\.", "norm2."),
    (r"(?<=\d\.)attention\.(self|relative_position_bias)\.relative_position_", "attn.relative_position_"),
    (r"(?<=\d\.)attention\.(self\.query|q_proj)\.", "attn.q."),
    (r"(?<=\d\.)attention\.(self\.key|k_proj)\.", "attn.k."),
    (r"(?<=\d\.)attention\.(self\.value|v_proj)\.", "attn.v."),
    (r"(?<=\d\.)attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"(?<=\d\.)intermediate\.dense\.", "mlp.fc1."),
    (r"(?<=\d\.)output\.dense\.", "mlp.fc2."),
)
_BUFFERS = ("relative_position_index", "attn_mask")


def convert_state(state: State, **_: Any) -> State:
    """Hugging Face's and the authors' names become timm's, where a merging begins a stage and does not end one."""
    found = fuse_qkv(renamed(state, _RENAMED))
    found = {name: array for name, array in found.items() if not name.endswith(_BUFFERS)}
    if "layers.0.downsample.reduction.weight" in found:
        later = re.compile(r"^layers\.(\d+)\.downsample")
        found = {
            later.sub(lambda match: f"layers.{int(match[1]) + 1}.downsample", name): a for name, a in found.items()
        }
    return found
