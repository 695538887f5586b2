"""The numbers behind the page's pictures, bounded whatever the number of classes and images: plain numpy to JSON."""

import math
from collections.abc import Sequence

import numpy as np

from jaxmlic.labels import graph
from jaxmlic.reports import embeddings

POINTS = 64  # of a precision-recall curve
SHOWN = 50  # classes of a heat map
PAIRS = 60  # lines of a list of pairs
BESIDE = 8  # labels listed beside a class
_CURVE = 400  # points of a learning curve


def plain(values: np.ndarray, digits: int = 4) -> list:
    """Numbers as lists, rounded; None for NaN and infinite ones."""
    return _rounded(np.asarray(values, np.float64).tolist(), digits)


def _rounded(value, digits: int):
    if isinstance(value, list):
        return [_rounded(one, digits) for one in value]
    return round(value, digits) if math.isfinite(value) else None


def curves(history: Sequence[dict]) -> dict[str, list[list]]:
    """{metric: [steps, values]} of all numbers of metrics.jsonl, thinned evenly where there are many."""
    found: dict[str, dict[int, float]] = {}
    for row in history:
        for name, value in row.items():
            if name not in ("step", "epoch") and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(name, {})[row["step"]] = float(value)
    thinned = {}
    for name, values in sorted(found.items()):
        steps = sorted(values)
        if len(steps) > _CURVE:
            steps = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, _CURVE).round().astype(int))]
        thinned[name] = [steps, [float(f"{values[step]:.5g}") for step in steps]]
    return thinned


def precision_recall(scores: np.ndarray, labels: np.ndarray, points: int = POINTS) -> list[list[list[int]] | None]:
    """Of each class [recall, precision] in thousandths, where its positives are found; None without a positive.

    Scores float [N, C], labels int8 [N, C]; unknown ones (-1) are left out. Equal scores enter together. Of more than
    `points` positives evenly spread ones are kept, the first and the last among them.
    """
    found: list[list[list[int]] | None] = []
    for own, label in zip(np.asarray(scores, np.float32).T, labels.T, strict=True):
        positives = np.sort(own[label == 1])
        if not len(positives):
            found.append(None)
            continue
        ranked = np.sort(own[label >= 0])
        if len(positives) > points:
            kept = np.unique(np.linspace(0, len(positives) - 1, points).round().astype(int))
        else:
            kept = np.arange(len(positives))
        at = positives[kept][::-1]  # the highest first
        hits = len(positives) - np.searchsorted(positives, at)
        above = len(ranked) - np.searchsorted(ranked, at)
        recall, precision = hits / len(positives), hits / above
        found.append([np.rint(1000 * x).astype(int).tolist() for x in (recall, precision)])
    return found


def confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts int64 [C, C]: images that have label i (1) and for which j is predicted and wrong (0).

    The diagonal counts the images with label i for which it is missed. labels int8, predicted bool [N, C].
    """
    counts = np.zeros((labels.shape[1],) * 2, np.int64)
    for start in range(0, len(labels), 8192):  # in blocks: float32, exact below 2^24
        block, own = labels[start : start + 8192], predicted[start : start + 8192]
        counts += ((block == 1).astype(np.float32).T @ (own & (block == 0)).astype(np.float32)).astype(np.int64)
    np.fill_diagonal(counts, ((labels == 1) & ~predicted).sum(axis=0))
    return counts


def confused(counts: np.ndarray, positives: np.ndarray) -> dict:
    """The matrix of the most confused classes as shares of the images with the row's label, and lists of all classes.

    Returns {"classes": indices, "matrix": [[share or None]], "beside": of each class [[other, images], ...]}.
    """
    others = counts.copy()
    np.fill_diagonal(others, 0)
    classes = _most(others.sum(0) + others.sum(1) + counts.diagonal())
    shares = counts / np.where(positives > 0, positives, np.nan)[:, None]
    beside = [[[int(j), int(row[j])] for j in np.argsort(-row, kind="stable")[:BESIDE] if row[j] > 0] for row in others]
    return {"classes": classes.tolist(), "matrix": plain(shares[np.ix_(classes, classes)], 3), "beside": beside}


def together(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(counts int64 [C, C], P(column | row) float64 [C, C]) of labels int8 [N, C], NaN without a positive."""
    counts, positives = graph.cooccurrence(labels)
    shares = graph.association(counts, positives)
    shares[positives == 0] = np.nan
    np.fill_diagonal(shares, np.nan)
    return counts, shares


def graph_classes(labels: np.ndarray, predictions: Sequence[np.ndarray]) -> np.ndarray:
    """The classes of the graph's heat maps: those that occur most often with others, in data and predictions."""
    counts = [together(one)[0] for one in (labels, *(found.astype(np.int8) for found in predictions))]
    return _most(sum(one.sum(axis=1) for one in counts))


def graph_of(labels: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> dict:
    """Co-occurrence of predictions against the data's, both over the cells that are known.

    Returns {"data", "predicted": [[P(column | row) or None]] of `classes`, "pairs": [[i, j, data, predicted]], those
    that differ most in images, most first, both as numbers of images}.
    """
    known = labels >= 0
    data, shares = together(np.where(known, labels, 0))
    found, own = together((predicted & known).astype(np.int8))
    upper = np.triu(np.abs(data - found), 1)
    order = np.argsort(-upper, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(k), len(upper)) for k in order if upper.flat[k] > 0]
    square = np.ix_(classes, classes)
    return {
        "data": plain(shares[square], 3),
        "predicted": plain(own[square], 3),
        "pairs": [[i, j, int(data[i, j]), int(found[i, j])] for i, j in pairs],
    }


def plane(table: np.ndarray) -> dict:
    """The PCA map of label vectors [C, D], C >= 3: {"x", "y": coordinates, "caption"}; see `embeddings.project`."""
    points, caption = embeddings.project(table)
    return {"x": plain(points[:, 0]), "y": plain(points[:, 1]), "caption": caption}


def _most(weights: np.ndarray) -> np.ndarray:
    """Indices int [<= SHOWN] of the greatest weights, in order of the classes."""
    return np.sort(np.argsort(-weights, kind="stable")[:SHOWN])
