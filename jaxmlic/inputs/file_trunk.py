"""The trunk that made a file of features, so that a run trained on the file takes photographs too."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmlic import sharding
from jaxmlic.errors import UserError, check_choice
from jaxmlic.models import trunks
from jaxmlic.models.layers.pooling import POOLS
from jaxmlic.models.trunks import pretrained

_POOLS = ("avg", "max")  # those that a file of vectors may have been made with


class FileTrunk:
    """`config.data.features_trunk` with its weights: images [B, S, S, 3] -> features as the file has them.

    shape: [h, w, D] of the file's features. Where they are vectors and the trunk gives a map, that is pooled by
        `config.data.features_pool`.

    Raises UserError for fields that do not go together, and for a trunk that does not give features of this shape.
    """

    def __init__(self, config: ConfigDict, shape: tuple[int, ...]):
        data = config.data
        self.name, self._weights, self._pool = data.features_trunk, data.features_weights, data.features_pool
        check_choice("data.features_pool", self._pool, _POOLS)
        if not self._weights:
            raise UserError(f"config.data.features_trunk = {self.name!r} needs config.data.features_weights=FILE")
        mode = "frozen" if trunks.has_batch_norm(self.name) else "train"
        trunk, self._preprocess = trunks.build(self.name, dtype=config.model.get("dtype", "float32"), batch_norm=mode)
        self._programs: dict = {}
        self._trunk, self._shape, size = trunk.clone(name=None), tuple(shape), data.image_size
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
        found = jax.eval_shape(
            lambda x: self._forward(self._trunk.init(jax.random.key(0), self._preprocess(x), False), x), image
        )
        if found.shape[1:] != self._shape:
            theirs, ours = (" x ".join(map(str, s)) for s in (self._shape, found.shape[1:]))
            raise UserError(
                f"config.data.features_trunk = {self.name!r} gives features of {ours} for images of {size} pixels, and "
                f"{data.features_file} holds {theirs}: name the trunk and config.data.image_size that made it"
            )

    def __call__(self, images: jax.Array, mesh: jax.sharding.Mesh) -> jax.Array:
        """float32 [B, h, w, D] of images uint8 [B, S, S, 3] divided over a mesh."""
        forward, variables = self._program(mesh)
        return forward(variables, images)

    def _program(self, mesh: jax.sharding.Mesh) -> tuple[Callable[[dict, jax.Array], jax.Array], dict]:
        """Jitted (variables, images) -> features over the devices of a mesh, and the trunk's variables; made once."""
        if mesh not in self._programs:
            everywhere, divided = sharding.replicated(mesh), sharding.split(mesh)
            forward = jax.jit(self._forward, in_shardings=(everywhere, divided), out_shardings=divided)
            variables = pretrained.load(self._weights, self.name)
            self._programs[mesh] = forward, jax.tree.map(lambda value: sharding.place(value, everywhere), variables)
        return self._programs[mesh]

    def _forward(self, variables: dict, images: jax.Array) -> jax.Array:
        found = self._trunk.apply(variables, self._preprocess(images), False)[0].astype(jnp.float32)
        if self._shape[:2] == (1, 1) and found.shape[1:3] != (1, 1):
            return POOLS[self._pool](found)[:, None, None]
        return found
