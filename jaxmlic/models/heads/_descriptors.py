"""What heads without training steps read of an image: one descriptor, or one for each of several stages, as a point."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic.errors import UserError, check_choice
from jaxmlic.kernels import Embedding, embed, fit_embedding
from jaxmlic.models import trunks
from jaxmlic.models.heads.contract import STORABLE_POOLS, Reads
from jaxmlic.models.layers.pooling import POOLS


class DescriptorModel(nn.Module):
    """The fields that these heads share, and the way from images to points.

    Attributes:
      num_labels: C.
      num_train: N, images of the training split, which the head keeps.
      trunk, batch_norm, dtype: as of the linear head; the trunk is frozen.
      pool: "avg" or "max" over the positions of the feature map, or of the last stage.
      stages: stages of the trunk in place of the feature map, one descriptor each: the last one pooled, of each other
        one the mean and the deviation of its channels, standardised over the training images. () for the feature map.
      parts: sizes of several descriptors that lie side by side in the pooled vector, such as features of several
        networks in one file; () where it is one descriptor.
      weights: of the descriptors, in their order; () for equal ones. Of descriptor sets (config.features.sets) one for
        each group: a trunk's pooled map, its stages, one of the sets without weights. The group's descriptors share it.
    """

    num_labels: int
    num_train: int = 1
    trunk: str = "small_cnn"
    pool: str = "avg"
    stages: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    batch_norm: str = "train"
    dtype: str = "float32"

    def descriptors(self, images: jax.Array | trunks.StoredMaps) -> list[trunks.Descriptor]:
        """One or more descriptors, float32 [B, D_m], of images; for use inside a compact method."""
        if isinstance(images, trunks.StoredMaps) and images.descriptors:
            return [one.replace(values=one.values.astype(jnp.float32)) for one in images.descriptors]
        check_choice("model.pool", self.pool, STORABLE_POOLS)
        options = {"name": self.trunk, "dtype": self.dtype, "batch_norm": self.batch_norm, "frozen": True}
        if not self.stages:
            maps = [trunks.feature_map(images, False, **options)]
        else:
            maps = list(trunks.stages(images, False, self.stages, **options).values())
        maps = [x.astype(jnp.float32) for x in maps]
        spread = [jnp.concatenate([x.mean((1, 2)), x.std((1, 2))], axis=1) for x in maps[:-1]]
        pooled = POOLS[self.pool](maps[-1])
        if not self.parts:
            return _named(spread, [pooled])
        if sum(self.parts) != pooled.shape[1] or min(self.parts) < 1:
            raise UserError(
                f"config.model.parts = {tuple(self.parts)} do not sum to the {pooled.shape[1]} numbers of an image"
            )
        return _named(spread, jnp.split(pooled, np.cumsum(self.parts)[:-1].tolist(), axis=1))

    def points(self, found: Sequence[trunks.Descriptor], unit: bool) -> jax.Array:
        """Points float32 [B, D] of descriptors; see `kernels.points`."""
        dim = sum(x.values.shape[1] for x in found)
        embedding = Embedding(
            self.param("centre", nn.initializers.zeros, (dim,)),
            self.param("scale", nn.initializers.ones, (dim,)),
            self.param("factor", nn.initializers.ones, (len(found),)),
        )
        return embed(embedding, [x.values for x in found], unit=unit)

    def fitted_points(self, found: Sequence[trunks.Descriptor], unit: bool) -> tuple[dict[str, np.ndarray], jax.Array]:
        """The parameters that `points` reads, from the training images' descriptors, and their points [N, D]."""
        groups = [one.group for one in found]
        names = list(dict.fromkeys(groups))
        if self.weights and (len(self.weights) != len(names) or min(self.weights) <= 0):
            raise UserError(
                f"config.model.weights = {tuple(self.weights)}: {len(names)} descriptors need as many weights above 0 "
                f"({', '.join(names)})"
            )
        given = dict(zip(names, self.weights or (1.0,) * len(names), strict=True))
        weights = tuple(given[group] / groups.count(group) for group in groups)
        values = [one.values for one in found]
        embedding = fit_embedding(values, weights, unit=unit, standardise=[one.standardise for one in found])
        params = {"centre": embedding.centre, "scale": embedding.scale, "factor": embedding.factor}
        return params, jax.jit(lambda e, x: embed(e, x, unit=unit))(embedding, values)


def _named(spread: Sequence[jax.Array], pooled: Sequence[jax.Array]) -> list[trunks.Descriptor]:
    """Descriptors of a group of their own each; `spread` are those of stages, to be standardised."""
    flags = [True] * len(spread) + [False] * len(pooled)
    values = [*spread, *pooled]
    return [trunks.Descriptor(x, str(i), flag) for i, (x, flag) in enumerate(zip(values, flags, strict=True), 1)]


def reads(model: ConfigDict) -> Reads:
    """The pooled feature map, or the named stages."""
    return Reads(stages=tuple(model.stages)) if model.stages else Reads(pool=model.pool)


def describe_fn(
    model: DescriptorModel, variables: dict, images: jax.Array | trunks.StoredMaps
) -> list[trunks.Descriptor]:
    """The descriptors, float32 [B, D_m], of images: what the fit reads of them."""
    return model.apply(variables, images)["descriptors"]
