"""Decision thresholds that suit scores best, one for all classes or one for each.

A threshold is on the scale of the scores (a logit, where these are logits). Fit it on other images than those it is
reported on.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from jaxmlic.metrics.ap import checked, counts_from


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The one threshold for all classes that maximises OF1, exactly, over all distinct scores of known cells.

    Args:
      scores: float [N, C].
      labels: int8 [N, C] in {1, 0, -1}.

    Returns:
      `(threshold, OF1)`, predicted being `score >= threshold`; the highest where several are equally good; (nan, nan)
      if there is no positive. Fit it on other images than those it is reported on.

    Raises:
      ValueError: as `evaluate`.
    """
    scores, labels = checked(scores, labels)
    ranked = np.sort(scores[labels == 1])
    if not ranked.size:
        return float("nan"), float("nan")
    # The optimum is a positive's score: going down to a score that only negatives have adds nothing but false alarms.
    num_predicted, num_hit = counts_from(np.sort(scores[labels >= 0]), ranked)
    f1 = 2 * num_hit / (num_predicted + ranked.size)
    best = ranked.size - 1 - int(np.argmax(f1[::-1]))
    return float(ranked[best]), float(f1[best])


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """What each threshold decides, of one class or of all together.

    Attributes:
      levels: float32 [K], the distinct scores of known cells, falling.
      predicted: int64 [K], cells with at least that score.
      hits: int64 [K], positives among them.
      num_positive: of the known cells.
    """

    levels: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    num_positive: int

    def between(self, taken: int) -> float:
        """The threshold that takes the first `taken` levels: half way to the next one, where float32 has room."""
        if taken == len(self.levels):
            return float(self.levels[-1]) if taken else 0.0
        if taken == 0:
            return float(np.nextafter(self.levels[0], np.float32(np.inf)))
        above, below = self.levels[taken - 1], self.levels[taken]
        middle = np.float32(0.5 * (float(above) + float(below)))
        return float(middle if below < middle <= above else above)


def curve_of(scores: np.ndarray, labels: np.ndarray) -> Curve:
    """Of cells of any shape, float32 scores and labels in {1, 0, -1}."""
    known = labels >= 0
    levels, inverse = np.unique(-scores[known], return_inverse=True)
    inverse = inverse.ravel()
    predicted = np.cumsum(np.bincount(inverse, minlength=len(levels)))
    hits = np.cumsum(np.bincount(inverse[labels[known] == 1], minlength=len(levels)))
    return Curve(-levels, predicted, hits, int(np.count_nonzero(labels == 1)))


def _most_f1(curve: Curve, goal: float) -> tuple[int, bool]:
    f1 = 2 * curve.hits / (curve.predicted + curve.num_positive)
    return int(np.argmax(f1)) + 1, True


def _reach_precision(curve: Curve, goal: float) -> tuple[int, bool]:
    precision = curve.hits / curve.predicted
    reached = np.flatnonzero(precision >= goal)
    if reached.size:
        return int(reached[-1]) + 1, True
    best = np.flatnonzero(precision == precision.max())
    return int(best[-1]) + 1, False


def _match_count(curve: Curve, goal: float) -> tuple[int, bool]:
    predicted = np.append(0, curve.predicted)
    return int(np.argmin(np.abs(predicted - goal * curve.num_positive))), True


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a threshold is fitted for.

    Attributes:
      take: (curve, goal) -> how many of the curve's levels are taken, and whether the goal was reached.
      description: one line for people.
      goal: what `NAME=GOAL` must lie in, (above, up to); None for one without a goal.
      needs_goal: whether NAME alone means nothing.
    """

    take: Callable[[Curve, float], tuple[int, bool]]
    description: str
    goal: tuple[float, float] | None = None
    needs_goal: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "f1": Objective(_most_f1, "the highest F1"),
    "precision": Objective(_reach_precision, "the most labels with at least this precision", (0.0, 1.0), True),
    "count": Objective(_match_count, "as many labels as there are positives, or this many an image", (0.0, np.inf)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class FittedThresholds:
    """Thresholds on the scale of the scores.

    Attributes:
      values: float64 [C], what to use.
      overall: fitted on all classes together.
      own: float64 [C], fitted on the class alone; NaN without positives, and where `per_class` was not wanted.
      num_positive: int64 [C].
      unreached: bool [C], classes whose goal no threshold reaches.
    """

    values: np.ndarray
    overall: float
    own: np.ndarray
    num_positive: np.ndarray
    unreached: np.ndarray


def fit_thresholds(
    scores: np.ndarray,
    labels: np.ndarray,
    objective: str = "f1",
    goal: float | None = None,
    *,
    per_class: bool = True,
    shrink: float = 0.0,
) -> FittedThresholds:
    """Thresholds that are best for an objective on these images.

    A class with n positives gets `n / (n + shrink)` of its own threshold and the rest of the one of all classes
    together: what a handful of positives say is mostly chance. A class without positives gets the latter.

    Args:
      scores: float [N, C], finite.
      labels: int8 [N, C] in {1, 0, -1}.
      objective: a name of OBJECTIVES.
      goal: precision: the least precision; count: labels an image, None for as many as there are.
      per_class: whether classes have thresholds of their own.
      shrink: the number of positives at which a class's own threshold counts half.

    Raises:
      ValueError: as `evaluate`, infinite scores, or no positive at all.
    """
    scores, labels = checked(scores, labels)
    if np.isinf(scores).any():
        raise ValueError("infinite scores have no threshold between them")
    num_positive = np.count_nonzero(labels == 1, axis=0)
    if not num_positive.any():
        raise ValueError("no positive label to fit a threshold on")
    take = OBJECTIVES[objective].take
    if objective == "count":
        goal = 1.0 if goal is None else goal * len(labels) / num_positive.sum()
    pooled = curve_of(scores, labels)
    taken, reached = take(pooled, goal)
    overall = pooled.between(taken)
    own = np.full(labels.shape[1], np.nan)
    unreached = np.full(labels.shape[1], not reached)
    for c in np.flatnonzero(num_positive) if per_class else ():
        curve = curve_of(scores[:, c], labels[:, c])
        taken, reached = take(curve, goal)
        own[c], unreached[c] = curve.between(taken), not reached
    share = np.where(np.isnan(own), 0.0, num_positive / np.maximum(num_positive + shrink, 1e-12))
    # Where a class's own threshold counts whole, it stays the very float32: a rounded one would move a tied score.
    values = np.where(share == 1.0, own, share * np.nan_to_num(own) + (1 - share) * overall)
    return FittedThresholds(values, overall, own, num_positive, unreached)
