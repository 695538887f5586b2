"""CNN-RNN (Wang et al., CVPR 2016): label paths from a joint embedding of images, labels and a recurrent state.

Eqs. 2 to 5, read so: one tied matrix U_l [C + 1, E] embeds the label read last (eq. 2) and scores the next one (eq. 5);
its last row is END, and START is one more learned row that is only read. x_t = dropout(ReLU(U_o o(t) + U_I I)), without
biases. Already predicted labels and an END that comes too early are masked in decoding, not in training.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import decode
from jaxmlic.errors import UserError, check_choice, check_least
from jaxmlic.labels import order as label_order
from jaxmlic.losses.pointwise import LOG_ZERO
from jaxmlic.models import trunks
from jaxmlic.models.heads.contract import LabelStatistics, Prediction, Reads, Trace
from jaxmlic.models.layers import cells, prefix_tree, rectifier
from jaxmlic.models.layers.norm import Dropout
from jaxmlic.models.layers.pooling import POOLS

Array = jax.Array

# Order-free training: the model reads its own predictions, and the path is aligned with them.
ALIGNMENTS = ("pla", "mla")
ORDERS = (*label_order.ORDERS, *ALIGNMENTS)
SCORES = ("marginals", "max_over_steps")


@flax.struct.dataclass
class Decoder:
    """The arrays that turn image embeddings and labels into log-probabilities.

    Attributes:
      read: float32 [C + 1, E], a row for each label and START as the last, so that decode.START = -1 finds it.
      score: float32 [C + 1, E], U_l: a row for each label and END as the last.
      output_projection: float32 [H, E], U_o.
      cell: the recurrent layer.
    """

    read: Array
    score: Array
    output_projection: Array
    cell: cells.Weights

    def logits(self, outputs: Array, image_embedding: Array, mask: Array | float = 1.0) -> Array:
        """Eqs. 4 and 5: outputs o(t) [..., H] and image embeddings [..., E] -> s(t) [..., C + 1]; mask: of dropout."""
        return self.projected_logits(outputs @ self.output_projection, image_embedding, mask)

    def projected_logits(self, projected: Array, image_embedding: Array, mask: Array | float = 1.0) -> Array:
        """The same from U_o o(t) [..., E]."""
        x = rectifier.relu(projected + image_embedding) * mask  # [..., E]
        return x @ self.score.T  # [..., C + 1]

    def step_fn(self, table: Array, image_embedding: Array) -> decode.StepFn:
        """The step of jaxmlic.decode for one image [E]; `table` [C + 1, G] = cell.project(read), once for all."""

        def step(state: cells.State, previous_label: Array) -> tuple[cells.State, Array]:
            state, output = self.cell.step(state, table[previous_label])
            return state, jax.nn.log_softmax(self.logits(output, image_embedding))

        return step


class DecoderParameters(nn.Module):
    """Declares the decoder's parameters; fields as the model's."""

    num_labels: int
    embedding_size: int
    recurrent_size: int
    cell: str

    @nn.compact
    def __call__(self) -> Decoder:
        rows = nn.initializers.normal(self.embedding_size**-0.5)
        labels = self.param("label_embedding", rows, (self.num_labels + 1, self.embedding_size), jnp.float32)
        start = self.param("start_embedding", rows, (1, self.embedding_size), jnp.float32)
        cell = cells.Cell(self.embedding_size, self.recurrent_size, self.cell, name="cell")()
        projection = self.param(
            "output_kernel", nn.initializers.lecun_normal(), (self.recurrent_size, self.embedding_size), jnp.float32
        )
        return Decoder(jnp.concatenate([labels[:-1], start]), labels, projection, cell)


class Model(nn.Module):
    """Images to an image embedding and a decoder; with labels, to the log-probabilities at each step of their path.

    Attributes:
      num_labels: C.
      trunk, pool, batch_norm, dtype: as in the linear head; the decoder works in float32.
      dropout: rate on x_t of eq. 4.
      embedding_size: E.
      recurrent_size: H.
      cell: "lstm", "paper" (eq. 1) or "none" (the table's "No RNN": a linear layer in place of the recurrent one, which
        knows the last label alone).
      order: of the labels in training, one of label_order.ORDERS, or "pla" or "mla" (Yazici et al., 2019): the model
        reads its own predictions (the most probable label that its path does not have yet, END never being read), and
        the labels are aligned with them.
      repeats: whether a path may have a label twice, and "pla" and "mla" read the most probable token whatever was read
        before, END among them, as their authors' code does.
      max_length: of a path in labels, in training and decoding; longer training paths are cut at their end.
      min_length: labels before END is allowed in decoding.
      beam_size, length_penalty: see decode.beam_search.
      scores: how labels are ranked: "marginals" over the paths found, or "max_over_steps" along the best path.
    """

    num_labels: int
    trunk: str = "small_cnn"
    pool: str = "avg"
    dropout: float = 0.5
    batch_norm: str = "train"
    dtype: str = "float32"
    embedding_size: int = 64
    recurrent_size: int = 512
    cell: str = "lstm"
    order: str = "frequent_first"
    repeats: bool = False
    max_length: int = 10
    min_length: int = 0
    beam_size: int = 5
    length_penalty: float = 0.0
    scores: str = "marginals"

    @nn.compact
    def __call__(
        self, images: Array, train: bool = False, labels: Array | None = None, frozen_trunk: bool = False
    ) -> dict[str, Array | Decoder]:
        """Images uint8 or float [B, H, W, 3] in 0..255, or `trunks.StoredMaps`.

        Returns feature_map [B, h, w, D], pooled [B, D], image_embedding [B, E] (U_I I), decoder, and where labels
        int8 [B, C] are given, step_log_probs float32 [B, T + 1, C + 1] along paths int32 [B, T] and, with "pla" and
        "mla", read int32 [B, T + 1], the token that each step found. Labels of -1 are left out of the softmax. Raises
        UserError for a field that cannot be.
        """
        self._check()
        feature_map = trunks.feature_map(
            images, train, name=self.trunk, dtype=self.dtype, batch_norm=self.batch_norm, frozen=frozen_trunk
        )
        pooled = POOLS[self.pool](feature_map.astype(jnp.float32))
        image_embedding = nn.Dense(self.embedding_size, use_bias=False, name="image_projection")(pooled)
        decoder = DecoderParameters(
            self.num_labels, self.embedding_size, self.recurrent_size, self.cell, name="decoder"
        )()
        order = self.variable("constants", "order", jnp.arange, self.num_labels, dtype=jnp.int32).value
        outputs = {
            "feature_map": feature_map,
            "pooled": pooled,
            "image_embedding": image_embedding,
            "decoder": decoder,
        }
        if labels is None:
            return outputs
        if self.order == "random_per_batch" and train:
            order = jax.random.permutation(self.make_rng("dropout"), order)
        paths = label_order.paths(labels, order, self.max_length)  # [B, T]
        ones = jnp.ones((self.max_length + 1, *image_embedding.shape))
        mask = Dropout(self.dropout, deterministic=not train)(ones)  # [T + 1, B, E]
        # Unknown labels are no answer, right or wrong; END always is one.
        known = jnp.pad(labels != -1, ((0, 0), (0, 1)), constant_values=True)  # [B, C + 1]
        if self.order in ALIGNMENTS:
            step_log_probs, read = along_own_path(decoder, image_embedding, mask, known, self.repeats)
            if self.order == "pla":
                paths = label_order.predicted_label_alignment(step_log_probs, paths, read[:, :-1])
            else:
                paths = label_order.minimal_loss_alignment(step_log_probs, paths)
            return outputs | {"step_log_probs": step_log_probs, "paths": paths, "read": read}
        step_log_probs = along_paths(decoder, image_embedding, mask, known, paths)
        return outputs | {"step_log_probs": step_log_probs, "paths": paths}

    def _check(self):
        check_choice("model.pool", self.pool, POOLS)
        check_choice("model.order", self.order, ORDERS)
        check_choice("model.scores", self.scores, SCORES)
        for field in ("embedding_size", "recurrent_size", "max_length", "beam_size"):
            check_least(f"model.{field}", getattr(self, field), 1)
        check_least("model.min_length", self.min_length, 0)
        check_least("model.length_penalty", self.length_penalty, 0)
        longest = self.max_length if self.repeats else min(self.max_length, self.num_labels)
        if self.min_length > longest:
            raise UserError(
                f"config.model.min_length = {self.min_length}, but a path has at most {longest} labels "
                f"(config.model.max_length = {self.max_length}, {self.num_labels} classes)"
            )


def reads(model: ConfigDict) -> Reads:
    """The pooled feature map."""
    return Reads(pool=model.pool)


def on_one_cpu() -> bool:
    """Whether the program runs on one CPU device, where `prefix_tree` saves work: half of a training's CPU time."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def log_softmax(logits: Array, known: Array) -> Array:
    """Log-probabilities over the tokens that are known: float32 [..., C + 1]."""
    return jax.nn.log_softmax(jnp.where(known, logits, LOG_ZERO))


