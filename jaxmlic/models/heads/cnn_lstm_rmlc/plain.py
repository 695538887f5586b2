"""CNN-LSTM-RMLC without LSTM: RML-CNN, WARP, softmax and binary relevance of the tables, by the loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmlic.errors import check_choice, check_least
from jaxmlic.models import trunks
from jaxmlic.models.heads.cnn_lstm_rmlc._shared import half_square, label_embeddings, loss_fn, predict_fn, prepare
from jaxmlic.models.heads.contract import Reads
from jaxmlic.models.layers.norm import Dropout
from jaxmlic.models.layers.pooling import POOLS

__all__ = ["Model", "label_embeddings", "loss_fn", "predict_fn", "reads"]

Array = jax.Array


class Model(nn.Module):
    """Images to label logits.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks); "cifar14" is the paper's for CIFAR-10.
      pool: over positions: "avg", "max" or "avg_max"; or "flatten", all positions in a row, for the images' one size.
      hidden: units of a ReLU layer before the last one; 0 = none.
      dropout: rate before every layer of the head.
      grey: the image is made grey first, on three channels.
      edges: amount of unsharp masking before the trunk; 0 = none.
      batch_norm, dtype: as for the linear head. The head works in float32.
    """

    num_labels: int
    trunk: str = "cifar14"
    pool: str = "avg"
    hidden: int = 0
    dropout: float = 0.3
    grey: bool = False
    edges: float = 0.0
    batch_norm: str = "train"
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        images: Array | trunks.StoredMaps,
        train: bool = False,
        labels: Array | None = None,
        frozen_trunk: bool = False,
    ) -> dict[str, Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`, to label logits.

        Returns feature_map [B, h, w, D], pooled [B, D] (h * w * D for "flatten"), logits float32 [B, C] and
        `regulariser` float32 [] (tr(W'W) / 2 of eq. 1, W the last layer's).
        """
        check_choice("model.pool", self.pool, (*POOLS, "flatten"))
        check_least("model.hidden", self.hidden, 0)
        feature_map = trunks.feature_map(
            prepare(images, self.grey, self.edges),
            train,
            name=self.trunk,
            dtype=self.dtype,
            batch_norm=self.batch_norm,
            frozen=frozen_trunk,
        )
        x = feature_map.astype(jnp.float32)  # [B, h, w, D]
        pooled = x.reshape(len(x), -1) if self.pool == "flatten" else POOLS[self.pool](x)  # [B, D]
        x = pooled
        if self.hidden:
            dropped = Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(nn.Dense(self.hidden, name="hidden")(dropped))
        classifier = nn.Dense(self.num_labels, name="classifier")
        logits = classifier(Dropout(self.dropout, deterministic=not train)(x))  # [B, C]
        regulariser = half_square(classifier.variables["params"]["kernel"])
        return {"feature_map": feature_map, "pooled": pooled, "logits": logits, "regulariser": regulariser}


def reads(model: ConfigDict) -> Reads:
    """The feature map, pooled unless `pool` is "flatten"."""
    return Reads(pool="" if model.pool == "flatten" else model.pool)
