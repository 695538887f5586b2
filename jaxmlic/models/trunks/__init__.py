"""Trunks, image -> feature map. A module here is a trunk; no registry is edited to add one.

Each exports `Trunk` (a Flax module, `trunk(x, train) -> (feature map [B, h, w, D], stages)`), `preprocess(image)`
(pixels 0..255 on the device -> the input), `STRIDE`, and `NAMES`: the names it goes by in a config and the fields each
stands for. Every such name begins with the module's. `LEVELS` are the stages, from fine to coarse, that a head of
several stages reads where it is not told others.

A trunk that pretrained weights exist for has `torch_names(**fields)`, variable -> name in a PyTorch state dict, perhaps
`timm_names(**fields)`, the same for timm's names, and `TORCH_CLASSIFIER`, the prefixes of the classification layer's
names in either; `TORCH_LEFT_OUT` are prefixes of what else a file may hold and this trunk need not have.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.models.layers import pooling


@flax.struct.dataclass
class Features:
    """What a trunk gave before, handed to a head in place of images.

    Attributes:
      values: the feature map [B, h, w, D] (1 x 1 where it is pooled), or None where stages alone were kept.
      stages: maps [B, h, w, D] by name, those that were kept.
    """

    values: jax.Array | None
    stages: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


def get(name: str) -> tuple[ModuleType, dict[str, Any]]:
    """`"efficientnet_lite0"` -> (module `efficientnet_lite`, {"variant": "lite0"}); UserError for an unknown name."""
    files = [m.name for m in pkgutil.iter_modules(__path__)]
    for file in sorted((f for f in files if str(name).startswith(f)), key=len, reverse=True):
        fields = getattr(_module(file), "NAMES", {}).get(name)
        if fields is not None:
            return _module(file), dict(fields)
    known = sorted(n for f in files for n in getattr(_module(f), "NAMES", {}))
    raise UserError(f"unknown trunk {name!r}{did_you_mean(name, known)}; trunks are {', '.join(known)}")


def build(name: str, *, dtype: str, batch_norm: str) -> tuple[nn.Module, Callable[[jax.Array], jax.Array]]:
    """The trunk as a module named "trunk", for use inside a head's compact method, and its `preprocess`.

    Raises UserError for an unknown trunk, dtype or batch-norm mode, and for a frozen batch norm in a trunk without one.
    """
    module, fields = get(name)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.model.dtype = {dtype!r}; it is 'float32' or 'bfloat16'")
    if "batch_norm" in module.Trunk.__dataclass_fields__:
        fields["batch_norm"] = batch_norm
    elif batch_norm != "train":
        raise UserError(f"config.model.batch_norm = {batch_norm!r}: trunk {name!r} has no batch norm to freeze")
    return module.Trunk(**fields, dtype=jnp.dtype(dtype), name="trunk"), module.preprocess


def feature_map(
    inputs: jax.Array | Features, train: bool, *, name: str, dtype: str, batch_norm: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(feature map, stages) of images [B, H, W, 3] in 0..255, or of `Features`, which have no stages.

    For use inside a head's compact method: the trunk becomes its submodule "trunk". Raises UserError as `build` does.
    """
    trunk, preprocess = build(name, dtype=dtype, batch_norm=batch_norm)
    if not isinstance(inputs, Features):
        return trunk(preprocess(inputs), train)
    if inputs.values is None:
        raise UserError("this head reads the feature map: set config.features.store='map' or 'pooled'")
    return inputs.values, inputs.stages


def stages(
    inputs: jax.Array | Features,
    train: bool,
    wanted: Sequence[str],
    *,
    name: str,
    dtype: str,
    batch_norm: str,
    map_size: int = 0,
) -> dict[str, jax.Array]:
    """The wanted stages, in their order, of images [B, H, W, 3] in 0..255 or of `Features`: maps [B, h, w, D] by name.

    For use inside a head's compact method: the trunk becomes its submodule "trunk".

    wanted: names of stages; empty for the trunk's LEVELS.
    map_size: maps with more rows or columns are averaged to so many; 0 leaves them as they are.

    Raises UserError as `build` does, and for a stage that there is not.
    """
    trunk, preprocess = build(name, dtype=dtype, batch_norm=batch_norm)
    if isinstance(inputs, Features):
        found, where = inputs.stages, "the stored features (config.features.store='stages', config.features.stages)"
    else:
        found, where = trunk(preprocess(inputs), train)[1], f"trunk {name!r}"
    wanted = tuple(wanted) or levels(name)
    for stage in wanted:
        if stage not in found:
            raise UserError(
                f"no stage {stage!r} in {where}{did_you_mean(stage, found)}; there: {', '.join(found) or 'none'}"
            )
    return {stage: shrink(found[stage], map_size) for stage in wanted}


def levels(name: str) -> tuple[str, ...]:
    """The trunk's LEVELS; UserError for a trunk without them."""
    found = getattr(get(name)[0], "LEVELS", ())
    if not found:
        raise UserError(f"trunk {name!r} names no levels of its own: give the stages to read")
    return tuple(found)


def shrink(feature_map: jax.Array, map_size: int) -> jax.Array:
    """[B, h, w, D] averaged to at most map_size rows and columns; 0 leaves it as it is."""
    height, width = feature_map.shape[1:3]
    if not map_size or max(height, width) <= map_size:
        return feature_map
    return pooling.adaptive_avg_pool(feature_map, (min(height, map_size), min(width, map_size)))


def _module(file: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{file}")
