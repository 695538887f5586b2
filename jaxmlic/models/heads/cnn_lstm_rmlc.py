"""CNN-LSTM-RMLC (James and Lakshmi): an LSTM over the positions of a feature map, or along the labels, and any loss.

`recurrent` chooses between
  "positions"  Algorithm 1: peephole LSTMs read the h*w positions row by row; a dense layer at each step, averaged. With
               units (64, 32, 16), pool "flatten" and 20 hidden units it is the end of the 14-layer CIFAR network.
  "path"       3.5 and eq. 2: labels in an embedded space, an LSTM over the labels so far, beam search.
  "none"       no LSTM: RML-CNN, WARP, softmax and binary relevance of the tables, by the loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import decode, losses
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.labels import order as label_order
from jaxmlic.models import trunks
from jaxmlic.models.heads import linear
from jaxmlic.models.heads.contract import Facts, Prediction
from jaxmlic.models.layers import pixels, pooling
from jaxmlic.models.layers.peephole_lstm import ACTIVATIONS, Carry, PeepholeLSTM

Array = jax.Array

RECURRENT = ("positions", "path", "none")
POOLS = {"avg": pooling.global_avg_pool, "max": pooling.global_max_pool}
ORDERS = tuple(name for name in label_order.ORDERS if name != "random_per_batch")


class Model(nn.Module):
    """Images to label logits.

    Attributes:
      num_labels: C.
      trunk: name of a trunk (see jaxmlic.models.trunks); "cifar14" is the paper's for CIFAR-10.
      recurrent: "positions", "path" or "none", see above.
      units: of each LSTM, the first next to the trunk; one for "path".
      activation: of the LSTM's input and cell, "tanh" or "relu".
      pool: over the LSTM's steps, or without LSTM ("none", "path") over positions: "avg", "max"; or "flatten", all
        steps in a row, for the images' one size.
      hidden: units of a ReLU layer before the last one; 0 = none.
      embedding: width of the space of labels and images ("path").
      order: of an image's labels in training, one of label_order.ORDERS but random_per_batch ("path").
      max_length: labels of a path; of more the last are cut ("path").
      beam_size: ("path").
      dropout: rate before every layer of the head.
      grey: the image is made grey first, on three channels.
      edges: amount of unsharp masking before the trunk; 0 = none.
      batch_norm, dtype: as for the linear head. The head works in float32.
    """

    num_labels: int
    trunk: str = "cifar14"
    recurrent: str = "positions"
    units: tuple[int, ...] = (512,)
    activation: str = "tanh"
    pool: str = "avg"
    hidden: int = 0
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
    def __call__(self, images: Array, train: bool = False, labels: Array | None = None) -> dict[str, Array]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.Features`, to label logits.

        Returns feature_map [B, h, w, D], logits float32 [B, C], `regulariser` float32 [] (tr(W'W) / 2 of eq. 1, W the
        last layer's) and, with "positions" or "none", step_logits [B, T, C]. With "path" the logits are the first
        step's, and there are `image` [B, E], the image in the embedded space, and, given the labels, what `loss_fn`
        needs: step_logits [B, T + 1, C + 1] along the true path, step_labels int8 of that shape, scale [].
        """
        self._check()
        images = self._prepare(images)
        feature_map, _ = trunks.feature_map(
            images, train, name=self.trunk, dtype=self.dtype, batch_norm=self.batch_norm
        )
        if self.recurrent == "positions" and isinstance(images, trunks.Features) and feature_map.shape[1:3] == (1, 1):
            raise UserError(
                "config.model.recurrent = 'positions' reads a feature map, and these features are one vector an image: "
                "set config.features.store='map'"
            )
        x = feature_map.astype(jnp.float32)  # [B, h, w, D]
        if self.recurrent == "path":
            return {"feature_map": feature_map, **self._along_labels(x, train, labels)}
        return {"feature_map": feature_map, **self._over_positions(x, train)}

    def _over_positions(self, x: Array, train: bool) -> dict[str, Array]:
        drop = lambda x: nn.Dropout(self.dropout, deterministic=not train)(x)  # noqa: E731
        steps = x.reshape(len(x), -1, x.shape[-1])  # [B, T, D]
        if self.recurrent == "positions":
            for number, units in enumerate(self.units):
                steps = PeepholeLSTM(units, self.activation, name=f"lstm{number}")(drop(steps))  # [B, T, units]
        elif self.pool in POOLS:
            steps = POOLS[self.pool](x)[:, None]  # [B, 1, D]
        if self.pool == "flatten":
            steps = steps.reshape(len(x), 1, -1)  # [B, 1, T * units]
        if self.hidden:
            steps = nn.relu(nn.Dense(self.hidden, name="hidden")(drop(steps)))
        last = nn.Dense(self.num_labels, name="classifier")
        steps = last(drop(steps))  # [B, T, C]
        logits = jnp.max(steps, axis=1) if self.pool == "max" else jnp.mean(steps, axis=1)
        kernel = last.variables["params"]["kernel"]
        return {"step_logits": steps, "logits": logits, "regulariser": 0.5 * jnp.sum(jnp.square(kernel))}

    def _along_labels(self, x: Array, train: bool, labels: Array | None) -> dict[str, Array]:
        order = self.variable("constants", "order", jnp.arange, self.num_labels, dtype=jnp.int32)
        path = make_path(self, name="path")
        features = nn.Dropout(self.dropout, deterministic=not train)(POOLS[self.pool](x))  # [B, D]
        image = path.embed_image(features)  # [B, E]
        first, regulariser = path(image, jnp.zeros((len(x), 0), jnp.int32))
        outputs = {"image": image, "logits": first[:, 0, :-1], "regulariser": regulariser}
        if labels is None:
            return outputs
        truth = label_order.paths(labels, order.value, self.max_length)  # [B, T]
        steps, _ = path(image, truth, train)  # [B, T + 1, C + 1]
        return outputs | {"step_logits": steps, "step_labels": step_labels(labels, truth), "scale": path.scale()}

    def _prepare(self, images: Array | trunks.Features) -> Array | trunks.Features:
        if not self.grey and not self.edges:
            return images
        if isinstance(images, trunks.Features):
            raise UserError("config.model.grey and config.model.edges change images, and the features are stored ones")
        images = pixels.grey(images) if self.grey else images
        return pixels.enhance_edges(images, self.edges) if self.edges else images

    def _check(self):
        for field, known in (("recurrent", RECURRENT), ("activation", tuple(ACTIVATIONS)), ("order", ORDERS)):
            value = getattr(self, field)
            if value not in known:
                hint = did_you_mean(value, known)
                raise UserError(f"config.model.{field} = {value!r} is unknown{hint}; it is one of {', '.join(known)}")
        pools = tuple(POOLS) if self.recurrent == "path" else (*POOLS, "flatten")
        if self.pool not in pools:
            known = ", ".join(pools)
            raise UserError(
                f"config.model.pool = {self.pool!r}; with recurrent = {self.recurrent!r} it is one of {known}"
            )
        if (self.recurrent == "positions" and not self.units) or any(units < 1 for units in self.units):
            raise UserError(f"config.model.units = {self.units}: the units of one LSTM or of several")
        if self.recurrent == "path" and (len(self.units) != 1 or self.hidden):
            raise UserError("config.model.recurrent = 'path' has one LSTM, units = (512,), and no hidden layer")
        if min(self.max_length, self.beam_size, self.embedding) < 1 or self.hidden < 0 or self.edges < 0:
            raise UserError("config.model: max_length, beam_size, embedding are 1 or more; hidden and edges 0 or more")


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
        self.drop = nn.Dropout(self.dropout)
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
        return self._score(outputs, image[:, None]), 0.5 * jnp.sum(jnp.square(self.labels))

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
        return nn.relu(self.from_lstm(output) + image) @ self.labels.T


