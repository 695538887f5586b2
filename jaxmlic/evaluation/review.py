"""Likely label errors and the next images to annotate, from scores of images that the model was not trained on."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from jaxmlic.data.datasets import Dataset
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_facts, score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.labels.names import check_same_classes
from jaxmlic.metrics import label_errors

LIKELY = {1: "likely absent", 0: "likely present"}  # what is thought of a label, by the one that is given
ANNOTATE = "annotate next"


@dataclasses.dataclass(frozen=True, eq=False)
class Review:
    """What is to be looked at.

    Attributes:
      scores: of N images and C classes, with the labels given.
      probabilities: float64 [N, C], that a class is present.
      ranking: one of `label_errors.RANKINGS`.
      errors: (row, column) of the labels most likely wrong, the likeliest first.
      images: rows of the images to annotate next, the most informative first.
      confident: {label given: how many of these confident learning flags}, whatever the ranking.
    """

    scores: ScoreFile
    probabilities: np.ndarray
    ranking: str
    errors: list[tuple[int, int]]
    images: list[int]
    confident: dict[int, int]

    def unknown(self, row: int) -> list[int]:
        """Columns of an image's unknown labels, the least certain first."""
        columns = np.flatnonzero(self.scores.labels[row] == -1)
        return columns[np.argsort(np.abs(self.probabilities[row, columns] - 0.5), kind="stable")].tolist()


def find(scores: ScoreFile, ranking: str = "confident", most: int = 100) -> Review:
    """Ranks the labels of a score file.

    Args:
      scores: of images that the model was not trained on.
      ranking: one of `label_errors.RANKINGS`.
      most: labels, and images to annotate, that are listed.
    """
    p = probabilities(scores.scores)
    wrong = label_errors.confident_errors(p, scores.labels)
    rows, columns = label_errors.RANKINGS[ranking](p, scores.labels)
    return Review(
        scores,
        p,
        ranking,
        list(zip(rows[:most].tolist(), columns[:most].tolist(), strict=True)),
        label_errors.next_images(p, scores.labels, most).tolist(),
        {given: int((wrong & (scores.labels == given)).sum()) for given in LIKELY},
    )


def probabilities(scores: np.ndarray) -> np.ndarray:
    """float64 [N, C] of logits, or of what are probabilities already."""
    return scores.astype(np.float64) if score_facts.are_probabilities(scores) else expit(scores.astype(np.float64))


def hits(errors: Sequence[tuple[int, int]], given: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Precision of the labels listed, and of as many drawn at random, where the truth int8 [N, C] is known."""
    wrong = (given >= 0) & (given != truth)
    found = [wrong[row, column] for row, column in errors]
    return float(np.mean(found)) if found else float("nan"), float(wrong[given >= 0].mean())


def load(paths: Sequence[str], dataset: Dataset) -> ScoreFile:
    """Score files of different images of a data set as one.

    Raises UserError for other classes, an image in two files, and images that the model was trained on: it has learned
    their labels, errors included.
    """
    found = [score_file.load(path) for path in paths]
    seen: dict[str, str] = {}
    for path, one in zip(paths, found, strict=True):
        check_same_classes(dataset.class_names, one.class_names, f"data set {dataset.name!r}", str(path))
        for image in one.ids.tolist():
            if image in seen:
                raise UserError(f"{path}: image {image!r} is in {seen[image]} too: give one score file for each image")
            seen[image] = path
        _refuse_trained(path, one, dataset)
    return dataclasses.replace(
        found[0],
        scores=np.concatenate([one.scores for one in found]),
        labels=np.concatenate([one.labels for one in found]),
        ids=np.concatenate([one.ids for one in found]),
        split=",".join(dict.fromkeys(one.split for one in found)),
        threshold=None,
        chosen=None,
    )


def data_set_of(path: str) -> str:
    """The name of the data set that a score file was made on; UserError where it does not say."""
    config = score_file.load(path).config
    name = config.get("data", {}).get("name") if isinstance(config, dict) else None
    if not name:
        raise UserError(
            f"{path}: it does not say which data set its images are of: jaxmlic data review NAME --scores=FILE"
        )
    return name


def _refuse_trained(path: str, scores: ScoreFile, dataset: Dataset) -> None:
    config = scores.config if isinstance(scores.config, dict) else {}
    split = config.get("data", {}).get("train_split")
    if not split or split not in dataset.split_names():
        return
    trained = int(np.isin(scores.ids, dataset.ids(split)).sum())
    if config["data"].get("val_split") == "" and scores.split in ("selection", "val"):
        return  # carved from the training split
    if trained:
        raise UserError(
            f"{path}: {trained:,} of {len(scores.ids):,} images are in {split!r}, which the model was trained on: it "
            "has learned their errors; score other images, or let --config=FILE train folds"
        )
