"""Labels for unlabelled images, from the labelled ones near them in feature space.

Two methods on a sparse graph: the improved label propagation of MSCNN-LCE-MIC (Section A), and the diffusion of Iscen,
Tolias, Avrithis and Chum (Label Propagation for Deep Semi-supervised Learning, CVPR 2019) that it is compared with.

    indices, squared = knn(features, 20, "euclidean")
    found = improved_label_propagation(heat_kernel_graph(indices, squared), labels)

    indices, cosines = knn(features, 50, "cosine")
    found = diffusion(cosine_graph(indices, cosines), labels)

Where the exact search takes too long, `knn(..., search="approximate")` uses an index; or the neighbours come from
elsewhere. Memory grows with N (k + C): no matrix over all pairs exists. Nothing here is random.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import sparse

from jaxmlic import sharding
from jaxmlic.errors import UserError
from jaxmlic.propagation.neighbours import cosine_graph, heat_kernel_graph, knn

__all__ = [
    "PseudoLabels",
    "by_frequency",
    "class_weights",
    "cosine_graph",
    "diffusion",
    "heat_kernel_graph",
    "improved_label_propagation",
    "knn",
    "link_strength",
]

_ROWS, _COLUMNS = 256, 64  # of sparse products and of right sides that are held at a time
_SAME = 1e-9  # relative difference of sums that may be rounding alone: a tie


class PseudoLabels(NamedTuple):
    """What propagation found for N images and C classes.

    Attributes:
      labels: int8 [N, C]: values known before as they were; else 1 or 0, and -1 where nothing labelled is in reach.
      scores: float32 [N, C] in 0..1, the share of each label in what reaches an image; 0 where nothing does.
      weights: float32 [N] in 0..1, how far the labels of an image are to be trusted: 1 where all were known.
      num_rounds: of updates, or of conjugate gradient steps.
    """

    labels: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    num_rounds: int


# --- improved label propagation


def link_strength(graph: sparse.csr_array) -> sparse.csr_array:
    """Eq 1 of MSCNN-LCE-MIC on the edges: the sum of w(A, C) + w(C, B) over the neighbours C that A and B share.

    Args:
      graph: weights [N, N], symmetric, above 0, with an empty diagonal.

    Returns:
      float64 [N, N], symmetric; an edge without a shared neighbour has no strength.
    """
    graph = sparse.csr_array(graph)
    edges = graph.copy()
    edges.data = np.ones_like(edges.data)

    # In blocks: the product alone joins all that have a neighbour in common, some k times more than the edges.
    def shared(start: int) -> sparse.csr_array:
        return (graph[start : start + _ROWS] @ edges).multiply(edges[start : start + _ROWS])

    with ThreadPoolExecutor(sharding.cores()) as pool:
        product = sparse.vstack(list(pool.map(shared, range(0, graph.shape[0], _ROWS))), format="csr")
    return (product + product.T).tocsr()


def improved_label_propagation(
    graph: sparse.csr_array,
    labels: np.ndarray,
    *,
    multi_label: bool = True,
    strength: sparse.csr_array | None = None,
    max_rounds: int = 1000,
) -> PseudoLabels:
    """Labels travel along links until nothing changes (MSCNN-LCE-MIC, Section A).

    In each round every image is told by all its neighbours at once what they had in the round before, weighted by
    `link_strength`. With one label an image it takes the label with the highest sum, of equals (to nine digits) the
    one with the lowest index. With many, a label's score is its sum divided by the sum over all neighbours of which the
    label is known by now, and it is kept from 0.5 on. Values that are known stay.

    The paper updates one image after the other; all at once the result does not depend on the order of the images. It
    can end in two states that follow each other for ever: images that still change are then given what both rounds
    together say, and the rest goes on. With symmetric weights nothing else can keep it from ending.

    Args:
      graph: [N, N] as heat_kernel_graph gives it.
      labels: int8 [N, C] in {1, 0, -1}; an unlabelled image has -1 throughout; single -1 are found too.
      multi_label: False for exactly one label an image.
      strength: `link_strength(graph)`, for a caller that uses a graph more than once.
      max_rounds: where it stops in any case.

    Returns:
      PseudoLabels; the weight of an image is the share of its labels that it could be told, as the paper has no other.

    Raises:
      UserError: nothing is labelled; with multi_label=False, an image with two labels, or with some but no positive.
      ValueError: shapes that do not fit.
    """
    labels = _checked(graph, labels, multi_label)
    strength = link_strength(graph) if strength is None else strength
    fixed = labels != -1
    before, current, told_before = None, labels, None
    scores = np.zeros(labels.shape, np.float32)
    num_rounds = 0
    while num_rounds < max_rounds:
        num_rounds += 1
        told = _told(strength, current)
        new = np.where(fixed, current, _decide(told, current, multi_label))
        scores = _share(*told)
        if np.array_equal(new, current):
            break
        if before is not None and np.array_equal(new, before):
            both = tuple(a + b for a, b in zip(told, told_before, strict=True))
            changing = new != current
            if not multi_label:
                changing = np.broadcast_to(changing.any(1, keepdims=True), changing.shape)
            new = np.where(changing, _decide(both, current, multi_label), new)
            fixed = fixed | changing
            before = None
        else:
            before = current
        current, told_before = new, told
    weights = np.mean(current != -1, axis=1, dtype=np.float32)
    return PseudoLabels(current, np.where(labels == -1, scores, labels).astype(np.float32), weights, num_rounds)


def _told(strength: sparse.csr_array, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Summed strength of neighbours with a label [N, C], and of those of which it is known [N, C] or [N, 1]."""
    return strength @ (current == 1).astype(np.float64), strength @ _known(current)


