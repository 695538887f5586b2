"""ML-Decoder (Ridnik et al., 2021): queries of labels, or of groups of labels, attend to the positions of the map.

The transformer's decoder without self-attention; fixed random queries do as well as learned ones, and a query may stand
for a group of labels, which a fully connected layer of its own divides ("group decoding").
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic.errors import check_choice, check_least
from jaxmlic.models.heads.contract import LabelStatistics
from jaxmlic.models.heads.label_attention._shared import MapModel, attention_outputs, loss_fn, predict_fn, reads
from jaxmlic.models.layers.attention import DecoderLayer
from jaxmlic.models.layers.conv import Linear
from jaxmlic.models.layers.pooling import global_avg_pool

__all__ = ["Model", "constants", "label_embeddings", "loss_fn", "predict_fn", "reads"]

QUERIES = ("fixed", "learned")


class Model(MapModel):
    """Images to label logits.

    Attributes:
      groups: queries at most, each for as many labels as the others, in the order of the labels; 0 for full decoding,
        one query a label, which it is as well where there are no more labels than groups.
      queries: "fixed", drawn once with the seed and never trained; or "learned".
      embedding: width D of queries and decoder.
      num_heads: of the attention.
      hidden: units of the feed-forward layer.
      layers: of the decoder.
      dropout: rate within the decoder.
    """

    groups: int = 100
    queries: str = "fixed"
    embedding: int = 768
    num_heads: int = 8
    hidden: int = 2048
    layers: int = 1
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
        memory = Linear(self.embedding, name="project")(grid.reshape(batch, height * width, channels))
        memory = nn.relu(memory)  # [B, n, D]
        count = num_queries(self.num_labels, self.groups)
        size = -(-self.num_labels // count)  # labels of a query
        state = jnp.broadcast_to(self._queries(count)[None], (batch, count, self.embedding))
        for number in range(self.layers):
            layer = DecoderLayer(self.num_heads, self.hidden, self.dropout, "identity", name=f"decoder_{number}")
            state, weights = layer(state, memory, train)  # [B, Q, D], [B, Q, n]
        stddev = (2.0 / ((self.embedding + count) * size)) ** 0.5  # Xavier's, as PyTorch counts the fans
        kernel = self.param("group_kernel", nn.initializers.normal(stddev), (count, self.embedding, size))
        bias = self.param("group_bias", nn.initializers.zeros, (self.num_labels,))
        divided = jnp.einsum("bqd,qdk->bqk", state, kernel).reshape(batch, count * size)
        logits = divided[:, : self.num_labels] + bias[None]
        of_labels = jnp.repeat(weights, size, axis=1)[:, : self.num_labels]  # [B, C, n]
        maps = attention_outputs(of_labels, logits, height, width)
        return {"feature_map": feature_map, "pooled": global_avg_pool(grid), "logits": logits, **maps}

    def _queries(self, count: int) -> jax.Array:
        """[Q, D]."""
        shape = (count, self.embedding)
        if self.queries == "learned":
            return self.param("query_embedding", nn.initializers.normal(1.0), shape)
        return self.variable("constants", "queries", jnp.zeros, shape, jnp.float32).value

    def _check(self) -> None:
        """UserError for values that do not exist."""
        check_choice("model.queries", self.queries, QUERIES)
        for field, least in (("groups", 0), ("embedding", 1), ("num_heads", 1), ("hidden", 1), ("layers", 1)):
            check_least(f"model.{field}", getattr(self, field), least)


def num_queries(num_labels: int, groups: int) -> int:
    """Q: the groups, or a query for each label."""
    return min(groups or num_labels, num_labels)


def constants(config: ConfigDict, statistics: LabelStatistics) -> tuple[dict[str, np.ndarray], list[str]]:
    """queries float32 [Q, D] from a standard normal distribution, by the seed; nothing where they are learned."""
    if config.model.queries != "fixed":
        return {}, []
    count = num_queries(len(statistics.class_names), config.model.groups)
    drawn = np.random.default_rng(config.seed).normal(size=(count, config.model.embedding))
    return {"queries": drawn.astype(np.float32)}, []


def label_embeddings(variables: dict) -> dict[str, jax.Array]:
    """The weights of each label in its group's layer, float32 [C, D]; where labels have a learned query, that too."""
    params = variables["params"]
    kernel = params["group_kernel"]  # [Q, D, k]
    num_labels = params["group_bias"].shape[0]
    found = {"classifier": kernel.swapaxes(1, 2).reshape(-1, kernel.shape[1])[:num_labels]}
    if "query_embedding" in params and len(params["query_embedding"]) == num_labels:
        found["label_embedding"] = params["query_embedding"]
    return found
