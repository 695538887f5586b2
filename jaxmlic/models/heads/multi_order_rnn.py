"""Multi-order RNN (Dutta, Verma, Jawahar, 2020): an LSTM starts from the CNN's scores and predicts all labels a step.

Eqs. 1 to 7. The CNN's probabilities s give the first state, h = tanh(W_h s + b_h), c = tanh(W_c s + b_c). Each step
reads the label that the step before found most probable (no gradient passes through that choice; the first reads a
START row) and predicts every label of the image except the one it read. A label's score is its highest over the steps.
The CNN's scores are a layer named `classifier`, so that `config.start_from` takes trunk and scores over from a run of
the linear head: the paper's two stages.

`output="released"`, `mask="all"` and `step_loss="released"` are the choices of the authors' code. `mask="pool"` is the
order-free RNN of Chen et al. (2018), as the paper describes it: training reads the most confident label out of a pool
of true labels, which it leaves, and decoding reads on until no label is above 1/2.

With an `order` of the labels it is the CNN-RNN of section 3.1, Table 1's baselines: the same LSTM, which starts from
the CNN's scores, is trained by teacher forcing to predict the next label of the order or END by a softmax, and the
labels are those of the path that it emits, none twice.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import decode, losses
from jaxmlic.errors import UserError, check_choice, check_least
from jaxmlic.labels import order as label_order
from jaxmlic.models import trunks
from jaxmlic.models.heads._multi_order_decoder import Decoder, OutputLayer
from jaxmlic.models.heads.contract import LabelStatistics, Prediction, Reads, Trace
from jaxmlic.models.layers import cells
from jaxmlic.models.layers.norm import BatchNorm, Dropout
from jaxmlic.models.layers.pooling import POOLS

Array = jax.Array

MASKS = ("last", "all", "pool")
OUTPUTS = ("paper", "released", "released_prev2out")
STEP_LOSSES = ("paper", "released")
ORDERS = ("none", *label_order.ORDERS)


class Model(nn.Module):
    """Images to label logits at each of T steps; with an order, to the log-probabilities at each step of a path.

    Attributes:
      num_labels: C.
      trunk, pool, batch_norm, dtype: as in the linear head; all but the trunk works in float32.
      dropout: rate on the pooled vector, before the CNN's scores.
      embedding_size: E, of the label that a step reads.
      recurrent_size: H.
      num_steps: T.
      mask: which labels are masked at a step. "last": the one it reads (eq. 5); "all": every one read so far, and none
        is read twice in decoding (the authors' code); "pool": as "all", and training reads true labels while there are
        any left (the order-free RNN).
      output: "paper": W h + b (eq. 3); "released", the authors' code as its published command runs it: W tanh(P h + p)
        + b, and s batch-normalised (always by the batch's statistics in training, whatever the trunk's `batch_norm`);
        "released_prev2out", its option: W tanh(P h + p + x) + b with the E numbers x that the step reads.
      order: "none", or one of label_order.ORDERS: paths in this order, of which `num_steps` and `mask` are no part.
      max_length: of a path in labels, in training and decoding; longer training paths are cut at their end.
      beam_size: paths that decoding keeps; 1 is greedy (section 3.1 reads the last prediction).
    """

    num_labels: int
    trunk: str = "small_cnn"
    pool: str = "avg"
    dropout: float = 0.0
    batch_norm: str = "train"
    dtype: str = "float32"
    embedding_size: int = 256
    recurrent_size: int = 512
    num_steps: int = 5
    mask: str = "last"
    output: str = "paper"
    order: str = "none"
    max_length: int = 10
    beam_size: int = 1

    @nn.compact
    def __call__(
        self, images: Array, train: bool = False, labels: Array | None = None, frozen_trunk: bool = False
    ) -> dict[str, Array | Decoder]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`; labels only matter for mask="pool" and
        for an order.

        Returns feature_map [B, h, w, D], pooled [B, D], cnn_logits [B, C], step_logits [B, T, C], logits [B, C] (the
        highest of the steps), read_next int32 [B, T] (the label that each step found) and masked bool [B, T, C] (the
        labels masked at each step). With an order, in place of the last four: decoder and, where labels int8 [B, C] are
        given, step_log_probs float32 [B, L + 1, C + 1] along paths int32 [B, L]; labels of -1 are left out of the
        softmax. Raises UserError for a field that cannot be.
        """
        self._check()
        feature_map = trunks.feature_map(
            images, train, name=self.trunk, dtype=self.dtype, batch_norm=self.batch_norm, frozen=frozen_trunk
        )
        pooled = POOLS[self.pool](feature_map.astype(jnp.float32))
        dropped = Dropout(self.dropout, deterministic=not train)(pooled)
        cnn_logits = nn.Dense(self.num_labels, name="classifier")(dropped)
        scores = jax.nn.sigmoid(cnn_logits)  # s of the paper
        if self.output != "paper":
            scores = BatchNorm(not train, momentum=0.95, name="score_norm")(scores)
        state = tuple(
            jnp.tanh(nn.Dense(self.recurrent_size, name=name)(scores)) for name in ("initial_hidden", "initial_cell")
        )
        rows = (self.num_labels + 1, self.embedding_size)
        embedding = self.param("label_embedding", nn.initializers.normal(self.embedding_size**-0.5), rows, jnp.float32)
        cell = cells.Cell(self.embedding_size, self.recurrent_size, name="cell")()
        predict_logits = self._output_layer()
        outputs = {"feature_map": feature_map, "pooled": pooled, "cnn_logits": cnn_logits}
        if self.order != "none":
            decoder = Decoder(embedding, cell, predict_logits, state)
            return outputs | {"decoder": decoder} | self._along_paths(decoder, labels, train)

        def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
            state, last, read = carry  # last [B], of which -1 is START's row; read bool [B, C]
            inputs = embedding[last]  # [B, E]
            state, output = cell.step(state, cell.project(inputs))
            logits = predict_logits(output, inputs)  # [B, C]
            chosen = jnp.argmax(jnp.where(self._readable(read, labels), logits, -jnp.inf), axis=-1)  # [B]
            now = jax.nn.one_hot(chosen, self.num_labels, dtype=bool)
            return (state, chosen, now if self.mask == "last" else read | now), (logits, chosen, read)

        start = (state, jnp.full(len(scores), -1), jnp.zeros(scores.shape, bool))
        found = jax.lax.scan(step, start, None, length=self.num_steps)[1]
        step_logits, read_next, masked = (jnp.swapaxes(x, 0, 1) for x in found)
        return outputs | {
            "step_logits": step_logits,
            "logits": step_logits.max(axis=1),
            "read_next": read_next.astype(jnp.int32),
            "masked": masked,
        }

    def _along_paths(self, decoder: Decoder, labels: Array | None, train: bool) -> dict[str, Array]:
        """The labels' paths, and what the decoder predicts along them; nothing without labels."""
        order = self.variable("constants", "order", jnp.arange, self.num_labels, dtype=jnp.int32).value
        if labels is None:
            return {}
        if self.order == "random_per_batch" and train:
            order = jax.random.permutation(self.make_rng("dropout"), order)
        paths = label_order.paths(labels, order, self.max_length)  # [B, L]
        known = jnp.pad(labels != -1, ((0, 0), (0, 1)), constant_values=True)  # [B, C + 1]
        return {"step_log_probs": decoder.along_paths(paths, known), "paths": paths}

    def _output_layer(self) -> OutputLayer:
        """(output [..., H], inputs [..., E]) -> logits [..., C], of an order [..., C + 1]."""
        width = self.recurrent_size if self.output == "paper" else self.embedding_size
        tokens = self.num_labels + (self.order != "none")
        kernel = self.param("output_kernel", nn.initializers.lecun_normal(), (width, tokens), jnp.float32)
        bias = self.param("output_bias", nn.initializers.zeros, (1, tokens), jnp.float32)
        if self.output == "paper":
            return OutputLayer(kernel, bias)
        shape = (self.recurrent_size, width)
        projection = self.param("projection_kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        offset = self.param("projection_bias", nn.initializers.zeros, (1, width), jnp.float32)
        return OutputLayer(kernel, bias, projection, offset, adds_input=self.output == "released_prev2out")

    def _readable(self, masked: Array, labels: Array | None) -> Array:
        """Which labels the next step may read, after a step with labels `masked`: bool [B, C]."""
        if self.mask == "last" or (self.mask == "all" and labels is not None):
            return jnp.ones_like(masked)  # eq. 4; the authors' code, too, takes the best of all labels in training
        if labels is None:
            return ~masked
        pool = (labels == 1) & ~masked
        return jnp.where(pool.any(axis=1, keepdims=True), pool, ~masked)

    def _check(self):
        check_choice("model.pool", self.pool, POOLS)
        check_choice("model.mask", self.mask, MASKS)
        check_choice("model.output", self.output, OUTPUTS)
        check_choice("model.order", self.order, ORDERS)
        for field in ("embedding_size", "recurrent_size", "num_steps", "max_length", "beam_size"):
            check_least(f"model.{field}", getattr(self, field), 1)
        if self.order != "none" and self.mask != "last":
            raise UserError(
                f"config.model.mask = {self.mask!r} is for config.model.order = 'none': on a path of "
                f"{self.order!r} no label occurs twice"
            )


def reads(model: ConfigDict) -> Reads:
    """The pooled feature map."""
    return Reads(pool=model.pool)


def constants(config: ConfigDict, statistics: LabelStatistics) -> tuple[dict[str, np.ndarray], list[str]]:
    """The order of the labels, int32 [C], and a note on how many training paths are cut."""
    order, notes = label_order.training_order(
        config.model.order, config.model.max_length, statistics.labels, statistics.class_names, config.seed
    )
    return {"order": order}, notes


def label_embeddings(variables: dict) -> dict[str, Array]:
    """The rows that a step reads, float32 [C, E], and START's [1, E] apart; the weights of each label's score.

    These are "output" [C, H] (or [C, E] with a projection) of the recurrent layer, with an order END's row apart, and
    "classifier" [C, D] of the CNN.
    """
    params = variables["params"]
    table, scored = params["label_embedding"], params["output_kernel"].T
    count = len(table) - 1
    tables = {"label_embedding": table[:-1], "label_embedding_start": table[-1:], "output": scored[:count]}
    if len(scored) > count:
        tables["output_end"] = scored[count:]
    return tables | {"classifier": params["classifier"]["kernel"].T}


def loss_fn(
    outputs: dict[str, Array], labels: Array, *, step_loss: str = "paper", cnn_weight: float = 0.0
) -> tuple[Array, dict[str, Array]]:
    """Eq. 7 (with the minus sign it lacks) summed over classes and steps: float32 [B].

    A label that is masked at a step has the target 0 there (eq. 6); other unknown labels do not count. With an order:
    minus the log-probability of each image's path and its END; logs paths_cut, the images with longer ones.

    Args:
      outputs: of the model.
      labels: int8 [B, C].
      step_loss: "paper": all steps count; "released": as many as the image has labels, as in the authors' code (an
        image without labels has no loss there).
      cnn_weight: of the CNN's own binary cross-entropy. 0 is the paper's second stage, after `config.start_from`; with
        1, trunk or classifier can learn in the same run.
    """
    check_choice("loss.step_loss", step_loss, STEP_LOSSES)
    check_least("loss.cnn_weight", cnn_weight, 0)
    cnn = labels.shape[1] * losses.binary_cross_entropy(outputs["cnn_logits"], labels)  # [B]
    if "decoder" in outputs:
        if step_loss != "paper":
            raise UserError(f"config.loss.step_loss = {step_loss!r} is for config.model.order = 'none'")
        cut = label_order.is_cut(labels, outputs["paths"].shape[1]).sum().astype(jnp.float32)
        path = label_order.path_cross_entropy(outputs["step_log_probs"], outputs["paths"])
        return path + cnn_weight * cnn, {"cnn_loss": cnn.mean(), "paths_cut": cut}
    num_steps, num_labels = outputs["step_logits"].shape[1:]
    targets = jnp.where(outputs["masked"], jnp.int8(0), labels[:, None])  # [B, T, C]
    steps = num_labels * losses.binary_cross_entropy(outputs["step_logits"], targets)  # [B, T]
    if step_loss == "released":
        steps = jnp.where(jnp.arange(num_steps)[None] < (labels == 1).sum(axis=1, keepdims=True), steps, 0.0)
    return steps.sum(axis=1) + cnn_weight * cnn, {"cnn_loss": cnn.mean()}


def predict_fn(model: Model, variables: dict, images: Array) -> Prediction:
    """Scores are the logits max-pooled over the steps; the path is what the steps read, and no set of labels.

    With mask="pool" the path is a prediction: it ends before the first label of a probability of 1/2 or less. With an
    order it is the best path of the search, and scores are the labels' marginals over the paths found.
    """
    outputs = model.apply(variables, images, train=False)
    if model.order != "none":
        paths, _, scores, _ = outputs["decoder"].search(model.beam_size, model.max_length)
        return Prediction(scores, decode.labels_on(paths[:, 0], model.num_labels), paths[:, 0])
    path = outputs["read_next"]  # [B, T]
    if model.mask != "pool":
        return Prediction(outputs["logits"], path=path)
    logit = jnp.take_along_axis(outputs["step_logits"], path[..., None], axis=2)[..., 0]  # [B, T]
    path = jnp.where(jnp.cumprod(logit > 0, axis=1) == 1, path, model.num_labels)
    return Prediction(outputs["logits"], decode.labels_on(path, model.num_labels), path)


def step_logits_fn(model: Model, variables: dict, images: Array) -> tuple[Array, Array]:
    """Logits float32 [B, T, C] and the labels int32 [B, T] that the next step reads."""
    outputs = model.apply(variables, images, train=False)
    return outputs["step_logits"], outputs["read_next"]


def trace_fn(model: Model, variables: dict, images: Array) -> Trace:
    """The steps of Fig. 3: probabilities, what was read next, and where a label's highest score is (the first of equal
    ones). With an order, the steps of the best path, END the last token, and the paths found."""
    outputs = model.apply(variables, images, train=False)
    if model.order != "none":
        paths, log_probs, _, step_log_probs = outputs["decoder"].search(model.beam_size, model.max_length)
        taken = jnp.pad(paths[:, 0], ((0, 0), (0, 1)), constant_values=model.num_labels)  # [B, L + 1]
        return Trace(jnp.exp(step_log_probs), taken, paths=paths, log_probs=log_probs)
    steps = outputs["step_logits"]  # [B, T, C]
    pooled = jnp.argmax(steps, axis=1)[:, None] == jnp.arange(model.num_steps)[None, :, None]  # [B, T, C]
    return Trace(jax.nn.sigmoid(steps), outputs["read_next"], pooled)
