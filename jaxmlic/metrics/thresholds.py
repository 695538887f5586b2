"""The decision threshold that suits scores best."""

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