def along_paths(
    decoder: Decoder, image_embedding: Array, mask: Array, known: Array, paths: Array, as_tree: bool | None = None
) -> Array:
    """Teacher forcing: log-probabilities [B, T + 1, C + 1] before each label of paths [B, T] and after the last.

    Steps after a path's END mean nothing.

    as_tree: whether states after equal beginnings of paths are computed once; None: on one CPU.
    """
    as_tree = on_one_cpu() if as_tree is None else as_tree
    if as_tree and decoder.cell.recurrent_kernel is not None:
        tree = prefix_tree.tree(paths, decoder.score.shape[0] - 1)
        found = prefix_tree.outputs(decoder.cell, decoder.read, tree) @ decoder.output_projection  # [N, E]
        logits = decoder.projected_logits(found[tree.node], image_embedding[None], mask)  # [T + 1, B, C + 1]
    else:
        # END, the number C, finds the row of START.
        tokens = jnp.pad(paths.T, ((1, 0), (0, 0)), constant_values=decode.START)  # [T + 1, B]
        projected = decoder.cell.project(decoder.read[tokens])  # [T + 1, B, G]
        _, outputs = decoder.cell.scan(decoder.cell.initial(image_embedding.shape[:1]), projected)  # [T + 1, B, H]
        logits = decoder.logits(outputs, image_embedding[None], mask)  # [T + 1, B, C + 1]
    return log_softmax(logits, known[None]).transpose(1, 0, 2)


