"""Trunks, image -> feature map. A module here is a trunk; no registry is edited to add one.

Each exports `Trunk` (a Flax module, `trunk(x, train) -> (feature map [B, h, w, D], stages)`), `preprocess(image)`
(pixels 0..255 on the device -> the input; where the names differ in it, `preprocess_for(**fields)` gives the function),
`STRIDE` (a field `patch` of the Trunk goes before it), and `NAMES`: the names it goes by in a config and the fields
each stands for. Every such name begins with the module's. `LEVELS` are the stages, from fine to coarse, that a head of
several stages reads by default, and `BATCH_NORM` the names of NAMES that have batch norm, whose `Trunk` has a field
`batch_norm`. A trunk whose network ends in one vector of the image has the stage "pooled", [B, 1, 1, D], and names
NAME_pooled, of which this is the feature map; a trunk with a layer from there into a text tower's space has the stage
"projected", [B, 1, 1, E], and names NAME_projected.

A trunk whose stages may learn at paces of their own has `stage_of(module, **fields)`, the number of the stage of one of
its own modules ("layer2_0"), which grows from the input to the feature map.

A trunk that pretrained weights exist for has `torch_names(**fields)`, variable -> name in a PyTorch state dict, perhaps
`timm_names(**fields)`, the same for timm's names, and `TORCH_CLASSIFIER`, the prefixes of the classification layer's
names in either; `TORCH_LEFT_OUT` are prefixes of what else a file may hold and this trunk need not have. Where there
are files of other owners, `convert_state(arrays by name, **fields)` brings them to the names above, and
`differences(converted arrays, **fields)` lists what the file's network has otherwise.
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

from jaxmlic.errors import UserError, check_choice, did_you_mean, unknown
from jaxmlic.models.layers import pooling


@flax.struct.dataclass
class Descriptor:
    """A vector of each image.

    Attributes:
      values: float [B, D].
      group: descriptors of one group share one weight.
      standardise: whether its numbers are of unlike size, so that each is to be shifted and scaled over the images.
    """

    values: jax.Array
    group: str = flax.struct.field(pytree_node=False, default="")
    standardise: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class StoredMaps:
    """What stands for images where a head needs no trunk: outputs of one that were stored before, or descriptors.

    Attributes:
      feature_map: the feature map [B, h, w, D] (1 x 1 where it is pooled), or None where it was not kept.
      stages: maps [B, h, w, D] by name, those that were kept.
      descriptors: in place of both. A head that reads a feature map is given all of them side by side.
    """

    feature_map: jax.Array | None = None
    stages: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    descriptors: tuple[Descriptor, ...] = ()


def get(name: str) -> tuple[ModuleType, dict[str, Any]]:
    """`"efficientnet_lite0"` -> (module `efficientnet_lite`, {"variant": "lite0"}); UserError for an unknown name."""
    files = _files()
    for file in sorted((f for f in files if str(name).startswith(f)), key=len, reverse=True):
        fields = getattr(_module(file), "NAMES", {}).get(name)
        if fields is not None:
            return _module(file), dict(fields)
    raise unknown("trunk", name, names())


def names() -> list[str]:
    """Of all trunks."""
    return sorted(name for file in _files() for name in getattr(_module(file), "NAMES", {}))


def has_batch_norm(name: str) -> bool:
    """Whether a trunk has batch norm, so that `batch_norm="frozen"` means something to it."""
    return name in getattr(get(name)[0], "BATCH_NORM", ())


def has_pretrained(name: str) -> bool:
    """Whether there are pretrained weights that a trunk can start from."""
    return hasattr(get(name)[0], "torch_names")


def stage_numbers(name: str, modules: Sequence[str]) -> dict[str, int]:
    """The stage of each of the trunk's own modules; UserError for a trunk that does not number its stages."""
    module, fields = get(name)
    if not hasattr(module, "stage_of"):
        raise UserError(f"config.optim.stage_decay: trunk {name!r} does not number its stages; set it to 1.0")
    return {part: module.stage_of(part, **fields) for part in modules}


