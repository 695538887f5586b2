"""Logits whose sigmoids are frequencies: temperature and Platt scaling, and how far probabilities are from that."""

import dataclasses

import numpy as np
from scipy import optimize
from scipy.special import expit

from jaxmlic.metrics.ap import checked

BINS = 15
_STEPS = 100  # of Newton's method; it takes about ten
_COLDEST, _HOTTEST = 1e-3, 1e3


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The T of sigmoid(score / T) with the least binary cross-entropy over all known cells, within 0.001 to 1000.

    Args:
      scores: float [N, C] logits, finite.
      labels: int8 [N, C] in {1, 0, -1}.
    """
    scores, labels = checked(scores, labels)
    known = labels >= 0
    x, y = scores[known].astype(np.float64), (labels[known] == 1).astype(np.float64)

    def slope(log_scale: float) -> float:
        """Of the cross-entropy by 1 / T, which is convex: it rises."""
        return float(((expit(np.exp(log_scale) * x) - y) * x).sum())

    low, high = np.log(1 / _HOTTEST), np.log(1 / _COLDEST)
    if slope(low) >= 0:
        return _HOTTEST
    if slope(high) <= 0:
        return _COLDEST
    return float(np.exp(-optimize.brentq(slope, low, high, xtol=1e-12)))


def fit_platt(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The (a, b) of sigmoid(a score + b) by maximum likelihood, with the targets of Platt (1999).

    A positive counts as (P + 1) / (P + 2) and a negative as 1 / (M + 2), of P positives and M negatives: the optimum
    is finite for separable classes too. Cells of any shape, together. (0, logit of the frequency) for equal scores.
    """
    known = labels >= 0
    x, positive = scores[known].astype(np.float64), labels[known] == 1
    num_positive, num_negative = np.count_nonzero(positive), np.count_nonzero(~positive)
    target = np.where(positive, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    mean, deviation = (x.mean(), x.std()) if x.size else (0.0, 0.0)
    share = target.mean() if x.size else 0.5
    if not deviation > 1e-9 * max(1.0, abs(mean)):
        return 0.0, float(np.log(share / (1 - share)))
    z = (x - mean) / deviation
    a, b = 0.0, float(np.log(share / (1 - share)))

    def loss(a: float, b: float) -> float:
        logit = a * z + b
        return float((np.logaddexp(0.0, logit) - target * logit).sum())

    now = loss(a, b)
    for _ in range(_STEPS):  # Newton's method with halving of steps (Lin, Lin and Weng, 2007)
        p = expit(a * z + b)
        error, weight = p - target, p * (1 - p)
        gradient = np.array([(error * z).sum(), error.sum()])
        cross = (weight * z).sum()
        hessian = np.array([[(weight * z * z).sum() + 1e-12, cross], [cross, weight.sum() + 1e-12]])
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (after := loss(a - size * step[0], b - size * step[1])) > now and size > 1e-10:
            size /= 2
        if after >= now:
            break
        a, b, now = a - size * step[0], b - size * step[1], after
    return float(a / deviation), float(b - a * mean / deviation)


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """Probabilities in bins of equal width against the frequency of the label there.

    Attributes:
      counts: int64 [B], cells.
      confidence: float64 [B], mean probability; NaN in an empty bin.
      frequency: float64 [B], share of positives; NaN in an empty bin.
      ece: expected calibration error, the mean of |confidence - frequency| over cells.
      class_ece: the mean over classes of each one's own.
    """

    counts: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray
    ece: float
    class_ece: float


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """How far the sigmoids of logits float [N, C] are from frequencies, over the known cells of labels int8 [N, C]."""
    logits, labels = checked(logits, labels)
    probabilities = expit(logits.astype(np.float64))
    known = labels >= 0
    counts, confidence, frequency = _binned(probabilities[known], labels[known] == 1, bins)
    per_class = [
        _error(*_binned(probabilities[known[:, c], c], labels[known[:, c], c] == 1, bins))
        for c in np.flatnonzero(known.any(axis=0))
    ]
    class_ece = float(np.mean(per_class)) if per_class else float("nan")
    return Reliability(counts, confidence, frequency, _error(counts, confidence, frequency), class_ece)


def _binned(probabilities: np.ndarray, positive: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bins [i / B, (i + 1) / B), the last one with 1."""
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights, minlength=bins) for weights in (probabilities, positive))
    confidence, frequency = (np.divide(total, counts, out=np.full(bins, np.nan), where=counts > 0) for total in sums)
    return counts, confidence, frequency


def _error(counts: np.ndarray, confidence: np.ndarray, frequency: np.ndarray) -> float:
    if not counts.sum():
        return float("nan")
    return float((counts * np.nan_to_num(np.abs(confidence - frequency))).sum() / counts.sum())
