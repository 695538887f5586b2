"""Weights & Biases and MLflow beside metrics.jsonl and TensorBoard, by `config.train.trackers`.

Where they send what they get is theirs to know: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
... A tracker that fails is left out of the rest of the run, with a warning: metrics.jsonl has every number.
"""

import abc
import importlib.util
import os
import re
import secrets
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import storage
from jaxmlic.errors import UserError, check_choice

PROJECT = "jaxmlic"  # of runs whose environment names none
RUNS_FILE = "trackers.json"  # in the run folder: {tracker: its name of the run}, so that a resumed run is the same


class Tracker(abc.ABC):
    """One run in one tracker.

    Args:
      config: of the run.
      workdir: its folder.
      group: what the run is shown under, such as a sweep's entry; "" for none.
      known: the tracker's name of this run, where an earlier start has made it.
    """

    package: str
    run_id: str

    @abc.abstractmethod
    def __init__(self, config: ConfigDict, workdir: Path, group: str, known: str | None): ...

    @abc.abstractmethod
    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""

    @abc.abstractmethod
    def close(self) -> None:
        """The run is left, complete or not."""


class WandbTracker(Tracker):
    """Weights & Biases."""

    package = "wandb"

    def __init__(self, config: ConfigDict, workdir: Path, group: str, known: str | None):
        import wandb

        self.run_id = known or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            resume="allow",
            name=_name(workdir),
            group=group or None,
            # Its own files are needed here alone: in a bucket they have no place.
            dir=None if storage.is_bucket(workdir) else str(workdir),
            config=config.to_dict(),
            reinit="create_new",  # runs of one process beside one another
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker(Tracker):
    """MLflow, where the group is the tag `group`."""

    package = "mlflow"

    def __init__(self, config: ConfigDict, workdir: Path, group: str, known: str | None):
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, mlflow.MlflowClient()
        self.run_id = known
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            tags = {"group": group} if group else {}
            self.run_id = self._client.create_run(experiment, run_name=_name(workdir), tags=tags).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in config_lib.flatten(config).items()]
            for start in range(0, len(params), 100):  # as many as one call may hold
                self._client.log_batch(self.run_id, params=params[start : start + 100])

    def log(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        # "MAP@10" has a letter that names may not have.
        named = {re.sub(r"[^\w\-./ ]", "_", name): value for name, value in values.items()}
        self._client.log_batch(self.run_id, metrics=[self._metric(k, v, now, step) for k, v in named.items()])

    def close(self) -> None:
        self._client.set_terminated(self.run_id)


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


class Trackers:
    """All trackers of a run."""

    def __init__(self, config: ConfigDict, workdir: str | Path, group: str):
        self._open: dict[str, Tracker] = {}
        path = storage.to_path(workdir) / RUNS_FILE
        known = storage.read_json(path) if config.train.trackers and path.exists() else {}
        for name in config.train.trackers:
            try:
                self._open[name] = TRACKERS[name](config, storage.to_path(workdir), group, known.get(name))
            except Exception as error:  # packages and servers of others raise what they like
                self._leave_out(name, error)
        if self._open:
            storage.write_json(path, known | {name: tracker.run_id for name, tracker in self._open.items()})

    def log(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(step, values)
            except Exception as error:
                self._leave_out(name, error)

    def close(self) -> None:
        """Ends the run in every tracker."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.close()
            except Exception as error:
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        warnings.warn(f"{name} is left out of this run: {storage.reason(error)}", stacklevel=2)


def check(names: Sequence[str]) -> None:
    """UserError for an unknown tracker and for one whose package is not installed."""
    if isinstance(names, str):
        raise UserError(f"config.train.trackers = {names!r}; it is a tuple of names, such as ('{names}',)")
    for name in names:
        check_choice("train.trackers", name, TRACKERS)
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise UserError(f"config.train.trackers: {name} is not installed: pip install 'jaxmlic[trackers]'")


def _name(workdir: Path) -> str:
    """The last two folders, as a sweep's entry and seed are."""
    return "/".join(storage.resolve(workdir).parts[-2:])