def _known(labels: np.ndarray) -> np.ndarray:
    """1 where a label is known: float64 [N, C], or [N, 1] when images are known or unknown as a whole."""
    known = labels != -1
    whole = bool((known == known[:, :1]).all())
    return (known[:, :1] if whole else known).astype(np.float64)


def _decide(told: tuple[np.ndarray, np.ndarray], current: np.ndarray, multi_label: bool) -> np.ndarray:
    """Labels int8 [N, C] after a round; those that are told nothing stay."""
    having, known = told
    if multi_label:
        new = having >= 0.5 * (1 - _SAME) * known
    else:
        first = np.argmax(having >= (1 - _SAME) * having.max(1, keepdims=True), axis=1)
        new = np.arange(having.shape[1]) == first[:, None]
    return np.where(known > 0, new, current).astype(np.int8)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in 0..1, and 0 where the whole is nothing: [N, C] of [N, C] and [N, C] or [N, 1]."""
    whole = np.broadcast_to(whole, part.shape)
    share = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return np.clip(share, 0, 1)


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

    Y has 1 for each known positive. With one label an image, its scores are a row of Z divided by its sum, its label
    the largest (of equals the first), its weight 1 - H(scores) / log C. The paper has no form for many labels. Here a
    label's score is its Z divided by that of the images of which the label is known, present or absent: the share of
    the labelled mass that has it. It is kept from 0.5 on, and the weight is the mean over labels of
    1 - H(score) / log 2.

    Args:
      graph: [N, N] as cosine_graph gives it.
      labels: int8 [N, C] in {1, 0, -1}; an unlabelled image has -1 throughout.
      multi_label: False for exactly one label an image.
      alpha: 0..1, 1 excluded: how far mass travels.
      balance: divide each column of Y by its sum, for one label an image. The paper does not say so, its released code
        does; without it, where classes mix, the class with most labelled images takes what is far from all.
      tolerance: of conjugate gradients, the residual over the right side; at least 1e-12.

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
    having, num_rounds = _solve(normalised, mass, alpha, tolerance)
    if multi_label:
        known, more = _solve(normalised, _known(labels), alpha, tolerance)
        num_rounds = max(num_rounds, more)
    else:
        known = having.sum(1, keepdims=True)
    scores = _share(having, known)
    found = _decide((having, known), labels, multi_label)
    certain = _certainty(scores, multi_label)
    reached = np.broadcast_to(known > 0, labels.shape)
    certain = np.where(labels != -1, 1.0, np.where(reached, certain, 0.0)).mean(1)
    new = np.where(labels != -1, labels, found).astype(np.int8)
    return PseudoLabels(new, np.where(labels == -1, scores, labels).astype(np.float32), np.float32(certain), num_rounds)


def _solve(normalised: sparse.csr_array, right: np.ndarray, alpha: float, tolerance: float) -> tuple[np.ndarray, int]:
    """(I - alpha S) Z = right [N, C] by conjugate gradients, each column with its own steps: Z and the most steps."""
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
    # Each step takes off a fixed share at least, by the condition number (1 + alpha) / (1 - alpha).
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
    return np.maximum(solution, 0), steps  # below 0 by rounding alone


def _certainty(scores: np.ndarray, multi_label: bool) -> np.ndarray:
    """1 - entropy over its largest value: [N, C] a label, or [N, 1] of the distribution over labels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(scores > 0, -scores * np.log(scores), 0)
        if multi_label:
            absent = 1 - scores
            parts += np.where(absent > 0, -absent * np.log(absent), 0)
            return 1 - parts / np.log(2)
        return 1 - parts.sum(1, keepdims=True) / np.log(max(scores.shape[1], 2))


def by_frequency(found: PseudoLabels, labels: np.ndarray) -> PseudoLabels:
    """Labels decided anew, each for as large a share of the found images as of the labelled ones, by the scores.

    Where few images have a label, few have a score of 0.5 for it: decided there, rare labels die out, and whoever
    trains on that is told that they are absent. The share is that of the positives among the images for which the
    label is known; of equal scores the first image has it, and a score of 0 never gives a label.

    Args:
      found: of `improved_label_propagation` or `diffusion` with many labels an image.
      labels: int8 [N, C] in {1, 0, -1} that it was called with.

    Returns:
      `found` with other labels where they were not known; what nothing labelled reaches stays -1.
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
    """Iscen et al.'s weight against imbalance: one over the images of a class, known and found, with a mean of 1 each.

    Args:
      labels: int8 [N, C] in {1, 0, -1}, as PseudoLabels has them.

    Returns:
      float32 [C]: the mean number of positives a class over that of this one, and 1 for a class that has none.
    """
    positives = np.count_nonzero(np.asarray(labels) == 1, axis=0)
    mean = positives.mean()
    return np.divide(mean, positives, out=np.ones(len(positives)), where=positives > 0).astype(np.float32)