def along_own_path(
    decoder: Decoder, image_embedding: Array, mask: Array, known: Array, repeats: bool
) -> tuple[Array, Array]:
    """Log-probabilities [B, T + 1, C + 1] along the path of the model's own tokens, and these int32 [B, T + 1].

    A token is the most probable label that was not read yet, or with `repeats` the most probable of all with END.
    """
    batch, num_tokens = len(image_embedding), decoder.score.shape[0]
    # END can be read by its row of U_l; START stays the last row.
    table = jnp.concatenate([decoder.score, decoder.read[-1:]])  # [C + 2, E]

    def step(carry: tuple, mask: Array) -> tuple[tuple, tuple]:
        state, last, free = carry
        state, output = decoder.cell.step(state, decoder.cell.project(table[last]))
        log_probs = log_softmax(decoder.logits(output, image_embedding, mask), known)  # [B, C + 1]
        chosen = jnp.argmax(jnp.where(free, log_probs, -jnp.inf), axis=-1).astype(jnp.int32)  # [B]
        left = free if repeats else free & ~jax.nn.one_hot(chosen, num_tokens, dtype=bool)
        return (state, chosen, left), (log_probs, chosen)

    free = known if repeats else known.at[:, -1].set(False)
    start = (decoder.cell.initial((batch,)), jnp.full(batch, decode.START, jnp.int32), free)
    log_probs, read = jax.lax.scan(step, start, mask)[1]
    return log_probs.transpose(1, 0, 2), read.T


def loss_fn(outputs: dict[str, Array], labels: Array) -> tuple[Array, dict[str, Array]]:
    """Minus the log-probability of each image's path and its END (section 3.4), float32 [B].

    Logs paths_cut, the images of the batch with more labels than a path can have.
    """
    cut = label_order.is_cut(labels, outputs["paths"].shape[1]).sum().astype(jnp.float32)
    return label_order.path_cross_entropy(outputs["step_log_probs"], outputs["paths"]), {"paths_cut": cut}


def constants(config: ConfigDict, statistics: LabelStatistics) -> tuple[dict[str, np.ndarray], list[str]]:
    """The order of the labels, int32 [C], and a note on how many training paths are cut.

    The order that "random_per_batch" draws from, and that decides which labels are cut in "pla" and "mla", is
    frequent-first.
    """
    name = "frequent_first" if config.model.order in ALIGNMENTS else config.model.order
    order, notes = label_order.training_order(
        name, config.model.max_length, statistics.labels, statistics.class_names, config.seed
    )
    return {"order": order}, notes


