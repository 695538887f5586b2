"""Every metric of the field under one named protocol."""

import dataclasses

import numpy as np

from jaxmlic.metrics.ap import ap_of_columns, checked
from jaxmlic.metrics.protocols import Protocol, get_protocol

MAP_CUT = 10  # CNN-RNN's MAP@10


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    protocol: str = "all_point",
    *,
    threshold: float | np.ndarray | None = None,
    chosen: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    min_positives: int = 1,
) -> dict:
    """Every metric of the field under one named protocol.

    Args:
      scores: float [N, C], logits or probabilities; higher means more likely. Ranked as float32.
      labels: int8 [N, C] in {1, 0, -1}; -1 is ignored everywhere.
      protocol: a name that `get_protocol` knows.
      threshold: a label is predicted where `score >= threshold`; one number, or one for each class, float [C]. It is on
        the scale of the scores. None means 0.0 (scores are logits), or 0.5 if all scores lie in [0, 1] and are
        therefore read as probabilities. Forced and path decisions ignore it.
      chosen: bool [N, C], what a decoder emitted or a learned rule chose; needed by these decisions and ignored by the
        others.
      classes: bool [C] or None for all. A class outside the mask is treated as if all its labels were unknown: it may
        take one of the k places of a top-k decision (the model cannot know the mask), but counts nowhere.
      min_positives: classes with fewer positives (at least 1 is needed) are left out of the per-class means.

    Returns:
      Numbers as fractions; NaN where undefined.

      - `mAP`, `AP`: mean over the classes that are in, and float64 [C] with NaN for the classes left out. Equal scores
        enter together, as in scikit-learn.
      - `P`, `R`: precision and recall of each class, float64 [C] with NaN for the classes left out.
      - `CP`, `CR`, `CF1`, `CF1_mean`, `N+`: per-class precision and recall averaged over the same classes, the harmonic
        mean of the two averages, the mean of per-class F1, and how many of these classes have recall > 0. A class never
        predicted has precision 0.
      - `OP`, `OR`, `OF1`: over all known cells of the classes in the mask, with or without positives.
      - `IP`, `IR`, `IF1`: precision and recall of each image averaged over the images with a positive (recall is
        undefined for the others), and their harmonic mean. An image with nothing predicted has precision 0.
      - `MAP@10`, `top1`: over the same images, each image's known labels ranked by score, ties by class index. MAP@10
        sums precision@i over the hits i <= 10 and divides by min(10, positives); top1: share whose best label is right.
      - `accuracy`: top1 when the data are single-label (every image has exactly one positive and no unknown), else NaN.
      - `protocol` (canonical name), `threshold` (the value used, or None), `num_classes` (in the means), `num_left_out`
        (no or too few positives, or outside the mask), `num_examples` (N).

    Top-k decisions pick among all labels, ties by class index; a pick whose label is unknown spends a place, no more,
    unless the protocol has `unknown_wrong`.

    Raises:
      ValueError: shapes, dtypes or label values are wrong, a score or threshold is NaN, or `chosen` is missing.
      UserError: unknown protocol.

    >>> scores, labels = np.array([[2.0, -1.0], [0.5, 1.5], [-1.0, 0.2]]), np.array([[1, 0], [0, 1], [1, 0]])
    >>> found = evaluate(scores, labels)
    >>> [round(float(found[name]), 3) for name in ("mAP", "CF1", "OF1")]
    [0.917, 0.6, 0.571]
    """
    found = decisions(
        scores, labels, protocol, threshold=threshold, chosen=chosen, classes=classes, min_positives=min_positives
    )
    included, counted = found.included, found.counted
    ap = ap_of_columns(found.scores, found.positive, found.known, found.protocol.ap)
    ap[~included] = np.nan
    precision, recall = _mean(found.precision[found.entering]), _mean(found.recall[found.entering])
    top1 = _mean(found.top1[counted])
    num_examples, num_classes = found.positive.shape
    single_label = found.known is None and num_examples > 0 and bool((found.positive.sum(axis=1) == 1).all())
    return {
        "mAP": _mean(ap[included]),
        "AP": ap,
        **_class_and_overall(found),
        "IP": precision,
        "IR": recall,
        "IF1": _harmonic(precision, recall),
        "MAP@10": _mean(found.ap_at_10[counted]),
        "top1": top1,
        "accuracy": top1 if single_label else float("nan"),
        "protocol": found.protocol.name,
        "threshold": found.threshold,
        "num_classes": int(included.sum()),
        "num_left_out": int(num_classes - included.sum()),
        "num_examples": num_examples,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Decisions:
    """What every number of a report is counted from.

    Attributes:
      protocol: the rules.
      scores: float32 [N, C].
      positive: bool [N, C].
      known: bool [N, C], or None where all labels are known.
      predicted: bool [N, C], without the cells that do not count.
      included: bool [C], the classes of the per-class means.
      threshold: the one used; None where no threshold decides.
      precision, recall: float64 [N], of each image.
      entering: bool [N], the images over which these two are averaged.
      ap_at_10, top1: float64 [N], of each image's own ranking.
      counted: bool [N], the images over which these two are averaged.
    """

    protocol: Protocol
    scores: np.ndarray
    positive: np.ndarray
    known: np.ndarray | None
    predicted: np.ndarray
    included: np.ndarray
    threshold: float | np.ndarray | None
    precision: np.ndarray
    recall: np.ndarray
    entering: np.ndarray
    ap_at_10: np.ndarray
    top1: np.ndarray
    counted: np.ndarray


def decisions(
    scores: np.ndarray,
    labels: np.ndarray,
    protocol: str = "all_point",
    *,
    threshold: float | np.ndarray | None = None,
    chosen: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    min_positives: int = 1,
) -> Decisions:
    """What `evaluate` counts, from the same arguments and with the same errors."""
    rules = get_protocol(protocol)
    scores, labels = checked(scores, labels)
    if min_positives < 1:
        raise ValueError(f"min_positives must be at least 1, not {min_positives}")
    if classes is not None:
        classes = _check_bool("classes", classes, (labels.shape[1],))
        labels = np.where(classes, labels, np.int8(-1))
    positive, known = labels == 1, labels >= 0
    all_known = bool(known.all())

    order = top_k(scores, max(MAP_CUT, rules.k or 0))
    predicted, threshold = _decide(scores, order, rules, threshold, chosen)
    if not all_known:
        # A class outside the mask counts nowhere, under any protocol.
        predicted &= known | (rules.unknown_wrong & (True if classes is None else classes))
        order = top_k(scores, MAP_CUT, known)

    num_positive = np.count_nonzero(positive, axis=1)  # [N]
    num_hit = np.count_nonzero(predicted & positive, axis=1)
    counted = num_positive > 0
    # [N, <= 10]: each image's known labels, the best first
    right = np.take_along_axis(positive, order[:, :MAP_CUT], axis=1)
    precision_at = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
    return Decisions(
        protocol=rules,
        scores=scores,
        positive=positive,
        known=None if all_known else known,
        predicted=predicted,
        included=np.count_nonzero(positive, axis=0) >= min_positives,
        threshold=threshold,
        precision=num_hit / np.maximum(np.count_nonzero(predicted, axis=1), 1),
        recall=num_hit / np.maximum(num_positive, 1),
        entering=counted | (rules.empty_zero & counted.any()),
        ap_at_10=(precision_at * right).sum(axis=1) / np.clip(num_positive, 1, MAP_CUT),
        top1=right[:, 0].astype(np.float64),
        counted=counted,
    )


def predicted_labels(
    scores: np.ndarray,
    protocol: str,
    *,
    threshold: float | np.ndarray | None = None,
    chosen: np.ndarray | None = None,
) -> np.ndarray:
    """bool [N, C]: the labels that `evaluate` takes as predicted, from the same arguments; unknown ones too."""
    rules = get_protocol(protocol)
    scores = np.asarray(scores, np.float32)
    return _decide(scores, top_k(scores, rules.k or 1), rules, threshold, chosen)[0]


def top_k(scores: np.ndarray, k: int, known: np.ndarray | None = None) -> np.ndarray:
    """Class indices int64 [N, min(k, C)] of each image's best labels, best first, ties by class index.

    Args:
      scores: float32 [N, C] without NaN.
      k: how many.
      known: bool [N, C] or None; labels that are not known come last.
    """
    num_classes = scores.shape[1]
    k = min(k, num_classes)
    # float32 -> int32 of the same order (adding 0 turns -0.0 into 0.0); one integer per cell: score above, class below.
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    if known is not None:
        bits[~known] = np.iinfo(np.int32).min  # lower than -inf
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(num_classes - 1, -1, -1)
    best = np.partition(keys, num_classes - k, axis=1)[:, num_classes - k :]
    best.sort(axis=1)
    return num_classes - 1 - (best[:, ::-1] & 0xFFFFFFFF)


def _check_bool(what: str, values, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool or values.shape != shape:
        raise ValueError(f"{what} must be bool {list(shape)}, not {values.dtype} {list(values.shape)}")
    return values


def _decide(scores, order, protocol: Protocol, threshold, chosen) -> tuple[np.ndarray, float | np.ndarray | None]:
    """What counts as predicted, bool [N, C], and the threshold used or None. `order` int [N, >= k], best first."""
    if protocol.needs_chosen:
        if chosen is None:
            by = "the learned rule chose" if protocol.by_rule else "the decoder emitted"
            raise ValueError(f"protocol {protocol.name!r} needs chosen, the bool [N, C] labels that {by}")
        chosen = _check_bool("chosen", chosen, scores.shape).copy()
        if protocol.k is not None and (chosen.sum(axis=1) != min(protocol.k, scores.shape[1])).any():
            raise ValueError(f"protocol {protocol.name!r} needs {protocol.k} chosen labels an image")
        return chosen, None
    among_best = None
    if protocol.k is not None:
        among_best = np.zeros(scores.shape, bool)
        np.put_along_axis(among_best, order[:, : protocol.k], True, axis=1)
    if protocol.decision == "forced":
        return among_best, None
    if threshold is None:
        probabilities = scores.size and scores.min() >= 0 and scores.max() <= 1
        threshold = 0.5 if probabilities else 0.0
    threshold = np.asarray(threshold, np.float64)
    if threshold.shape not in ((), scores.shape[1:]):
        raise ValueError(f"threshold must be a number or float {list(scores.shape[1:])}, not {list(threshold.shape)}")
    if np.isnan(threshold).any():
        raise ValueError("threshold is NaN")
    with np.errstate(over="ignore"):
        above = scores >= threshold.astype(np.float32)
    used = threshold if threshold.ndim else float(threshold)
    return above if among_best is None else above & among_best, used


def _class_and_overall(found: Decisions) -> dict[str, float | np.ndarray]:
    included = found.included
    num_positive = np.count_nonzero(found.positive, axis=0)  # [C]
    num_predicted = np.count_nonzero(found.predicted, axis=0)
    num_hit = np.count_nonzero(found.predicted & found.positive, axis=0)
    precision = num_hit / np.maximum(num_predicted, 1)
    recall = num_hit / np.maximum(num_positive, 1)
    f1 = 2 * num_hit / np.maximum(num_predicted + num_positive, 1)
    class_precision, class_recall = _mean(precision[included]), _mean(recall[included])
    hit, all_predicted, all_positive = int(num_hit.sum()), int(num_predicted.sum()), int(num_positive.sum())
    any_known = found.positive.size > 0 if found.known is None else bool(found.known.any())
    overall_precision = hit / max(all_predicted, 1) if any_known else float("nan")
    overall_recall = hit / all_positive if all_positive else float("nan")
    return {
        "P": np.where(included, precision, np.nan),
        "R": np.where(included, recall, np.nan),
        "CP": class_precision,
        "CR": class_recall,
        "CF1": _harmonic(class_precision, class_recall),
        "CF1_mean": _mean(f1[included]),
        "N+": int(np.count_nonzero(num_hit[included])),
        "OP": overall_precision,
        "OR": overall_recall,
        "OF1": _harmonic(overall_precision, overall_recall),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _harmonic(a: float, b: float) -> float:
    """Harmonic mean; 0 for two zeros; NaN if either is."""
    return 2 * a * b / (a + b) if a + b != 0 else 0.0
