"""Labels for unlabelled images, from the labelled ones near them in feature space.

Three methods on a sparse graph: the improved label propagation of MSCNN-LCE-MIC (Section A), a soft one on the same
links, and the diffusion of Iscen, Tolias, Avrithis and Chum (Label Propagation for Deep Semi-supervised Learning, CVPR
2019) that it is compared with::

    indices, squared = knn(features, 20, "euclidean")
    found = improved_label_propagation(heat_kernel_graph(indices, squared), labels)

    indices, cosines = knn(features, 50, "cosine")
    found = diffusion(cosine_graph(indices, cosines), labels)

Where the exact search takes too long, `knn(..., search="approximate")` uses an index; or the neighbours come from
elsewhere. Memory grows with N (k + C). Nothing here is random.
"""

import numpy as np
from scipy import sparse

from jaxmlic import progress
from jaxmlic.propagation.decision import PseudoLabels, certainty, checked, decide, known_mask, ratio, weigh
from jaxmlic.propagation.graphs import link_strength

_COLUMNS = 64  # right sides that are solved for at a time


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
    labels = checked(graph, labels, multi_label)
    strength = link_strength(graph) if strength is None else strength
    fixed = labels != -1
    before, current, sums_before = None, labels, None
    scores = np.zeros(labels.shape, np.float32)
    num_rounds = 0
    with _propagating("rounds") as bar:
        while num_rounds < max_rounds:
            num_rounds += 1
            bar.advance()
            sums = _neighbour_sums(strength, current)
            new = np.where(fixed, current, decide(sums, current, multi_label))
            scores = ratio(*sums)
            if np.array_equal(new, current):
                break
            if before is not None and np.array_equal(new, before):
                both = tuple(a + b for a, b in zip(sums, sums_before, strict=True))
                changing = new != current
                if not multi_label:
                    changing = np.broadcast_to(changing.any(1, keepdims=True), changing.shape)
                new = np.where(changing, decide(both, current, multi_label), new)
                fixed = fixed | changing
                before = None
            else:
                before = current
            current, sums_before = new, sums
    weights = np.mean(current != -1, axis=1, dtype=np.float32)
    return PseudoLabels(current, np.where(labels == -1, scores, labels).astype(np.float32), weights, num_rounds)


def _propagating(unit: str) -> progress.Progress:
    """Of steps whose number nobody knows before the last one."""
    return progress.Progress("propagating", None, unit, transient=True)


