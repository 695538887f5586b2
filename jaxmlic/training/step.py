"""The training step: loss, gradients and update as one pure function of the state and a batch."""

from collections.abc import Callable
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxmlic.data import augment
from jaxmlic.errors import UserError
from jaxmlic.inputs import Inputs, Source
from jaxmlic.models.heads import contract
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
) -> tuple[jax.Array, dict, dict, dict]:
    """Mean loss over the examples that are not padding, scalars to log, new batch statistics, gradients by name.

    `batch["weight"]` float32 [B], where there is one, multiplies the examples' losses and not the number they are
    divided by, so that a batch of doubtful examples takes a small step.
    Only the trainable parameters are differentiated, so a frozen trunk costs its forward pass alone.
    """
    trainable, frozen = partition(state.params, multipliers)
    value_and_grad = jax.value_and_grad(
        lambda trainable: loss_of(head, model, config, trainable, frozen, state, inputs, batch, key), has_aux=True
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
    mean = jnp.sum(per_example * counted * batch.get("weight", 1.0)) / jnp.maximum(jnp.sum(counted), 1.0)
    return mean, (scalars, updates.get("batch_stats", state.batch_stats))


def make_step_fn(
    head: ModuleType,
    model: nn.Module,
    config: ConfigDict,
    source: Source,
    tx: optax.GradientTransformation,
    multipliers: dict,
    examples: int,
) -> Step:
    """The pure step (state, batch) -> (state, scalars); jit it, or wrap it as you like.

    Randomness is folded from config.seed and the state's step, so the step alone decides it. `examples`, the size of
    the training split, tells the epoch of a step.
    """
    augment.check_mixup(config.augment.mixup)  # before the data are read

    def step_fn(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        epoch = epoch_of(state.step, config.train.batch_size, examples)
        inputs, labels = source.training_inputs(augment_key, batch, epoch)
        loss, scalars, batch_stats, grads = loss_and_grads(
            head, model, config, multipliers, state, inputs, {**batch, "labels": labels}, dropout_key
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
