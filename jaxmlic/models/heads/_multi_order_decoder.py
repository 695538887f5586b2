"""The recurrent part of the Multi-order RNN head as trees of arrays: its output layer, and paths in a fixed order."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from jaxmlic import decode
from jaxmlic.losses.pointwise import LOG_ZERO
from jaxmlic.models.layers import cells

Array = jax.Array


@flax.struct.dataclass
class OutputLayer:
    """Outputs [..., H] of the LSTM and what its step read [..., E] -> logits [..., K].

    Attributes:
      kernel: float32 [H, K], or [E, K] with a projection.
      bias: float32 [1, K].
      projection: float32 [H, E] of the authors' code; None for the paper's eq. 3.
      offset: float32 [1, E], added to the projection.
      adds_input: whether what the step read is added to the projection.
    """

    kernel: Array
    bias: Array
    projection: Array | None = None
    offset: Array | None = None
    adds_input: bool = flax.struct.field(pytree_node=False, default=False)

    def __call__(self, output: Array, inputs: Array) -> Array:
        if self.projection is not None:
            output = output @ self.projection + _row(self.offset, output)
            output = jnp.tanh(output + inputs if self.adds_input else output)
        return output @ self.kernel + _row(self.bias, output)


def _row(values: Array, like: Array) -> Array:
    """[1, K] -> [1, ..., K] with the rank of `like`."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,))


@flax.struct.dataclass
class Decoder:
    """A batch's decoder of paths: section 3.1's CNN-RNN, whose LSTM starts from the CNN's scores.

    Attributes:
      embedding: float32 [C + 1, E], a row for each label and START as the last, so that decode.START = -1 finds it.
      cell: the LSTM.
      output: to C + 1 tokens, END the last.
      state: the first state, float32 [B, H] twice.
    """

    embedding: Array
    cell: cells.Weights
    output: OutputLayer
    state: cells.State

    def along_paths(self, paths: Array, known: Array) -> Array:
        """Teacher forcing: log-probabilities [B, T + 1, C + 1] before each label of paths [B, T] and after the last.

        known: bool [B, C + 1], the tokens that enter the softmax. Steps after a path's END mean nothing.
        """
        # END, the number C, finds the row of START.
        tokens = jnp.pad(paths.T, ((1, 0), (0, 0)), constant_values=decode.START)  # [T + 1, B]
        inputs = self.embedding[tokens]  # [T + 1, B, E]
        _, outputs = self.cell.scan(self.state, self.cell.project(inputs))  # [T + 1, B, H]
        logits = self.output(outputs, inputs)  # [T + 1, B, C + 1]
        return jax.nn.log_softmax(jnp.where(known[None], logits, LOG_ZERO)).transpose(1, 0, 2)

    def search(self, beam_size: int, max_length: int) -> tuple[Array, Array, Array, Array]:
        """Beam search for each image; a beam of 1 is greedy.

        Returns paths int32 [B, N, T] and their log_probs float32 [B, N], best first; scores float32 [B, C], by the
        labels' marginals over the paths; and step_log_probs float32 [B, T + 1, C + 1] along the best path.
        """
        num_labels = len(self.embedding) - 1
        table = self.cell.project(self.embedding)  # [C + 1, G]

        def step(state: cells.State, previous_label: Array) -> tuple[cells.State, Array]:
            state, output = self.cell.step(state, table[previous_label])
            return state, jax.nn.log_softmax(self.output(output, self.embedding[previous_label]))

        options = {"num_labels": num_labels, "beam_size": beam_size, "max_length": max_length}
        paths, log_probs = jax.vmap(partial(decode.beam_search, step, **options))(self.state)
        known = jnp.ones((len(paths), num_labels + 1), bool)
        step_log_probs = self.along_paths(paths[:, 0], known)
        marginals = partial(decode.path_marginals, num_labels=num_labels)
        scores = jax.vmap(lambda p, l, f: marginals(p, l, first_step_log_probs=f))(
            paths, log_probs, step_log_probs[:, 0]
        )
        return paths, log_probs, scores, step_log_probs
