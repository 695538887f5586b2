"""What a training step costs, read off its trace, its compiled program and the log of a run."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params
from ml_collections import ConfigDict

from jaxmlic.inputs import Source, open_source
from jaxmlic.models.heads import contract
from jaxmlic.training import optim, run_folder, step
from jaxmlic.training import state as state_lib
from jaxmlic.training.logs import metrics_log


def activations(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    source: Source,
    multipliers: dict[str, float | None],
    state: state_lib.TrainState,
    batch: dict[str, jax.ShapeDtypeStruct],
) -> tuple[int, int]:
    """Bytes of the forward pass's values that the backward pass reads (all that are no arguments themselves), with the
    largest part that it computes again (`config.train.remat`), and of the largest value of the forward pass."""
    trainable, frozen = state_lib.partition(state.params, multipliers)

    def loss(trainable: dict, frozen: dict, state: state_lib.TrainState, batch: dict) -> jax.Array:
        key = jax.random.key(0)
        inputs, labels = source.training_inputs(key, batch, jnp.int32(0))
        examples = {**batch, "labels": labels}
        return step.loss_of(head, model, config, trainable, frozen, state, inputs, examples, key)[0]

    def forward(trainable: dict, *rest: dict) -> Callable:
        return jax.vjp(lambda t: loss(t, *rest), trainable)[1]

    arguments = trainable, frozen, state.replace(params={}), batch
    jaxpr = jax.make_jaxpr(forward)(*arguments).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    kept = {var for var in jaxpr.outvars if not isinstance(var, Literal) and var not in given}
    again = 0 if config.train.remat == "none" else _recomputed(jax.make_jaxpr(loss)(*arguments).jaxpr)
    return sum(_size(var.aval) for var in kept) + again, max(map(_size, _outputs(jaxpr)), default=0)


def _recomputed(jaxpr: Jaxpr) -> int:
    """Bytes of the values of the largest part that a backward pass computes again, what it computes again inside of
    that part included."""
    most = 0
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        own = 0
        if equation.primitive.name in ("checkpoint", "remat", "remat2"):
            own = sum(_size(var.aval) for part in inner for row in part.eqns for var in row.outvars)
        most = max(most, own + max(map(_recomputed, inner), default=0))
    return most


def _outputs(jaxpr: Jaxpr) -> Iterator[jax.core.ShapedArray]:
    """The arrays that a program's operations give, those of its inner programs among them."""
    for equation in jaxpr.eqns:
        yield from (var.aval for var in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _outputs(inner)


def _size(array: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(array.shape)) * array.dtype.itemsize


def of_run(workdir: Path) -> dict[str, float]:
    """trained_parameters, how many values were trained, and step_ms, milliseconds of a step: the median of the reports
    after the first, which holds the compilation. NaN where a run has one report alone."""
    found = run_folder.load(workdir)
    model = contract.make_model(contract.find(found.config.head), found.config, len(found.class_names), found.num_train)
    shapes = state_lib.parameter_shapes(model, open_source(found.config).example())
    rates = optim.multipliers(found.config.optim.groups, list(shapes))
    speeds = [row["img_per_s"] for row in metrics_log.read(workdir) if row.get("img_per_s")][1:]
    return {
        "trained_parameters": float(sum(np.prod(shape) for name, shape in shapes.items() if rates[name] is not None)),
        "step_ms": 1000 * found.config.train.batch_size / float(np.median(speeds)) if speeds else float("nan"),
    }


def values(tree: object) -> int:
    """How many values the arrays of a tree hold."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def bytes_of(tree: object) -> int:
    """Their bytes."""
    return sum(map(_size, jax.tree.leaves(tree)))


def bytes_on_a_device(tree: object) -> int:
    """The bytes of them that one device holds, by their shardings."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


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
