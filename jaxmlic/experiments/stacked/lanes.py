"""One run of a group: what it needs beside the arrays that are stacked."""

import contextlib
import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.inputs import open_source
from jaxmlic.models.heads import contract
from jaxmlic.training import durations, loop, run_folder, targets
from jaxmlic.training.checkpoint import Checkpoints, check_place
from jaxmlic.training.logs import metrics_log


@dataclasses.dataclass
class Lane:
    """A run that trains beside others.

    Attributes:
      title: how messages name it.
      workdir: its run folder.
      group: the sweep's entry, for trackers.
      trainer: its own model, optimizer and views, on one device.
      train, validation: readers of its examples; validation is None where nothing selects the checkpoint.
      checkpoints: of its folder.
      locks: keep other trainings out of its folder.
      start: the step that it continues from.
      best_step: step of the best score so far, None without one.
      best_value: that score.
      best_position: of the training order at that step, None where the state is saved.
      failure: why it stopped, "" while it goes on.
    """

    title: str
    workdir: Path
    group: str
    trainer: loop.Trainer
    train: loader.RowReader
    validation: loader.RowReader | None
    checkpoints: Checkpoints
    locks: contextlib.ExitStack
    start: int
    best_step: int | None = None
    best_value: float = -math.inf
    best_position: dict | None = None
    failure: str = ""

    @property
    def config(self) -> ConfigDict:
        """The run's config."""
        return self.trainer.config

    @property
    def metric(self) -> str:
        """The score that selects the best checkpoint."""
        return self.config.eval.metric

    def iterator(self):
        """The order of its training examples, as batches of `rows` int32 [B]."""
        data = self.config.data
        return loader.train_iterator(
            RowNumbers(self.train.view),
            self.config.train.batch_size,
            seed=self.config.seed,
            threads=data.threads,
            difficult=data.difficult,
        )

    def close(self) -> None:
        """Waits for its checkpoints and leaves its folder to others."""
        self.checkpoints.close()
        self.locks.close()

    def labels(self) -> np.ndarray:
        """int8 [N, C]: what it is trained on."""
        return loader.replace_unknown(self.train.labels, self.config.data.difficult)


class RowNumbers(loader.RowReader):
    """A batch of row numbers alone; features and labels are taken on the device."""

    def hold(self) -> bool:
        """True: there is nothing to read."""
        return True

    def __call__(self, rows: np.ndarray) -> loader.Batch:
        """int rows [B] -> the same as int32, and labels int8 [B, 0]."""
        return {"rows": rows.astype(np.int32), "labels": np.zeros((len(rows), 0), np.int8)}


def reads_arrays(config: ConfigDict) -> bool:
    """Whether a run takes steps on stored arrays, so that others can train beside it. UserError as `open_source`."""
    takes_steps = not durations.is_zero(config.train.duration)
    return open_source(config).reads_arrays and takes_steps and not contract.has_closed_form(contract.find(config.head))


def open_lane(
    title: str, config: ConfigDict, workdir: Path, group: str, mesh: jax.sharding.Mesh
) -> tuple[Lane, list[str]]:
    """A run's lane with its folder claimed, and lines about its labels. UserError for a mistake in its config or data.

    mesh: one device.
    """
    # Arrays go to the device, once for all lanes: none is kept in memory besides.
    trainer = loop.Trainer(config_lib.override(config, {"data.cache": False}), str(workdir), mesh)
    locks = contextlib.ExitStack()
    try:
        check_place(workdir)
        locks.enter_context(contextlib.closing(run_folder.lock(workdir)))
        run_folder.claim(workdir, config, trainer.train_view, trainer.source.fingerprint(trainer.train_view))
        notes = targets.keep(config, workdir, trainer.train_view)
        train, validation = trainer.readers()
    except UserError:
        locks.close()
        raise
    checkpoints = Checkpoints(workdir, config.eval.metric, keep_steps=trainer.keep_steps)
    lane = Lane(title, workdir, group, trainer, train, validation, checkpoints, locks, checkpoints.latest() or 0)
    for row in metrics_log.read(workdir):
        if lane.start and row["step"] == checkpoints.best() and f"val/{lane.metric}" in row:
            value = row[f"val/{lane.metric}"]
            lane.best_step, lane.best_value = row["step"], -1.0 if value is None else value
    return lane, notes
