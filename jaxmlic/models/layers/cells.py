"""Recurrent cells: weights as one tree, and pure functions of it that step, scan and read tables.

A decoder reads only labels, so what a cell makes of its input can be computed once for every label: `project` turns
embeddings [..., E] into gate inputs [..., G], and a step is a lookup there and one product with the recurrent kernel.
States and outputs may have any leading axes; a state is a tuple of arrays.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmlic.errors import check_choice

Array = jax.Array
State = tuple[Array, ...]

# kind -> (gates, arrays in the state)
KINDS = {"lstm": (4, 2), "paper": (4, 1), "none": (1, 0)}


@flax.struct.dataclass
class Weights:
    """A cell's arrays, G = gates * H.

    Attributes:
      kind: "lstm", the standard cell (gates in PyTorch's order: input, forget, candidate, output; one bias);
        "paper", eq. 1 of CNN-RNN (candidate, input, forget, output; no bias), read as sigmoid gates, ReLU on the
        candidate, and r(t) * o_t as the output; "none", a linear layer without state, for the "No RNN" comparison.
      input_kernel: float32 [E, G].
      recurrent_kernel: float32 [H, G]; None without a state.
      bias: float32 [G]; None without.
    """

    kind: str = flax.struct.field(pytree_node=False)
    input_kernel: Array
    recurrent_kernel: Array | None = None
    bias: Array | None = None

    def project(self, inputs: Array) -> Array:
        """Inputs [..., E] -> what they add to the gates [..., G], the bias included."""
        gates = inputs @ self.input_kernel
        return gates if self.bias is None else gates + self.bias.reshape((1,) * (gates.ndim - 1) + (-1,))

    def initial(self, leading: tuple[int, ...] = ()) -> State:
        """The state of zeros, for leading axes such as (B,)."""
        if self.recurrent_kernel is None:
            return ()
        size = self.recurrent_kernel.shape[0]
        return (jnp.zeros((*leading, size)),) * KINDS[self.kind][1]

    def step(self, state: State, projected: Array) -> tuple[State, Array]:
        """One step from gate inputs [..., G]: the new state and the output [..., H]. The LSTM's state is (h, c)."""
        if self.kind == "none":
            return (), projected
        return activate(self.kind, state, projected + state[0] @ self.recurrent_kernel)

    def scan(self, state: State, projected: Array) -> tuple[State, Array]:
        """All steps of gate inputs [T, B, G]: the last state and the outputs [T, B, H]."""
        if self.kind == "none":
            return (), projected
        return jax.lax.scan(self.step, state, projected)


def activate(kind: str, state: State, gates: Array) -> tuple[State, Array]:
    """What an "lstm" or "paper" cell makes of its gates [..., 4 * H], element by element: state, output [..., H]."""
    gates = jnp.split(gates, 4, axis=-1)  # 4 of [..., H]
    if kind == "lstm":
        kept = jax.nn.sigmoid(gates[1]) * state[1]
        memory = kept + jax.nn.sigmoid(gates[0]) * jnp.tanh(gates[2])
        output = jax.nn.sigmoid(gates[3]) * jnp.tanh(memory)
        return (output, memory), output
    candidate, i, f, o = jax.nn.relu(gates[0]), *map(jax.nn.sigmoid, gates[1:])
    recurrent = f * state[0] + i * candidate
    return (recurrent,), recurrent * o


class Cell(nn.Module):
    """Declares a cell's parameters; calling it gives its `Weights`.

    Attributes:
      input_size: E.
      size: H.
      kind: one of KINDS.
    """

    input_size: int
    size: int
    kind: str = "lstm"

    @nn.compact
    def __call__(self) -> Weights:
        check_choice("model.cell", self.kind, KINDS)
        gates = KINDS[self.kind][0]
        input_kernel = self.param(
            "input_kernel", nn.initializers.lecun_normal(), (self.input_size, gates * self.size), jnp.float32
        )
        if self.kind == "none":
            return Weights(self.kind, input_kernel)
        recurrent_kernel = self.param("recurrent_kernel", orthogonal_gates, (self.size, gates * self.size), jnp.float32)
        bias = self.param("bias", forget_bias, (gates * self.size,), jnp.float32) if self.kind == "lstm" else None
        return Weights(self.kind, input_kernel, recurrent_kernel, bias)


def orthogonal_gates(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    """[H, gates * H], an orthogonal matrix for each gate."""
    size = shape[0]
    keys = jax.random.split(key, shape[1] // size)
    return jnp.concatenate([nn.initializers.orthogonal()(k, (size, size), dtype) for k in keys], axis=1)


def forget_bias(key: Array, shape: tuple[int], dtype: jnp.dtype) -> Array:
    """Zeros, and ones for the forget gate, so that a fresh LSTM remembers."""
    return jnp.zeros(shape, dtype).at[shape[0] // 4 : shape[0] // 2].set(1)
