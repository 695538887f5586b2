"""What a report is about: runs, or score files without one, of the same images and classes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmlic import metrics, storage
from jaxmlic import run as run_lib
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.evaluation import compare, ensemble, score_facts, score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.reports import convergence
from jaxmlic.run import Run
from jaxmlic.training import run_folder
from jaxmlic.training.logs import metrics_log

_SCORES = ".npz"


@dataclasses.dataclass(frozen=True)
class Member:
    """A run of a report.

    Attributes:
      name: short, tells it from the others.
      path: its folder, or its score file.
      scores: of the split, rows and columns in the order of the first member.
      numbers: what `metrics.evaluate` returned for them.
      predicted: bool [N, C], what counts as predicted.
      history: rows of metrics.jsonl; none for a score file.
      run: with its checkpoint, None where there is none.
      notes: what a reader of the page must know.
    """

    name: str
    path: Path
    scores: ScoreFile
    numbers: dict
    predicted: np.ndarray
    history: list[dict]
    run: Run | None
    notes: list[str]


def open_members(
    paths: Sequence[str], split: str | None = None, protocol: str | None = None, data_dir: str | None = None
) -> list[Member]:
    """The members in the order of their paths, run folders or score files.

    Args:
      paths: at least one.
      split: None for each run's test split; it says nothing about score files.
      protocol: of all numbers; None for that of the first.
      data_dir: where the data sets are now, if not where the runs found them.

    Raises:
      UserError: no run or score file, a run with neither scores nor a checkpoint, or other classes, images or labels
        than the first has.
    """
    places = [storage.to_path(path) for path in paths]
    if len(set(map(storage.resolve, places))) < len(places):
        raise UserError("report: a run is named twice")
    names = convergence.names_of(places)
    members: list[Member] = []
    for name, place in zip(names, places, strict=True):
        own = _open_file(place) if place.suffix == _SCORES else _open_run(place, split, data_dir)
        scores, history, run, notes = own
        notes += [f"{line[0].upper()}{line[1:]}." for line in score_facts.selected_on(scores)]
        if members:
            scores = _aligned(members[0], scores, place)
        protocol = metrics.get_protocol(protocol or scores.protocol).name
        members.append(Member(name, place, scores, *_judge(place, scores, protocol), history, run, notes))
    return members


def view_of(run: Run, split: str) -> loader.View:
    """The examples of a split as the run scores them; UserError where the data set or the split is gone."""
    return loader.find_view(run.config.data, run.dataset, run.config.seed, split)


def _judge(path: Path, scores: ScoreFile, protocol: str) -> tuple[dict, np.ndarray]:
    """The numbers by a protocol, and what counts as predicted."""
    if not scores.decides(protocol):
        raise UserError(
            f"{path}: protocol {protocol!r} counts labels that a decoder or a rule chose, and the file has none of it; "
            "give --protocol=all_point"
        )
    min_positives, untrained = ensemble.counted_classes(str(path), scores)
    classes = np.array([name not in untrained for name in scores.class_names], bool)
    given = {"threshold": scores.threshold, "chosen": scores.chosen}
    numbers = metrics.evaluate(
        scores.scores, scores.labels, protocol, classes=classes, min_positives=min_positives, **given
    )
    return numbers, metrics.predicted_labels(scores.scores, protocol, **given)


def _open_file(path: Path) -> tuple[ScoreFile, list[dict], None, list[str]]:
    note = "A score file without its run: no learning curves, photographs or embeddings."
    return score_file.load(path), [], None, [note]


def _open_run(
    path: Path, split: str | None, data_dir: str | None
) -> tuple[ScoreFile, list[dict], Run | None, list[str]]:
    record = run_folder.load(path)
    split = split or record.config.data.test_split
    file = run_folder.scores_file(path, split)
    notes: list[str] = []
    run = None
    try:
        run = run_lib.load(path, data_dir)
    except UserError as error:
        if not file.is_file():
            raise UserError(f"{error}; there is no {file} to report on either") from None
        notes.append(f"No checkpoint could be read ({error}): no photographs, maps or embeddings.")
    if file.is_file():
        scores = score_file.load(file)
        if fitted := scores.extra.get("thresholds"):
            notes.append(f"Thresholds fitted on {fitted['split']!r} for {fitted['objective']} decide the labels.")
        if run is not None and scores.extra.get("step", run.step) != run.step:
            notes.append(
                f"The scores are of step {scores.extra['step']}, the best checkpoint now is of step {run.step}: run "
                "jaxmlic evaluate again."
            )
    else:
        scores = run.evaluate(split, progress=True).scores
        notes.append(f"Scored for this report; jaxmlic evaluate --split={split} keeps the scores.")
    return scores, metrics_log.read(path), run, notes


def _aligned(first: Member, scores: ScoreFile, path: Path) -> ScoreFile:
    """The scores in the first member's order, `chosen` too."""
    own = first.scores
    named = [scores.config.get("data", {}).get("name"), own.config.get("data", {}).get("name")]
    if all(named) and named[0] != named[1]:
        raise UserError(
            f"{path} was scored on {named[0]!r} and {first.path} on {named[1]!r}: a report compares runs on the same "
            "images; make one report for each data set"
        )
    ensemble.align(str(first.path), own, str(path), scores)  # refuses other classes, images and labels
    return compare.align(own, scores, own.ids, str(first.path))[0]
