"""What training starts from: constants of the training split, pretrained weights, another run, vectors of names."""

from collections.abc import Collection, Sequence
from types import ModuleType

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic.errors import UserError
from jaxmlic.labels import text_vectors
from jaxmlic.models.heads import contract
from jaxmlic.models.heads.contract import LabelStatistics
from jaxmlic.models.layers.pooling import UNIT
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import durations, restore
from jaxmlic.training import state as state_lib
from jaxmlic.training.state import TrainState

CLIP_SCALE = 100.0  # where CLIP's own training stops it


def apply(
    state: TrainState,
    config: ConfigDict,
    head: ModuleType,
    statistics: LabelStatistics,
    mesh: jax.sharding.Mesh,
    frozen: list[str],
) -> tuple[TrainState, list[str]]:
    """The state with the head's constants, then `config.pretrained`, `config.start_from` and `config.text.vectors`.

    And lines about them.
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
    if config.text.vectors:
        state, note = from_text(state, config, statistics.class_names)
        copied = [*copied, "classifier/kernel", "classifier/bias"]
        notes.append(note)
    mistake, warning = without_values(frozen, bool(config.pretrained), copied, config.train.duration)
    if mistake:
        raise UserError(mistake)
    return state, notes + ([f"warning: {warning}"] if warning else [])


def from_text(state: TrainState, config: ConfigDict, class_names: list[str]) -> tuple[TrainState, str]:
    """The state whose layer `classifier` gives scale * cosine + bias for the vectors of `config.text`; a line about it.

    Raises:
      UserError: a head without that layer, another width, a pool that keeps the vector's length, a label that the file
        lacks.
    """
    kernel = state.params.get("classifier", {}).get("kernel")
    if kernel is None:
        raise UserError(
            f"config.text.vectors: the head {config.head!r} has no layer 'classifier' to start from them; "
            "set config.head='linear'"
        )
    layer, note = text_layer(
        config.text.vectors,
        class_names,
        len(kernel),
        pool=config.model.pool,
        trunk=config.model.trunk,
        scale=config.text.scale,
        bias=config.text.bias,
    )
    return state_lib.with_classifier(state, layer), note


def text_layer(
    path: str, labels: Sequence[str], width: int, *, pool: str, trunk: str, scale: float = 0.0, bias: float = 0.0
) -> tuple[dict[str, np.ndarray], str]:
    """Kernel float32 [width, C] and bias [C]: scale times each label's unit vector; and a line about it.

    Args:
      path: of the file of vectors.
      labels: C names.
      width: D of the image's vector.
      pool, trunk: of the run's model, which must give a vector of length one.
      scale: of the cosines; 0 for the file's, or CLIP_SCALE where it has none.
      bias: added to the file's.

    Raises:
      UserError: as `from_text`, and for a negative scale.
    """
    if pool != UNIT:
        raise UserError(
            f"{path}: text vectors are compared by direction, and config.model.pool = {pool!r} keeps the length of the "
            f"image's vector: set config.model.pool={UNIT!r}"
        )
    if not (np.isfinite(scale) and scale >= 0 and np.isfinite(bias)):
        raise UserError(f"config.text.scale = {scale!r}, config.text.bias = {bias!r}: a scale is 0 or more")
    found = text_vectors.read(path)
    if found.vectors.shape[1] != width:
        raise UserError(
            f"{path}: vectors of {found.vectors.shape[1]} numbers, and the image's vector of trunk {trunk!r} has "
            f"{width}: take the trunk of the same network whose vector is in the text's space (CLIP: NAME_projected, "
            "SigLIP: NAME_pooled)"
        )
    directions = text_vectors.unit(found.of(labels))
    scale, offset = scale or found.scale or CLIP_SCALE, bias + (found.bias or 0.0)
    layer = {"kernel": np.float32(scale) * directions.T, "bias": np.full(len(labels), offset, np.float32)}
    return layer, f"logits of {len(labels)} labels from {path}: {scale:.6g} * cosine {offset:+.6g}"


def without_values(
    frozen: list[str], has_weights: bool, copied: Collection[str], duration: str = ""
) -> tuple[str, str]:
    """(mistake, warning), each "" if there is none, about frozen parameters that stay at their random initial values.

    A head whose input is a random frozen layer learns nothing that means anything; a random trunk is at least a known
    baseline.

    Args:
      frozen: names of the frozen parameters.
      has_weights: whether a weight file gives the trunk's.
      copied: names that another run gave, or text.
      duration: of the training. Where it is nothing, all parameters are frozen.
    """
    random = [name for name in frozen if name not in copied]
    head = [name for name in random if not name.startswith("trunk/")]
    mistake = warning = ""
    if head and durations.is_zero(duration):
        mistake = (
            f"config.train.duration = {duration!r} leaves {len(head)} parameters of the head at random values (first: "
            f"{head[0]}); set config.text.vectors or config.start_from, or train"
        )
    elif head:
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

    A head that was fitted at once gives its linear layer to the head's `classifier`, and so does a run with labels that
    were added to it.
    """
    workdir = config.start_from
    try:
        found = restore.restore(workdir, mesh)
        variables = found.variables
        gives_layer = found.record.added or contract.has_closed_form(found.head)
        if "classifier" in state.params and gives_layer and hasattr(found.head, "linear_layer"):
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
