"""Attention over the positions of a feature map: steps 1 to 3 of MSCNN-LCE-MIC, and the layers of a transformer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic.errors import UserError
from jaxmlic.models.layers.conv import Linear
from jaxmlic.models.layers.norm import Dropout

Array = jax.Array

NORM_EPSILON = 1e-5  # PyTorch's
_POSITION_BASE = 10_000.0


class SpatialAttention(nn.Module):
    """Where a map agrees with the whole image: eqs 3 to 5 of MSCNN-LCE-MIC (steps 1 to 3).

    The global vector is projected to the map's width, its product with the vector at each position is the compatibility
    score, the softmax of the scores over positions are the weights, and the weighted sum is the attended vector. The
    projection is the parameter `projection` [G, D] over sqrt(G D): the same functions, but a step on so many weights
    does not drive the softmax to a single position. It starts at zero, so that training starts from the mean.

    Step 1 says both "added together" and, in eq 3, the inner product. A sum would add the same to the score of every
    position, and the softmax would lose the global vector; so it is the product.
    """

    @nn.compact
    def __call__(self, local: Array, whole: Array) -> tuple[Array, Array]:
        """local [B, h, w, D] and whole [B, G] -> attended [B, D] and weights [B, h, w] that sum to one; float32."""
        batch, height, width, channels = local.shape
        query = nn.Dense(channels, use_bias=False, kernel_init=nn.initializers.zeros, name="projection")(whole)
        query = query / (whole.shape[-1] * channels) ** 0.5  # [B, D]
        flat = local.reshape(batch, height * width, channels).astype(jnp.float32)  # [B, n, D]
        compatibility = jnp.einsum("bnd,bd->bn", flat, query)  # [B, n], eq 3
        weights = nn.softmax(compatibility, axis=-1)  # [B, n], eq 4
        attended = jnp.einsum("bn,bnd->bd", weights, flat)  # [B, D], eq 5
        return attended, weights.reshape(batch, height, width)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al., 2017), as `torch.nn.MultiheadAttention`.

    num_heads: divides the width D. dropout: rate on the weights.
    Parameters `query`, `key`, `value` and `out`, each a kernel [D, D] and a bias [D].
    """

    num_heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, queries: Array, keys: Array, values: Array, train: bool) -> tuple[Array, Array]:
        """queries [B, Q, D], keys and values [B, N, D] -> [B, Q, D] and the heads' weights [B, heads, Q, N]."""
        width = queries.shape[-1]
        if width % self.num_heads:
            raise UserError(f"config.model.num_heads = {self.num_heads} does not divide the width {width}")

        def project(x: Array, name: str) -> Array:
            projected = Linear(width, kernel_init=nn.initializers.xavier_uniform(), name=name)(x)
            return projected.reshape(*x.shape[:2], self.num_heads, width // self.num_heads)  # [B, n, heads, d]

        query, key, value = project(queries, "query"), project(keys, "key"), project(values, "value")
        scores = jnp.einsum("bqhd,bnhd->bhqn", query, key) / (width // self.num_heads) ** 0.5
        weights = nn.softmax(scores, axis=-1)  # [B, heads, Q, N]
        dropped = Dropout(self.dropout, deterministic=not train)(weights)
        found = jnp.einsum("bhqn,bnhd->bqhd", dropped, value).reshape(queries.shape)  # [B, Q, D]
        return Linear(width, kernel_init=nn.initializers.xavier_uniform(), name="out")(found), weights


class FeedForward(nn.Module):
    """Two dense layers with a ReLU and dropout between them: [..., D] -> [..., D]."""

    hidden: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        inner = nn.relu(Linear(self.hidden, kernel_init=nn.initializers.xavier_uniform(), name="hidden")(x))
        inner = Dropout(self.dropout, deterministic=not train)(inner)
        return Linear(x.shape[-1], kernel_init=nn.initializers.xavier_uniform(), name="out")(inner)


class EncoderLayer(nn.Module):
    """Positions attend to each other, then a feed-forward network; each is added and normalised (post-norm)."""

    num_heads: int
    hidden: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, memory: Array, positions: Array, train: bool) -> Array:
        """memory [B, N, D] and its position encodings [N, D] -> [B, N, D]."""
        placed = memory + positions[None]
        attend = MultiHeadAttention(self.num_heads, self.dropout, name="self_attention")
        found = Dropout(self.dropout, deterministic=not train)(attend(placed, placed, memory, train)[0])
        memory = nn.LayerNorm(NORM_EPSILON, name="norm_self")(memory + found)
        found = FeedForward(self.hidden, self.dropout, name="feed_forward")(memory, train)
        found = Dropout(self.dropout, deterministic=not train)(found)
        return nn.LayerNorm(NORM_EPSILON, name="norm_out")(memory + found)


class DecoderLayer(nn.Module):
    """Queries attend to a map, then a feed-forward network; each is added and normalised (post-norm).

    mixing: what they do before: "attention" to each other; "identity", a query is added to itself in place of that
        (ML-Decoder); "none".
    """

    num_heads: int
    hidden: int
    dropout: float = 0.0
    mixing: str = "none"

    @nn.compact
    def __call__(
        self, state: Array, memory: Array, train: bool, embedding: Array | None = None, positions: Array | None = None
    ) -> tuple[Array, Array]:
        """One layer.

        Args:
          state: [B, Q, D], of the queries.
          memory: [B, N, D], the map.
          train: whether dropout acts.
          embedding: [Q, D], added to the state where it asks (and is asked by the other queries), not where it is read.
          positions: [N, D], added to the memory where it is asked, not where it is read.

        Returns:
          The new state [B, Q, D] and the weights over positions, averaged over heads, [B, Q, N].
        """
        drop = Dropout(self.dropout, deterministic=not train)

        def asking(state: Array) -> Array:
            return state if embedding is None else state + embedding[None]

        if self.mixing != "none":
            mixed = state
            if self.mixing == "attention":
                attend = MultiHeadAttention(self.num_heads, self.dropout, name="self_attention")
                mixed = attend(asking(state), asking(state), state, train)[0]
            state = nn.LayerNorm(NORM_EPSILON, name="norm_self")(state + drop(mixed))
        keys = memory if positions is None else memory + positions[None]
        attend = MultiHeadAttention(self.num_heads, self.dropout, name="cross_attention")
        found, weights = attend(asking(state), keys, memory, train)
        state = nn.LayerNorm(NORM_EPSILON, name="norm_cross")(state + drop(found))
        found = FeedForward(self.hidden, self.dropout, name="feed_forward")(state, train)
        return nn.LayerNorm(NORM_EPSILON, name="norm_out")(state + drop(found)), weights.mean(axis=1)


def sine_positions(height: int, width: int, channels: int) -> np.ndarray:
    """DETR's position encodings float32 [height * width, channels]: sines and cosines of the row, then of the column.

    Rows and columns count from 1 and are divided by their number, times 2 pi. Raises UserError unless 4 divides
    channels.
    """
    if channels % 4:
        raise UserError(f"position encodings need a width that 4 divides, and this one is {channels}")
    half = channels // 2
    frequency = _POSITION_BASE ** -(2 * (np.arange(half) // 2) / half)  # [half], equal in pairs

    def encode(count: int) -> np.ndarray:
        angles = 2 * np.pi * np.arange(1, count + 1)[:, None] / (count + 1e-6) * frequency[None]
        return np.where(np.arange(half) % 2, np.cos(angles), np.sin(angles))  # [count, half]

    rows = np.broadcast_to(encode(height)[:, None], (height, width, half))
    columns = np.broadcast_to(encode(width)[None], (height, width, half))
    return np.concatenate([rows, columns], axis=-1).reshape(height * width, channels).astype(np.float32)
