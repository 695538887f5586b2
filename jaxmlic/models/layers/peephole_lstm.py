"""The LSTM of Algorithm 1 of CNN-LSTM-RMLC: gates that see the cell ("peepholes"), scanned or one step at a time."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
Carry = tuple[Array, Array]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, "relu": nn.relu}


def cell(
    recurrent: Array, peepholes: Array, activation: Callable[[Array], Array], carry: Carry, inputs: Array
) -> tuple[Carry, Array]:
    """One step. With * the product by element, from output y and cell c of the step before:

        z = g(Wz x + Rz y + bz)                    i = sigmoid(Wi x + Ri y + Pi * c + bi)
        f = sigmoid(Wf x + Rf y + Pf * c + bf)     c' = z * i + c * f
        o = sigmoid(Wo x + Ro y + Po * c' + bo)    y' = h(c') * o

    Args:
      recurrent: float [H, 4H], the R of z, i, f, o side by side.
      peepholes: float [3, H], the P of i, f, o.
      activation: g and h, which the paper calls ReLU in one sentence and tanh in the next.
      carry: (y, c), each float [B, H].
      inputs: float [B, 4H], W x + b of z, i, f, o.

    Returns:
      ((y', c'), y').
    """
    y, c = carry
    z, i, f, o = jnp.split(inputs + y @ recurrent, 4, axis=-1)  # [B, H] each
    i = jax.nn.sigmoid(i + peepholes[:1] * c)
    f = jax.nn.sigmoid(f + peepholes[1:2] * c)
    c = activation(z) * i + c * f
    y = activation(c) * jax.nn.sigmoid(o + peepholes[2:] * c)
    return (y, c), y


class PeepholeLSTM(nn.Module):
    """`lstm(x float [B, T, D]) -> float [B, T, H]`, from zeros, in float32; `lstm.step(carry, x [B, D])` for one step.

    Parameters: `inputs/kernel` [D, 4H] and `inputs/bias` [4H] (1 for the forget gate, at first), `recurrent` [H, 4H],
    `peepholes` [3, H] (0 at first: an LSTM without them).
    """

    units: int
    activation: str = "tanh"

    def setup(self):
        size = self.units

        def open_forget_gate(key: Array, shape: tuple[int], dtype: jnp.dtype) -> Array:
            return jnp.zeros(shape, dtype).at[2 * size : 3 * size].set(1)

        self.inputs = nn.Dense(4 * size, bias_init=open_forget_gate)
        self.recurrent = self.param("recurrent", nn.initializers.orthogonal(), (size, 4 * size), jnp.float32)
        self.peepholes = self.param("peepholes", nn.initializers.zeros, (3, size), jnp.float32)

    def initial_carry(self, batch: int) -> Carry:
        return jnp.zeros((batch, self.units)), jnp.zeros((batch, self.units))

    def __call__(self, x: Array) -> Array:
        projected = jnp.moveaxis(self.inputs(x), 1, 0)  # [T, B, 4H]: one product for all steps
        recurrent, peepholes, activation = self.recurrent, self.peepholes, ACTIVATIONS[self.activation]
        step = partial(cell, recurrent, peepholes, activation)
        _, outputs = jax.lax.scan(step, self.initial_carry(len(x)), projected)
        return jnp.moveaxis(outputs, 0, 1)  # [B, T, H]

    def step(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
        return cell(self.recurrent, self.peepholes, ACTIVATIONS[self.activation], carry, self.inputs(x))
