"""Multi-label metrics under named protocols, in numpy only.

The same word means different numbers in different papers, so every report names the protocol it was made by. A protocol
is an AP rule and a decision rule, written `AP+DECISION`; the usual parts may be left out (`top3_forced` means
`all_point+top3_forced`). Scores are ranked as float32. Labels are int8 in {1 present, 0 absent, -1 unknown}; an unknown
cell is neither a positive, nor a negative, nor counted as predicted.
"""

import dataclasses
import re
import types
from collections.abc import Callable, Mapping

import numpy as np

from jaxmlic.errors import UserError, did_you_mean

MAP_CUT = 10  # CNN-RNN's MAP@10
_AP_DESCRIPTIONS = {
    "all_point": "all-point AP, not interpolated",
    "voc10": "all-point AP under the precision envelope (VOC 2010 on)",
    "voc07_11pt": "11-point AP (VOC 2007 devkit)",
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How scores become numbers.

    Attributes:
      name: canonical name, for instance `top3_forced` or `voc07_11pt+top3_forced`.
      ap: `all_point`, `voc10` or `voc07_11pt`.
      decision: `threshold`, `forced`, `thresholded` or `path`.
      k: number of labels of a forced or thresholded top-k decision, else None.
      description: one line for people.
    """

    name: str
    ap: str
    decision: str
    k: int | None
    description: str


def _make_protocol(ap: str, decision: str, k: int | None) -> Protocol:
    decision_name = f"top{k}_{decision}" if k is not None else decision
    name = "+".join(p for p in (ap, decision_name) if p not in ("all_point", "threshold")) or "all_point"
    decided = {
        "threshold": "a label counts as predicted from the threshold up",
        "forced": f"always the {k} best labels of an image count as predicted",
        "thresholded": f"a label counts as predicted if among the {k} best of its image and from the threshold up",
        "path": "the labels that the decoder emitted count as predicted",
    }[decision]
    return Protocol(name, ap, decision, k, f"{_AP_DESCRIPTIONS[ap]}; {decided}")


_NAMED = (
    _make_protocol("all_point", "threshold", None),
    _make_protocol("voc10", "threshold", None),
    _make_protocol("voc07_11pt", "threshold", None),
    _make_protocol("all_point", "forced", 3),  # the ensemble paper; CNN-RNN's k = 3 tables on NUS-WIDE
    _make_protocol("all_point", "thresholded", 3),  # ML-GCN's top-3 columns
    _make_protocol("all_point", "forced", 5),  # Corel-5K: always five words
    _make_protocol("all_point", "path", None),
)
PROTOCOLS: Mapping[str, Protocol] = types.MappingProxyType({p.name: p for p in _NAMED})


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`: an AP rule, a decision rule, or `AP+DECISION`.

    AP rules: `all_point`, `voc10`, `voc07_11pt`. Decision rules: `threshold`, `path`, `top<k>_forced` and
    `top<k>_thresholded` with any k >= 1. Names that mean the same protocol give the same canonical name.

    Raises:
      UserError: `name` is none of these.
    """
    ap = decision = None
    for part in str(name).split("+"):
        top = re.fullmatch(r"top([1-9]\d*)_(forced|thresholded)", part)
        if part in _AP_DESCRIPTIONS and ap is None and decision is None:
            ap = part
        elif part in ("threshold", "path") and decision is None:
            decision = (part, None)
        elif top and decision is None:
            decision = (top[2], int(top[1]))
        else:
            raise UserError(
                f"unknown protocol {str(name)!r}{did_you_mean(name, PROTOCOLS)}; known: {', '.join(PROTOCOLS)}, "
                "any top<k>_forced or top<k>_thresholded, and AP+DECISION such as voc07_11pt+top3_forced"
            )
    return _make_protocol(ap or "all_point", *(decision or ("threshold", None)))


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    protocol: str = "all_point",
    *,
    threshold: float | None = None,
    chosen: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    min_positives: int = 1,
) -> dict:
    """Every metric of the field under one named protocol.

    Args:
      scores: float [N, C], logits or probabilities; higher means more likely. Ranked as float32.
      labels: int8 [N, C] in {1, 0, -1}; -1 is ignored everywhere.
      protocol: a name that `get_protocol` knows.
      threshold: a label is predicted where `score >= threshold`. None means 0.0 (scores are logits), or 0.5 if all
        scores lie in [0, 1] and are therefore read as probabilities. Forced and path decisions ignore it.
      chosen: bool [N, C], what a decoder emitted; needed by the path decision and ignored by the others.
      classes: bool [C] or None for all. A class outside the mask is treated as if all its labels were unknown: it may
        take one of the k places of a top-k decision (the model cannot know the mask), but counts nowhere.
      min_positives: classes with fewer positives (at least 1 is needed) are left out of the per-class means.

    Returns:
      Numbers as fractions; NaN where undefined.
      - `mAP`, `AP`: mean over the classes that are in, and float64 [C] with NaN for the classes left out. Equal scores
        enter together, as in scikit-learn.
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

    Top-k decisions pick among all labels, ties by class index; a pick whose label is unknown spends a place, no more.

    Raises:
      ValueError: shapes, dtypes or label values are wrong, a score or threshold is NaN, or `chosen` is missing.
      UserError: unknown protocol.
    """
    protocol = get_protocol(protocol)
    scores, labels = _check(scores, labels)
    if min_positives < 1:
        raise ValueError(f"min_positives must be at least 1, not {min_positives}")
    num_examples, num_classes = labels.shape
    if classes is not None:
        classes = _check_bool("classes", classes, (num_classes,))
        labels = np.where(classes, labels, np.int8(-1))
    positive, known = labels == 1, labels >= 0
    all_known = bool(known.all())

    num_positive = np.count_nonzero(positive, axis=0)
    included = num_positive >= min_positives
    ap = _average_precision(scores, positive, None if all_known else known, protocol.ap)
    ap[~included] = np.nan

    order = top_k(scores, max(MAP_CUT, protocol.k or 0))
    predicted, threshold = _decide(scores, order, protocol, threshold, chosen)
    if not all_known:
        predicted &= known
        order = top_k(scores, MAP_CUT, known)
    per_image = _per_image(predicted, positive, order[:, :MAP_CUT])
    single_label = all_known and num_examples > 0 and bool((np.count_nonzero(positive, axis=1) == 1).all())
    return {
        "mAP": _mean(ap[included]),
        "AP": ap,
        **_class_and_overall(predicted, positive, num_positive, included, bool(known.any())),
        **per_image,
        "accuracy": per_image["top1"] if single_label else float("nan"),
        "protocol": protocol.name,
        "threshold": threshold,
        "num_classes": int(included.sum()),
        "num_left_out": int(num_classes - included.sum()),
        "num_examples": num_examples,
    }


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
    scores, labels = _check(scores, labels)
    return _average_precision(scores, labels == 1, labels >= 0, rule)


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
    scores, labels = _check(scores, labels)
    ranked = np.sort(scores[labels == 1])
    if not ranked.size:
        return float("nan"), float("nan")
    # The optimum is a positive's score: going down to a score that only negatives have adds nothing but false alarms.
    num_predicted, num_hit = _counts_from(np.sort(scores[labels >= 0]), ranked)
    f1 = 2 * num_hit / (num_predicted + ranked.size)
    best = ranked.size - 1 - int(np.argmax(f1[::-1]))
    return float(ranked[best]), float(f1[best])


