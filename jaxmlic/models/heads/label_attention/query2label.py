"""Query2Label (Liu et al., 2021): a transformer whose decoder's queries are learned embeddings of the labels.

The positions of the feature map attend to each other in an encoder; in the decoder each label's query attends to them,
with position encodings added where positions are asked. A linear unit of its own scores each label.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmlic.errors import check_choice, check_least
from jaxmlic.models.heads.label_attention._shared import MapModel, attention_outputs, loss_fn, predict_fn, reads
from jaxmlic.models.layers.attention import NORM_EPSILON, DecoderLayer, EncoderLayer, sine_positions
from jaxmlic.models.layers.conv import Linear
from jaxmlic.models.layers.pooling import global_avg_pool

__all__ = ["Model", "label_embeddings", "loss_fn", "predict_fn", "reads"]

SELF_ATTENTION = ("none", "later", "all")
POSITIONS = ("sine", "none")


class Model(MapModel):
    """Images to label logits.

    Attributes:
      embedding: width D of queries and transformer; 0 for the feature map's, which is then read as it is.
      num_heads: of the attention.
      hidden: units of the feed-forward layers.
      encoder_layers, decoder_layers: how many.
      self_attention: decoder layers in which labels attend to each other: "none", as in the authors' commands; "later",
        all but the first, whose queries know nothing of the image; or "all", the transformer's own.
      positions: encodings of the map's positions, "sine" (DETR's, of rows and columns) or "none".
      dropout: rate within the transformer.
    """

    embedding: int = 0
    num_heads: int = 4
    hidden: int = 8192
    encoder_layers: int = 1
    decoder_layers: int = 2
    self_attention: str = "none"
    positions: str = "sine"
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, labels: jax.Array | None = None, frozen_trunk: bool = False
    ) -> dict[str, jax.Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`, to label logits.

        Returns feature_map [B, h, w, D'], pooled [B, D'], logits float32 [B, C], and attention_mean and attention_top
        [B, h, w]: the last layer's weights, averaged over labels and of the label that scores highest.
        """
        self._check()
        feature_map = self.feature_map(images, train, frozen_trunk)
        grid = feature_map.astype(jnp.float32)
        batch, height, width, channels = grid.shape
        memory = grid.reshape(batch, height * width, channels)
        if self.embedding:
            memory = Linear(self.embedding, name="project")(memory)
        dim = memory.shape[-1]
        places = jnp.zeros((height * width, dim))
        if self.positions == "sine":
            places = jnp.asarray(sine_positions(height, width, dim))
        for number in range(self.encoder_layers):
            layer = EncoderLayer(self.num_heads, self.hidden, self.dropout, name=f"encoder_{number}")
            memory = layer(memory, places, train)
        queries = self.param("query_embedding", nn.initializers.normal(1.0), (self.num_labels, dim))
        state = jnp.zeros((batch, self.num_labels, dim))
        for number in range(self.decoder_layers):
            mixes = self.self_attention == "all" or (self.self_attention == "later" and number > 0)
            mixing = "attention" if mixes else "none"
            layer = DecoderLayer(self.num_heads, self.hidden, self.dropout, mixing, name=f"decoder_{number}")
            state, weights = layer(state, memory, train, queries, places)  # [B, C, D], [B, C, n]
        state = nn.LayerNorm(NORM_EPSILON, name="norm_out")(state)
        kernel = self.param("classifier_kernel", _symmetric, (self.num_labels, dim))
        bias = self.param("classifier_bias", nn.initializers.zeros, (self.num_labels,))
        logits = jnp.einsum("bcd,cd->bc", state, kernel) + bias[None]
        maps = attention_outputs(weights, logits, height, width)
        return {"feature_map": feature_map, "pooled": global_avg_pool(grid), "logits": logits, **maps}

    def _check(self) -> None:
        """UserError for values that do not exist."""
        check_choice("model.self_attention", self.self_attention, SELF_ATTENTION)
        check_choice("model.positions", self.positions, POSITIONS)
        least = {"embedding": 0, "num_heads": 1, "hidden": 1, "encoder_layers": 0, "decoder_layers": 1}
        for field, value in least.items():
            check_least(f"model.{field}", getattr(self, field), value)


def _symmetric(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Uniform in +-1 / sqrt(D), float32 [C, D]."""
    return jax.random.uniform(key, shape, minval=-(shape[1] ** -0.5), maxval=shape[1] ** -0.5)


def label_embeddings(variables: dict) -> dict[str, jax.Array]:
    """The labels' queries and the weights of their linear units, float32 [C, D] each."""
    params = variables["params"]
    return {"label_embedding": params["query_embedding"], "classifier": params["classifier_kernel"]}
