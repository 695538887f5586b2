"""What the heads of label attention have in common: a feature map of the trunk, a named loss, maps of the weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmlic.losses.named import named
from jaxmlic.models import trunks
from jaxmlic.models.heads.contract import Prediction, Reads


class MapModel(nn.Module):
    """A head that reads the positions of the feature map.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks).
      batch_norm: "train" or "frozen", for trunks that have batch norm.
      dtype: compute dtype of the trunk; the head works in float32.
    """

    num_labels: int
    trunk: str = "small_cnn"
    batch_norm: str = "train"
    dtype: str = "float32"

    def feature_map(self, images: jax.Array, train: bool, frozen_trunk: bool) -> jax.Array:
        """[B, h, w, D] in the trunk's dtype, of images or `trunks.StoredMaps`."""
        return trunks.feature_map(
            images, train, name=self.trunk, dtype=self.dtype, batch_norm=self.batch_norm, frozen=frozen_trunk
        )


def attention_outputs(weights: jax.Array, logits: jax.Array, height: int, width: int) -> dict[str, jax.Array]:
    """Maps [B, h, w] that sum to one of weights [B, C, h * w]: their mean, and those of the label that scores highest.

    logits: [B, C].
    """
    top = jnp.argmax(logits, axis=-1)[:, None, None]  # [B, 1, 1]
    chosen = jnp.take_along_axis(weights, top, axis=1)[:, 0]  # [B, h * w]
    maps = {"attention_mean": weights.mean(axis=1), "attention_top": chosen}
    return {name: x.reshape(-1, height, width) for name, x in maps.items()}


def reads(model: ConfigDict) -> Reads:
    """The positions of the feature map."""
    del model
    return Reads()


def loss_fn(
    outputs: dict[str, jax.Array], labels: jax.Array, *, name: str, options: tuple = (), key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The named loss on the logits (see `losses.named`), per example [B]; nothing further to log."""
    return named(name, options, outputs["logits"], labels, key), {}


def predict_fn(model: nn.Module, variables: dict, images: jax.Array) -> Prediction:
    """Scores are the float32 logits; which labels count as predicted is a threshold's matter."""
    return Prediction(scores=model.apply(variables, images, train=False)["logits"])
