"""CNN-LSTM-RMLC, Algorithm 1: peephole LSTMs read the h * w positions of a feature map row by row.

A dense layer at each step, averaged. With units (64, 32, 16), pool "flatten" and 20 hidden units it is the end of the
14-layer CIFAR network.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxmlic.errors import UserError, check_choice, check_least
from jaxmlic.models import trunks
from jaxmlic.models.heads.cnn_lstm_rmlc._shared import half_square, label_embeddings, loss_fn, predict_fn, prepare
from jaxmlic.models.heads.contract import Reads
from jaxmlic.models.layers.norm import Dropout
from jaxmlic.models.layers.peephole_lstm import ACTIVATIONS, PeepholeLSTM

__all__ = ["Model", "label_embeddings", "loss_fn", "predict_fn", "reads"]

Array = jax.Array
POOLS = ("avg", "max", "flatten")


class Model(nn.Module):
    """Images to label logits.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks); "cifar14" is the paper's for CIFAR-10.
      units: of each LSTM, the first next to the trunk.
      activation: of the LSTM's input and cell, "tanh" or "relu".
      pool: over the LSTM's steps: "avg" or "max"; or "flatten", all steps in a row, for the images' one size.
      hidden: units of a ReLU layer before the last one; 0 = none.
      dropout: rate before every layer of the head.
      grey: the image is made grey first, on three channels.
      edges: amount of unsharp masking before the trunk; 0 = none.
      batch_norm, dtype: as for the linear head. The head works in float32.
    """

    num_labels: int
    trunk: str = "cifar14"
    units: tuple[int, ...] = (512,)
    activation: str = "tanh"
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

        Returns feature_map [B, h, w, D], step_logits [B, T, C] (T is 1 for pool="flatten"), logits float32 [B, C] and
        `regulariser` float32 [] (tr(W'W) / 2 of eq. 1, W the last layer's).
        """
        self._check()
        feature_map = trunks.feature_map(
            prepare(images, self.grey, self.edges),
            train,
            name=self.trunk,
            dtype=self.dtype,
            batch_norm=self.batch_norm,
            frozen=frozen_trunk,
        )
        if isinstance(images, trunks.StoredMaps) and feature_map.shape[1:3] == (1, 1):
            raise UserError(
                "the head 'cnn_lstm_rmlc.positions' reads a feature map, and these features are one vector an image: "
                "set config.features.store='map'"
            )

        def drop(x: Array) -> Array:
            return Dropout(self.dropout, deterministic=not train)(x)

        batch, height, width, channels = feature_map.shape
        steps = feature_map.astype(jnp.float32).reshape(batch, height * width, channels)  # [B, T, D]
        for number, units in enumerate(self.units):
            steps = PeepholeLSTM(units, self.activation, name=f"lstm{number}")(drop(steps))  # [B, T, units]
        if self.pool == "flatten":
            steps = steps.reshape(batch, 1, -1)  # [B, 1, T * units]
        if self.hidden:
            steps = nn.relu(nn.Dense(self.hidden, name="hidden")(drop(steps)))
        classifier = nn.Dense(self.num_labels, name="classifier")
        step_logits = classifier(drop(steps))  # [B, T, C]
        logits = jnp.max(step_logits, axis=1) if self.pool == "max" else jnp.mean(step_logits, axis=1)
        return {
            "feature_map": feature_map,
            "step_logits": step_logits,
            "logits": logits,
            "regulariser": half_square(classifier.variables["params"]["kernel"]),
        }

    def _check(self) -> None:
        check_choice("model.activation", self.activation, ACTIVATIONS)
        check_choice("model.pool", self.pool, POOLS)
        check_least("model.hidden", self.hidden, 0)
        if not self.units or any(units < 1 for units in self.units):
            raise UserError(f"config.model.units = {self.units}: the units of one LSTM or of several")


def reads(model: ConfigDict) -> Reads:
    """The feature map, position by position."""
    return Reads()
