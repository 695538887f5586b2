"""States of several runs as one, and the stored features of their examples on the device."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np

from jaxmlic import sharding
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.experiments.stacked.lanes import Lane
from jaxmlic.models.heads.contract import LabelStatistics
from jaxmlic.training import optim, starting_point
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Damaged
from jaxmlic.training.state import TrainState

_CHUNK = 4096  # records read at once
_SHARE = 0.6  # of the device's memory that stored features may take

Shared = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Table:
    """Stored arrays of the lanes' examples.

    Attributes:
      values: [M, ...], every record once.
      records: int32 [N], or [L, N] where the lanes' examples differ: the place of each example among them.
      unpack: values [B, ...] -> the arrays of a batch.
    """

    values: jax.Array
    records: jax.Array
    unpack: Callable[[jax.Array], dict]


def table(readers: Sequence[loader.RowReader], mesh: jax.sharding.Mesh) -> Table:
    """The table of as many readers of the same arrays as there are lanes. UserError where it is too large."""
    stored = readers[0].stored
    needed = np.unique(np.concatenate([reader.stored.records for reader in readers]))
    first = stored.read(needed[:1])
    size, limit = first.nbytes * len(needed), (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if limit and size > _SHARE * limit:
        raise UserError(
            f"--vmap: the features of {readers[0].view.where()} take {size / 2**30:.1f} GiB and the device has "
            f"{limit / 2**30:.1f}: leave out --vmap"
        )
    parts = [stored.read(needed[start : start + _CHUNK]) for start in range(0, len(needed), _CHUNK)]
    places = [np.searchsorted(needed, reader.stored.records).astype(np.int32) for reader in readers]
    values = jax.device_put(np.concatenate(parts), sharding.replicated(mesh))
    return Table(values, stack_or_share(places, mesh), stored.unpack)


def stack_or_share(arrays: Sequence[np.ndarray], mesh: jax.sharding.Mesh) -> jax.Array:
    """Arrays [...] of the lanes as [L, ...] divided over the devices, or the one array where all are equal."""
    if all(np.array_equal(arrays[0], array) for array in arrays[1:]):
        return jax.device_put(arrays[0], sharding.replicated(mesh))
    return jax.device_put(np.stack(arrays), sharding.split(mesh))


def lane_axis(array: jax.Array, dims: int) -> int | None:
    """The axis for `jax.vmap` of what `stack_or_share` made of arrays with so many dimensions."""
    return 0 if array.ndim > dims else None


def initial_states(
    lanes: Sequence[Lane], iterators: Mapping[int, grain.DatasetIterator]
) -> tuple[list[TrainState], list[TrainState], list[str]]:
    """(states, best states so far, lines about them): from checkpoints, or as `Trainer.initial_state` makes them.

    A lane whose start is a mistake gets its `failure`. Frozen arrays that are equal are one array.

    iterators: by seed; they are set to where the lanes continue.
    """
    first = lanes[0].trainer
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(
        lambda key: state_lib.create(
            first.config, first.model, first.source.example(), first.tx, first.multipliers, key
        ),
        out_shardings=sharding.replicated(first.mesh),
        compiler_options=options,  # as for a run alone, so that the bits are the same
    )
    states, best, notes = [], [], []
    for lane in lanes:
        trainer, state = lane.trainer, init(jax.random.key(lane.config.seed))
        before = state
        try:
            if lane.start:
                state = lane.checkpoints.restore(lane.start, before, iterators[lane.config.seed])
            else:
                statistics = LabelStatistics(trainer.train_view.labels, list(trainer.dataset.class_names))
                frozen = sorted(trainer.multipliers.keys() - set(trainer.trainable))
                state, lines = starting_point.apply(state, lane.config, trainer.head, statistics, trainer.mesh, frozen)
                notes += lines
        except Damaged as error:
            lane.failure = f"{error}; without --vmap the run continues from an earlier one"
        except UserError as error:
            lane.failure = str(error)
        states.append(_with_arrays_of(states[0], state, lane) if states else state)
        if lane.best_step in (None, lane.start):
            best.append(states[-1])
        else:
            best.append(_with_arrays_of(states[0], lane.checkpoints.restore(lane.best_step, before), lane))
    return states, best, list(dict.fromkeys(notes))


def _shareable(state: TrainState, lane: Lane) -> Shared:
    """Arrays by name that no step changes: frozen parameters, and the trunk's statistics."""
    frozen = {k: v for k, v in optim.flatten(state.params).items() if lane.trainer.multipliers[k] is None}
    statistics = {k: v for k, v in optim.flatten(state.batch_stats).items() if k.startswith("trunk/")}
    return {"params": frozen, "batch_stats": statistics if frozen else {}}


def _with_arrays_of(other: TrainState, state: TrainState, lane: Lane) -> TrainState:
    """The state with the other's arrays where they are equal."""
    theirs = _shareable(other, lane)
    changed = {}
    for kind, mine in _shareable(state, lane).items():
        same = {k: theirs[kind][k] for k, v in mine.items() if np.array_equal(v, theirs[kind][k])}
        changed[kind] = optim.unflatten(optim.flatten(getattr(state, kind)) | same)
    return state.replace(**changed)


def in_common(states: Sequence[TrainState], lanes: Sequence[Lane]) -> Shared:
    """The frozen arrays that all states have in common."""
    candidates = [_shareable(state, lane) for state, lane in zip(states, lanes, strict=True)]
    return {
        kind: {k: v for k, v in values.items() if all(other[kind][k] is v for other in candidates)}
        for kind, values in candidates[0].items()
    }


def stack(states: Sequence[TrainState], shared: Shared, mesh: jax.sharding.Mesh) -> TrainState:
    """The states' own arrays [L, ...]; parameters and statistics by name."""
    own = jax.tree.map(lambda *xs: np.stack(jax.device_get(xs)), *(own_part(state, shared) for state in states))
    return jax.device_put(own, sharding.split(mesh))


def own_part(state: TrainState, shared: Shared) -> TrainState:
    """A state without the shared arrays; its parameters and statistics by name."""
    rest = {
        kind: {k: v for k, v in optim.flatten(getattr(state, kind)).items() if k not in shared[kind]} for kind in shared
    }
    return state.replace(**rest)


def whole(own: TrainState, shared: Shared) -> TrainState:
    """The inverse of `own_part`."""
    return own.replace(**{kind: optim.unflatten(getattr(own, kind) | shared[kind]) for kind in shared})


def select(own: TrainState, number: int, shared: Shared, mesh: jax.sharding.Mesh) -> TrainState:
    """The state of one lane of numpy arrays [L, ...], on the device of `mesh` as a run alone has it."""
    state = jax.tree.map(lambda x: x[number], own)
    return jax.device_put(whole(state, jax.device_get(shared)), sharding.replicated(mesh))


@jax.jit
def keep_where(chosen: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """The new arrays [L, ...] of the lanes in `chosen` bool [L], the old ones of the others."""

    def pick(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(pick, new, old)
