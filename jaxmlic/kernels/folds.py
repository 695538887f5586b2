"""Held-out parts of the training images, and the targets of a least-squares fit to the rest.

Targets z are labels less their mean over the images of the fit where the label is known, and 0 where it is unknown
(-1): an unknown label says what the class's frequency says.
"""

import jax
import numpy as np

from jaxmlic.metrics import average_precision


def folds_of(count: int, folds: int, seed: int) -> np.ndarray:
    """int32 [N], the fold of each image: a seeded draw in `folds` parts of like size; 0 for one image a fold."""
    if not folds or folds >= count:
        return np.arange(count, dtype=np.int32)
    return np.random.default_rng(seed).permutation(np.arange(count, dtype=np.int32) % folds)


def class_means(labels: np.ndarray) -> np.ndarray:
    """float32 [C]: the share of positives among the known labels int8 [N, C]; 0 where none is known."""
    known = labels >= 0
    return ((labels == 1).sum(0) / np.maximum(known.sum(0), 1)).astype(np.float32)


def targets(labels: np.ndarray) -> np.ndarray:
    """float32 [N, C]: known labels less their class's mean, 0 for unknown ones."""
    return np.where(labels >= 0, (labels == 1) - class_means(labels), 0).astype(np.float32)


def mean_ap(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean average precision over the classes with a positive; NaN without one or where a score is NaN."""
    if not np.isfinite(scores).all():
        return float("nan")
    ap = average_precision(scores, labels)
    return float(np.nanmean(ap)) if np.isfinite(ap).any() else float("nan")


class Folds:
    """The held-out parts of N images and the right sides of their systems, made once for many ridges.

    Scores are linear in the targets, and the targets of every fold, made with its own means, come from two right sides:
    positives, and known labels.

    Attributes:
      labels: int8 [N, C] in {1, 0, -1}.
      right: float32 [N, K]: positives [N, C] beside known labels, [N, C] or, where all are known, [N, 1].
      members: int32 [F, B], the images of each fold, padded with -1.
    """

    def __init__(self, labels: np.ndarray, fold_of: np.ndarray):
        self.labels = labels
        known, positive = labels >= 0, labels == 1
        kept = known if not known.all() else np.ones((len(labels), 1), bool)
        self.right = np.concatenate([positive, kept], axis=1).astype(np.float32)
        count = int(fold_of.max()) + 1
        per_fold = np.zeros((2, count, labels.shape[1]))
        np.add.at(per_fold[0], fold_of, positive)
        np.add.at(per_fold[1], fold_of, known)
        others = per_fold.sum(1, keepdims=True) - per_fold
        self._means = (others[0] / np.maximum(others[1], 1))[fold_of]  # [N, C], of the images of the other folds
        order = np.argsort(fold_of, kind="stable")
        sizes = np.bincount(fold_of, minlength=count)
        places = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self.members = np.full((count, sizes.max()), -1, np.int32)
        self.members[fold_of[order], places] = order

    def scores(self, held: np.ndarray) -> np.ndarray:
        """Scores float32 [N, C] of held-out images from those of the two right sides [N, K], each fold's own."""
        classes = self.labels.shape[1]
        return (held[:, :classes] - self._means * held[:, classes:] + self._means).astype(np.float32)

    def of_targets(self, solved: jax.Array) -> jax.Array:
        """What solves for the `targets` of all images [R, C], from what solves for the two right sides [R, K]."""
        classes = self.labels.shape[1]
        return solved[:, :classes] - class_means(self.labels)[None] * solved[:, classes:]
