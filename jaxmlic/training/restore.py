"""The one way to find a run, build its model and restore its best checkpoint."""

import dataclasses
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax

from jaxmlic import sharding
from jaxmlic.errors import UserError
from jaxmlic.inputs import Source, open_source
from jaxmlic.models.heads import contract
from jaxmlic.training import run_folder
from jaxmlic.training import state as state_lib
from jaxmlic.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Restored:
    """A run with the model of its best checkpoint.

    Attributes:
      record: what its config.json holds.
      source: what the model is fed.
      head: its head's module.
      model: the head's Model.
      mesh: the devices that hold the variables.
      variables: parameters (averaged ones where the run keeps them), batch statistics and constants.
      step: of the checkpoint.
      steps: of all checkpoints that were kept.
    """

    record: run_folder.RunRecord
    source: Source
    head: ModuleType
    model: nn.Module
    mesh: jax.sharding.Mesh
    variables: dict
    step: int
    steps: list[int]


def restore(workdir: str | Path, mesh: jax.sharding.Mesh | None = None, step: int | None = None) -> Restored:
    """The run in `workdir` with its best checkpoint or that of `step`, on all devices or those of `mesh`.

    Raises:
      UserError: there is no run, no whole checkpoint, none of that step, or one of another model.
    """
    record = run_folder.load(workdir)
    config = record.config
    if mesh is None:
        sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
        mesh = sharding.make_mesh()
    source = open_source(config)
    source.trained_on = record.inputs
    head = contract.find(config.head)
    model = contract.make_model(head, config, len(record.class_names), record.num_train)
    checkpoints = Checkpoints(record.workdir, config.eval.metric, read_only=True)
    steps = checkpoints.steps()
    if step is not None and step not in steps:
        checkpoints.close()
        raise UserError(f"{workdir} keeps no checkpoint of step {step}; it has: {', '.join(map(str, steps)) or 'none'}")
    step = checkpoints.best() if step is None else step
    if step is None:
        checkpoints.close()
        raise UserError(f"{workdir} holds no finished checkpoint yet; let the training reach its first one")
    state = checkpoints.restore(step, state_lib.abstract(config, model, source.example(), record.num_train, mesh))
    checkpoints.close()
    return Restored(record, source, head, model, mesh, state_lib.eval_variables(state), step, steps)
