"""Labels for unlabelled images, from the labelled ones near them in feature space.

Two methods on a sparse graph: the improved label propagation of MSCNN-LCE-MIC (Section A), and the diffusion of Iscen,
Tolias, Avrithis and Chum (Label Propagation for Deep Semi-supervised Learning, CVPR 2019) that it is compared with.

    indices, squared = knn(features, 20, "euclidean")
    found = improved_label_propagation(heat_kernel_graph(indices, squared), labels)

    indices, cosines = knn(features, 50, "cosine")
    found = diffusion(cosine_graph(indices, cosines), labels)

Where the exact search takes too long, `knn(..., search="approximate")` uses an index; or the neighbours come from
elsewhere. Memory grows with N (k + C). Nothing here is random.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from jaxmlic.errors import UserError
from jaxmlic.propagation.graphs import link_strength

_COLUMNS = 64  # right sides that are solved for at a time
_TIE = 1e-9  # relative difference up to which sums are a tie: rounding alone can cause it


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


# --- improved label propagation


def improved_label_propagation(
    graph: sparse.csr_array,
    labels: np.ndarray,
    *,
    multi_label: bool = True,
    strength: sparse.csr_array | None = None,
    max_rounds: int = 1000,
) -> PseudoLabels:
    """Labels spread along links until no label changes (MSCNN-LCE-MIC, Section A).

    Each round updates all images at once from their neighbours' labels of the round before, weighted by
    `link_strength`. With one label an image, the label with the highest sum wins, ties (to nine digits) by index. With
    many, a label's score is its sum divided by the sum over all neighbours whose value for the label is known by then;
    the image gets the label from 0.5 on. Known values stay.

    The paper updates one image after the other; updating all at once makes the result independent of the order of the
    images. Two states can then alternate for ever: images that change between them get their labels from the sums over
    both rounds, fixed from then on, and the other images go on. With symmetric weights no longer cycle exists.

    Args:
      graph: [N, N] from heat_kernel_graph.
      labels: int8 [N, C] in {1, 0, -1}; an unlabelled image has -1 throughout; a single -1 is filled in too.
      multi_label: False for exactly one label an image.
      strength: `link_strength(graph)`, for a caller that uses a graph more than once.
      max_rounds: upper limit of rounds.

    Returns:
      PseudoLabels; the paper has no weights, so the weight of an image is the share of its labels that are known or
      found.

    Raises:
      UserError: nothing is labelled; with multi_label=False, an image with two labels, or with some but no positive.
      ValueError: shapes that do not fit.
    """
    labels = _checked(graph, labels, multi_label)
    strength = link_strength(graph) if strength is None else strength
    fixed = labels != -1
    before, current, sums_before = None, labels, None
    scores = np.zeros(labels.shape, np.float32)
    num_rounds = 0
    while num_rounds < max_rounds:
        num_rounds += 1
        sums = _neighbour_sums(strength, current)
        new = np.where(fixed, current, _decide(sums, current, multi_label))
        scores = _ratio(*sums)
        if np.array_equal(new, current):
            break
        if before is not None and np.array_equal(new, before):
            both = tuple(a + b for a, b in zip(sums, sums_before, strict=True))
            changing = new != current
            if not multi_label:
                changing = np.broadcast_to(changing.any(1, keepdims=True), changing.shape)
            new = np.where(changing, _decide(both, current, multi_label), new)
            fixed = fixed | changing
            before = None
        else:
            before = current
        current, sums_before = new, sums
    weights = np.mean(current != -1, axis=1, dtype=np.float32)
    return PseudoLabels(current, np.where(labels == -1, scores, labels).astype(np.float32), weights, num_rounds)


def _neighbour_sums(strength: sparse.csr_array, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Summed strength of the neighbours with a label [N, C], and of those where it is known [N, C] or [N, 1]."""
    return strength @ (labels == 1).astype(np.float64), strength @ _known(labels)


def _known(labels: np.ndarray) -> np.ndarray:
    """1 where a label is known: float64 [N, C], or [N, 1] when images are known or unknown as a whole."""
    known = labels != -1
    whole = bool((known == known[:, :1]).all())
    return (known[:, :1] if whole else known).astype(np.float64)


