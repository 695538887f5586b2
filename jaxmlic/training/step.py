"""The training step: loss, gradients and update as one pure function of the state and a batch."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxmlic import sharding
from jaxmlic.data import augment
from jaxmlic.errors import UserError, check_choice, check_least
from jaxmlic.inputs import Inputs, Source
from jaxmlic.models.heads import contract
from jaxmlic.models.trunks import remat
from jaxmlic.training import optim
from jaxmlic.training.state import NonFinite, TrainState, partition

LOSS_STREAM = 1  # folded into the step's key for what a loss draws; the model's draws fold in names

Step = Callable[[TrainState, dict], tuple[TrainState, dict]]


def loss_and_grads(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    multipliers: dict,
    state: TrainState,
    inputs: Inputs,
    batch: dict,
    key: jax.Array,
    count: jax.Array | None = None,
) -> tuple[jax.Array, dict, dict, dict]:
    """Mean loss over the examples that are not padding, scalars to log, new batch statistics, gradients by name.

    `batch["weight"]` float32 [B], where there is one, multiplies the examples' losses and not the number they are
    divided by, so that a batch of doubtful examples takes a small step.
    Only the trainable parameters are differentiated, so a frozen trunk costs its forward pass alone.

    count: float32 [], what the sum of the losses is divided by, in place of the number of examples.
    """
    trainable, frozen = partition(state.params, multipliers)
    value_and_grad = jax.value_and_grad(
        lambda trainable: loss_of(head, model, config, trainable, frozen, state, inputs, batch, key, count),
        has_aux=True,
    )
    (loss, (scalars, batch_stats)), grads = value_and_grad(trainable)
    return loss, scalars, batch_stats, grads


def loss_of(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    trainable: dict,
    frozen: dict,
    state: TrainState,
    inputs: Inputs,
    batch: dict,
    key: jax.Array,
    count: jax.Array | None = None,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """The loss of `loss_and_grads` as a function of the trainable parameters, with (scalars, batch statistics).

    trainable, frozen: parameters by name, as `partition` divides them.
    """
    counted = batch["mask"].astype(jnp.float32)
    # Unknown, so that a loss that counts over the batch does not count padding.
    labels = jnp.where(batch["mask"][:, None], batch["labels"], jnp.int8(-1))
    variables = {
        "params": optim.unflatten({**frozen, **trainable}),
        "batch_stats": state.batch_stats,
        "constants": state.constants,
    }
    with remat.level(config.train.remat):
        outputs, updates = model.apply(
            variables,
            inputs,
            train=True,
            labels=labels,
            frozen_trunk=not any(name.startswith("trunk/") for name in trainable),
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
    loss_key = jax.random.fold_in(key, LOSS_STREAM)
    per_example, scalars = contract.apply_loss(head, outputs, labels, config.loss, loss_key)
    mean = jnp.sum(per_example * counted * batch.get("weight", 1.0)) / (count_of(batch) if count is None else count)
    return mean, (scalars, updates.get("batch_stats", state.batch_stats))


def count_of(batch: dict) -> jax.Array:
    """float32 []: the examples that are not padding, or 1."""
    return jnp.maximum(jnp.sum(batch["mask"].astype(jnp.float32)), 1.0)


def accumulated(grad_fn: Callable, parts: int, state: TrainState, inputs: Inputs, batch: dict, key: jax.Array) -> tuple:
    """What `loss_and_grads` gives of a batch, from `parts` micro-batches one after the other.

    A micro-batch takes every `parts`-th example, so that each device works on its own share of the batch. Batch
    statistics pass from one to the next; logged scalars are means over them.

    grad_fn: (state, inputs, batch, key, count) -> what `loss_and_grads` gives.
    """

    def divided(x: jax.Array) -> jax.Array:
        return x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)  # [parts, B / parts, ...]

    def add(carry: tuple, part: tuple) -> tuple[tuple, dict]:
        batch_stats, loss, grads = carry
        number, inputs, batch = part
        now = state.replace(batch_stats=batch_stats)
        more, scalars, batch_stats, new = grad_fn(now, inputs, batch, jax.random.fold_in(key, number), count)
        return (batch_stats, loss + more, jax.tree.map(jnp.add, grads, new)), scalars

    count = count_of(batch)
    batch = {name: batch[name] for name in ("labels", "mask", "weight") if name in batch}
    part = jax.tree.map(divided, (inputs, batch))
    shapes = jax.eval_shape(grad_fn, state, *jax.tree.map(lambda x: x[0], part), key, count)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[3])
    start = (state.batch_stats, jnp.float32(0), zeros)
    # A loop keeps one micro-batch at a time. XLA computes the gradients of kernels inside loops slowly on a CPU.
    unroll = parts if jax.default_backend() == "cpu" else 1
    (batch_stats, loss, grads), scalars = jax.lax.scan(add, start, (jnp.arange(parts), *part), unroll=unroll)
    return loss, jax.tree.map(lambda x: x.mean(axis=0), scalars), batch_stats, grads


def check_batch(config: ConfigDict, devices: int) -> None:
    """UserError unless `devices` and micro-batches divide the global batch."""
    size, parts = config.train.batch_size, config.train.accumulate
    check_least("train.accumulate", parts, 1)
    check_least("train.prefetch", config.train.prefetch, 0)
    whole = devices * parts
    if size % whole:
        among = f"{devices} devices" + (f" x {parts} micro-batches (config.train.accumulate)" if parts > 1 else "")
        raise UserError(
            f"config.train.batch_size = {size} cannot be divided over {among}; the next that can is "
            f"{-(-size // whole) * whole}"
        )


def compiler_options(config: ConfigDict) -> dict[str, str] | None:
    """Of the step: on the CPU, XLA would merge what `remat` computes again with what it computed before."""
    if config.train.remat == "none" or jax.default_backend() != "cpu":
        return None
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def make_step_fn(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    source: Source,
    tx: optax.GradientTransformation,
    multipliers: dict,
    examples: int,
    mesh: jax.sharding.Mesh | None = None,
) -> Step:
    """The pure step (state, batch) -> (state, scalars); jit it, or wrap it as you like.

    Randomness is folded from config.seed and the state's step, so the step alone decides it. `examples`, the size of
    the training split, tells the epoch of a step.

    mesh: needed for config.train.shard_state: parameters are gathered before they are used, gradients divided as the
        optimizer's state is.
    """
    augment.check(**config.augment)  # before the data are read
    check_choice("train.remat", config.train.remat, remat.LEVELS)
    divides = config.train.shard_state and mesh is not None

    def grad_fn(*args: Any) -> tuple[jax.Array, dict, dict, dict]:
        loss, scalars, batch_stats, grads = loss_and_grads(head, model, config, multipliers, *args)
        if divides:
            grads = jax.lax.with_sharding_constraint(grads, sharding.divided(grads, mesh))
        return loss, scalars, batch_stats, grads

    def step_fn(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        epoch = epoch_of(state.step, config.train.batch_size, examples)
        inputs, labels = source.training_inputs(augment_key, batch, epoch)
        batch, whole = {**batch, "labels": labels}, state
        if divides:
            whole = state.replace(params=jax.lax.with_sharding_constraint(state.params, sharding.replicated(mesh)))
        if config.train.accumulate == 1:
            loss, scalars, batch_stats, grads = grad_fn(whole, inputs, batch, dropout_key)
        else:
            loss, scalars, batch_stats, grads = accumulated(
                grad_fn, config.train.accumulate, whole, inputs, batch, dropout_key
            )
        return apply_gradients(config, tx, multipliers, state, loss, batch_stats, grads, scalars)

    return step_fn


def epoch_of(step: jax.Array, batch_size: int, examples: int) -> jax.Array:
    """The epoch, from 0, of the first example of step `step` (int32 []): batches run over the ends of epochs.

    In two parts, because `step * batch_size` would leave int32 after 2 billion examples.
    """
    return step // examples * batch_size + step % examples * batch_size // examples


def apply_gradients(
    config: ConfigDict,
    tx: optax.GradientTransformation,
    multipliers: dict,
    state: TrainState,
    loss: jax.Array,
    batch_stats: dict,
    grads: dict,
    scalars: dict,
) -> tuple[TrainState, dict]:
    """The optimizer's update, the moving average and the record of values that are not finite."""
    trainable, frozen = partition(state.params, multipliers)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    squares = jnp.stack([jnp.sum(jnp.square(grads[name].astype(jnp.float32))) for name in sorted(grads)])
    new = state.replace(
        step=state.step + 1,
        params=optim.unflatten({**frozen, **trainable}),
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=optim.average(state.ema, trainable, config.optim.ema, state.step) if state.ema else {},
        guard=first_non_finite(state.guard, state.step, loss, squares),
    )
    return new, {"loss": loss, "grad_norm": jnp.sqrt(jnp.sum(squares)), **scalars}


