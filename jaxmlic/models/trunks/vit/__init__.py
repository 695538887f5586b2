"""The vision transformer, in the forms of Google and timm, torchvision, DINOv2, CLIP's image tower and SigLIP.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); Oquab et al., "DINOv2" (2023) and Darcet et al.,
"Vision Transformers Need Registers" (2024); Radford et al., "Learning Transferable Visual Models" (2021); Zhai et al.,
"Sigmoid Loss for Language Image Pre-Training" (2023). Names, epsilons, GELUs and the input are those of
`timm/models/vision_transformer.py`, SigLIP's tanh GELU that of its authors. Position embeddings are for the grid of
patches that the network was trained on; for another one they are interpolated as timm does, bicubic with antialiasing.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError
from jaxmlic.models.trunks import remat, transformer
from jaxmlic.models.trunks.vit.files import TORCH_CLASSIFIER, TORCH_LEFT_OUT, convert_state, differences, torch_names
from jaxmlic.models.trunks.vit.forms import FORMS, NAMES

__all__ = [
    "LEVELS",
    "NAMES",
    "STRIDE",
    "TORCH_CLASSIFIER",
    "TORCH_LEFT_OUT",
    "Trunk",
    "convert_state",
    "differences",
    "preprocess_for",
    "stage_of",
    "torch_names",
]

Array = jax.Array

STRIDE = 16  # of most; a trunk's own is its patch
LEVELS = ("stage2", "stage3", "stage4")
_STAGES = 4
_EXPANSION = 4


def preprocess_for(form: str = "augreg", **_: Any) -> Callable[[Array], Array]:
    """Pixels 0..255 in RGB (uint8 or float) [B, H, W, 3] -> float32, by the mean and deviation of the form."""
    return partial(transformer.image_input, *FORMS[form].statistics)


class Block(nn.Module):
    """Attention and a hidden layer, each behind a layer norm and added to its input; tokens [B, N, D]."""

    heads: int
    form: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        form = FORMS[self.form]
        norm = partial(transformer.layer_norm, epsilon=form.epsilon, dtype=self.dtype)
        y = transformer.Attention(self.heads, self.dtype, name="attn")(norm(x, name="norm1"))
        x = x + self._scaled(y, "gamma1")
        y = transformer.hidden_layer(norm(x, name="norm2"), _EXPANSION, form.gelu, self.dtype)
        return x + self._scaled(y, "gamma2")

    def _scaled(self, y: Array, name: str) -> Array:
        if not FORMS[self.form].layer_scale:
            return y
        gamma = self.param(name, nn.initializers.constant(1e-5), (y.shape[-1],), jnp.float32)
        return y * gamma.astype(self.dtype).reshape(1, 1, -1)


class AttentionPool(nn.Module):
    """Tokens [B, N, D] -> [B, D]: attention from one learned query, then a hidden layer added to it."""

    heads: int
    form: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        form, (batch, count, width) = FORMS[self.form], x.shape
        latent = self.param("latent", nn.initializers.truncated_normal(width**-0.5), (width,), jnp.float32)
        query = transformer.linear(latent.astype(self.dtype).reshape(1, width), width, self.dtype, "q")
        query = jnp.broadcast_to(query.reshape(1, 1, self.heads, -1), (batch, 1, self.heads, width // self.heads))
        pairs = transformer.linear(x, 2 * width, self.dtype, "kv").reshape(batch, count, 2, self.heads, -1)
        y = jax.nn.dot_product_attention(query, pairs[:, :, 0], pairs[:, :, 1]).reshape(batch, width)
        y = transformer.linear(y, width, self.dtype, "proj")
        normed = transformer.layer_norm(y, form.epsilon, self.dtype, "norm")
        return y + transformer.hidden_layer(normed, _EXPANSION, form.gelu, self.dtype)


class Trunk(nn.Module):
    """`trunk(x, train) -> (feature map [B, H/patch, W/patch, D], stages)`: the tokens of the patches, normed.

    width, depth, heads: D, the number of blocks, the heads of their attention.
    patch: the side of a patch, in pixels.
    grid: the rows, and columns, of patches that the position embeddings are for.
    form: one of forms.FORMS.
    registers: tokens that stand for nothing.
    pooled: the feature map is the image's vector, [B, 1, 1, D]: the class token, or what the attention pool gives.
    projection: E, and the feature map is that vector times CLIP's projection, [B, 1, 1, E], not divided by its length;
      0 for none.
    dtype: of the computation; parameters are float32.

    `stages` holds "stage1" to "stage4", the patches' tokens after each quarter of the blocks, before the last norm, and
    where there are such, "pooled", the image's vector [B, 1, 1, D], and "projected". UserError for images that patches
    do not divide.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    grid: int = 14
    form: str = "augreg"
    registers: int = 0
    pooled: bool = False
    projection: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, dict[str, Array]]:
        form = FORMS[self.form]
        rows, columns = self._patches_of(*x.shape[1:3])
        x = self._tokens(x.astype(self.dtype), rows, columns)
        special = x.shape[1] - rows * columns
        if form.pre_norm:
            x = transformer.layer_norm(x, form.epsilon, self.dtype, "norm_pre")
        stages, done = {}, 0

        def run_block(trunk: nn.Module, x: Array, i: int) -> Array:
            return Block(self.heads, self.form, self.dtype, name=f"blocks_{i}")(x)

        def run_stage(trunk: nn.Module, x: Array, blocks: range) -> Array:
            for i in blocks:
                x = remat.block(partial(run_block, i=i), trunk, x)
            return x

        def as_map(x: Array) -> Array:
            return x[:, special:].reshape(x.shape[0], rows, columns, self.width)

        for stage in range(1, _STAGES + 1):
            end = math.ceil(stage * self.depth / _STAGES)
            x = remat.stage(partial(run_stage, blocks=range(done, end)), self, x)
            stages[f"stage{stage}"], done = as_map(x), end
        x = transformer.layer_norm(x, form.epsilon, self.dtype, "norm")
        if form.has_vector:
            pool = AttentionPool(self.heads, self.form, self.dtype, name="pool") if form.pool else None
            vector = pool(x) if pool else x[:, 0]
            stages["pooled"] = vector.reshape(-1, 1, 1, self.width)
        if self.projection:
            project = nn.Dense(
                self.projection, use_bias=False, dtype=self.dtype, kernel_init=transformer.init, name="projection"
            )
            stages["projected"] = project(stages["pooled"])
            return stages["projected"], stages
        return stages["pooled"] if self.pooled else as_map(x), stages

    def _patches_of(self, height: int, width: int) -> tuple[int, int]:
        for side in (height, width):
            if side % self.patch or not side:
                low, high = max(side // self.patch, 1) * self.patch, (side // self.patch + 1) * self.patch
                near = f"{high}" if low > side else f"{low} or {high}"
                raise UserError(
                    f"images of {height} x {width} pixels do not divide into this trunk's patches of {self.patch} x "
                    f"{self.patch}: {near} in place of {side} would (config.data.image_size)"
                )
        return height // self.patch, width // self.patch

    def _tokens(self, x: Array, rows: int, columns: int) -> Array:
        """[B, H, W, 3] -> [B, class token + registers + patches, D]."""
        form = FORMS[self.form]
        patches = nn.Conv(
            self.width,
            (self.patch, self.patch),
            self.patch,
            padding="VALID",
            use_bias=not form.pre_norm,
            dtype=self.dtype,
            kernel_init=transformer.init,
            name="patches",
        )(x)
        position = self.param("position", transformer.init, (self.grid**2, self.width), jnp.float32)
        position = interpolated(position.reshape(self.grid, self.grid, self.width), rows, columns)
        tokens = (patches + position.astype(self.dtype)[None]).reshape(x.shape[0], -1, self.width)
        shared = []
        if form.class_token:
            shared.append(self.param("class_token", transformer.init, (1, self.width), jnp.float32))
        if self.registers:
            shared.append(self.param("registers", transformer.init, (self.registers, self.width), jnp.float32))
        if not shared:
            return tokens
        special = jnp.concatenate(shared).astype(self.dtype)[None]  # [1, class token + registers, D]
        return jnp.concatenate([jnp.broadcast_to(special, (len(tokens), *special.shape[1:])), tokens], axis=1)


def interpolated(position: Array, rows: int, columns: int) -> Array:
    """Position embeddings [h, w, D] -> [rows, columns, D]: bicubic with antialiasing, as timm resamples them."""
    if position.shape[:2] == (rows, columns):
        return position
    return jax.image.resize(position, (rows, columns, position.shape[-1]), "cubic")


def stage_of(module: str, depth: int = 12, **_: Any) -> int:
    """The stage of one of the trunk's modules: 0 for what makes the tokens, 1 to depth, depth + 1 for what follows."""
    if module.startswith("blocks_"):
        return 1 + int(module.removeprefix("blocks_"))
    return depth + 1 if module in ("norm", "pool", "projection") else 0