def _neighbour_sums(strength: sparse.csr_array, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Summed strength of the neighbours with a label [N, C], and of those where it is known [N, C] or [N, 1]."""
    return strength @ (labels == 1).astype(np.float64), strength @ known_mask(labels)


# --- soft label propagation


def soft_label_propagation(
    graph: sparse.csr_array,
    labels: np.ndarray,
    *,
    multi_label: bool = True,
    strength: sparse.csr_array | None = None,
    tolerance: float = 1e-4,
    max_rounds: int = 1000,
) -> PseudoLabels:
    """Scores spread along the links of eq 1 and labels are decided once, at the end (Zhu and Ghahramani, 2002).

    Z <- P Z and K <- P K, P the `link_strength` with rows that sum to 1, from Z = 1 for known positives and K = 1 where
    a label is known; after each round the known values are set again (clamped). The score is Z / K, the share of
    positives in what has arrived so far: in the limit K is 1 wherever a path leads to a labelled image, and Z is the
    harmonic function. Where `improved_label_propagation` takes each round's arg max, nothing is rounded here.

    Args:
      graph, labels, multi_label, strength: as improved_label_propagation.
      tolerance: largest change of a value of Z or K in a round at which it ends.
      max_rounds: upper limit of rounds.

    Returns:
      PseudoLabels, decided and weighted as those of diffusion: the largest score, or a score of 0.5, and entropy.

    Raises:
      UserError, ValueError: as improved_label_propagation; a tolerance that is not above 0.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance {tolerance} is not above 0")
    labels = checked(graph, labels, multi_label)
    strength = link_strength(graph) if strength is None else strength
    total = np.asarray(strength.sum(1)).ravel()
    links = (sparse.diags_array(np.divide(1.0, total, out=np.zeros(len(total)), where=total > 0)) @ strength).tocsr()
    positive, known = (labels == 1).astype(np.float64), known_mask(labels)  # [N, C], and [N, C] or [N, 1]
    clamped = known > 0
    seeds, num_rounds = positive, 0
    with _propagating("rounds") as bar:
        while num_rounds < max_rounds:
            num_rounds += 1
            bar.advance()
            new = np.where(clamped, seeds, links @ positive), np.where(clamped, 1.0, links @ known)
            change = max(np.abs(new[0] - positive).max(), np.abs(new[1] - known).max())
            positive, known = new
            if change <= tolerance:
                break
    scores = np.where(labels == -1, ratio(positive, known), labels).astype(np.float32)
    new_labels = np.where(labels != -1, labels, decide((positive, known), labels, multi_label)).astype(np.int8)
    found = PseudoLabels(new_labels, scores, np.ones(len(labels), np.float32), num_rounds)
    return weigh(found, labels, "entropy", multi_label=multi_label)


# --- diffusion


def diffusion(
    graph: sparse.csr_array,
    labels: np.ndarray,
    *,
    multi_label: bool = True,
    alpha: float = 0.99,
    balance: bool = False,
    tolerance: float = 1e-6,
    max_steps: int | None = None,
) -> PseudoLabels:
    r"""Labelled mass spreads over the graph (Iscen et al., eqs 4, 10 and 11).

    .. math:: (I - \alpha S) Z = Y, \qquad S = D^{-1/2} W D^{-1/2}

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
      max_steps: upper limit of their steps, 20 in Iscen et al.'s code; None for none.

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
    labels = checked(graph, labels, multi_label)
    degree = np.asarray(graph.sum(1)).ravel()
    scale = sparse.diags_array(np.where(degree > 0, degree, 1) ** -0.5)
    normalised = (scale @ graph @ scale).tocsr()
    mass = (labels == 1).astype(np.float64)
    if balance:
        mass /= np.maximum(mass.sum(0), 1)
    positive, num_rounds = _solve(normalised, mass, alpha, tolerance, max_steps)
    if multi_label:
        known, steps = _solve(normalised, known_mask(labels), alpha, tolerance, max_steps)
        num_rounds = max(num_rounds, steps)
    else:
        known = positive.sum(1, keepdims=True)
    scores = ratio(positive, known)
    found = decide((positive, known), labels, multi_label)
    sure = np.where(known > 0, certainty(scores, multi_label), 0.0)  # [N, C], or [N, 1]
    weights = np.where(labels != -1, 1.0, sure).mean(1)
    new = np.where(labels != -1, labels, found).astype(np.int8)
    return PseudoLabels(new, np.where(labels == -1, scores, labels).astype(np.float32), np.float32(weights), num_rounds)


def _solve(
    normalised: sparse.csr_array, right: np.ndarray, alpha: float, tolerance: float, max_steps: int | None
) -> tuple[np.ndarray, int]:
    """Z of (I - alpha S) Z = right [N, C] by conjugate gradients, and the largest number of steps of a column.

    Own code, because the matrix multiplies all columns at once while each has its own step lengths and its own end.
    scipy's solver takes one column at a time and is 8 to 13 times slower; on the columns as one long vector it is 2.1
    to 2.6 times slower, and rare classes are solved less exactly. JAX's is limited to float32, unless all of JAX is
    switched.
    """
    with _propagating("steps") as bar:
        parts = [
            _solve_block(normalised, right[:, c : c + _COLUMNS], alpha, tolerance, max_steps, bar)
            for c in range(0, right.shape[1], _COLUMNS)
        ]
    return np.concatenate([z for z, _ in parts], axis=1), max(steps for _, steps in parts)


def _solve_block(
    normalised: sparse.csr_array,
    right: np.ndarray,
    alpha: float,
    tolerance: float,
    max_steps: int | None,
    bar: progress.Progress,
) -> tuple[np.ndarray, int]:
    solution, residual, direction = np.zeros_like(right), right.copy(), right.copy()
    squared = np.einsum("nc,nc->c", residual, residual)
    goal = tolerance**2 * squared
    steps = 0
    # It ends: each step shrinks the error by a factor that the condition number (1 + alpha) / (1 - alpha) bounds.
    while (active := squared > goal).any() and (max_steps is None or steps < max_steps):
        steps += 1
        bar.advance()
        product = direction - alpha * (normalised @ direction)
        curvature = np.einsum("nc,nc->c", direction, product)
        step = np.divide(squared, curvature, out=np.zeros_like(squared), where=active)
        solution += step * direction
        residual -= step * product
        last, squared = squared, np.einsum("nc,nc->c", residual, residual)
        direction *= np.divide(squared, last, out=np.zeros_like(squared), where=active)
        direction += residual
    return np.maximum(solution, 0), steps  # negative by rounding, or where the steps were few
