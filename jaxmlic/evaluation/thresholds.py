"""Thresholds and calibration of a run, fitted on its validation part and kept beside its checkpoints.

`thresholds.json` in the run folder: for each class the logit from which on it is predicted, and the scale and offset
of `sigmoid(scale logit + offset)`, its calibrated probability; with what they were fitted for, on which images, and
for which checkpoint. Thresholds are on the scale of the raw logits, whatever the calibration.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmlic import metrics, sharding, storage
from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.labels.names import check_same_classes
from jaxmlic.metrics import calibration
from jaxmlic.metrics.thresholds import OBJECTIVES, fit_thresholds

FILE = "thresholds.json"
CALIBRATIONS = ("temperature", "platt", "none")
SHRINK = 10.0
_FOLDS = 5
_REMEDY = "fit them again with `jaxmlic thresholds`"
_READ = 4096  # values of an array that its digest reads
_SHOWN = ("CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1")


@dataclasses.dataclass(frozen=True, eq=False)
class Thresholds:
    """Decisions and probabilities of a run.

    Attributes:
      class_names: C names.
      values: float64 [C], the logit from which on a class is predicted.
      overall: the one logit that was fitted on all classes together.
      scale, offset: float64 [C], of the calibrated logit `scale * logit + offset`.
      objective: what they were fitted for, as it was given: "f1", "precision=0.9", "count".
      per_class: whether classes have thresholds of their own.
      shrink: see `metrics.thresholds.fit_thresholds`.
      calibration: one of CALIBRATIONS.
      split: where the images were from.
      step: of the checkpoint.
      model: digest of its variables.
      data: digest of the images' ids and labels.
      fallback: classes that took the overall threshold, for lack of positives.
      numbers: what they are worth on these images, and on parts of them that they were not fitted on.
    """

    class_names: list[str]
    values: np.ndarray
    overall: float
    scale: np.ndarray
    offset: np.ndarray
    objective: str
    per_class: bool
    shrink: float
    calibration: str
    split: str
    step: int
    model: str
    data: str
    fallback: list[str]
    numbers: dict[str, Any]

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """float64 [..., C]: logits whose sigmoids are the calibrated probabilities."""
        return logits * self.scale + self.offset

    def describe(self) -> str:
        """One line."""
        kind = "a logit for each class" if self.per_class else f"one logit, {self.overall:.4g}"
        return f"{kind}, fitted for {self.objective} on {self.split!r} at step {self.step}"


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """Fitted thresholds, and what a report of them shows.

    Attributes:
      thresholds: what is kept.
      num_positive: int64 [C], in the images that they were fitted on.
      own: float64 [C], each class's own threshold before shrinking; NaN where there is none.
      unreached: classes whose precision no threshold reaches.
      before, after: reliability of the raw logits' and of the calibrated probabilities.
    """

    thresholds: Thresholds
    num_positive: np.ndarray
    own: np.ndarray
    unreached: list[str]
    before: calibration.Reliability
    after: calibration.Reliability


def parse_objective(text: str) -> tuple[str, float | None]:
    """ "precision=0.9" -> ("precision", 0.9). UserError for an unknown name, a missing or impossible goal."""
    name, _, goal = text.partition("=")
    if name not in OBJECTIVES:
        known = ", ".join(f"{key} ({one.description})" for key, one in OBJECTIVES.items())
        raise UserError(f"--for={text}: unknown{did_you_mean(name, OBJECTIVES)}; known: {known}")
    objective = OBJECTIVES[name]
    if not goal:
        if objective.needs_goal:
            raise UserError(f"--for={text}: of how much? Write --for={name}=0.9")
        return name, None
    try:
        value = float(goal)
    except ValueError:
        value = float("nan")
    if objective.goal is None:
        raise UserError(f"--for={text}: {name} has no goal; write --for={name}")
    low, high = objective.goal
    if not low < value <= high or np.isinf(value):
        upper = "" if np.isinf(high) else f" and at most {high:g}"
        raise UserError(f"--for={text}: the goal must be a number above {low:g}{upper}")
    return name, value


def check_split(config: ConfigDict, dataset: datasets.Dataset, split: str) -> None:
    """Refuses to fit on images of the test split or on those that were trained on; see `loader.find_view`.

    Raises UserError, also for a run without a validation part.
    """
    try:
        view = loader.find_view(config.data, dataset, config.seed, split)
    except UserError:
        if split != loader.SELECTION or config.data.val_split or config.data.val_fraction:
            raise
        raise UserError(
            "thresholds are fitted on validation images and this run has none (config.data.val_fraction is 0): train "
            "with --config.data.val_fraction=0.1, or give --split=NAME of images that are neither trained nor tested on"
        ) from None
    rows = _rows(view)
    test = config.data.test_split
    if test in dataset.split_names():
        shared = len(np.intersect1d(rows, dataset.rows(test)))
        if shared:
            raise UserError(
                f"thresholds are never fitted on test images: {shared:,} of the {len(rows):,} images of {split!r} are "
                f"in the test split {test!r}; use the validation part (leave --split out), or train with "
                "config.data.val_split or val_fraction on other images"
            )
    train, _ = loader.train_and_val(config.data, dataset, config.seed)
    shared = len(np.intersect1d(rows, _rows(train)))
    if shared:
        raise UserError(
            f"thresholds are not fitted on images that were trained on, whose scores are too good: {shared:,} of the "
            f"{len(rows):,} images of {split!r}; leave --split out for the validation part"
        )


def _rows(view: loader.View) -> np.ndarray:
    return view.dataset.rows(view.split)[view.indices]


def fit(
    scores: ScoreFile,
    model: str,
    *,
    objective: str = "f1",
    per_class: bool = True,
    shrink: float = SHRINK,
    calibrate: str = "temperature",
    seed: int = 0,
) -> Fit:
    """Thresholds and calibration of a run's logits on images that it was neither trained nor is tested on.

    Args:
      scores: of these images.
      model: digest of the run's variables.
      objective: see `parse_objective`.
      per_class: whether classes have thresholds of their own.
      shrink: positives at which a class's own threshold counts half; the rest is the overall one.
      calibrate: one of CALIBRATIONS; temperature: one scale for all classes; platt: scale and offset of each class.
      seed: of the parts for the numbers on images that were not fitted on.

    Raises:
      UserError: no positive label, infinite scores.
    """
    name, goal = parse_objective(objective)
    logits, labels = scores.scores, scores.labels

    def decide(rows: np.ndarray):
        return fit_thresholds(logits[rows], labels[rows], name, goal, per_class=per_class, shrink=shrink)

    everything = np.arange(len(labels))
    try:
        found = decide(everything)
    except ValueError as error:
        raise UserError(f"split {scores.split!r}: {error}; give --split=NAME of other images") from None
    scale, offset = _calibrate(logits, labels, calibrate)
    before = calibration.reliability(logits, labels)
    after = calibration.reliability(logits * scale + offset, labels)
    held_out, held_logits = _held_out(logits, labels, decide, calibrate, seed)
    numbers = {
        "images": len(labels),
        "at logit 0": _worth(logits >= 0, scores),
        "fitted": _worth(logits >= found.values.astype(np.float32), scores),
        "ECE": before.ece,
        "class_ECE": before.class_ece,
        "ECE calibrated": after.ece,
        "class_ECE calibrated": after.class_ece,
    }
    if held_out is not None:
        error = calibration.reliability(held_logits, labels)
        numbers |= {
            "held out": _worth(held_out, scores),
            "ECE held out": error.ece,
            "class_ECE held out": error.class_ece,
        }
    names = np.array(scores.class_names)
    thresholds = Thresholds(
        class_names=list(scores.class_names),
        values=found.values,
        overall=found.overall,
        scale=scale,
        offset=offset,
        objective=objective,
        per_class=per_class,
        shrink=float(shrink),
        calibration=calibrate,
        split=scores.split,
        step=int(scores.extra.get("step", 0)),
        model=model,
        data=digest_of_images(scores.ids, labels),
        fallback=names[found.num_positive == 0].tolist(),
        numbers=numbers,
    )
    return Fit(thresholds, found.num_positive, found.own, names[found.unreached].tolist(), before, after)


def _calibrate(logits: np.ndarray, labels: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, float64 [C]. A class without positives, or whose scores say nothing, gets the overall ones."""
    num_labels = labels.shape[1]
    scale, offset = np.ones(num_labels), np.zeros(num_labels)
    if how == "temperature":
        scale[:] = 1 / calibration.fit_temperature(logits, labels)
    elif how == "platt":
        overall = calibration.fit_platt(logits, labels)
        for c in range(num_labels):
            own = calibration.fit_platt(logits[:, c], labels[:, c]) if (labels[:, c] == 1).any() else (0.0, 0.0)
            scale[c], offset[c] = own if own[0] > 0 else overall
    return scale, offset


