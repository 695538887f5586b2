"""Files of pseudo-labels: what `jaxmlic propagate` writes, and training reads in place of the stored labels.

An npz with ids text [N], labels int8 [N, C] in {1, 0, -1}, weights and scores float32 ([N] and [N, C]), known bool [N]
(the images whose stored labels were used), class_names, and info, JSON text that says how it was made. A run keeps a
copy, so that its folder is enough to continue and to evaluate.
"""

import dataclasses
import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic.data import datasets, loader
from jaxmlic.errors import UserError
from jaxmlic.labels.names import check_same_classes

COPY = "pseudo_labels.npz"  # in a run folder
_ARRAYS = ("ids", "labels", "weights", "scores", "known", "class_names", "info")


@dataclasses.dataclass(frozen=True)
class PseudoLabelFile:
    """What a file holds; see the module."""

    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    known: np.ndarray
    class_names: list[str]
    info: dict


def save(path: str | os.PathLike, file: PseudoLabelFile) -> None:
    """Writes whole or not at all; UserError where that is not possible."""
    path = Path(path)
    arrays = dataclasses.asdict(file) | {"info": json.dumps(file.info, sort_keys=True)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **{name: np.asarray(value) for name, value in arrays.items()})
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> PseudoLabelFile:
    """The file; UserError if it is not there or no such file."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            arrays["class_names"] = arrays["class_names"].tolist()
            arrays["info"] = json.loads(str(arrays["info"]))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{path}: no file of pseudo-labels ({why}); `jaxmlic propagate` makes one") from None
    found = PseudoLabelFile(**arrays)
    if not len(found.ids) == len(found.labels) == len(found.weights) or found.labels.ndim != 2:
        raise UserError(f"{path}: damaged, {len(found.ids)} ids with labels {found.labels.shape}: make it again")
    return found


def attach(view: loader.View, path: str | os.PathLike) -> loader.View:
    """The view with the file's labels and weights, less the images that no label reached.

    Raises UserError for other class names, an image of the view that the file does not have, or no image left.
    """
    file = load(path)
    check_same_classes(file.class_names, view.dataset.class_names, str(path), f"data set {view.dataset.name!r}")
    order = np.argsort(file.ids)
    place = np.minimum(np.searchsorted(file.ids, view.ids, sorter=order), len(order) - 1)
    rows = order[place]
    lost = file.ids[rows] != view.ids
    if lost.any():
        raise UserError(
            f"{path}: no labels for {lost.sum():,} of {len(view):,} images of {view.where()}, {view.ids[lost][0]!r} "
            f"the first; it was made for split {file.info.get('split')!r}"
        )
    labels, weights = file.labels[rows], file.weights[rows].astype(np.float32)
    kept = (labels != -1).any(axis=1) & (weights > 0)
    if not kept.any():
        raise UserError(f"{path}: no image of {view.where()} has a label of any weight")
    targets = loader.Targets(labels[kept], weights[kept])
    return dataclasses.replace(view, indices=view.indices[kept], targets=targets)


def training_views(
    config: ConfigDict, dataset: datasets.Dataset, workdir: str | os.PathLike, *, restored: bool = False
) -> tuple[loader.View, loader.View | None]:
    """As `loader.train_and_val`, with the pseudo-labels of the config where it names any.

    restored: take the run folder's copy first, not the file that the config names.
    """
    train, val = loader.train_and_val(config.data, dataset, config.seed)
    if not config.data.pseudo_labels:
        return train, val
    if val is not None and not config.data.val_split:
        raise UserError(
            "config.data.val_fraction would measure on images whose labels are not known: with "
            "config.data.pseudo_labels set it to 0, or name config.data.val_split"
        )
    places = [Path(config.data.pseudo_labels).expanduser(), Path(workdir) / COPY]
    if restored:
        places.reverse()
    return attach(train, places[0] if places[0].exists() else places[1] if places[1].exists() else places[0]), val


def keep(config: ConfigDict, workdir: str | os.PathLike) -> None:
    """Copies the config's file into the run folder, unless it is there or the config names none."""
    source, copy = Path(config.data.pseudo_labels or COPY).expanduser(), Path(workdir) / COPY
    if config.data.pseudo_labels and source.exists() and not (copy.exists() and copy.samefile(source)):
        temporary = copy.with_suffix(".tmp")
        shutil.copyfile(source, temporary)
        os.replace(temporary, copy)
