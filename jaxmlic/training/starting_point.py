"""What training starts from: constants of the training split, pretrained weights, another run."""

from collections.abc import Collection
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
    state: TrainState,
    config: ConfigDict,
    head: ModuleType,
    statistics: LabelStatistics,
    mesh: jax.sharding.Mesh,
    frozen: list[str],
) -> tuple[TrainState, list[str]]:
    """The state with the head's constants, then `config.pretrained`, then `config.start_from`; and lines about them.

    frozen: names of the parameters that no step changes.

    Raises:
      UserError: a file or run that is not there or does not fit; frozen parameters of the head that neither gives.
    """
    notes, copied = [], []
    if state.constants:
        constants, notes = head.constants(config, statistics)
        state, notes = state_lib.with_constants(state, constants), list(notes)
    if config.pretrained:
        state = state_lib.with_trunk(state, pretrained.load(config.pretrained, config.model.trunk))
    if config.start_from:
        state, copied, note = from_run(state, config, statistics.class_names, mesh)
        notes.append(note)
    mistake, warning = without_values(frozen, bool(config.pretrained), copied)
    if mistake:
        raise UserError(mistake)
    return state, notes + ([f"warning: {warning}"] if warning else [])


def without_values(frozen: list[str], has_weights: bool, copied: Collection[str]) -> tuple[str, str]:
    """(mistake, warning), each "" if there is none, about frozen parameters that stay at their random initial values.

    A head whose input is a random frozen layer learns nothing that means anything; a random trunk is at least a known
    baseline.

    Args:
      frozen: names of the frozen parameters.
      has_weights: whether a weight file gives the trunk's.
      copied: names that another run gave.
    """
    random = [name for name in frozen if name not in copied]
    head = [name for name in random if not name.startswith("trunk/")]
    mistake = warning = ""
    if head:
        mistake = (
            f"config.optim.groups freezes {len(head)} parameters of the head at random values (first: {head[0]}); set "
            "config.start_from to a run that trained them, or let them learn"
        )
    if len(random) > len(head) and not has_weights:
        warning = "the trunk is frozen at random values; config.pretrained names a file with its weights"
    return mistake, warning


def from_run(
    state: TrainState, config: ConfigDict, class_names: list[str], mesh: jax.sharding.Mesh
) -> tuple[TrainState, list[str], str]:
    """The state with what the best checkpoint of the run `config.start_from` has in common with it (of other classes:
    its trunk), the names of that, and a line about it.

    A head that was fitted at once gives its linear layer to the head's `classifier`.
    """
    workdir = config.start_from
    try:
        found = restore.restore(workdir, mesh)
        variables = found.variables
        if "classifier" in state.params and hasattr(found.head, "linear_layer"):
            if found.record.config.model.pool != config.model.pool:
                raise UserError(f"the run in {workdir} has another config.model.pool: let the two agree")
            classifier = found.head.linear_layer(found.model, variables)
            variables = variables | {"params": variables["params"] | {"classifier": classifier}}
    except UserError as error:
        raise UserError(f"config.start_from: {error}") from None
    only = "" if found.record.class_names == class_names else "trunk/"
    state, copied = state_lib.copy_matching(state, variables, only)
    if not copied:
        raise UserError(f"config.start_from: the run in {workdir} has no parameter in common with this one")
    total = len(jax.tree.leaves((state.params, state.batch_stats)))
    return state, copied, f"starting from {workdir} at step {found.step}: {len(copied)} of {total} arrays"
