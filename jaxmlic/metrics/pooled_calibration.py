"""One logistic regression that makes probabilities of all labels' scores together.

A label with few positives cannot be calibrated alone. Here all labels share the coefficients, and a cell is described
by its score, by the share of its image's labels that the score takes, by how high it is for its label, and by how
frequent the label is, with products: a high score of a rare label means something else than that of a frequent one.
"""

import dataclasses

import numpy as np
from scipy.special import expit, log_expit, logsumexp

from jaxmlic.metrics.ap import checked
from jaxmlic.metrics.calibration import fit_platt

PENALTY = 1.0  # of a coefficient's square, half of it: scikit-learn's C = 1
MOST_NEGATIVES = 150_000
_STEPS = 100
_QUANTILES, _CLEAR = (0.05, 0.25, 0.5, 0.75), 0.98  # of the positives
_ROWS = 500_000  # cells at a time


@dataclasses.dataclass(frozen=True, eq=False)
class PooledCalibration:
    """`probabilities` of scores.

    Attributes:
      slope, intercept: of the logits z of all cells alike, Platt's.
      bounds: z below and above count as these: the least that was fitted on, and one that few positives exceed.
      frequency: float64 [C], (positives + 1/2) / (known + 1) where it was fitted.
      mean, deviation: float64 [C], of each label's z.
      knots: float64 [K], z from which on a slope of their own begins.
      coefficients: float64 [F + 1], of `features`, then the constant.
    """

    slope: float
    intercept: float
    bounds: tuple[float, float]
    frequency: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    knots: np.ndarray
    coefficients: np.ndarray

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """float64 [N, C] of scores [N, C]."""
        scores = np.asarray(scores, np.float64)
        found = np.empty(scores.shape)
        rows = max(1, _ROWS // max(scores.shape[1], 1))
        for start in range(0, len(scores), rows):
            block = features(self, scores[start : start + rows], np.log(self.frequency))
            found[start : start + rows] = block @ self.coefficients[:-1] + self.coefficients[-1]
        return found

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """float64 [N, C] of scores [N, C]."""
        return expit(self.logits(scores))


def features(base: PooledCalibration, scores: np.ndarray, log_frequency: np.ndarray) -> np.ndarray:
    """float64 [N, C, F] of scores [N, C]; log_frequency [C] or [N, C]."""
    z = np.clip(base.slope * scores + base.intercept, *base.bounds)
    frequent = np.broadcast_to(log_frequency, z.shape)
    chance, log_chance = expit(z), log_expit(z)
    share = log_chance - logsumexp(log_chance, axis=1, keepdims=True)
    own = (z - base.mean) / base.deviation
    above = [np.maximum(z - knot, 0) for knot in base.knots]
    plain = [z, log_chance, share, chance, log_chance**2, own, own**2, *above, frequent, frequent**2]
    crossed = [frequent * x for x in (log_chance, chance, own, *above[::2])]
    return np.stack(plain + crossed, axis=-1)


def fit_pooled(scores: np.ndarray, labels: np.ndarray, seed: int = 0) -> PooledCalibration:
    """Fitted by penalised maximum likelihood on the known cells.

    A positive cell's label counts as frequent as it is without that image: so it was where the score was made.

    Args:
      scores: float [N, C], finite, of images that the model was not fitted on.
      labels: int8 [N, C] in {1, 0, -1}.
      seed: of the negatives that are drawn, and weighted, where there are more than MOST_NEGATIVES.

    Raises:
      ValueError: as `evaluate`, infinite scores, no positive or no negative label.
    """
    scores, labels = checked(scores, labels)
    if np.isinf(scores).any():
        raise ValueError("infinite scores cannot be calibrated")
    known, positive = labels >= 0, labels == 1
    negatives = np.flatnonzero(known & ~positive)
    positives = np.flatnonzero(positive)
    if not len(positives) or not len(negatives):
        raise ValueError(f"no {'negative' if len(positives) else 'positive'} label to calibrate on")
    weight = 1.0
    if len(negatives) > MOST_NEGATIVES:
        drawn = np.random.default_rng(seed).choice(negatives, MOST_NEGATIVES, replace=False)
        weight, negatives = len(negatives) / MOST_NEGATIVES, np.sort(drawn)
    cells = np.concatenate([positives, negatives])
    target = np.repeat([1.0, 0.0], [len(positives), len(negatives)])
    weights = np.where(target == 1, 1.0, weight)

    slope, intercept = fit_platt(scores.ravel()[cells], target.astype(np.int8))
    z = slope * scores.astype(np.float64) + intercept
    num_positive, num_known = positive.sum(axis=0), known.sum(axis=0)
    counts = np.maximum(num_known, 1)
    mean = np.where(known, z, 0).sum(axis=0) / counts
    deviation = np.sqrt(np.where(known, (z - mean) ** 2, 0).sum(axis=0) / counts)
    base = PooledCalibration(
        slope=slope,
        intercept=intercept,
        bounds=(float(z[known].min()), float(np.quantile(z[positive], _CLEAR))),
        frequency=(num_positive + 0.5) / (num_known + 1),
        mean=mean,
        deviation=np.where(deviation > 1e-6, deviation, 1.0),
        knots=np.quantile(z[positive], _QUANTILES),
        coefficients=np.zeros(1),
    )
    others = np.log((num_positive - positive + 0.5) / np.maximum(num_known - positive + 1, 1))
    rows = max(1, _ROWS // labels.shape[1])
    parts, bounds = [], np.arange(0, len(labels), rows)
    order = np.argsort(cells, kind="stable")
    for start in bounds:
        block = features(base, scores[start : start + rows].astype(np.float64), others[start : start + rows])
        first, last = start * labels.shape[1], (start + len(block)) * labels.shape[1]
        here = cells[order[slice(*np.searchsorted(cells[order], (first, last)))]]
        parts.append(block.reshape(-1, block.shape[-1])[here - first])
    found = fit_logistic(np.concatenate(parts), target[order], weights[order])
    return dataclasses.replace(base, coefficients=found)


def fit_logistic(x: np.ndarray, target: np.ndarray, weights: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """float64 [F + 1]: coefficients and constant of a logistic regression with penalised standardised coefficients.

    Args:
      x: float64 [N, F]. A column that does not vary gets the coefficient 0.
      target: float64 [N] in {0, 1}.
      weights: float64 [N], of the rows.
      penalty: half of it times the sum of the squared coefficients of standardised columns is added to the loss.
    """
    share = weights / weights.sum()
    mean = share @ x
    deviation = np.sqrt(share @ (x - mean) ** 2)
    varies = deviation > 1e-9 * np.maximum(1.0, np.abs(mean))
    z = np.where(varies, (x - mean) / np.where(varies, deviation, 1.0), 0.0)
    z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    rate = share @ target
    found = np.zeros(z.shape[1])
    found[-1] = np.log(rate / (1 - rate))
    penalties = np.append(np.full(x.shape[1], penalty), 0.0)

    def loss(coefficients: np.ndarray) -> float:
        logits = z @ coefficients
        fit = weights @ (np.logaddexp(0, logits) - target * logits)
        return float(fit + 0.5 * (penalties * coefficients**2).sum())

    now = loss(found)
    for _ in range(_STEPS):  # Newton's method with halving of steps
        p = expit(z @ found)
        gradient = z.T @ (weights * (p - target)) + penalties * found
        hessian = (z * (weights * p * (1 - p))[:, None]).T @ z + np.diag(penalties)
        hessian[np.diag_indices_from(hessian)] += 1e-9
        step = np.linalg.solve(hessian, gradient)
        promised, size = gradient @ step, 1.0
        if promised < 1e-13 * max(1.0, abs(now)):
            break
        while (after := loss(found - size * step)) > now - 1e-4 * size * promised and size > 1e-10:
            size /= 2
        if after >= now:
            break
        found, now = found - size * step, after
    coefficients = np.where(varies, found[:-1] / np.where(varies, deviation, 1.0), 0.0)
    return np.append(coefficients, found[-1] - coefficients @ mean)
