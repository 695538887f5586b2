"""One run of an experiment: features stored where it reads them, trained, evaluated on its test split."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import distributed, metrics, run, sharding, storage
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.evaluation import decision, thresholds
from jaxmlic.experiments import decisions
from jaxmlic.inputs import DescriptorSource, compute, descriptors, open_source
from jaxmlic.models.heads import contract
from jaxmlic.reports import ap_table, score_report
from jaxmlic.reports.figures import learning_curves
from jaxmlic.training import loop, optim, run_folder
from jaxmlic.training import state as state_lib

# What ends one run of several, and the others go on; a full disk is an OSError where nobody has put it into words.
FAILURES = (UserError, jax.errors.JaxRuntimeError, MemoryError, OSError)


def train(config: str | ConfigDict, workdir: str | Path, overrides: Mapping[str, object] | None = None) -> run.Run:
    """What `jaxmlic train` does: trains in the folder, or continues what it holds; the run with its best checkpoint.

    Args:
      config: `FILE[:ARG]` of the experiment, or a config.
      workdir: the run folder, here or in a bucket.
      overrides: fields to change by their dotted names, such as {"train.duration": "2 epochs"}.

    Raises:
      UserError: a mistake in the config or data; the folder is of another config; SIGTERM stopped the training.
      KeyboardInterrupt: Ctrl-C stopped it, after saving; the same call continues.
    """
    values = config_lib.load(config) if isinstance(config, str) else config
    outcome = fit(config_lib.override(values, overrides or {}), workdir)
    if outcome.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if not outcome.finished:
        raise UserError(f"{workdir} was stopped at step {outcome.step} and saved; the same call continues there")
    return run.load(workdir, values.data.dir or None)


def fit(
    config: ConfigDict,
    workdir: str | Path,
    profiled: tuple[int | None, int] | None = None,
    group: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> loop.Outcome:
    """`loop.run`, and the learning curves drawn into the run folder: at the end, when stopped, and after a failure.

    report: gets a line where they cannot be drawn.
    """
    was_complete = run_folder.result(workdir) is not None
    try:
        outcome = loop.run(config, str(workdir), profiled, group)
    except Exception:
        if run_folder.failure(workdir):
            draw_curves(workdir, report)
        raise
    if not (was_complete and (storage.to_path(workdir) / learning_curves.NAME).exists()):
        draw_curves(workdir, report)
    return outcome


def draw_curves(workdir: str | Path, report: Callable[[str], None]) -> None:
    """Draws a run's learning curves, of several processes the first one; where that fails, `report` gets a line."""
    if distributed.is_main():
        try:
            learning_curves.write(workdir)
        except Exception as error:  # a picture is no reason to lose a run
            report(f"{workdir}: the learning curves are not drawn ({storage.reason(error)})")


def store_features(config: ConfigDict, report: Callable[[str], None] = lambda line: None) -> Path:
    """Runs the config's frozen trunk over its splits, where that is not done yet; the folder of the features.

    With descriptor sets as the source these are computed, one folder each; the last one is given.

    report: gets a line for each split.
    """
    sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)  # before anything is computed
    source = open_source(config)
    if isinstance(source, DescriptorSource):
        return descriptors.compute(config, list(compute.needed_splits(config)), report)[-1]
    dataset = datasets.load(config.data.name, config.data.dir or None)
    model = contract.make_model(contract.find(config.head), config, len(dataset.class_names), 1)
    names = state_lib.parameter_names(model, source.example())
    return compute.compute(config, optim.multipliers(config.optim.groups, names), report)


def evaluate(
    workdir: str | Path,
    *,
    protocol: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    fitted: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> dict:
    """Scores a split with a run's best checkpoint, writes scores/<split>.* and returns the metrics.

    Args:
      workdir: the run folder.
      protocol, split, data_dir: see `Run.evaluate` and `run.load`.
      fitted: decide by the run's fitted thresholds, and write scores/<split>.fitted.*; or by its learned rule, under
        the rule's protocol, which is written as scores/<split>.<protocol>.*.
      report: gets the text about them.

    Raises UserError for a folder without a run, another model's checkpoint, class names that differ.
    """
    storage.check_writable(workdir)
    found = run.load(workdir, data_dir)
    result = found.evaluate(split, protocol, fitted=fitted, progress=True)
    scores, numbers = result.scores, result.numbers
    by_rule = metrics.get_protocol(scores.protocol).by_rule
    kind = scores.protocol if by_rule else "fitted" if fitted else ""
    path = run_folder.scores_file(found.workdir, scores.split, kind)
    written = score_report.write(path, scores, numbers, {"split": scores.split, "step": found.step})
    report(f"{ap_table.text(numbers, scores.class_names, scores.labels)}\n\n{written}")
    return numbers


def fit_thresholds(
    workdir: str | Path, *, split: str | None = None, data_dir: str | None = None, **how
) -> tuple[thresholds.Fit, Path]:
    """Fits thresholds and a calibration for a run's best checkpoint; returns them and the file they are kept in.

    Args:
      workdir: the run folder, which gets thresholds.json in place of a learned rule.
      split: of the images to fit on; None for the part that selected the checkpoint.
      data_dir: where the data sets are now.
      how: objective, per_class, shrink, calibrate, seed; see `thresholds.fit`.

    Raises UserError for images that were trained on or are tested on, and for a run without a validation part.
    """
    storage.check_writable(workdir)
    found = run.load(workdir, data_dir)
    name = split or loader.SELECTION
    thresholds.check_split(found.config, found.dataset, name)
    scores = found.evaluate(name, "all_point", progress=True).scores
    fit = thresholds.fit(scores, found.model_digest, **how)
    path = thresholds.save(workdir, fit.thresholds)
    (storage.to_path(workdir) / decision.FILE).unlink(missing_ok=True)
    return fit, path


def result_of(workdir: Path, config: ConfigDict) -> dict | None:
    """The test metrics of a complete run in `workdir`, or None."""
    path = run_folder.scores_file(workdir, config.data.test_split, config.eval.protocol).with_suffix(".json")
    complete = run_folder.result(workdir) is not None and path.exists()
    return storage.read_json(path) if complete else None


def run_one(
    config: ConfigDict, workdir: Path, report: Callable[[str], None] = lambda text: None, group: str = ""
) -> tuple[dict | None, int | None]:
    """Trains and evaluates what is missing in `workdir`: (metrics, None), or (None, signal) where a signal stopped it.

    Args:
      config: of the run.
      workdir: its folder.
      report: gets the text about the evaluation.
      group: what trackers put the run under, such as a sweep's entry.
    """
    found = result_of(workdir, config)
    if found is not None:
        changed = config_lib.differences(run_folder.load(workdir).config.to_dict(), config)
        if changed:
            raise UserError(f"{workdir} is the run of another config ({'; '.join(changed[:5])}); use another --workdir")
        return found, None
    outcome = fit(config, workdir, None, group, report)
    if outcome.stopped_by is not None:  # in the last step, too: the evaluation is left to the restart
        return None, outcome.stopped_by
    decisions.learn_missing(workdir, config.eval.protocol)
    evaluate(workdir, report=report)
    return result_of(workdir, config), None
