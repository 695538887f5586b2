"""The numbers of a report where images count several times or not at all, for many such weightings at once.

A resample of the images is a vector of counts, so that no resample is ranked again: the scores of a class are sorted
once, and the counts are summed over the segments between its positives, as a product of a sparse matrix with the counts
of all draws.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from jaxmlic.metrics.report import Decisions

NUMBERS = ("mAP", "CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1", "IP", "IR", "IF1", "MAP@10", "top1")


@dataclasses.dataclass(frozen=True, eq=False)
class RankedClass:
    """A class's known images by falling score, in segments that end where a positive's score does.

    Attributes:
      segments: float32 [G, N], ones for the images that enter with the g-th of the positives' distinct scores.
      hits: float32 [G, N], ones for the positives among them.
    """

    segments: sparse.csr_array
    hits: sparse.csr_array


class WeightedReport:
    """Reports of the same scores and labels under one or more protocols, as functions of the images' weights.

    found: what each protocol decides; their scores, positives, known cells and classes are the same.
    """

    def __init__(self, found: Sequence[Decisions]):
        self.found = list(found)
        first = self.found[0]
        self._classes = [
            _rank(first.scores[:, c], first.positive[:, c], None if first.known is None else first.known[:, c])
            for c in np.flatnonzero(first.included)
        ]
        self._positive = _cells(first.positive)
        kept: dict[bytes, tuple[sparse.csr_array, sparse.csr_array]] = {}  # many protocols decide alike
        self._decided = []
        for one in self.found:
            key = np.packbits(one.predicted).tobytes()
            if key not in kept:
                kept[key] = _cells(one.predicted), _cells(one.predicted & first.positive)
            self._decided.append(kept[key])

    def numbers(self, weights: np.ndarray) -> list[dict[str, np.ndarray]]:
        """{name: float64 [D]} of NUMBERS for each protocol, as `evaluate` gives them for the repeated images.

        The classes of the means are those of the whole; in a draw without a positive of one, it is left out.

        Args:
          weights: float32 [N, D], whole numbers >= 0.
        """
        rules = dict.fromkeys(one.protocol.ap for one in self.found)
        sums = {rule: np.zeros(weights.shape[1]) for rule in rules}
        defined = np.zeros(weights.shape[1])
        for ranked in self._classes:
            entering = np.cumsum(ranked.segments @ weights, axis=0)  # [G, D], whole numbers: exact below 2**24
            hits = np.cumsum(ranked.hits @ weights, axis=0)
            there = hits[-1] > 0
            defined += there
            precision = hits / np.maximum(entering, 1)
            for rule in rules:
                sums[rule] += np.where(there, _AP[rule](precision, hits), 0.0)
        num_positive = _count(self._positive, weights)
        counts = {id(cells): [_count(part, weights) for part in cells] for cells in self._decided}
        any_known = self._any_known(weights)
        wide = weights.T.astype(np.float64)  # [D, N]
        return [
            {"mAP": _ratio(sums[one.protocol.ap], defined)}
            | _class_and_overall(one.included, num_positive, *counts[id(cells)], any_known)
            | _per_image(one, wide)
            for one, cells in zip(self.found, self._decided, strict=True)
        ]

    def _any_known(self, weights: np.ndarray) -> np.ndarray | bool:
        known = self.found[0].known
        return True if known is None else weights.T @ known.any(axis=1).astype(np.float32) > 0


def _rank(scores: np.ndarray, positive: np.ndarray, known: np.ndarray | None) -> RankedClass:
    """Of one class, float32 [N] and bool [N] with at least one positive."""
    rows = np.arange(len(scores)) if known is None else np.flatnonzero(known)
    order = rows[np.argsort(-scores[rows])]
    hits = order[positive[order]]
    levels = np.unique(-scores[hits])  # rising, so the highest score first
    ends = np.searchsorted(-scores[order], levels, side="right")
    hit_ends = np.searchsorted(-scores[hits], levels, side="right")
    return RankedClass(_ones(order[: ends[-1]], ends, len(scores)), _ones(hits, hit_ends, len(scores)))


def _ones(columns: np.ndarray, ends: np.ndarray, width: int) -> sparse.csr_array:
    data = np.ones(len(columns), np.float32)
    return sparse.csr_array((data, columns.astype(np.int32), np.append(0, ends).astype(np.int32)), (len(ends), width))


# AP of one class in each draw, float64 [D], from precision and hits [G, D] at its positives' scores, highest first.


def _all_point(precision: np.ndarray, hits: np.ndarray) -> np.ndarray:
    new = np.diff(hits, axis=0, prepend=np.float32(0))
    return np.einsum("gd,gd->d", new, precision, dtype=np.float64) / np.maximum(hits[-1], 1)


def _envelope(precision: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(precision[::-1], axis=0)[::-1]


def _voc10(precision: np.ndarray, hits: np.ndarray) -> np.ndarray:
    return _all_point(_envelope(precision), hits)


def _voc07_11pt(precision: np.ndarray, hits: np.ndarray) -> np.ndarray:
    envelope, total = _envelope(precision), np.zeros(precision.shape[1])
    for tenth in range(11):  # in whole numbers, as in `ap`
        first = np.argmax(10 * hits >= tenth * hits[-1], axis=0)
        total += np.take_along_axis(envelope, first[None], axis=0)[0]
    return total / 11


_AP = {"all_point": _all_point, "voc10": _voc10, "voc07_11pt": _voc07_11pt}


def _cells(cells: np.ndarray) -> sparse.csr_array:
    """bool [N, C] -> float32 [C, N]."""
    return sparse.csr_array(cells.T.astype(np.float32))


def _count(cells: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    """float64 [D, C]."""
    return (cells @ weights).T.astype(np.float64)


def _class_and_overall(
    included: np.ndarray,
    num_positive: np.ndarray,
    num_predicted: np.ndarray,
    num_hit: np.ndarray,
    any_known: np.ndarray | bool,
) -> dict[str, np.ndarray]:
    """From the counts of each draw and class, [D, C]."""
    included = included & (num_positive > 0)
    num_classes = included.sum(axis=1)

    def mean(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return _ratio(np.where(included, numerator / np.maximum(denominator, 1), 0.0).sum(axis=1), num_classes)

    precision, recall = mean(num_hit, num_predicted), mean(num_hit, num_positive)
    hit, all_predicted, all_positive = (count.sum(axis=1) for count in (num_hit, num_predicted, num_positive))
    overall_precision = np.where(any_known, hit / np.maximum(all_predicted, 1), np.nan)
    overall_recall = _ratio(hit, all_positive)
    return {
        "CP": precision,
        "CR": recall,
        "CF1": _harmonic(precision, recall),
        "CF1_mean": mean(2 * num_hit, num_predicted + num_positive),
        "OP": overall_precision,
        "OR": overall_recall,
        "OF1": _harmonic(overall_precision, overall_recall),
    }


def _per_image(found: Decisions, weights: np.ndarray) -> dict[str, np.ndarray]:
    """weights: float64 [D, N]."""

    def means(counted: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        sums = weights @ np.stack([np.where(counted, value, 0.0) for value in (*values, 1.0)], axis=1)
        return [_ratio(sums[:, i], sums[:, -1]) for i in range(len(values))]

    ap_at_10, top1 = means(found.counted, found.ap_at_10, found.top1)
    precision, recall = (
        np.where(np.isnan(top1), np.nan, mean) for mean in means(found.entering, found.precision, found.recall)
    )
    return {"IP": precision, "IR": recall, "IF1": _harmonic(precision, recall), "MAP@10": ap_at_10, "top1": top1}


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def _harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a + b == 0, 0.0, _ratio(2 * a * b, a + b))