def build(name: str, *, dtype: str, batch_norm: str) -> tuple[nn.Module, Callable[[jax.Array], jax.Array]]:
    """The trunk as a module named "trunk", for use inside a head's compact method, and its `preprocess`.

    Raises UserError for an unknown trunk, dtype or batch-norm mode, and for a frozen batch norm in a trunk without one.
    """
    module, fields = get(name)
    check_choice("model.dtype", dtype, ("float32", "bfloat16"))
    if has_batch_norm(name):
        fields["batch_norm"] = batch_norm
    elif batch_norm != "train":
        raise UserError(f"config.model.batch_norm = {batch_norm!r}: trunk {name!r} has no batch norm to freeze")
    return module.Trunk(**fields, dtype=jnp.dtype(dtype), name="trunk"), preprocess_of(name)


def preprocess_of(name: str) -> Callable[[jax.Array], jax.Array]:
    """What turns pixels 0..255 in RGB into a trunk's input."""
    module, fields = get(name)
    return module.preprocess_for(**fields) if hasattr(module, "preprocess_for") else module.preprocess


def feature_map(
    inputs: jax.Array | StoredMaps, train: bool, *, name: str, dtype: str, batch_norm: str, frozen: bool = False
) -> jax.Array:
    """The feature map [B, h, w, D] of images [B, H, W, 3] in 0..255, or the one of `StoredMaps`.

    For use inside a head's compact method: the trunk becomes its submodule "trunk".

    frozen: whether no parameter of the trunk is trained; see `acts_in_training`.

    Raises UserError as `build` does.
    """
    trunk, preprocess = build(name, dtype=dtype, batch_norm=batch_norm)
    if not isinstance(inputs, StoredMaps):
        return trunk(preprocess(inputs), train and acts_in_training(name, batch_norm, frozen))[0]
    if inputs.descriptors:
        return _side_by_side(inputs.descriptors)[:, None, None]
    if inputs.feature_map is None:
        raise UserError("this head reads the feature map: set config.features.store='map' or 'pooled'")
    return inputs.feature_map


def stages(
    inputs: jax.Array | StoredMaps,
    train: bool,
    wanted: Sequence[str],
    *,
    name: str,
    dtype: str,
    batch_norm: str,
    map_size: int = 0,
    frozen: bool = False,
) -> dict[str, jax.Array]:
    """The wanted stages in their order: maps [B, h, w, D] by name, of images [B, H, W, 3] in 0..255 or `StoredMaps`.

    For use inside a head's compact method: the trunk becomes its submodule "trunk".

    wanted: names of stages; empty for the trunk's LEVELS.
    map_size: maps with more rows or columns are averaged to so many; 0 leaves them as they are.
    frozen: whether no parameter of the trunk is trained; see `acts_in_training`.

    Raises UserError as `build` does, and for a stage that there is not.
    """
    trunk, preprocess = build(name, dtype=dtype, batch_norm=batch_norm)
    if isinstance(inputs, StoredMaps):
        found, where = inputs.stages, "the stored features (config.features.store='stages', config.features.stages)"
    else:
        found = trunk(preprocess(inputs), train and acts_in_training(name, batch_norm, frozen))[1]
        where = f"trunk {name!r}"
    wanted = tuple(wanted) or levels(name)
    for stage in wanted:
        if stage not in found:
            raise UserError(
                f"no stage {stage!r} in {where}{did_you_mean(stage, found)}; there: {', '.join(found) or 'none'}"
            )
    return {stage: shrink(found[stage], map_size) for stage in wanted}


def acts_in_training(name: str, batch_norm: str, frozen: bool) -> bool:
    """Whether a trunk's output in training differs from its output in evaluation.

    A trunk without a trained parameter is a fixed function, its own dropout off (VGG16's fc6 and fc7): the "fixed CNN"
    of the papers, whose output can be stored. It is none while `batch_norm="train"` moves its statistics.
    """
    return not frozen or (has_batch_norm(name) and batch_norm == "train")


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


def _side_by_side(descriptors: Sequence[Descriptor]) -> jax.Array:
    """float32 [B, D]: each descriptor divided by the root of its mean square, so that none outweighs the others."""
    values = [descriptor.values.astype(jnp.float32) for descriptor in descriptors]
    return jnp.concatenate([x * jax.lax.rsqrt(jnp.mean(x**2, axis=1, keepdims=True) + 1e-6) for x in values], axis=1)


def patch_of(name: str) -> int:
    """The side of the patches that a trunk cuts images into; 1 for a trunk that takes images of any size."""
    return int(get(name)[1].get("patch", 1))


def _files() -> list[str]:
    return [found.name for found in pkgutil.iter_modules(__path__)]


def _module(file: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{file}")
