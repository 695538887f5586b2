"""TrainState: everything that a training step changes, as one tree of arrays."""

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxmlic import sharding
from jaxmlic.errors import UserError
from jaxmlic.inputs import Inputs
from jaxmlic.training import durations, optim


@flax.struct.dataclass
class NonFinite:
    """Where training first met a value that is not finite.

    Attributes:
      step: int32 [], the first such step, or -1.
      loss: bool [], whether the loss itself was not finite at that step.
      gradients: bool [P], which trainable parameters' gradients were not (sorted by name).
    """

    step: jax.Array
    loss: jax.Array
    gradients: jax.Array


@flax.struct.dataclass
class TrainState:
    """Attributes: step int32 []; params and batch_stats as Flax has them; the optimizer's state over the trainable
    parameters; ema, the averaged trainable parameters by name (empty when off); guard; constants, the head's facts
    about the training split (empty where it has none), the same at every step."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict
    guard: NonFinite  # named so in checkpoints
    constants: dict


_known_shapes: dict[tuple, dict] = {}


def shapes(model: nn.Module, example: Inputs) -> dict:
    """Shapes and dtypes of the variables, found once a model: tracing a trunk takes a second, and a run asks often.

    example: the inputs of one image; see `Source.example`.
    """
    # Texts stand for model and example, since a config's lists cannot be hashed.
    key = (type(model), repr(model), str(jax.tree.map(jax.typeof, example)))
    if key not in _known_shapes:
        _known_shapes[key] = jax.eval_shape(lambda: model.init(jax.random.key(0), example, train=False))
    return _known_shapes[key]


def parameter_names(model: nn.Module, example: Inputs) -> list[str]:
    """Names of all parameters, found without computing any."""
    return sorted(parameter_shapes(model, example))


def parameter_shapes(model: nn.Module, example: Inputs) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name, found without computing any."""
    return {name: leaf.shape for name, leaf in optim.flatten(shapes(model, example)["params"]).items()}


def create(
    config: ConfigDict,
    model: nn.Module,
    example: Inputs,
    tx: optax.GradientTransformation,
    multipliers: dict[str, float | None],
    key: jax.Array,
) -> TrainState:
    """A new state from scratch; pure, so that it can be jitted."""
    return from_variables(config, tx, multipliers, model.init(key, example, train=False))


def from_variables(
    config: ConfigDict, tx: optax.GradientTransformation, multipliers: dict[str, float | None], variables: dict
) -> TrainState:
    """The state before the first step, with these variables."""
    trainable, _ = partition(variables["params"], multipliers)
    return TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(trainable),
        # A copy: the state is donated, and one buffer cannot be given away twice.
        ema=jax.tree.map(jnp.copy, trainable) if config.optim.ema else {},
        guard=NonFinite(jnp.int32(-1), jnp.bool_(False), jnp.zeros(len(trainable), bool)),
        constants=variables.get("constants", {}),
    )


def optimizer(
    config: ConfigDict, model: nn.Module, example: Inputs, examples: int
) -> tuple[optax.GradientTransformation, dict[str, float | None], optax.Schedule, int]:
    """The transformation, each parameter's learning-rate multiplier, the learning rate by step, the number of steps."""
    total = optim.steps_of(config, examples)(config.train.duration, "train.duration")
    if total < 1 and not durations.is_zero(config.train.duration):
        raise UserError(f"config.train.duration = {config.train.duration!r} is less than one step")
    multipliers = optim.multipliers(config.optim.groups, parameter_names(model, example))
    if total and all(rate is None for rate in multipliers.values()):
        raise UserError("config.optim.groups freezes every parameter; nothing is left to train")
    if config.optim.stage_decay != 1.0:
        multipliers = optim.paced(multipliers, config.model.trunk, config.optim.stage_decay)
    learning_rate = optim.schedule(config.optim, max(total, 1), optim.steps_of(config, examples, total))
    return optim.make(config.optim, multipliers, learning_rate), multipliers, learning_rate, total


