"""Files of pseudo-labels: what `jaxmlic propagate` writes, and training reads in place of the stored labels.

An npz with ids text [N], labels int8 [N, C] in {1, 0, -1}, weights and scores float32 ([N] and [N, C]), known bool [N]
(the images whose stored labels were used), class_names, and info, JSON text that says how it was made. A run keeps a
copy, so that its folder is enough to continue.
"""

import dataclasses
import json
import os

import numpy as np

from jaxmlic import storage
from jaxmlic.data import loader
from jaxmlic.errors import UserError
from jaxmlic.labels.names import check_same_classes

_ARRAYS = ("ids", "labels", "weights", "scores", "known", "class_names", "info")


@dataclasses.dataclass(frozen=True)
class PseudoLabelFile:
    """The content of a file; see the module's docstring for shapes."""

    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    known: np.ndarray
    class_names: list[str]
    info: dict


def save(path: str | os.PathLike, file: PseudoLabelFile) -> None:
    """Writes whole or not at all; UserError where that is not possible."""
    arrays = dataclasses.asdict(file) | {"info": json.dumps(file.info, sort_keys=True)}
    storage.save_npz(path, arrays)


def load(path: str | os.PathLike) -> PseudoLabelFile:
    """The file; UserError if it is not there or no such file."""
    remedy = "`jaxmlic propagate` makes one"
    arrays = storage.load_npz(path, _ARRAYS, (), what="file of pseudo-labels", remedy=remedy)
    arrays["class_names"] = arrays["class_names"].tolist()
    try:
        arrays["info"] = json.loads(str(arrays["info"]))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from None
    found = PseudoLabelFile(**arrays)
    if not len(found.ids) == len(found.labels) == len(found.weights) or found.labels.ndim != 2:
        raise UserError(f"{path}: damaged, {len(found.ids)} ids with labels {found.labels.shape}: make it again")
    return found


def attach(view: loader.View, path: str | os.PathLike) -> loader.View:
    """The view with the file's labels and weights, without the images that have no label or weight 0.

    Raises UserError for other class names, an image of the view that is not in the file, or no image left.
    """
    file = load(path)
    check_same_classes(file.class_names, view.dataset.class_names, str(path), f"data set {view.dataset.name!r}")
    order = np.argsort(file.ids)
    place = np.minimum(np.searchsorted(file.ids, view.ids, sorter=order), len(order) - 1)
    rows = order[place]
    missing = file.ids[rows] != view.ids
    if missing.any():
        raise UserError(
            f"{path}: no labels for {missing.sum():,} of {len(view):,} images of {view.where()}, "
            f"{view.ids[missing][0]!r} the first; it was made for split {file.info.get('split')!r}"
        )
    labels, weights = file.labels[rows], file.weights[rows].astype(np.float32)
    kept = (labels != -1).any(axis=1) & (weights > 0)
    if not kept.any():
        raise UserError(f"{path}: no image of {view.where()} has a label of any weight")
    targets = loader.Targets(labels[kept], weights[kept])
    return dataclasses.replace(view, indices=view.indices[kept], targets=targets)
