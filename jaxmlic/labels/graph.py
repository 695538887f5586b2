"""Graphs over labels: how often classes occur together, and the matrix that a graph convolution multiplies with.

Section D of MSCNN-LCE-MIC and Section 3.3 of ML-GCN (Chen, Wei, Wang and Guo, CVPR 2019). Plain numpy, once a run.
"""

import numpy as np

STYLES = ("paper", "ml_gcn", "pmi", "identity")
_EPSILON = 1e-6  # theta of eq 8; ML-GCN's code has the same


def cooccurrence(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often two classes are present in the same image (eq 6); absent and unknown both count 0.

    Args:
      labels: int8 [N, C] in {1, 0, -1}.

    Returns:
      (counts, num_positive): int64 [C, C], symmetric with a zero diagonal, and int64 [C], images with each class.

    Raises:
      ValueError: labels are not two-dimensional.

    >>> counts, num_positive = cooccurrence(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]]))
    >>> counts.tolist(), num_positive.tolist()
    ([[0, 2, 1], [2, 0, 0], [1, 0, 0]], [3, 2, 1])
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"labels must be [N, C], not {labels.shape}")
    counts = np.zeros((labels.shape[1],) * 2, np.int64)
    for start in range(0, len(labels), 8192):  # in blocks: float32 (exact below 2^24) takes four times the memory
        present = (labels[start : start + 8192] == 1).astype(np.float32)
        counts += (present.T @ present).astype(np.int64)
    num_positive = counts.diagonal().copy()
    np.fill_diagonal(counts, 0)
    return counts, num_positive


def association(counts: np.ndarray, num_positive: np.ndarray, style: str = "paper") -> np.ndarray:
    """The association of each pair of labels, which `adjacency` compares with its threshold.

    For "pmi" the normalised pointwise mutual information (Bouma, 2009) over all pairs that occur, from 0 (as often as
    by chance, or less) to 1 (neither occurs with any other label); it is symmetric, and a frequent class is not
    associated with every other by its frequency alone. For the other styles P'_ij = P(j | i) = counts_ij / N_i (eq 7),
    whose graph is directed.

    Args:
      counts: [C, C], not negative; the diagonal is ignored.
      num_positive: [C], not negative.
      style: one of STYLES.

    Returns:
      float64 [C, C] in 0..1 with a zero diagonal. A class that never occurs has a row of zeros.

    Raises:
      ValueError: another style, shapes that do not fit, counts that are negative or not finite, a pair that occurs
        more often than one of its classes.
    """
    counts, num_positive = _checked(counts, num_positive)
    if style not in STYLES:
        raise ValueError(f"style {style!r} is none of {', '.join(STYLES)}")
    if style != "pmi":
        return _ratio(counts, num_positive[:, None])
    total, marginal = counts.sum(), counts.sum(1)
    pair = _ratio(counts, np.full_like(counts, total))
    lift = _ratio(counts * total, marginal[:, None] * marginal[None, :])
    # If only one pair of classes occurs, its probability is 1, and its association too. Without pairs all are 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        normalised = np.where(pair < 1, np.log(lift) / -np.log(pair), 1.0)
    return np.where(lift > 1, normalised, 0.0)


def adjacency(
    counts: np.ndarray,
    num_positive: np.ndarray,
    threshold: float = 0.4,
    reweight: float = 0.25,
    style: str = "paper",
) -> np.ndarray:
    r"""The matrix that a graph convolution multiplies with: act(adjacency @ H @ W) for label embeddings H [C, D].

    With P' and the normalised mutual information of `association`, and p_ij = 0 below the threshold:

    - "paper": eqs 6 to 8. The sum is over all of row i, as eq 8 prints it, so entries below the threshold count in it.
      Eq 8 prints its two cases in the wrong order. D has the row sums of A:

      .. math:: A_{ij} = \lambda \frac{p_{ij}}{\sum_j P'_{ij} + 10^{-6}} + [i = j], \qquad D^{-1/2} A\, D^{-1/2}
    - "ml_gcn": ML-GCN's released code. B_ij = 1 from the threshold on, A = reweight * B_ij / (sum_i B_ij + 1e-6) + I,
      and (A D^-1/2)^T D^-1/2 = D^-1/2 A^T D^-1/2, so label j receives from the labels i with a high P(j | i).
    - "pmi": as "paper", with the normalised mutual information instead of P', and the sum over the entries from the
      threshold on. Its values are smaller than P': 0.1 corresponds to 0.4 (on VOC 2007 no pair reaches 0.4).
    - "identity": I, a network without a graph; only the shape of the counts is used.

    Args:
      counts: [C, C] from `cooccurrence`.
      num_positive: [C].
      threshold: phi (tau in ML-GCN), above 0 and up to 1; from it on, a pair is an edge.
      reweight: lambda (p in ML-GCN), 0..1: the weight of the neighbours against a label's own 1.
      style: one of STYLES.

    Returns:
      float32 [C, C], finite. A class without edges, such as one without positives, keeps its own embedding
      (a row of I).

    Raises:
      ValueError: a value out of its range, or what `association` raises.

    >>> counts, num_positive = np.array([[0, 2], [2, 0]]), np.array([4, 2])
    >>> print(adjacency(counts, num_positive).round(2))  # a quarter of a label's row is its neighbour's
    [[0.8 0.2]
     [0.2 0.8]]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} lies outside 0..1, or is 0: then all labels would be neighbours")
    if not 0 <= reweight <= 1:
        raise ValueError(f"reweight {reweight} lies outside 0..1")
    strength = association(counts, num_positive, style)
    own = np.eye(len(strength))
    if style == "identity":
        return own.astype(np.float32)
    kept = np.where(strength >= threshold, strength, 0)
    if style == "ml_gcn":
        edges = (kept > 0).astype(np.float64)
        matrix = (reweight * edges / (edges.sum(0, keepdims=True) + _EPSILON) + own).T
        degree = matrix.sum(0)  # the row sums before the transposition
    else:
        total = (strength if style == "paper" else kept).sum(1, keepdims=True)
        matrix = reweight * kept / (total + _EPSILON) + own
        degree = matrix.sum(1)
    scale = degree**-0.5
    return (scale[:, None] * matrix * scale[None, :]).astype(np.float32)


def _checked(counts: np.ndarray, num_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, the diagonal zero."""
    counts, num_positive = np.array(counts, np.float64), np.asarray(num_positive, np.float64)
    if num_positive.ndim != 1 or counts.shape != (len(num_positive),) * 2:
        raise ValueError(f"counts {counts.shape} and num_positive {num_positive.shape} are not [C, C] and [C]")
    np.fill_diagonal(counts, 0)
    if not (np.isfinite(counts).all() and np.isfinite(num_positive).all() and (counts >= 0).all()):
        raise ValueError("counts and num_positive must be finite and not negative")
    if (counts > np.minimum(num_positive[:, None], num_positive[None, :])).any():
        raise ValueError("a pair of classes occurs more often than one of the two: counts and num_positive do not fit")
    return counts, num_positive


def _ratio(counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """counts / totals, 0 where the total is 0."""
    return np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
