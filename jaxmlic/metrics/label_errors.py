"""Which given labels are probably wrong, and which missing ones are worth asking for: rankings in numpy.

Each class is a question of its own, present or absent; p is the predicted probability that it is present, from a model
that did not see the image's own labels. Unknown labels (-1) are no errors; they are what `next_images` ranks.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import entr

_NEVER = 2.0  # a threshold that no probability reaches
_ROUNDING = 1e-6  # equal probabilities and their mean differ by rounding


def thresholds(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each class, the mean p of its given positives, and the mean 1 - p of its given negatives: two float64 [C].

    Eq. 2 of Northcutt, Jiang and Chuang (2021). 2 where a class has none: no probability reaches it.
    """
    p = np.asarray(probabilities, np.float64)

    def mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        count = chosen.sum(axis=0)
        return np.where(count > 0, np.where(chosen, values, 0).sum(axis=0) / np.maximum(count, 1), _NEVER)

    return mean(p, labels == 1), mean(1 - p, labels == 0)


def confident_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [N, C]: the labels off the diagonal of each class's confident joint (Eq. 1 of the same paper).

    A label counts as present where p reaches the class's first threshold, as absent where 1 - p reaches its second one,
    and as the more probable of the two where both do; an error is a given label that counts as the other.
    """
    p = np.asarray(probabilities, np.float64)
    present, absent = thresholds(p, labels)
    is_present, is_absent = p >= present[None] - _ROUNDING, 1 - p >= absent[None] - _ROUNDING
    counted = np.where(is_present & is_absent, p > 0.5, is_present)
    return (labels >= 0) & (is_present | is_absent) & (counted != (labels == 1))


def margins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [N, C]: how much the given label has of the probability, once the class's thresholds are taken off.

    With q the probability of the label given, t its threshold, u that of the other, m the larger of the two:
    (q - t + m) / (1 - t - u + 2m). A class whose positives have low probabilities throughout does not fill the ranking.
    NaN where the label is unknown.
    """
    p = np.asarray(probabilities, np.float64)
    present, absent = (threshold[None] for threshold in thresholds(p, labels))
    most = np.maximum(present, absent)
    given = np.where(labels == 1, p - present, 1 - p - absent) + most
    return np.where(labels >= 0, given / (1 - present - absent + 2 * most), np.nan)


def confidences(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [N, C]: the probability of the label that is given, whose -log is its loss; NaN where it is unknown."""
    p = np.asarray(probabilities, np.float64)
    return np.where(labels >= 0, np.where(labels == 1, p, 1 - p), np.nan)


def by_confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) int64 [K] of the K known labels, likely errors first: `confident_errors`, then the others, both
    by `margins`."""
    return _order(margins(probabilities, labels), ~confident_errors(probabilities, labels))


def by_loss(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) int64 [K] of the K known labels, the highest loss first; equal ones by row, then class."""
    return _order(confidences(probabilities, labels), np.zeros(labels.shape, bool))


RANKINGS: dict[str, Callable] = {"confident": by_confident_learning, "loss": by_loss}


def _order(quality: np.ndarray, later: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cells that are not NaN, those of `later` last, the lowest first."""
    rows, columns = np.nonzero(~np.isnan(quality))
    order = np.lexsort((quality[rows, columns], later[rows, columns]))  # stable
    return rows[order], columns[order]


def next_images(probabilities: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """int64 [at most count]: the images whose unknown labels are worth asking for, the most informative first.

    Greedy: an unknown label is worth the entropy of its probability in bits, divided by 1 + the bits of its class that
    the images before it ask for, so that no class fills the list (the gain of a sum of logarithms, which is
    submodular). Equal images in their order; images without an unknown label are left out.
    """
    p = np.asarray(probabilities, np.float64)
    bits = np.where(labels == -1, (entr(p) + entr(1 - p)) / np.log(2), 0.0)  # [N, C]
    left = (labels == -1).any(axis=1)
    asked = np.zeros(labels.shape[1])
    chosen = []
    for _ in range(min(count, int(left.sum()))):
        best = int(np.argmax(np.where(left, bits @ (1 / (1 + asked)), -1.0)))
        chosen.append(best)
        left[best] = False
        asked += bits[best]
    return np.array(chosen, np.int64)
