"""What training starts from: constants of the training split, pretrained weights, another run."""

from types import ModuleType

import jax
from ml_collections import ConfigDict

from jaxmlic.errors import UserError
from jaxmlic.models.heads.contract import LabelStatistics
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import restore
from jaxmlic.training import state as state_lib
from jaxmlic.training.state import TrainState


def apply(
    state: TrainState, config: ConfigDict, head: ModuleType, statistics: LabelStatistics, mesh: jax.sharding.Mesh
) -> tuple[TrainState, list[str]]:
    """The state with the head's constants, then `config.pretrained`, then `config.start_from`; and lines about them.

    Raises:
      UserError: a file or run that is not there or does not fit.
    """
    notes = []
    if state.constants:
        constants, notes = head.constants(config, statistics)
        state, notes = state_lib.with_constants(state, constants), list(notes)
    if config.pretrained:
        state = state_lib.with_trunk(state, pretrained.load(config.pretrained, config.model.trunk))
    if config.start_from:
        state, note = from_run(state, config.start_from, statistics.class_names, mesh)
        notes.append(note)
    return state, notes


def from_run(
    state: TrainState, workdir: str, class_names: list[str], mesh: jax.sharding.Mesh
) -> tuple[TrainState, str]:
    """The state with what the best checkpoint of another run has in common with it (of other classes: its trunk)."""
    try:
        found = restore.restore(workdir, mesh)
    except UserError as error:
        raise UserError(f"config.start_from: {error}") from None
    only = "" if found.record.class_names == class_names else "trunk/"
    state, copied = state_lib.copy_matching(state, found.variables, only)
    if not copied:
        raise UserError(f"config.start_from: the run in {workdir} has no parameter in common with this one")
    total = len(jax.tree.leaves((state.params, state.batch_stats)))
    return state, f"starting from {workdir} at step {found.step}: {len(copied)} of {total} arrays"
