"""The photographs of a review of labels, each with what is thought of it."""

import numpy as np

from jaxmlic.data.datasets import Dataset
from jaxmlic.data.image import decode_image, resize
from jaxmlic.errors import UserError
from jaxmlic.evaluation.review import LIKELY, Review
from jaxmlic.reports.figures import canvas
from jaxmlic.reports.tables import shorten

_ERRORS, _IMAGES = 20, 10  # photographs of each kind
_SIDE, _WIDTH, _CLASSES = 256, 30, 3
_GIVEN = {1: "present", 0: "absent"}


def draw(found: Review, dataset: Dataset):
    """A figure of the first likely errors, then of the first images to annotate.

    UserError where nothing is listed, or the data set does not have an image.
    """
    rows = [row for row, _ in found.errors[:_ERRORS]] + found.images[:_IMAGES]
    if not rows:
        raise UserError(f"{dataset.name}: no label to look at: none is known, and none unknown")
    captions = [_error(found, rank, *at) for rank, at in enumerate(found.errors[:_ERRORS], 1)]
    captions += [_annotate(found, rank, row) for rank, row in enumerate(found.images[:_IMAGES], 1)]
    title = f"{dataset.name}, {found.scores.split}: labels that are likely wrong"
    title += ", and images to annotate next" if found.images else ""
    return canvas.captioned(photographs(dataset, found.scores.ids[rows]), captions, title)


def photographs(dataset: Dataset, ids: np.ndarray) -> list[np.ndarray]:
    """uint8 [256, 256, 3] of each image of a data set, whole, on white; UserError for one that is not there."""
    wanted = set(ids.tolist())
    places = {
        image: (split, row)
        for split in dataset.splits
        for row, image in enumerate(dataset.ids(split).tolist())
        if image in wanted
    }
    missing = next((image for image in ids.tolist() if image not in places), None)
    if missing is not None:
        raise UserError(f"data set {dataset.name!r} has no image {missing!r}: name the one that was scored")
    sources = {split: dataset.source(split) for split in {split for split, _ in places.values()}}
    found = []
    for image in ids.tolist():
        split, row = places[image]
        pixels = decode_image(sources[split][row]["image"])
        height, width = (max(1, round(side * _SIDE / max(pixels.shape[:2]))) for side in pixels.shape[:2])
        whole = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
        top, left = _SIDE - height, (_SIDE - width) // 2  # beside its caption
        whole[top : top + height, left : left + width] = resize(pixels, (height, width))
        found.append(whole)
    return found


def _error(found: Review, rank: int, row: int, column: int) -> list[tuple[str, str]]:
    given = int(found.scores.labels[row, column])
    name = shorten(found.scores.class_names[column], 14)
    return [
        (f"{rank}. {name}: {LIKELY[given]}", canvas.OTHER if given else canvas.MATCH),
        (f"given {_GIVEN[given]}, p = {found.probabilities[row, column]:.3f}", "0.1"),
        (shorten(str(found.scores.ids[row]), _WIDTH), "0.4"),
    ]


def _annotate(found: Review, rank: int, row: int) -> list[tuple[str, str]]:
    columns = found.unknown(row)
    names = [f"{shorten(found.scores.class_names[c], 20)}: p = {found.probabilities[row, c]:.2f}" for c in columns]
    more = [(f"and {len(columns) - _CLASSES} more", "0.4")] if len(columns) > _CLASSES else []
    return [
        (f"annotate {rank}", "0.1"),
        *((name, "0.1") for name in names[:_CLASSES]),
        *more,
        (shorten(str(found.scores.ids[row]), _WIDTH), "0.4"),
    ]