def abstract(
    config: ConfigDict, model: nn.Module, example: Inputs, examples: int, mesh: jax.sharding.Mesh, divided: bool = False
) -> TrainState:
    """Shapes, dtypes and shardings of the state, to restore into: replicated, or `divided` over the devices by rule
    (parameters, optimizer state and averages; see `sharding.divided`)."""
    tx, multipliers, _, _ = optimizer(config, model, example, examples)
    abstract_state = jax.eval_shape(
        lambda variables: from_variables(config, tx, multipliers, variables), shapes(model, example)
    )
    place = jax.tree.map(lambda _: sharding.replicated(mesh), abstract_state)
    if divided:
        large = {name: getattr(abstract_state, name) for name in ("params", "opt_state", "ema")}
        place = place.replace(**sharding.divided(large, mesh))
    return jax.tree.map(lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p), abstract_state, place)


def with_trunk(state: TrainState, loaded: dict) -> TrainState:
    """The state with a trunk's pretrained variables, as `pretrained.load` gives them."""
    params = {**state.params, "trunk": _cast(loaded["params"], state.params["trunk"])}
    batch_stats = state.batch_stats
    if loaded.get("batch_stats"):
        batch_stats = {**batch_stats, "trunk": _cast(loaded["batch_stats"], batch_stats["trunk"])}
    ema = {**state.ema, **{k: v for k, v in optim.flatten(params).items() if k in state.ema}}
    return state.replace(params=params, batch_stats=batch_stats, ema=jax.tree.map(jnp.copy, ema))


def with_constants(state: TrainState, values: dict) -> TrainState:
    """The state with the head's constants; `values` has the names, shapes and dtypes that the model declares."""
    names = {name: (x.shape, x.dtype) for name, x in state.constants.items()}
    given = {name: (np.shape(x), np.asarray(x).dtype) for name, x in values.items()}
    if names != given:
        raise ValueError(f"the head's constants are {given}, and its model declares {names}")
    return state.replace(constants=_cast(dict(values), state.constants))


def with_fitted(state: TrainState, params: dict) -> TrainState:
    """The state after a fit at once: `params` in place of the head's, one step taken."""
    return state.replace(step=state.step + 1, params=state.params | _cast(params, {k: state.params[k] for k in params}))


def with_classifier(state: TrainState, layer: dict) -> TrainState:
    """The state with `layer` (kernel [D, C] and bias [C]) as the head's layer `classifier`."""
    params = {**state.params, "classifier": _cast(layer, state.params["classifier"])}
    ema = {**state.ema, **{k: v for k, v in optim.flatten(params).items() if k in state.ema}}
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, ema))


def copy_matching(state: TrainState, variables: dict, only: str = "") -> tuple[TrainState, list[str]]:
    """The state with every parameter and statistic of `variables` that has its name and shape, and their names.

    only: take names that begin with this.
    """
    taken = []

    def merge(mine: dict, theirs: dict) -> dict:
        flat, other = optim.flatten(mine), optim.flatten(theirs)
        for name, value in flat.items():
            if name.startswith(only) and name in other and other[name].shape == value.shape:
                flat[name] = _cast(other[name], value)
                taken.append(name)
        return optim.unflatten(flat)

    params = merge(state.params, variables["params"])
    batch_stats = merge(state.batch_stats, variables.get("batch_stats", {}))
    flat = optim.flatten(params)
    ema = {name: jnp.copy(flat[name]) for name in state.ema}
    return state.replace(params=params, batch_stats=batch_stats, ema=ema), taken


def eval_variables(state: TrainState) -> dict:
    """Variables to score with: the averaged parameters where there are any."""
    params = optim.unflatten({**optim.flatten(state.params), **state.ema})
    return {"params": params, "batch_stats": state.batch_stats, "constants": state.constants}


def partition(params: dict, multipliers: dict[str, float | None]) -> tuple[dict, dict]:
    """Flat dicts (trainable, frozen) by name."""
    flat = optim.flatten(params)
    trainable = {name: value for name, value in flat.items() if multipliers[name] is not None}
    return trainable, {name: value for name, value in flat.items() if multipliers[name] is None}


def _cast(values: dict, like: dict) -> dict:
    """`values` with the dtypes and the placement of `like`; the same names are the importer's promise."""
    return jax.tree.map(lambda v, x: sharding.place(np.asarray(v, x.dtype), x.sharding), values, like)