def first_non_finite(found: NonFinite, step: jax.Array, loss: jax.Array, squares: jax.Array) -> NonFinite:
    """Remembers the first step at which the loss or a gradient (`squares` [P], sums of squares) was not finite."""
    bad_loss, bad = ~jnp.isfinite(loss), ~jnp.isfinite(squares)
    first = (found.step < 0) & (bad_loss | jnp.any(bad))
    return NonFinite(
        step=jnp.where(first, step, found.step),
        loss=jnp.where(first, bad_loss, found.loss),
        gradients=jnp.where(first, bad, found.gradients),
    )


def check_finite(found: NonFinite, names: list[str]) -> None:
    """Raises UserError naming the step and the parameters if training met a value that is not finite."""
    if int(found.step) < 0:
        return
    bad = [name for name, flag in zip(sorted(names), np.asarray(found.gradients), strict=True) if flag]
    where = f"the gradients of {len(bad)} of {len(names)} parameters (first: {bad[0]})" if bad else "the loss"
    also = "the loss and " if bad and bool(found.loss) else ""
    raise UserError(
        f"training stopped: at step {int(found.step)} {also}{where} became NaN or infinite; none since was saved, so "
        "the last checkpoint is good. Lower config.optim.lr, set config.optim.clip_norm or config.model.dtype='float32'"
    )