def _decide(sums: tuple[np.ndarray, np.ndarray], current: np.ndarray, multi_label: bool) -> np.ndarray:
    """Labels int8 [N, C] from the sums (positive, known) of a round; `current` where no neighbour is known."""
    positive, known = sums
    if multi_label:
        new = positive >= 0.5 * (1 - _TIE) * known
    else:
        first = np.argmax(positive >= (1 - _TIE) * positive.max(1, keepdims=True), axis=1)
        new = np.arange(positive.shape[1]) == first[:, None]
    return np.where(known > 0, new, current).astype(np.int8)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in 0..1, 0 where the whole is 0: [N, C] from [N, C] and [N, C] or [N, 1]."""
    whole = np.broadcast_to(whole, part.shape)
    ratio = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return np.clip(ratio, 0, 1)


def _checked(graph: sparse.csr_array, labels: np.ndarray, multi_label: bool) -> np.ndarray:
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


# --- diffusion


def diffusion(
    graph: sparse.csr_array,
    labels: np.ndarray,
    *,
    multi_label: bool = True,
    alpha: float = 0.99,
    balance: bool = False,
    tolerance: float = 1e-6,
) -> PseudoLabels:
    """Labelled mass spreads over the graph: (I - alpha S) Z = Y, S = D^-1/2 W D^-1/2 (Iscen et al., eqs 4, 10 and 11).

    Y has 1 for each known positive. With one label an image, the scores are its row of Z divided by the row's sum, the
    label is the largest of them (ties by index), and the weight is 1 - H(scores) / log C. The paper has no form for
    many labels. Here Z is also solved for the images where a label is known, present or absent; the score is the ratio
    of the two, the share of positives in the arriving mass. The image gets the label from 0.5 on, and its weight is the
    mean over labels of 1 - H(score) / log 2.

    Args:
      graph: [N, N] from cosine_graph.
      labels: int8 [N, C] in {1, 0, -1}; an unlabelled image has -1 throughout.
      multi_label: False for exactly one label an image.
      alpha: 0..1, 1 excluded: how far mass travels.
      balance: divide each column of Y by its sum, for one label an image. The paper's released code does this, its text
        does not. Without it, the class with the most labelled images wins among images far from all labelled ones.
      tolerance: relative residual at which conjugate gradients stop; at least 1e-12.

    Returns:
      PseudoLabels; the weight is 1 for known values, and 0 where no labelled mass arrives.

    Raises:
      UserError: as improved_label_propagation.
      ValueError: shapes that do not fit, alpha or tolerance out of its range, or `balance` for many labels.
    """
    if not 0 <= alpha < 1 or (balance and multi_label):
        raise ValueError(f"alpha {alpha} lies outside 0..1, or balance=True is used with multi_label=True")
    if not 1e-12 <= tolerance < 1:
        raise ValueError(f"tolerance {tolerance} lies outside 1e-12..1: rounding would never let it be reached")
    labels = _checked(graph, labels, multi_label)
    degree = np.asarray(graph.sum(1)).ravel()
    scale = sparse.diags_array(np.where(degree > 0, degree, 1) ** -0.5)
    normalised = (scale @ graph @ scale).tocsr()
    mass = (labels == 1).astype(np.float64)
    if balance:
        mass /= np.maximum(mass.sum(0), 1)
    positive, num_rounds = _solve(normalised, mass, alpha, tolerance)
    if multi_label:
        known, steps = _solve(normalised, _known(labels), alpha, tolerance)
        num_rounds = max(num_rounds, steps)
    else:
        known = positive.sum(1, keepdims=True)
    scores = _ratio(positive, known)
    found = _decide((positive, known), labels, multi_label)
    certainty = np.where(known > 0, _certainty(scores, multi_label), 0.0)  # [N, C], or [N, 1]
    weights = np.where(labels != -1, 1.0, certainty).mean(1)
    new = np.where(labels != -1, labels, found).astype(np.int8)
    return PseudoLabels(new, np.where(labels == -1, scores, labels).astype(np.float32), np.float32(weights), num_rounds)


def _solve(normalised: sparse.csr_array, right: np.ndarray, alpha: float, tolerance: float) -> tuple[np.ndarray, int]:
    """Z of (I - alpha S) Z = right [N, C] by conjugate gradients, and the largest number of steps of a column.

    Own code, because the matrix multiplies all columns at once while each has its own step lengths and its own end.
    scipy's solver takes one column at a time and is 8 to 13 times slower; on the columns as one long vector it is 2.1
    to 2.6 times slower, and rare classes are solved less exactly. JAX's is limited to float32, unless all of JAX is
    switched.
    """
    parts = [
        _solve_block(normalised, right[:, c : c + _COLUMNS], alpha, tolerance)
        for c in range(0, right.shape[1], _COLUMNS)
    ]
    return np.concatenate([z for z, _ in parts], axis=1), max(steps for _, steps in parts)


def _solve_block(
    normalised: sparse.csr_array, right: np.ndarray, alpha: float, tolerance: float
) -> tuple[np.ndarray, int]:
    solution, residual, direction = np.zeros_like(right), right.copy(), right.copy()
    squared = np.einsum("nc,nc->c", residual, residual)
    goal = tolerance**2 * squared
    steps = 0
    # It ends: each step shrinks the error by a factor that the condition number (1 + alpha) / (1 - alpha) bounds.
    while (active := squared > goal).any():
        steps += 1
        product = direction - alpha * (normalised @ direction)
        curvature = np.einsum("nc,nc->c", direction, product)
        step = np.divide(squared, curvature, out=np.zeros_like(squared), where=active)
        solution += step * direction
        residual -= step * product
        last, squared = squared, np.einsum("nc,nc->c", residual, residual)
        direction *= np.divide(squared, last, out=np.zeros_like(squared), where=active)
        direction += residual
    return np.maximum(solution, 0), steps  # only rounding makes a value negative


def _certainty(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """1 - entropy / its maximum: [N, C] for each label, or [N, 1] for the distribution over labels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(scores > 0, -scores * np.log(scores), 0)
        if multi_label:
            absent = 1 - scores
            parts += np.where(absent > 0, -absent * np.log(absent), 0)
            return 1 - parts / np.log(2)
        return 1 - parts.sum(1, keepdims=True) / np.log(max(scores.shape[1], 2))


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