def make_path(model: Model, name: str | None = None) -> LabelPath:
    """The model's part that reads labels; its variables are those under "path"."""
    return LabelPath(model.num_labels, model.units[0], model.embedding, model.activation, model.dropout, name=name)


def step_labels(labels: Array, paths: Array) -> Array:
    """What is right at each step along a path: int8 [B, T + 1, C + 1] in {1, 0, -1}, END last.

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


def loss_fn(
    outputs: dict[str, Array], labels: Array, *, name: str, options: tuple = (), regulariser: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """Eq. 1 with any of jaxmlic.losses in place of its sums, float32 [B], and scalars to log.

    `regulariser` is lambda. The trainer takes the mean over images where eq. 1 has the sum, so that lambda here is the
    paper's divided by the number of images. With recurrent="path" the loss is the mean over the path's steps, of the
    labels that are left (see `step_labels`), and the scale's cross-entropy is added.
    """
    if regulariser < 0:
        raise UserError(f"config.loss.regulariser = {regulariser}; it is 0 or more")
    penalty = regulariser * outputs["regulariser"]
    if "step_labels" not in outputs:
        per_example, scalars = linear.loss_fn(outputs, labels, name=name, options=options)
        return per_example + penalty, scalars
    scores, right = outputs["step_logits"], outputs["step_labels"]  # [B, T + 1, C + 1]
    per_step, _ = linear.loss_fn({"logits": scores}, right, name=name, options=options)
    per_step += losses.softmax_cross_entropy(outputs["scale"] * jax.lax.stop_gradient(scores), right)
    counted = (right >= 0).any(axis=-1)  # [B, T + 1]
    per_example = jnp.sum(jnp.where(counted, per_step, 0.0), axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)
    return per_example + penalty, {"scale": outputs["scale"]}


def predict_fn(model: Model, variables: dict, images: Array) -> Prediction:
    """Scores are the logits; with recurrent="path" the labels' marginals over the beam's paths (decode.path_marginals)
    with the best path and its labels beside them."""
    outputs = model.apply(variables, images, train=False)
    if model.recurrent != "path":
        return Prediction(scores=outputs["logits"])
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
        chosen = (paths[0][:, None] == jnp.arange(num_labels)[None]).any(axis=0)
        return Prediction(scores, chosen, paths[0])

    return jax.vmap(search)(outputs["image"])


def constants(config: ConfigDict, facts: Facts) -> dict[str, np.ndarray]:
    """The order of the labels in training, for recurrent="path"."""
    order = label_order.order_fn(config.model.order, facts.labels, facts.class_names, config.seed)
    return {"order": np.asarray(order(jax.random.key(0)))}
