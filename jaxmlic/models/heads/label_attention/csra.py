"""Class-specific residual attention (Zhu and Wu, ICCV 2021): each label's mean over positions and its attended one.

A head scores every position by a linear classifier without bias; a label's logit is the mean score plus lambda times
the mean weighted by the softmax of temperature T times the scores. The logits of H heads, each with a temperature and
a classifier of its own, are summed. An infinite temperature is the maximum.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.errors import UserError
from jaxmlic.models.heads.label_attention._shared import MapModel, attention_outputs, loss_fn, predict_fn, reads
from jaxmlic.models.layers.pooling import global_avg_pool, global_max_pool

__all__ = ["Model", "label_embeddings", "loss_fn", "predict_fn", "reads"]


class Model(MapModel):
    """Images to label logits.

    Attributes:
      temperatures: T of each head, above 0.
      max_head: whether there is one head more, whose temperature is infinite: the maximum over positions.
      attention_weight: lambda.
      unit_classifier: whether each label's weights are brought to length one, as in the authors' code; the paper's
        equations have them as they are.
    """

    temperatures: Sequence[float] = (1.0,)
    max_head: bool = False
    attention_weight: float = 0.1
    unit_classifier: bool = True

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, labels: jax.Array | None = None, frozen_trunk: bool = False
    ) -> dict[str, jax.Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`, to label logits.

        Returns feature_map [B, h, w, D], pooled [B, D], logits float32 [B, C], and attention_mean and attention_top
        [B, h, w]: the heads' mean weights, averaged over labels and of the label that scores highest.
        """
        self._check()
        feature_map = self.feature_map(images, train, frozen_trunk)
        grid = feature_map.astype(jnp.float32)
        logits, weights = 0.0, []
        for number, temperature in enumerate((*self.temperatures, *((None,) if self.max_head else ()))):
            scores = self._scores(grid, f"classifier_{number}")  # [B, h, w, C]
            flat = scores.reshape(scores.shape[0], -1, self.num_labels)  # [B, n, C]
            if temperature is None:
                attended = global_max_pool(scores)
                own = jax.nn.one_hot(jnp.argmax(flat, axis=1), flat.shape[1], axis=1)
            else:
                own = nn.softmax(temperature * flat, axis=1)  # [B, n, C]
                attended = jnp.sum(own * flat, axis=1)
            logits += global_avg_pool(scores) + self.attention_weight * attended  # [B, C]
            weights.append(own)
        mean = sum(weights) / len(weights)
        maps = attention_outputs(mean.swapaxes(1, 2), logits, *grid.shape[1:3])
        return {"feature_map": feature_map, "pooled": global_avg_pool(grid), "logits": logits, **maps}

    def _scores(self, grid: jax.Array, name: str) -> jax.Array:
        """Scores [B, h, w, C] of every position."""
        shape = (grid.shape[-1], self.num_labels)
        kernel = self.param(f"{name}_kernel", nn.initializers.lecun_normal(), shape)
        if self.unit_classifier:
            kernel = kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
        # As a product of two matrices: see `conv.Linear`.
        return (grid.reshape(-1, grid.shape[-1]) @ kernel).reshape(*grid.shape[:-1], self.num_labels)

    def _check(self) -> None:
        """UserError without a head, and for a temperature that is not above 0."""
        if not all(temperature > 0 for temperature in self.temperatures):
            raise UserError(f"config.model.temperatures = {tuple(self.temperatures)}: all above 0")
        if not self.temperatures and not self.max_head:
            raise UserError("config.model.temperatures = () needs config.model.max_head = True: one head or more")


def label_embeddings(variables: dict) -> dict[str, jax.Array]:
    """The weights of each label by head, float32 [C, D]."""
    params = variables["params"]
    return {name.removesuffix("_kernel"): kernel.T for name, kernel in params.items() if name.startswith("classifier_")}
