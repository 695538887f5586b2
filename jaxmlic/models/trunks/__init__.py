"""Trunks, image -> feature map. A module here is a trunk; no registry is edited to add one.

Each exports `Trunk` (a Flax module, `trunk(x, train) -> (feature map [B, h, w, D], stages)`), `preprocess(image)`
(pixels 0..255 on the device -> the input), `STRIDE`, and `NAMES`: the names it goes by in a config and the fields each
stands for. Every such name begins with the module's.

A trunk that pretrained weights exist for has `torch_names(**fields)`, variable -> name in a PyTorch state dict, perhaps
`timm_names(**fields)`, the same for timm's names, and `TORCH_CLASSIFIER`, the prefixes of the classification layer's
names in either; `TORCH_LEFT_OUT` are prefixes of what else a file may hold and this trunk need not have.
"""

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError, did_you_mean


@flax.struct.dataclass
class Features:
    """A trunk's feature map [B, h, w, D] that was computed before, given to a head in place of images.

    Pooled vectors are maps of 1 x 1.
    """

    values: jax.Array


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
    if isinstance(inputs, Features):
        return inputs.values, {}
    return trunk(preprocess(inputs), train)


def _module(file: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{file}")
