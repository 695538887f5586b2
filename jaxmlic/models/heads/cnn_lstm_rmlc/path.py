"""CNN-LSTM-RMLC, 3.5 and eq. 2: labels in an embedded space, an LSTM over the labels so far, beam search."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import decode, losses
from jaxmlic.errors import check_choice, check_least
from jaxmlic.labels import order as label_order
from jaxmlic.losses.named import named
from jaxmlic.losses.pointwise import LOG_ZERO
from jaxmlic.models import trunks
from jaxmlic.models.heads.cnn_lstm_rmlc._shared import half_square, penalty, prepare
from jaxmlic.models.heads.contract import LabelStatistics, Prediction, Reads
from jaxmlic.models.layers import rectifier
from jaxmlic.models.layers.norm import Dropout
from jaxmlic.models.layers.peephole_lstm import ACTIVATIONS, Carry, PeepholeLSTM
from jaxmlic.models.layers.pooling import POOLS

Array = jax.Array

ORDERS = tuple(name for name in label_order.ORDERS if name != "random_per_batch")


class Model(nn.Module):
    """Images to a vector in the embedded space, and to the scores of each step along the labels' path.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks).
      units: of the LSTM.
      activation: of the LSTM's input and cell, "tanh" or "relu".
      pool: over positions: "avg", "max" or "avg_max".
      embedding: E, width of the space of labels and images.
      order: of an image's labels in training, one of label_order.ORDERS but random_per_batch.
      max_length: labels of a path; of more the last are cut.
      beam_size: paths that the search keeps.
      dropout: rate before every layer of the head.
      grey: the image is made grey first, on three channels.
      edges: amount of unsharp masking before the trunk; 0 = none.
      batch_norm, dtype: as for the linear head. The head works in float32.
    """

    num_labels: int
    trunk: str = "resnet101"
    units: int = 512
    activation: str = "tanh"
    pool: str = "avg"
    embedding: int = 128
    order: str = "frequent_first"
    max_length: int = 8
    beam_size: int = 3
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
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`.

        Returns feature_map [B, h, w, D], pooled [B, D], image [B, E], the image in the embedded space, logits float32
        [B, C], those of the first step, and `regulariser` float32 [] (tr(V'V) / 2 of eq. 1). Given the labels, what
        `loss_fn` needs: step_logits [B, T + 1, C + 1] along the true path, step_labels int8 of that shape, scale [].
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
        pooled = POOLS[self.pool](feature_map.astype(jnp.float32))  # [B, D]
        order = self.variable("constants", "order", jnp.arange, self.num_labels, dtype=jnp.int32)
        path = make_path(self, name="path")
        image = path.embed_image(Dropout(self.dropout, deterministic=not train)(pooled))  # [B, E]
        first, regulariser = path(image, jnp.zeros((len(pooled), 0), jnp.int32))
        outputs = {
            "feature_map": feature_map,
            "pooled": pooled,
            "image": image,
            "logits": first[:, 0, :-1],
            "regulariser": regulariser,
        }
        if labels is None:
            return outputs
        truth = label_order.paths(labels, order.value, self.max_length)  # [B, T]
        steps, _ = path(image, truth, train)  # [B, T + 1, C + 1]
        return outputs | {"step_logits": steps, "step_labels": step_labels(labels, truth), "scale": path.scale()}

    def _check(self) -> None:
        check_choice("model.activation", self.activation, ACTIVATIONS)
        check_choice("model.pool", self.pool, POOLS)
        check_choice("model.order", self.order, ORDERS)
        for field in ("units", "embedding", "max_length", "beam_size"):
            check_least(f"model.{field}", getattr(self, field), 1)


class LabelPath(nn.Module):
    """3.5: W_l = V e_l, an LSTM over W of the labels so far, x_t = ReLU(Vo o(t) + Vi I), s(t) = V' x_t.

    V has a row for each label and END (C + 1, which are scored), START is one more vector. One learned `scale` makes
    the scores a softmax's: a bounded loss leaves them near -1 and 1, whose softmax is so flat that the path without
    labels would be the best. It is trained on the softmax's cross-entropy with the scores held fixed.
    """

    num_labels: int
    units: int
    embedding: int
    activation: str
    dropout: float

    def setup(self):
        size = self.embedding
        self.drop = Dropout(self.dropout)
        self.labels = self.param("labels", nn.initializers.normal(size**-0.5), (self.num_labels + 1, size))
        self.start = self.param("start", nn.initializers.normal(size**-0.5), (size,))
        self.lstm = PeepholeLSTM(self.units, self.activation)
        self.from_lstm = nn.Dense(size, use_bias=False)
        self.embed_image = nn.Dense(size)
        self.log_scale = self.param("log_scale", nn.initializers.zeros, ())

    def __call__(self, image: Array, paths: Array, train: bool = False) -> tuple[Array, Array]:
        """(scores [B, T + 1, C + 1] before each label of paths int [B, T] and after the last, tr(V'V) / 2)."""
        start = jnp.broadcast_to(self.start, (len(image), 1, self.embedding))
        inputs = jnp.concatenate([start, self.labels[paths]], axis=1)  # [B, T + 1, E]
        outputs = self.lstm(self.drop(inputs, deterministic=not train))  # [B, T + 1, H]
        outputs = self.drop(outputs, deterministic=not train)
        return self._score(outputs, image[:, None]), half_square(self.labels)

    def step(self, carry: Carry, used: Array, previous: Array, image: Array) -> tuple[Carry, Array]:
        """One image's carry, used bool [C + 1], label int [] (-1: START), image [E] -> carry, log-probs [C + 1]."""
        word = jnp.where(previous < 0, self.start, self.labels[previous.clip(min=0)])
        carry, output = self.lstm.step(carry, word[None])
        scores = self._score(output, image[None])[0]  # [C + 1]
        # Training leaves the score of a label that is on the path alone, so it has no part in the softmax.
        return carry, jax.nn.log_softmax(jnp.where(used, -jnp.inf, self.scale() * scores))

    def scale(self) -> Array:
        return jnp.exp(self.log_scale)

    def initial_carry(self) -> Carry:
        return self.lstm.initial_carry(1)

    def _score(self, output: Array, image: Array) -> Array:
        return rectifier.relu(self.from_lstm(output) + image) @ self.labels.T


def make_path(model: Model, name: str | None = None) -> LabelPath:
    """The model's part that reads labels; its variables are those under "path"."""
    return LabelPath(model.num_labels, model.units, model.embedding, model.activation, model.dropout, name=name)


def step_labels(labels: Array, paths: Array) -> Array:
    """The targets of each step along a path: int8 [B, T + 1, C + 1] in {1, 0, -1}, END last.

    The positives that the path does not have yet; END when none is left. Labels on the path are unknown (-1), and so is
    all of a step after the path's END, and of an image of which nothing is known.
    """
    num_labels = labels.shape[1]
    on_path = jax.nn.one_hot(paths, num_labels, dtype=jnp.int32)  # [B, T, C]; END is none of them
    before = jnp.pad(jnp.cumsum(on_path, axis=1), ((0, 0), (1, 0), (0, 0)))  # [B, T + 1, C]
    left = jnp.where(before > 0, -1, labels[:, None].astype(jnp.int32))  # [B, T + 1, C]
    ends = (left != 1).all(axis=-1, keepdims=True).astype(jnp.int32)  # [B, T + 1, 1]
    length = (paths != num_labels).sum(axis=1)[:, None]  # [B, 1]
    counted = (jnp.arange(paths.shape[1] + 1)[None] <= length) & (labels >= 0).any(axis=1)[:, None]  # [B, T + 1]
    return jnp.where(counted[..., None], jnp.concatenate([left, ends], axis=-1), -1).astype(jnp.int8)


def reads(model: ConfigDict) -> Reads:
    """The pooled feature map."""
    return Reads(pool=model.pool)


def loss_fn(
    outputs: dict[str, Array],
    labels: Array,
    *,
    name: str,
    options: tuple = (),
    regulariser: float = 0.0,
    key: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Eq. 1 with any of jaxmlic.losses in place of its sums, float32 [B], and the scale to log.

    The mean over the path's steps, of the labels that are left (see `step_labels`); the scale's cross-entropy is added.
    `regulariser` is lambda. The trainer takes the mean over images where eq. 1 has the sum, so that lambda here is the
    paper's divided by the number of images.
    """
    added = penalty(outputs, regulariser)
    scores, targets = outputs["step_logits"], outputs["step_labels"]  # [B, T + 1, C + 1]
    per_step = named(name, options, scores, targets, key)
    per_step += losses.softmax_cross_entropy(outputs["scale"] * jax.lax.stop_gradient(scores), targets)
    counted = (targets >= 0).any(axis=-1)  # [B, T + 1]
    per_example = jnp.sum(jnp.where(counted, per_step, 0.0), axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)
    return per_example + added, {"scale": outputs["scale"]}


def step_logits_fn(model: Model, variables: dict, images: Array) -> tuple[Array, Array]:
    """Logits float32 [B, T + 1, C + 1] along the best path, and its tokens int32 [B, T + 1], END after the last."""
    best = jax.lax.stop_gradient(predict_fn(model, variables, images).path)  # [B, T]
    image = model.apply(variables, images, train=False)["image"]
    own = {"params": variables["params"]["path"]}
    path = make_path(model)
    scores, _ = path.apply(own, image, best)  # [B, T + 1, C + 1]
    on_path = jax.nn.one_hot(best, model.num_labels + 1, dtype=jnp.int32).at[..., -1].set(0)  # [B, T, C + 1]
    used = jnp.pad(jnp.cumsum(on_path, axis=1), ((0, 0), (1, 0), (0, 0))) > 0  # [B, T + 1, C + 1]
    logits = jnp.where(used, LOG_ZERO, path.apply(own, method="scale") * scores)
    return logits, jnp.pad(best, ((0, 0), (0, 1)), constant_values=model.num_labels)


def joint_embedding_fn(model: Model, variables: dict, images: Array) -> tuple[Array, Array]:
    """V_I I float32 [B, E] and the labels' rows of V [C, E]."""
    image = model.apply(variables, images, train=False)["image"]
    return image, variables["params"]["path"]["labels"][:-1]


def predict_fn(model: Model, variables: dict, images: Array) -> Prediction:
    """Scores are the labels' marginals over the beam's paths (decode.path_marginals), chosen those of the best path."""
    outputs = model.apply(variables, images, train=False)
    path, own = make_path(model), {"params": variables["params"]["path"]}
    num_labels = model.num_labels

    def search(image: Array) -> Prediction:
        def step_fn(state: tuple[Carry, Array], previous: Array) -> tuple[tuple[Carry, Array], Array]:
            carry, used = state
            used = used | (jnp.arange(num_labels + 1) == previous)
            carry, log_probs = path.apply(own, carry, used, previous, image, method="step")
            return (carry, used), log_probs

        start = (path.apply(own, method="initial_carry"), jnp.zeros(num_labels + 1, bool))
        paths, log_probs = decode.beam_search(
            step_fn, start, num_labels=num_labels, beam_size=model.beam_size, max_length=model.max_length
        )
        _, first = step_fn(start, jnp.int32(decode.START))
        scores = decode.path_marginals(paths, log_probs, num_labels, first)
        return Prediction(scores, decode.labels_on(paths[0], num_labels), paths[0])

    return jax.vmap(search)(outputs["image"])


def constants(config: ConfigDict, statistics: LabelStatistics) -> tuple[dict[str, np.ndarray], list[str]]:
    """The order of the labels in training, int32 [C]; no notes."""
    order = label_order.order_fn(config.model.order, statistics.labels, statistics.class_names, config.seed)
    return {"order": np.asarray(order(jax.random.key(0)))}, []


def label_embeddings(variables: dict) -> dict[str, Array]:
    """V float32 [C, E], and its row of END and the vector of START [1, E] apart."""
    path = variables["params"]["path"]
    return {
        "label_embedding": path["labels"][:-1],
        "label_embedding_end": path["labels"][-1:],
        "label_embedding_start": path["start"][None],
    }
