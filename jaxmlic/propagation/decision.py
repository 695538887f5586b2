"""What propagation finds, and how it is decided: labels and weights of images from the scores that reached them."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from jaxmlic.errors import UserError

_TIE = 1e-9  # relative difference up to which sums are a tie: rounding alone can cause it
WEIGHTS = ("scores", "entropy", "one")


class PseudoLabels(NamedTuple):
    """What propagation found for N images and C classes.

    Attributes:
      labels: int8 [N, C]: known values unchanged; the others 1 or 0, or -1 where no path leads to a labelled image.
      scores: float32 [N, C] in 0..1, the share of each label in what arrives at an image; 0 where nothing does.
      weights: float32 [N] in 0..1, the confidence in the labels of an image: 1 where all were known.
      num_rounds: number of updates, or of conjugate gradient steps.
    """

    labels: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    num_rounds: int


def known_mask(labels: np.ndarray) -> np.ndarray:
    """1 where a label is known: float64 [N, C], or [N, 1] when images are known or unknown as a whole."""
    known = labels != -1
    whole = bool((known == known[:, :1]).all())
    return (known[:, :1] if whole else known).astype(np.float64)


def decide(sums: tuple[np.ndarray, np.ndarray], current: np.ndarray, multi_label: bool) -> np.ndarray:
    """Labels int8 [N, C] from the sums (positive, known) of a round; `current` where no neighbour is known."""
    positive, known = sums
    if multi_label:
        new = positive >= 0.5 * (1 - _TIE) * known
    else:
        first = np.argmax(positive >= (1 - _TIE) * positive.max(1, keepdims=True), axis=1)
        new = np.arange(positive.shape[1]) == first[:, None]
    return np.where(known > 0, new, current).astype(np.int8)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in 0..1, 0 where the whole is 0: [N, C] from [N, C] and [N, C] or [N, 1]."""
    whole = np.broadcast_to(whole, part.shape)
    ratio = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return np.clip(ratio, 0, 1)


def checked(graph: sparse.csr_array, labels: np.ndarray, multi_label: bool) -> np.ndarray:
    labels = np.asarray(labels, np.int8)
    if labels.ndim != 2 or graph.shape != (len(labels),) * 2:
        raise ValueError(f"graph {graph.shape} and labels {labels.shape} are not [N, N] and [N, C]")
    if not (labels == 1).any():
        raise UserError(f"none of {len(labels)} images has a positive label: there is nothing to propagate")
    if not multi_label:
        wrong = ((labels == 1).sum(1) != 1) & (labels != -1).any(1)
        if wrong.any():
            row = int(np.argmax(wrong))
            count = (labels[row] == 1).sum()
            raise UserError(
                f"image {row} has {count} labels: where each has a single one (--single-label) it needs one"
            )
        labels = np.where((labels == 1).any(1, keepdims=True) & (labels == -1), 0, labels).astype(np.int8)
    return labels


def by_frequency(found: PseudoLabels, labels: np.ndarray) -> PseudoLabels:
    """Labels by frequency instead of a threshold: each is as frequent in the found images as in the labelled ones.

    A threshold of 0.5 gives rare labels to almost no image, and a model trained on that learns that they are absent.
    Here each label goes to the images with the highest scores, as many as its share of positives among the images where
    it is known asks for; ties by index, and never to an image with score 0.

    Args:
      found: result of `improved_label_propagation` or `diffusion` with many labels an image.
      labels: int8 [N, C] in {1, 0, -1}, the argument that gave it.

    Returns:
      `found` with new labels where they were unknown; -1 stays where no labelled image was in reach.
    """
    new = found.labels.copy()
    for c, (known, scores) in enumerate(zip(np.asarray(labels).T, found.scores.T, strict=True)):
        images = np.flatnonzero((known == -1) & (found.labels[:, c] != -1))
        share = np.mean(known[known != -1] == 1) if (known != -1).any() else 0.0
        best = images[np.argsort(-scores[images], kind="stable")][: round(share * len(images))]
        new[images, c] = 0
        new[best[scores[best] > 0], c] = 1
    return found._replace(labels=new)


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Iscen et al.'s weights against class imbalance: inversely proportional to the number of images of a class.

    Args:
      labels: int8 [N, C] in {1, 0, -1}, known and found.

    Returns:
      float32 [C]: the mean number of positives of a class divided by the class's own; 1 for a class without positives.
    """
    positives = np.count_nonzero(np.asarray(labels) == 1, axis=0)
    mean = positives.mean()
    return np.divide(mean, positives, out=np.ones(len(positives)), where=positives > 0).astype(np.float32)


def certainty(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """1 - entropy / its maximum: [N, C] for each label, or [N, 1] for the distribution over labels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(scores > 0, -scores * np.log(scores), 0)
        if multi_label:
            absent = 1 - scores
            parts += np.where(absent > 0, -absent * np.log(absent), 0)
            return 1 - parts / np.log(2)
        return 1 - parts.sum(1, keepdims=True) / np.log(max(scores.shape[1], 2))


def leave_unknown(
    found: PseudoLabels, labels: np.ndarray, low: float, high: float, *, multi_label: bool = True
) -> PseudoLabels:
    """Doubtful labels become unknown (-1): those found with a score from `low` on and below `high`.

    Training leaves out a label that is unknown. With one label an image, an image is unknown as a whole if the score of
    its label lies there.

    Args:
      found: result of a method.
      labels: int8 [N, C] in {1, 0, -1}, the argument that gave it: known labels stay.
      low, high: 0 <= low < high <= 1.
      multi_label: False for exactly one label an image.
    """
    doubtful = (found.scores >= low) & (found.scores < high)
    if not multi_label:
        doubtful = np.broadcast_to((doubtful & (found.labels == 1)).any(1, keepdims=True), doubtful.shape)
    return found._replace(labels=np.where(doubtful & (labels == -1), -1, found.labels).astype(np.int8))


def weigh(found: PseudoLabels, labels: np.ndarray, kind: str, *, multi_label: bool = True) -> PseudoLabels:
    """Weights by one rule for every method: the mean over an image's labels of how sure each is.

    A known label counts 1 and one that nothing reached 0. One that was found with score p counts by `kind`:
      "scores": p if present and 1 - p if absent; with one label an image, p of its label.
      "entropy": 1 - H(p) / log 2; with one label an image, 1 - H(scores) / log C.
      "one": 1.

    Args:
      found: result of a method, before `leave_unknown`.
      labels: int8 [N, C] in {1, 0, -1}, the argument that gave it.
      kind: one of WEIGHTS.
      multi_label: False for exactly one label an image.
    """
    if kind == "entropy":
        sure = certainty(found.scores, multi_label)
    elif kind == "scores" and multi_label:
        sure = np.where(found.labels == 1, found.scores, 1 - found.scores)
    elif kind == "scores":
        sure = np.where(found.labels == 1, found.scores, 0).sum(1, keepdims=True)
    else:
        sure = np.ones(found.labels.shape)
    sure = np.where(labels != -1, 1.0, np.where(found.labels != -1, sure, 0.0))
    return found._replace(weights=sure.mean(1).astype(np.float32))
