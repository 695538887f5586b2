"""What training is given as the truth: the stored labels, a file of pseudo-labels, or labels with noise added.

The one door by which either enters training. What was trained on is kept in the run folder, so that the folder is
enough to continue.
"""

import shutil
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import storage
from jaxmlic.data import label_noise, loader
from jaxmlic.data.datasets import Dataset
from jaxmlic.errors import UserError
from jaxmlic.propagation import label_file

PSEUDO_LABELS, NOISE = "pseudo_labels.npz", "noise.npz"  # in a run folder


def training_views(
    config: ConfigDict, dataset: Dataset, workdir: str | Path, *, restored: bool = False
) -> tuple[loader.View, loader.View | None]:
    """The training examples with what they are trained on, and those for validation with their stored labels.

    Args:
      config: of the run.
      dataset: the config's.
      workdir: the run folder, whose copy of the pseudo-labels serves where the file is gone.
      restored: take the run folder's copy first, not the file that the config names.

    Raises:
      UserError: as `loader.train_and_val`, `label_file.attach` and `label_noise.add`.
    """
    train, val = loader.train_and_val(config.data, dataset, config.seed)
    if config.data.pseudo_labels:
        if val is not None and not config.data.val_split:
            raise UserError(
                "config.data.val_fraction would measure on images whose labels are not known: with "
                "config.data.pseudo_labels set it to 0, or name config.data.val_split"
            )
        places = [storage.to_path(config.data.pseudo_labels), storage.to_path(workdir) / PSEUDO_LABELS]
        if restored:
            places.reverse()
        train = label_file.attach(train, next((path for path in places if path.exists()), places[0]))
    return label_noise.add(config.data, train, config.seed), val


def keep(config: ConfigDict, workdir: str | Path, train: loader.View) -> list[str]:
    """Writes what is trained on into the run folder, where that is not the stored labels; returns lines about it.

    pseudo_labels.npz is a copy of the config's file. noise.npz has `ids` [N], `clean` and `noisy` int8 [N, C], in the
    order of the training examples.
    """
    workdir = storage.to_path(workdir)
    if config.data.pseudo_labels:
        source, copy = storage.to_path(config.data.pseudo_labels), workdir / PSEUDO_LABELS
        if source.exists() and storage.resolve(source) != storage.resolve(copy):
            with storage.replacing(copy) as file, source.open("rb") as original:
                shutil.copyfileobj(original, file)
    if not config.data.noise_rate:
        return []
    storage.save_npz(
        workdir / NOISE, {"ids": train.ids, "clean": train.stored_labels, "noisy": train.labels}, compress=True
    )
    return [f"{label_noise.describe(train, config.data)} ({NOISE})"]


def trained_classes(train: loader.View) -> np.ndarray:
    """bool [C]: the classes with a positive among the stored labels of the training examples."""
    return (train.stored_labels == 1).any(axis=0)
