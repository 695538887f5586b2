"""Multi-label image classification in JAX and Flax: published systems on one trainer."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxmlic.version import __version__

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxmlic.experiments.sweep import Outcome
    from jaxmlic.run import Run

__all__ = ["__version__", "load", "sweep", "train"]

# Importing the package starts nothing: each function imports what it needs.


def load(workdir: str | os.PathLike, data_dir: str | os.PathLike | None = None, step: int | None = None) -> "Run":
    """The run in a folder of `jaxmlic train`, here or in a bucket, with its best checkpoint; see `jaxmlic.run.Run`.

    Args:
      workdir: the run folder.
      data_dir: where the data sets are now, if not where the run found them.
      step: of another checkpoint that was kept (`Run.steps`), in place of the best one.

    Raises:
      UserError: there is no run, no whole checkpoint, or one of another model.
    """
    from jaxmlic import run

    return run.load(os.fspath(workdir), None if data_dir is None else os.fspath(data_dir), step)


def train(
    config: "str | ConfigDict", workdir: str | os.PathLike, overrides: Mapping[str, object] | None = None
) -> "Run":
    """Trains an experiment as `jaxmlic train` does, and gives the run with its best checkpoint.

    A folder that holds part of the run is continued, a complete one only loaded.

    Args:
      config: `FILE[:ARG]`, or the name of a shipped experiment ("quickstart:smoke"), or a config.
      workdir: the run folder, here or in a bucket.
      overrides: fields to change by their dotted names, such as {"train.duration": "2 epochs"}.

    Raises:
      UserError: a mistake in the config or data; the folder is of another config.
      KeyboardInterrupt: Ctrl-C stopped it, after saving; the same call continues.
    """
    from jaxmlic.experiments import runs

    return runs.train(config, os.fspath(workdir), overrides)


def sweep(
    config: str,
    workdir: str | os.PathLike,
    overrides: Mapping[str, object] | None = None,
    *,
    seeds: int = 1,
    only: Sequence[str] = (),
) -> "Outcome":
    """Runs the entries of an experiment's `sweep()` as `jaxmlic sweep` does; complete runs are skipped.

    Args:
      config: `FILE[:ARG]`, or the name of a shipped experiment.
      workdir: gets a folder for each entry and seed, and the tables.
      overrides: fields to change in all entries, by their dotted names.
      seeds: runs of each entry.
      only: names of entries or series; () for all.

    Returns:
      The runs' metrics in `rows`, and in `failures` a line for each run that failed.
    """
    from jaxmlic.experiments import sweep as sweeps

    given = [f"--config.{name}={value}" for name, value in (overrides or {}).items()]
    return sweeps.run(config, os.fspath(workdir), seeds=seeds, only=only, overrides=given)
