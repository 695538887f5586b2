"""Descriptors from a pretrained trunk, of images of any shape."""

import functools
from collections.abc import Callable, Collection

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import sharding
from jaxmlic.data.image import resize
from jaxmlic.errors import UserError, check_choice, did_you_mean
from jaxmlic.inputs import cache
from jaxmlic.inputs.descriptors.descriptor_set import DescriptorSet, Part
from jaxmlic.models import trunks
from jaxmlic.models.layers.pooling import POOLS
from jaxmlic.models.trunks import pretrained

STAGES, GEM = "stages", "gem"
KINDS = ("avg", "max", GEM, STAGES)
# Long side to short side that images are brought to, the nearest one: few shapes, so that little is compiled.
ASPECTS = (1.0, 9 / 8, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2.0)
_LEAST = 1e-6  # of the values that a generalised mean is taken of


class TrunkSet(DescriptorSet):
    """What `config.features` makes of a trunk: one descriptor for each of `features.pools`; of "stages" one a stage.

    The descriptors of an image and of its mirror image are averaged where `features.mirror` says so.
    """

    def __init__(self, config: ConfigDict, name: str, trunk: str, side: int):
        self.name, self.trunk, self.side, self._rules = name, trunk, side, config.features
        self._folder, self._dtype = config.features.weights, config.model.dtype
        for kind in self._rules.pools:
            check_choice("features.pools", kind, KINDS)
        if side % trunks.patch_of(trunk):
            raise UserError(
                f"config.features.sets: {name!r}: the side {side} does not divide into the trunk's patches of "
                f"{trunks.patch_of(trunk)} pixels"
            )
        self._stages = tuple(self._rules.stages or trunks.levels(trunk)) if STAGES in self._rules.pools else ()
        self.parts = self._parts()

    def key_fields(self) -> dict:
        """The trunk, its weights and the rules that it reads."""
        rules = self._rules
        return {
            "trunk": self.trunk,
            "image_size": self.side,
            "weights": cache.weights_digest(self.weights_file(), "features.weights"),
            "compute": self._dtype,
            "aspect": rules.aspect,
            "mirror": rules.mirror,
        }

    def weights_file(self) -> str:
        """The file in `config.features.weights` with this trunk's weights; UserError without exactly one."""
        if not self._folder:
            raise UserError(
                f"config.features.sets: {self.name!r} needs weights: set config.features.weights to a folder with one "
                "file of weights for each trunk"
            )
        found = pretrained.find(self._folder, self.trunk)
        if found is None:
            raise UserError(f"config.features.sets: trunk {self.trunk!r} of {self.name!r} has no pretrained weights")
        return str(found)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image with the short side at `side`, its aspect the nearest of ASPECTS; or a square."""
        return resize(image, self._shape_for(*image.shape[:2]))

    def _shape_for(self, height: int, width: int) -> tuple[int, int]:
        if self._rules.aspect == "square":
            return self.side, self.side
        ratio = max(height, width) / min(height, width)
        nearest = min(ASPECTS, key=lambda aspect: abs(np.log(ratio / aspect)))
        patch = trunks.patch_of(self.trunk)
        long = round(self.side * nearest / patch) * patch
        return (self.side, long) if width >= height else (long, self.side)

    def describe(self, prepared: np.ndarray, count: int) -> np.ndarray:
        """float32 [B, D] of images uint8 [B, H, W, 3]; a shape and count are compiled once."""
        mesh, forward, variables = self._program
        count = -(-max(count, len(prepared)) // mesh.size) * mesh.size
        padded = np.zeros((count, *prepared.shape[1:]), np.uint8)
        padded[: len(prepared)] = prepared
        views = (padded, padded[:, :, ::-1]) if self._rules.mirror else (padded,)
        found = [np.asarray(forward(variables, np.ascontiguousarray(view)))[: len(prepared)] for view in views]
        return np.mean(found, axis=0, dtype=np.float32)

    @functools.cached_property
    def _program(self) -> tuple[jax.sharding.Mesh, Callable, dict]:
        """This machine's devices, jitted (variables, images) -> [B, D] over them, and the trunk's variables."""
        mesh = sharding.make_mesh(jax.local_devices())
        everywhere, divided = sharding.replicated(mesh), sharding.split(mesh)
        variables = pretrained.load(self.weights_file(), self.trunk)
        forward = jax.jit(self._forward, in_shardings=(everywhere, divided), out_shardings=divided)
        return mesh, forward, jax.device_put(variables, everywhere)

    def _forward(self, variables: dict, images: jax.Array) -> jax.Array:
        """float32 [B, D] of images uint8 [B, H, W, 3]."""
        trunk, preprocess = _build(self.trunk, self._dtype)
        last, stages = trunk.apply(variables, preprocess(images), False)
        return jnp.concatenate([x for kind in self._rules.pools for x in self._of_kind(kind, last, stages)], axis=1)

    def _of_kind(self, kind: str, last: jax.Array, stages: dict[str, jax.Array]) -> list[jax.Array]:
        if kind == STAGES:
            maps = [stages[name].astype(jnp.float32) for name in self._stages]
            return [jnp.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=1) for x in maps]
        if kind == GEM:
            return [generalised_mean(last.astype(jnp.float32), self._rules.gem_power)]
        return [POOLS[kind](last.astype(jnp.float32))]

    def _check_stages(self, known: Collection[str]) -> None:
        for stage in self._stages:
            if stage not in known:
                raise UserError(
                    f"config.features.stages: {self.trunk!r} has no {stage!r}{did_you_mean(stage, known)}; it has "
                    f"{', '.join(known)}"
                )

    def _parts(self) -> tuple[Part, ...]:
        last, stages = pretrained.channels(self.trunk)
        self._check_stages(stages)
        found = []
        for kind in self._rules.pools:
            group = f"{self.name} {kind}"
            if kind == STAGES:
                found += [Part(stage, group, 2 * stages[stage], True) for stage in self._stages]
            else:
                found.append(Part(kind + (f"{self._rules.gem_power:g}" if kind == GEM else ""), group, last))
        return tuple(found)


def _build(name: str, dtype: str) -> tuple[nn.Module, Callable[[jax.Array], jax.Array]]:
    mode = "frozen" if trunks.has_batch_norm(name) else "train"
    trunk, preprocess = trunks.build(name, dtype=dtype, batch_norm=mode)
    return trunk.clone(name=None), preprocess


def generalised_mean(x: jax.Array, power: float) -> jax.Array:
    """GeM (Radenovic, Tolias and Chum, 2018): [B, h, w, D] -> [B, D], (mean of x^power over positions)^(1/power)."""
    return jnp.mean(jnp.maximum(x, _LEAST) ** power, axis=(1, 2)) ** (1 / power)
