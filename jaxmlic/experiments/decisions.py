"""Decision rules of runs and of score files: learned, kept, applied."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmlic import metrics, run, storage
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.evaluation import decision, ensemble, score_facts, score_file, thresholds
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.labels.names import check_same_classes
from jaxmlic.reports import ap_table, score_report
from jaxmlic.training.closed_form import OUT_OF_FOLD, held_out_file


def learn(
    workdir: str | Path,
    objective: str,
    *,
    split: str | None = None,
    data_dir: str | None = None,
    images: int | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> tuple[decision.Decision, Path]:
    """Learns a rule for a run's best checkpoint; returns it and its file, which replaces the run's thresholds.

    Args:
      workdir: the run folder.
      objective, folds, seed: see `decision.fit`.
      split: of the images to learn on; None for the out-of-fold scores of the training images where the run has them,
        else for the part that selected the checkpoint.
      data_dir: where the data sets are now.
      images: of a batch that is scored together; None for as many as the test split has.

    Raises UserError for images that were trained on or are tested on, and for a run without held-out scores.
    """
    decision.parse_metric(objective)  # before anything is scored
    storage.check_writable(workdir)
    found = run.load(workdir, data_dir)
    held_out = held_out_file(found.workdir, found.config.data.train_split)
    if split is None and held_out.is_file():
        scores = score_file.load(held_out)
        check_same_classes(found.class_names, scores.class_names, str(workdir), str(held_out))
    else:
        name = split or loader.SELECTION
        thresholds.check_split(found.config, found.dataset, name)
        scores = found.evaluate(name, "all_point", progress=True).scores
    images = images or _test_images(found) or len(scores.labels)
    rule = decision.fit(scores, objective, images=images, model=found.model_digest, folds=folds, seed=seed)
    path = decision.save(workdir, rule)
    (storage.to_path(workdir) / thresholds.FILE).unlink(missing_ok=True)
    return rule, path


def learn_missing(workdir: str | Path, protocol: str) -> bool:
    """Learns the rule of a protocol that needs one, where the run has none for its checkpoint; whether it did."""
    if not metrics.get_protocol(protocol).by_rule or run.load(workdir).learned_decision()[0] is not None:
        return False
    learn(workdir, objective_of(protocol), folds=0)
    return True


def objective_of(protocol: str) -> str:
    """What `learn` is given for a protocol with a learned rule."""
    k = metrics.get_protocol(protocol).k
    return "cf1" if k is None else f"cf1_at={k}"


def _test_images(found: run.Run) -> int:
    """How many images the test split has; 0 where the data set is not at hand. No label is read."""
    try:
        return len(found.dataset.rows(found.config.data.test_split))
    except UserError:
        return 0


def learn_on_scores(
    path: str | Path,
    objective: str,
    *,
    out: str | Path | None = None,
    images: int | None = None,
    folds: int | None = None,
    seed: int = 0,
) -> tuple[decision.Decision, Path]:
    """Learns a rule on a score file of held-out images, such as a fusion of out-of-fold scores.

    out: file of the rule; None for STEM.decision.json beside the scores. The others as in `learn`.
    Raises UserError for scores of a test split, and of training images that are not held out.
    """
    scores = score_file.load(path)
    _check_held_out(path, scores)
    rule = decision.fit(scores, objective, images=images, folds=folds, seed=seed)
    return rule, decision.save(out or storage.to_path(path).with_suffix(".decision.json"), rule)


def _check_held_out(path: str | Path, scores: ScoreFile) -> None:
    for config, extra in score_facts.sources(scores):
        data = config.get("data", {})
        if scores.split and scores.split == data.get("test_split"):
            raise UserError(f"{path}: scores of the test split {scores.split!r}, and no decision is learned on these")
        if scores.split and scores.split == data.get("train_split") and not extra.get("held_out"):
            raise UserError(
                f"{path}: scores of images that were trained on, which are too good; give out-of-fold scores "
                f"(scores/{scores.split}.{OUT_OF_FOLD}.npz of a head that is fitted at once) or "
                "those of a validation part"
            )


def num_images(path: str | Path) -> int:
    """Of a score file."""
    return len(score_file.load(path).ids)


def apply(rule: decision.Decision, path: str | Path, protocol: str | None = None) -> tuple[dict, str]:
    """Decides on another score file: STEM.<protocol>.npz with the chosen labels, and its report beside it.

    Args:
      rule: what was learned.
      path: the score file.
      protocol: a learned or transductive one; None for the rule's own.

    Returns: (the metrics, text for the user).
    Raises UserError for other classes, and for images that the rule was learned on.
    """
    scores = score_file.load(path)
    check_same_classes(rule.class_names, scores.class_names, "the rule", str(path))
    shared = len(set(rule.ids.tolist()) & set(scores.ids.tolist())) if scores.split == rule.split else 0
    if shared:
        raise UserError(f"{path}: the rule was learned on {shared:,} of its {len(scores.ids):,} images")
    name = metrics.get_protocol(protocol or rule.protocol).name
    if not metrics.get_protocol(name).by_rule:
        raise UserError(f"protocol {name} decides without a learned rule; known here: {rule.protocol} and transductive")
    min_positives, untrained = ensemble.counted_classes(str(path), scores)
    chosen = rule.choose_for(name, scores.scores)
    decided = ScoreFile(
        scores.scores,
        scores.labels,
        scores.ids,
        scores.class_names,
        scores.config,
        name,
        scores.split,
        chosen=chosen,
        extra=scores.extra | {"rule": rule.facts()},
    )
    numbers = metrics.evaluate(
        scores.scores,
        scores.labels,
        name,
        chosen=chosen,
        classes=~np.isin(scores.class_names, list(untrained)),
        min_positives=min_positives,
    )
    place = storage.to_path(path)
    written = score_report.write(place.with_suffix(f".{name}.npz"), decided, numbers, {"split": scores.split})
    return numbers, f"{ap_table.text(numbers, scores.class_names, scores.labels)}\n\n{written}"


def fused_scores(paths: Sequence[Path], weights: Sequence[float], train_split: str, protocol: str) -> ScoreFile:
    """The weighted mean of the members' logits; under a protocol with a learned rule with the labels that it chooses.

    The rule is learned on the same mean of the members' held-out scores of training images.

    Args:
      paths: score files of the runs' test split, in their run folders.
      weights: of the members, they sum to 1.
      train_split: of the runs.
      protocol: of the row.

    Raises:
      UserError: scores that cannot be fused (`ensemble.load`); a member without held-out scores where they are needed.
    """
    fused = _mean(paths, weights)
    if not metrics.get_protocol(protocol).by_rule:
        return fused
    held_out = [held_out_file(path.parent.parent, train_split) for path in paths]
    for path in held_out:
        if not path.is_file():
            raise UserError(
                f"{path.parent.parent}: has no held-out scores of training images, and a rule for the fusion is "
                "learned on these; only heads that are fitted at once have them"
            )
    goal = objective_of(protocol)
    rule = decision.fit(_mean(held_out, weights), goal, images=len(fused.ids), folds=0)
    return dataclasses.replace(fused, chosen=rule.choose_for(protocol, fused.scores), protocol=protocol)


def _mean(paths: Sequence[Path], weights: Sequence[float]) -> ScoreFile:
    members, _ = ensemble.load([str(path) for path in paths])
    mean = ensemble.fuse([one.scores for one in members], weights)
    return dataclasses.replace(members[0], scores=mean, chosen=None)
