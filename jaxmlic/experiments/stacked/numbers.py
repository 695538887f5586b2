"""Which runs can train in one program, and its step with traced numbers in place of the config's."""

import json
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError
from jaxmlic.experiments.stacked.lanes import Lane
from jaxmlic.training import optim
from jaxmlic.training import state as state_lib
from jaxmlic.training.step import Step, make_step_fn

# Fields that reach a run's arrays (labels, first parameters, keys, learning rates by step) or its folder alone.
OWN_FIELDS = (
    *("seed", "start_from", "data.noise", "data.noise_rate", "data.noise_seed"),
    *("optim.lr", "optim.schedule", "optim.warmup", "optim.milestones", "optim.gamma", "optim.groups"),
    "optim.stage_decay",
    *("eval.protocol", "eval.metric", "eval.min_positives", "eval.trained_classes_only"),
)
# beta2 is not among them: 1 - 0.999 in float32 is off by 5e-5, and so would be each update.
OPTIM_NUMBERS = ("momentum", "eps", "weight_decay")
LOSS_OPTIONS = "loss.options"

Numbers = Mapping[str, float | jax.Array]


def numbers_of(config: ConfigDict) -> dict[str, float]:
    """The numbers of a config that a program could take as arguments, by field; options of the loss by name."""
    flat = config_lib.flatten({"model": config.model, "loss": config.loss})
    flat |= {f"optim.{name}": config.optim[name] for name in OPTIM_NUMBERS}
    flat |= {f"{LOSS_OPTIONS}.{name}": value for name, value in flat.pop(LOSS_OPTIONS, ())}
    return {name: value for name, value in flat.items() if _is_number(name, value)}


def _is_number(name: str, value: object) -> bool:
    counts = isinstance(value, int) and not isinstance(value, bool) and name.startswith(LOSS_OPTIONS)
    return isinstance(value, float) or counts


def with_numbers(config: ConfigDict, numbers: Numbers) -> ConfigDict:
    """An unlocked config with other numbers, traced or not, in the fields of `numbers_of`, or another seed."""
    values = config.to_dict()
    for name, number in numbers.items():
        *path, last = name.split(".")
        if name.startswith(f"{LOSS_OPTIONS}."):
            values["loss"]["options"] = tuple((k, number if k == last else v) for k, v in values["loss"]["options"])
            continue
        target = values
        for key in path:
            target = target[key]
        target[last] = number
    return ConfigDict(values)


def divide(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """The lanes in groups that one program can train, in their order.

    A number that the model, loss or optimizer needs as a Python number (a rule decides by it) divides them.
    """
    groups: list[list[Lane]] = []
    for group in _by(lanes, _structure):
        fixed = [name for name in varying(group) if not _traceable(group[0], name)]
        groups += _by(group, lambda lane, fixed=fixed: [numbers_of(lane.config)[name] for name in fixed])
    return groups


def varying(lanes: Sequence[Lane]) -> list[str]:
    """The fields of `numbers_of` in which the lanes differ."""
    found = [numbers_of(lane.config) for lane in lanes]
    return [name for name in found[0] if len({numbers[name] for numbers in found}) > 1]


def _by(lanes: Sequence[Lane], key: Callable[[Lane], object]) -> list[list[Lane]]:
    groups: dict[str, list[Lane]] = {}
    for lane in lanes:
        groups.setdefault(json.dumps(key(lane), sort_keys=True), []).append(lane)
    return list(groups.values())


def _structure(lane: Lane) -> object:
    """All that lanes of one program have in common."""
    trainer, numbers = lane.trainer, numbers_of(lane.config)
    flat = config_lib.flatten(lane.config)
    options = [
        [name, numbers.get(f"{LOSS_OPTIONS}.{name}") is None and value] for name, value in flat.get(LOSS_OPTIONS, ())
    ]
    plain = {name: value for name, value in flat.items() if name not in numbers and name not in OWN_FIELDS}
    frozen = sorted(name for name, rate in trainer.multipliers.items() if rate is None)
    steps = [trainer.total, sorted(trainer.every.items()), lane.start, len(lane.train), lane.train.weights is None]
    stored = [lane.train.stored.key, lane.validation is not None and (len(lane.validation), lane.validation.stored.key)]
    return [plain | {LOSS_OPTIONS: options}, frozen, steps, stored]


def _traceable(lane: Lane, name: str) -> bool:
    """Whether a step can be traced with this field as an argument, to the same types as with the number."""
    trainer = lane.trainer

    def types(number: jax.ShapeDtypeStruct | None) -> list[tuple]:
        def step(number: jax.Array | None, state: state_lib.TrainState, batch: dict) -> tuple:
            numbers = {} if number is None else {name: number}
            return step_fn(lane, numbers, lane.config.seed, trainer.learning_rate, trainer.multipliers)(state, batch)

        found = jax.eval_shape(step, number, abstract_state(lane), abstract_batch(lane))
        return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(found)]

    try:
        return types(jax.ShapeDtypeStruct((), jnp.float32)) == types(None)
    except (TypeError, ValueError, UserError):  # JAX's own errors about traced values are TypeErrors
        return False


def check_losses(lanes: Sequence[Lane]) -> None:
    """Sets `failure` of lanes whose own numbers the loss or model refuses: traced ones are not checked."""
    names = [name for name in varying(lanes) if not name.startswith("optim.")]
    for lane in lanes if names else ():
        trainer = lane.trainer
        step = step_fn(lane, {}, lane.config.seed, trainer.learning_rate, trainer.multipliers)
        try:
            jax.eval_shape(step, abstract_state(lane), abstract_batch(lane))
        except UserError as error:
            lane.failure = str(error)


def abstract_state(lane: Lane) -> state_lib.TrainState:
    """Shapes and dtypes of a lane's state."""
    trainer = lane.trainer
    return state_lib.abstract(
        lane.config, trainer.model, trainer.source.example(), len(trainer.train_view), trainer.mesh
    )


def abstract_batch(lane: Lane) -> dict:
    """Shapes and dtypes of a lane's training batch."""
    rows = np.zeros(1, np.int64)
    one, size = lane.train(rows), lane.config.train.batch_size
    return {name: jax.ShapeDtypeStruct((size, *value.shape[1:]), value.dtype) for name, value in one.items()}


def step_fn(
    lane: Lane,
    numbers: Numbers,
    seed: int | jax.Array,
    learning_rate: optax.Schedule,
    multipliers: dict[str, float | jax.Array | None],
) -> Step:
    """The training step of a lane with other numbers than its config's, which may be traced."""
    trainer = lane.trainer
    config = with_numbers(lane.config, {**numbers, "seed": seed})
    model = trainer.head.Model(len(trainer.dataset.class_names), **config.model)
    tx = optim.make(config.optim, multipliers, learning_rate)
    return make_step_fn(trainer.head, model, config, trainer.source, tx, multipliers, len(trainer.train_view))
