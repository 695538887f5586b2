"""Average precision of each class, in numpy: all-point, VOC 2010's envelope and VOC 2007's eleven points."""

from collections.abc import Callable

import numpy as np


def average_precision(scores: np.ndarray, labels: np.ndarray, rule: str = "all_point") -> np.ndarray:
    """AP of each class, float64 [C], NaN for a class without positives.

    Args:
      scores: float [N, C].
      labels: int8 [N, C] in {1, 0, -1}.
      rule: `all_point`, `voc10` or `voc07_11pt`.

    Raises:
      ValueError: as `evaluate`, or an unknown rule.
    """
    if rule not in _AP_RULES:
        raise ValueError(f"unknown AP rule {rule!r}; known: {', '.join(_AP_RULES)}")
    scores, labels = checked(scores, labels)
    return ap_of_columns(scores, labels == 1, labels >= 0, rule)


def checked(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):
        scores = np.asarray(scores).astype(np.float32, copy=False)
    labels = np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape or not scores.shape[1]:
        raise ValueError(f"scores and labels must be [N, C] with C >= 1, not {scores.shape} and {labels.shape}")
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels must be integers in {{1, 0, -1}}, not {labels.dtype}")
    if labels.size and (labels.min() < -1 or labels.max() > 1):
        raise ValueError(f"labels must be in {{1, 0, -1}}, but range from {labels.min()} to {labels.max()}")
    nan = np.isnan(scores)
    if nan.any():
        row, column = np.argwhere(nan)[0]
        raise ValueError(f"score is NaN at row {row}, column {column} ({np.count_nonzero(nan)} NaN in all)")
    return scores, labels.astype(np.int8, copy=False)


def counts_from(ranked: np.ndarray, ranked_positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive, how many scores, and how many positives, are at least as high. Both inputs ascending."""
    at_least = ranked.size - np.searchsorted(ranked, ranked_positives)
    hits = ranked_positives.size - np.searchsorted(ranked_positives, ranked_positives)
    return at_least, hits


def _all_point(precision: np.ndarray, hits: np.ndarray) -> float:
    return precision.mean()


def _voc10(precision: np.ndarray, hits: np.ndarray) -> float:
    return np.maximum.accumulate(precision).mean()


def _voc07_11pt(precision: np.ndarray, hits: np.ndarray) -> float:
    # In integers: recall >= t/10 with floats would depend on how 0.3 is rounded.
    reached = (10 * hits >= np.arange(11)[:, None] * hits[0]).sum(axis=1)  # [11]; hits[0] is all positives
    return np.maximum.accumulate(precision)[reached - 1].mean()


# Of one class: precision and number of hits at each positive's score, both from the lowest score (recall 1) up.
_AP_RULES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "all_point": _all_point,
    "voc10": _voc10,
    "voc07_11pt": _voc07_11pt,
}


def ap_of_columns(scores, positive, known, rule: str) -> np.ndarray:
    """float64 [C]. Sorts plain float32 columns (SIMD in numpy 2) and looks the few positives up: no argsort."""
    ap = np.full(scores.shape[1], np.nan)
    for start in range(0, scores.shape[1], 16):  # 16 float32 are one cache line
        block = slice(start, start + 16)
        columns, positive_columns = scores[:, block].T.copy(), positive[:, block].T.copy()  # [16, N]
        for c, (column, is_positive) in enumerate(zip(columns, positive_columns, strict=True), start):
            positives = np.sort(column[is_positive])
            if positives.size:
                at_least, hits = counts_from(np.sort(column if known is None else column[known[:, c]]), positives)
                ap[c] = _AP_RULES[rule](hits / at_least, hits)
    return ap