def _held_out(logits, labels, decide, calibrate: str, seed: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Decisions bool [N, C] and calibrated logits of each fifth of the images by a fit on the others.

    None where some four fifths have no positive.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    predicted, calibrated = np.zeros(labels.shape, bool), np.zeros(labels.shape)
    for part in np.array_split(order, _FOLDS):
        rest = np.setdiff1d(order, part)
        if not len(part) or not (labels[rest] == 1).any():
            return None, calibrated
        scale, offset = _calibrate(logits[rest], labels[rest], calibrate)
        predicted[part] = logits[part] >= decide(rest).values.astype(np.float32)
        calibrated[part] = logits[part] * scale + offset
    return predicted, calibrated


def _worth(predicted: np.ndarray, scores: ScoreFile) -> dict[str, float | None]:
    numbers = metrics.evaluate(scores.scores, scores.labels, "path", chosen=predicted)
    found = {name: numbers[name] for name in _SHOWN}
    found["labels an image"] = float((predicted & (scores.labels >= 0)).sum(axis=1).mean())
    return {name: None if np.isnan(value) else float(value) for name, value in found.items()}


def digest_of_images(ids: np.ndarray, labels: np.ndarray) -> str:
    """Changes with the images and with their labels."""
    digest = hashlib.sha256("\0".join(ids.tolist()).encode())
    digest.update(np.ascontiguousarray(labels).tobytes())
    return digest.hexdigest()[:16]


def digest_of_model(variables: dict) -> str:
    """Changes with the variables: names, shapes, and up to 4,096 values of each array."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        array = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if array:  # of several hosts
            leaf = leaf.addressable_data(0) if leaf.is_fully_replicated else sharding.gather(leaf)
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values.ravel()[:: max(1, values.size // _READ)]).tobytes())
    return digest.hexdigest()[:16]


def save(workdir: str | Path, found: Thresholds) -> Path:
    """Writes thresholds.json into the run folder."""
    path = storage.to_path(workdir) / FILE
    fields = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(found).items()}
    storage.write_json(path, {"unit": "logit", **fields})
    return path


def load(workdir: str | Path) -> Thresholds | None:
    """Those of the run folder, None where it has none. UserError for a damaged file."""
    path = storage.to_path(workdir) / FILE
    if not path.is_file():
        return None
    stored = storage.read_json(path, what="file of thresholds", remedy=_REMEDY)
    try:
        fields = {field.name: stored[field.name] for field in dataclasses.fields(Thresholds)}
        num_labels = len(fields["class_names"])
        for name in ("values", "scale", "offset"):
            fields[name] = np.array(fields[name], np.float64)
            if fields[name].shape != (num_labels,) or not np.isfinite(fields[name]).all():
                raise ValueError(f"{name} are not {num_labels} numbers")
        return Thresholds(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as thresholds ({storage.reason(error)}); {_REMEDY}") from None


def find(workdir: str | Path, step: int, model: str, class_names: Sequence[str]) -> tuple[Thresholds | None, str]:
    """The thresholds in a run folder, where they belong to the checkpoint in use; else None, and why in one line.

    ("" where there are none.) UserError for a damaged file, and for one of other classes.
    """
    found = load(workdir)
    if found is None:
        return None, ""
    path = storage.to_path(workdir) / FILE
    check_same_classes(class_names, found.class_names, str(workdir), str(path))
    if (found.step, found.model) == (step, model):
        return found, ""
    now = f"step {step} is in use now" if found.step != step else f"step {step} is another model now"
    return None, (
        f"{path} was fitted on the checkpoint of step {found.step}, and {now}; "
        f"fit again with jaxmlic thresholds --workdir={workdir}"
    )
