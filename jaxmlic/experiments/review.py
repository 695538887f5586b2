"""Scores of training images by models that did not see them: the folds of `jaxmlic data review`.

WORKDIR/foldI         a run trained on all folds but I, evaluated on fold I; one that is complete is not trained again
WORKDIR/given.npz     the labels that are reviewed, where config.data.noise_rate disturbs the stored ones
WORKDIR/out_of_fold.npz  the scores of all images, as a score file
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import storage
from jaxmlic.data import datasets, label_noise, loader
from jaxmlic.data.division import Divider
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.experiments.runs import run_one, store_features
from jaxmlic.inputs import open_source
from jaxmlic.propagation import label_file
from jaxmlic.training import run_folder

GIVEN, OUT_OF_FOLD = "given.npz", "out_of_fold.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Reviewed:
    """Out-of-fold scores with the labels given, and the stored labels int8 [N, C] where noise was added to them."""

    scores: ScoreFile
    truth: np.ndarray | None


def fold_scores(
    config: ConfigDict, workdir: str | Path, folds: int = 5, report: Callable[[str], None] = lambda text: None
) -> Reviewed | None:
    """Trains the folds that are missing, and gathers the scores of all images of the training split.

    Folds are stratified over the labels given, with config.seed. The labels of an image do not enter the training of
    the model that scores it.

    Args:
      config: the recipe; config.data.train_split is reviewed.
      workdir: gets the runs.
      folds: 2 or more.
      report: gets a line for each fold.

    Returns:
      None where Ctrl-C stopped a fold; the same call continues.

    Raises:
      UserError: a recipe that may have seen the images' labels; labels that are not the stored ones; as training does.
    """
    if config.start_from:
        raise UserError(
            "config.start_from: that run may have learned the very labels that are reviewed: leave it empty "
            "(config.pretrained may stay)"
        )
    if config.data.pseudo_labels:
        raise UserError("config.data.pseudo_labels: a review is of the stored labels; leave it empty")
    if config.data.noise_rate and not config.data.val_split and config.data.val_fraction:
        raise UserError("config.data.noise_rate: for a review set config.data.val_fraction=0 too, or a val_split")
    workdir = storage.to_path(workdir)
    storage.check_writable(workdir)
    dataset = datasets.load(config.data.name, config.data.dir or None)
    stored = loader.select(config.data, dataset, config.data.train_split)
    view = label_noise.add(config.data, stored, config.seed)
    name = _divide(view, folds, config.seed)
    values = {"data.noise_rate": 0.0}
    if view.targets is not None:
        _keep(workdir / GIVEN, view)
        values["data.pseudo_labels"] = str(workdir / GIVEN)
    configs = [
        config_lib.override(
            config, values | {"data.train_split": f"{name}/train{fold}", "data.test_split": f"{name}/test{fold}"}
        )
        for fold in range(folds)
    ]
    if open_source(config).is_stored:
        store_features(configs[0], report)
    for fold, one in enumerate(configs):
        numbers, stopped_by = run_one(one, workdir / f"fold{fold}", group="review")
        if numbers is None:
            report(f"stopped in fold {fold + 1} of {folds} by signal {stopped_by}; the same command continues there")
            return None
        report(f"fold {fold + 1} of {folds}: mAP {100 * numbers['mAP']:.2f} on the images that it did not see")
    files = [
        score_file.load(run_folder.scores_file(workdir / f"fold{fold}", one.data.test_split))
        for fold, one in enumerate(configs)
    ]
    scores = _gather(files, view, config_lib.override(config, {"data.train_split": f"{name}/train"}))
    score_file.save(workdir / OUT_OF_FOLD, scores)
    return Reviewed(scores, None if view.targets is None else view.stored_labels)


def _divide(view: loader.View, folds: int, seed: int) -> str:
    """Writes the named split of the folds, unless it is there; its name changes with the images and their labels."""
    parts = Divider(view.labels, seed).folds(folds)
    digest = hashlib.sha256(run_folder.fingerprint(view).encode())
    rows = view.dataset.rows(view.split)[view.indices]
    chosen = {part: rows[at] for part, at in parts.items()}
    for part, own in chosen.items():
        digest.update(part.encode() + np.ascontiguousarray(own, np.int64).tobytes())
    name = f"review{folds}_{digest.hexdigest()[:8]}"
    if f"{name}/test0" not in view.dataset.split_names():
        info = {"made by": "jaxmlic data review", "from": view.split, "seed": seed, "folds": folds}
        datasets.write_named_split(view.dataset, name, chosen, info, overwrite=True, folds=True)
    return name


def _keep(path: Path, view: loader.View) -> None:
    """The labels of a view with noise, as a file that the folds' trainings read."""
    count = len(view)
    label_file.save(
        path,
        label_file.PseudoLabelFile(
            ids=view.ids,
            labels=view.labels,
            weights=np.ones(count, np.float32),
            scores=(view.labels == 1).astype(np.float32),
            known=np.ones(count, bool),
            class_names=list(view.dataset.class_names),
            info={"split": view.split, "made by": "jaxmlic data review"},
        ),
    )


def _gather(files: list[ScoreFile], view: loader.View, config: ConfigDict) -> ScoreFile:
    """One score file in the order of the view, with its labels; each image's scores are those of its own fold."""
    ids = np.concatenate([one.ids for one in files])
    order = np.argsort(ids)
    rows = order[np.minimum(np.searchsorted(ids, view.ids, sorter=order), len(ids) - 1)]
    if len(ids) != len(view) or not np.array_equal(ids[rows], view.ids):
        raise UserError(f"{view.where()} has other images than the folds scored: use another --workdir")
    return ScoreFile(
        scores=np.concatenate([one.scores for one in files])[rows],
        labels=view.labels,
        ids=view.ids,
        class_names=list(view.dataset.class_names),
        config=config.to_dict(),
        protocol=files[0].protocol,
        split=view.split,
        extra={"folds": len(files)},
    )
