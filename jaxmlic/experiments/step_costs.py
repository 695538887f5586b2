"""What a training step costs, read off its trace and its compiled program."""

import re
from collections.abc import Iterator
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params
from ml_collections import ConfigDict

from jaxmlic.inputs import Source
from jaxmlic.models.heads import contract
from jaxmlic.training import optim
from jaxmlic.training import state as state_lib


def activations(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    source: Source,
    multipliers: dict[str, float | None],
    state: state_lib.TrainState,
    batch: dict[str, jax.ShapeDtypeStruct],
) -> tuple[int, int]:
    """Bytes of the forward pass's values that the backward pass reads (all that are no arguments themselves), and of
    the largest value of the forward pass."""
    trainable, frozen = state_lib.partition(state.params, multipliers)

    def forward(trainable: dict, frozen: dict, state: state_lib.TrainState, batch: dict):
        inputs, labels = source.training_inputs(jax.random.key(0), batch, jnp.int32(0))

        def loss_of(trainable: dict) -> jax.Array:
            variables = {
                "params": optim.unflatten({**frozen, **trainable}),
                "batch_stats": state.batch_stats,
                "constants": state.constants,
            }
            outputs, _ = model.apply(
                variables,
                inputs,
                train=True,
                labels=labels,
                frozen_trunk=not any(name.startswith("trunk/") for name in trainable),
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return jnp.sum(contract.apply_loss(head, outputs, labels, config.loss, jax.random.key(0))[0])

        return jax.vjp(loss_of, trainable)[1]

    jaxpr = jax.make_jaxpr(forward)(trainable, frozen, state.replace(params={}), batch).jaxpr
    arguments = {*jaxpr.invars, *jaxpr.constvars}
    kept = {var for var in jaxpr.outvars if not isinstance(var, Literal) and var not in arguments}
    return sum(_size(var.aval) for var in kept), max(map(_size, _outputs(jaxpr)), default=0)


def _outputs(jaxpr: Jaxpr) -> Iterator[jax.core.ShapedArray]:
    """The arrays that a program's operations give, those of its inner programs among them."""
    for equation in jaxpr.eqns:
        yield from (var.aval for var in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _outputs(inner)


def _size(array: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(array.shape)) * array.dtype.itemsize


def values(tree: object) -> int:
    """How many values the arrays of a tree hold."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def bytes_of(tree: object) -> int:
    """Their bytes."""
    return sum(map(_size, jax.tree.leaves(tree)))


_ITEM = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2, "s8": 1, "u8": 1, "pred": 1, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """{kind: (number, bytes)} of the collectives in a compiled program's text."""
    found: dict[str, tuple[int, int]] = {}
    for shapes, kind in _COLLECTIVE.findall(program):
        size = sum(
            _ITEM.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(",") if n] or [1]))
            for dtype, dims in _ARRAY.findall(shapes)
        )
        number, total = found.get(kind, (0, 0))
        found[kind] = (number + 1, total + size)
    return found