def label_embeddings(variables: dict) -> dict[str, Array]:
    """U_l float32 [C, E], which embeds labels and scores them, and its rows of END and START [1, E] apart."""
    decoder = variables["params"]["decoder"]
    table = decoder["label_embedding"]
    return {
        "label_embedding": table[:-1],
        "label_embedding_end": table[-1:],
        "label_embedding_start": decoder["start_embedding"],
    }


def search(model: Model, variables: dict, images: Array) -> tuple[Array, ...]:
    """Beam search for each image.

    Returns paths int32 [B, N, T] and their log_probs float32 [B, N], best first; scores float32 [B, C]; and
    step_log_probs float32 [B, T + 1, C + 1] along the best path.
    """
    outputs = model.apply(variables, images, train=False)
    decoder: Decoder = outputs["decoder"]
    table = decoder.cell.project(decoder.read)  # [C + 1, G]
    start = decoder.cell.initial()
    names = ("num_labels", "beam_size", "max_length", "min_length", "length_penalty", "repeats")
    paths, log_probs = find_paths(
        decoder, table, outputs["image_embedding"], **{name: getattr(model, name) for name in names}
    )

    def one(image_embedding: Array, paths: Array, log_probs: Array) -> tuple[Array, Array]:
        step_log_probs = decode.along_path(decoder.step_fn(table, image_embedding), start, paths[0])  # [T + 1, C + 1]
        if model.scores == "marginals":
            return decode.path_marginals(paths, log_probs, model.num_labels, step_log_probs[0]), step_log_probs
        return decode.max_over_steps(step_log_probs, paths[0]), step_log_probs

    return paths, log_probs, *jax.vmap(one)(outputs["image_embedding"], paths, log_probs)


def step_logits_fn(model: Model, variables: dict, images: Array) -> tuple[Array, Array]:
    """Logits float32 [B, T + 1, C + 1] along the best path, and its tokens int32 [B, T + 1], END after the last."""
    path = jax.lax.stop_gradient(search(model, variables, images)[0][:, 0])  # [B, T]
    outputs = model.apply(variables, images, train=False)
    decoder: Decoder = outputs["decoder"]
    tokens = jnp.pad(path.T, ((1, 0), (0, 0)), constant_values=decode.START)  # [T + 1, B]; END finds START's row
    _, states = decoder.cell.scan(decoder.cell.initial((len(path),)), decoder.cell.project(decoder.read[tokens]))
    logits = decoder.logits(states, outputs["image_embedding"][None])  # [T + 1, B, C + 1]
    return logits.transpose(1, 0, 2), jnp.pad(path, ((0, 0), (0, 1)), constant_values=model.num_labels)


def joint_embedding_fn(model: Model, variables: dict, images: Array) -> tuple[Array, Array]:
    """U_I I float32 [B, E] and the labels' rows of U_l [C, E]."""
    outputs = model.apply(variables, images, train=False)
    return outputs["image_embedding"], outputs["decoder"].score[:-1]


def find_paths(decoder: Decoder, table: Array, image_embeddings: Array, **options) -> tuple[Array, Array]:
    """Paths int32 [B, N, T] and their log-probabilities [B, N] for image embeddings [B, E]; options of beam_search."""

    def find(image_embedding: Array) -> tuple[Array, Array]:
        return decode.beam_search(decoder.step_fn(table, image_embedding), decoder.cell.initial(), **options)

    return jax.vmap(find)(image_embeddings)


def predict_fn(model: Model, variables: dict, images: Array) -> Prediction:
    """Scores by `model.scores`; the chosen labels are those of the best path."""
    paths, _, scores, _ = search(model, variables, images)
    best = paths[:, 0]  # [B, T]
    return Prediction(scores, decode.labels_on(best, model.num_labels), best)


def trace_fn(model: Model, variables: dict, images: Array) -> Trace:
    """The paths found, and the probabilities at each step of the best one, END the last token."""
    paths, log_probs, _, step_log_probs = search(model, variables, images)
    taken = jnp.pad(paths[:, 0], ((0, 0), (0, 1)), constant_values=model.num_labels)  # [B, T + 1]
    return Trace(jnp.exp(step_log_probs), taken, paths=paths, log_probs=log_probs)
