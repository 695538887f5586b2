"""Binary relevance: a trunk, global pooling and one linear unit per label."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmlic.errors import check_choice
from jaxmlic.losses.named import named
from jaxmlic.models import trunks
from jaxmlic.models.heads.contract import Prediction, Reads
from jaxmlic.models.layers.norm import Dropout
from jaxmlic.models.layers.pooling import POOLS


class Model(nn.Module):
    """Images to label logits.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks).
      pool: "avg" or "max" over the positions of the feature map, "avg_max", both side by side, or "avg_unit", the mean
        divided by its length.
      dropout: rate on the pooled vector.
      batch_norm: "train" or "frozen", for trunks that have batch norm.
      dtype: compute dtype of the trunk; the linear layer works in float32, since logits are ranked.
      added_labels: how many labels `jaxmlic add-label` added each time; their units are layers of their own, so that
        those of the labels before them are computed as they were, to the bit.
    """

    num_labels: int
    trunk: str = "small_cnn"
    pool: str = "avg"
    dropout: float = 0.0
    batch_norm: str = "train"
    dtype: str = "float32"
    added_labels: Sequence[int] = ()

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, labels: jax.Array | None = None, frozen_trunk: bool = False
    ) -> dict[str, jax.Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`, to label logits.

        Returns feature_map [B, h, w, D], pooled [B, D] and logits float32 [B, C].
        """
        check_choice("model.pool", self.pool, POOLS)
        feature_map = trunks.feature_map(
            images, train, name=self.trunk, dtype=self.dtype, batch_norm=self.batch_norm, frozen=frozen_trunk
        )
        pooled = POOLS[self.pool](feature_map.astype(jnp.float32))
        dropped = Dropout(self.dropout, deterministic=not train)(pooled)
        logits = nn.Dense(self.num_labels - sum(self.added_labels), name="classifier")(dropped)
        for number, count in enumerate(self.added_labels):
            # The barrier keeps a compiler from making one product of both layers, which may sum in another order.
            new = nn.Dense(count, name=f"added_{number}")(jax.lax.optimization_barrier(dropped))
            logits = jnp.concatenate([logits, new], axis=-1)
        return {"feature_map": feature_map, "pooled": pooled, "logits": logits}


def reads(model: ConfigDict) -> Reads:
    """The pooled feature map."""
    return Reads(pool=model.pool)


def loss_fn(
    outputs: dict[str, jax.Array], labels: jax.Array, *, name: str, options: tuple = (), key: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The named loss on the logits (see `losses.named`), per example [B]; nothing further to log."""
    return named(name, options, outputs["logits"], labels, key), {}


def predict_fn(model: Model, variables: dict, images: jax.Array) -> Prediction:
    """Scores are the float32 logits; which labels count as predicted is a threshold's matter."""
    return Prediction(scores=model.apply(variables, images, train=False)["logits"])


def linear_layer(model: Model, variables: dict) -> dict[str, jax.Array]:
    """The units of all labels as one layer: kernel float32 [D, C] and bias [C]."""
    layers = _layers(variables)
    return {name: jnp.concatenate([layer[name] for layer in layers], axis=-1) for name in ("kernel", "bias")}


def label_embeddings(variables: dict) -> dict[str, jax.Array]:
    """The classifier's weights of each label, float32 [C, D]."""
    return {"classifier": jnp.concatenate([layer["kernel"].T for layer in _layers(variables)])}


def _layers(variables: dict) -> list[dict[str, jax.Array]]:
    """The classifier and the layers of added labels, the first addition first."""
    params = variables["params"]
    added = sum(name.startswith("added_") for name in params)
    return [params["classifier"], *(params[f"added_{number}"] for number in range(added))]
