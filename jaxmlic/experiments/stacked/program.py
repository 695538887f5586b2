"""The jitted programs of a group: `jax.vmap` over the lanes of a training step and of a prediction."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import sharding
from jaxmlic.experiments.stacked import arrays, numbers
from jaxmlic.experiments.stacked.lanes import Lane
from jaxmlic.inputs import eval_inputs
from jaxmlic.models.heads import contract
from jaxmlic.training import state as state_lib
from jaxmlic.training.state import TrainState


def arguments(lanes: Sequence[Lane], mesh: jax.sharding.Mesh) -> dict:
    """What differs from lane to lane beside its state, with a leading axis of lanes.

    seed int32 [L]; rates float32 [L, steps], the learning rate by step; numbers {field: float32 [L]}; multipliers
    {parameter: float32 [L]}, of the learning rate where they differ.
    """
    steps = jnp.arange(lanes[0].trainer.total)
    columns = {name: [lane.trainer.multipliers[name] for lane in lanes] for name in lanes[0].trainer.trainable}
    found = {
        "seed": np.array([lane.config.seed for lane in lanes], np.int32),
        "rates": np.stack([np.asarray(jax.vmap(lane.trainer.learning_rate)(steps), np.float32) for lane in lanes]),
        "numbers": {
            name: np.array([numbers.numbers_of(lane.config)[name] for lane in lanes], np.float32)
            for name in numbers.varying(lanes)
        },
        "multipliers": {name: np.array(x, np.float32) for name, x in columns.items() if len(set(x)) > 1},
    }
    return jax.device_put(found, sharding.split(mesh))


def training_arrays(lanes: Sequence[Lane], mesh: jax.sharding.Mesh) -> tuple[dict, dict]:
    """Labels int8 [N, C] and, perhaps, weights float32 [N] of the training examples, shared or by lane; their axes."""
    found = {"labels": arrays.stack_or_share([lane.labels() for lane in lanes], mesh)}
    axes = {"labels": arrays.lane_axis(found["labels"], 2)}
    if lanes[0].train.weights is not None:
        found["weight"] = arrays.stack_or_share([lane.train.weights for lane in lanes], mesh)
        axes["weight"] = arrays.lane_axis(found["weight"], 1)
    return found, axes


def train_step(lane: Lane, table: arrays.Table, truth_axes: dict, rows_axis: int | None) -> Callable:
    """Jitted (arguments, shared, table's values and records, labels, own state, rows int32 [L, B] or [B]) ->
    (own state, scalars [L]).

    lane: any of the group, for all that they have in common.
    """

    def step(mine: dict, shared: arrays.Shared, values, records, truth: dict, own: TrainState, rows: jax.Array):
        batch = table.unpack(values[records[rows]]) | {name: array[rows] for name, array in truth.items()}
        batch["mask"] = jnp.ones(rows.shape, bool)
        rates, multipliers = mine["rates"], lane.trainer.multipliers | mine["multipliers"]
        fn = numbers.step_fn(lane, mine["numbers"], mine["seed"], lambda count: rates[count], multipliers)
        state, scalars = fn(arrays.whole(own, shared), batch)
        return arrays.own_part(state, shared), scalars

    axes = (0, None, None, arrays.lane_axis(table.records, 1), truth_axes, 0, rows_axis)
    return jax.jit(jax.vmap(step, in_axes=axes), donate_argnums=5)


def predict_step(lane: Lane, unpack: Callable[[jax.Array], dict], records_axis: int | None) -> Callable:
    """Jitted (arguments, shared, table's values, own state, records int32 [L, B] or [B]) -> Prediction [L, B, ...]."""
    trainer = lane.trainer

    def predict(mine: dict, shared: arrays.Shared, values, own: TrainState, records: jax.Array) -> contract.Prediction:
        config = numbers.with_numbers(lane.config, mine["numbers"])
        model = trainer.head.Model(len(trainer.dataset.class_names), **config.model)
        variables = state_lib.eval_variables(arrays.whole(own, shared))
        return trainer.head.predict_fn(model, variables, eval_inputs(unpack(values[records])))

    return jax.jit(jax.vmap(predict, in_axes=(0, None, None, 0, records_axis)))