def _check(scores, labels) -> tuple[np.ndarray, np.ndarray]:
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


def _check_bool(what: str, values, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool or values.shape != shape:
        raise ValueError(f"{what} must be bool {list(shape)}, not {values.dtype} {list(values.shape)}")
    return values


def _counts_from(ranked: np.ndarray, ranked_positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _average_precision(scores, positive, known, rule: str) -> np.ndarray:
    """float64 [C]. Sorts plain float32 columns (SIMD in numpy 2) and looks the few positives up: no argsort."""
    ap = np.full(scores.shape[1], np.nan)
    for start in range(0, scores.shape[1], 16):  # 16 float32 are one cache line
        block = slice(start, start + 16)
        columns, positive_columns = scores[:, block].T.copy(), positive[:, block].T.copy()  # [16, N]
        for c, (column, is_positive) in enumerate(zip(columns, positive_columns, strict=True), start):
            positives = np.sort(column[is_positive])
            if positives.size:
                at_least, hits = _counts_from(np.sort(column if known is None else column[known[:, c]]), positives)
                ap[c] = _AP_RULES[rule](hits / at_least, hits)
    return ap


def _decide(scores, order, protocol: Protocol, threshold, chosen) -> tuple[np.ndarray, float | None]:
    """What counts as predicted, bool [N, C], and the threshold used or None. `order` int [N, >= k], best first."""
    if protocol.decision == "path":
        if chosen is None:
            raise ValueError("protocol 'path' needs chosen, the bool [N, C] labels that the decoder emitted")
        return _check_bool("chosen", chosen, scores.shape).copy(), None
    among_best = None
    if protocol.k is not None:
        among_best = np.zeros(scores.shape, bool)
        np.put_along_axis(among_best, order[:, : protocol.k], True, axis=1)
    if protocol.decision == "forced":
        return among_best, None
    if threshold is None:
        probabilities = scores.size and scores.min() >= 0 and scores.max() <= 1
        threshold = 0.5 if probabilities else 0.0
    if np.isnan(threshold):
        raise ValueError("threshold is NaN")
    with np.errstate(over="ignore"):
        above = scores >= np.float32(threshold)
    return above if among_best is None else above & among_best, float(threshold)


def _class_and_overall(predicted, positive, num_positive, included, any_known: bool) -> dict[str, float]:
    num_predicted = np.count_nonzero(predicted, axis=0)  # [C]
    num_hit = np.count_nonzero(predicted & positive, axis=0)
    precision = num_hit / np.maximum(num_predicted, 1)
    recall = num_hit / np.maximum(num_positive, 1)
    f1 = 2 * num_hit / np.maximum(num_predicted + num_positive, 1)
    class_precision, class_recall = _mean(precision[included]), _mean(recall[included])
    hit, all_predicted, all_positive = int(num_hit.sum()), int(num_predicted.sum()), int(num_positive.sum())
    overall_precision = hit / max(all_predicted, 1) if any_known else float("nan")
    overall_recall = hit / all_positive if all_positive else float("nan")
    return {
        "CP": class_precision,
        "CR": class_recall,
        "CF1": _harmonic(class_precision, class_recall),
        "CF1_mean": _mean(f1[included]),
        "N+": int(np.count_nonzero(num_hit[included])),
        "OP": overall_precision,
        "OR": overall_recall,
        "OF1": _harmonic(overall_precision, overall_recall),
    }


def _per_image(predicted, positive, order) -> dict[str, float]:
    """`order` int [N, <= 10]: each image's known labels, best first."""
    num_positive = np.count_nonzero(positive, axis=1)  # [N]
    num_hit = np.count_nonzero(predicted & positive, axis=1)
    counted = num_positive > 0
    precision = _mean((num_hit / np.maximum(np.count_nonzero(predicted, axis=1), 1))[counted])
    recall = _mean((num_hit / np.maximum(num_positive, 1))[counted])
    right = np.take_along_axis(positive, order, axis=1)  # [N, <= 10]
    precision_at = np.cumsum(right, axis=1) / np.arange(1, order.shape[1] + 1)
    ap = (precision_at * right).sum(axis=1) / np.clip(num_positive, 1, MAP_CUT)
    return {
        "IP": precision,
        "IR": recall,
        "IF1": _harmonic(precision, recall),
        "MAP@10": _mean(ap[counted]),
        "top1": _mean(right[counted, 0]),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _harmonic(a: float, b: float) -> float:
    """Harmonic mean; 0 for two zeros; NaN if either is."""
    return 2 * a * b / (a + b) if a + b != 0 else 0.0
