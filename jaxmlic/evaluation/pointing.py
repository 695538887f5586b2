"""The pointing game (Zhang et al., 2018): does the highest point of a label's map lie on an object of that label?

A map that says nothing does as well as the centre of the image, which photographers put objects in: that is the
baseline. "Hard" pairs of an image and a label are those that the centre does not give away: the label's boxes cover
less than a quarter of the image, and the image has a box of another label.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmlic.errors import UserError, check_least

CENTRE = "centre"
TOLERANCE = 0.03  # of the image's side: the 15 pixels of the paper, on images of 500
BLUR = 0.02  # of the side: a Gaussian over saliency, whose highest single pixel is chance
_HARD_AREA = 0.25
_GRID = 64  # cells of a side, of which an image's boxes cover some


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Images and labels whose place is known; P pairs.

    Attributes:
      rows: int [P], which image.
      labels: int [P], which label.
      boxes: P arrays float32 [K, 4] (ymin, xmin, ymax, xmax in 0..1), the label's boxes in the image.
      hard: bool [P].
    """

    rows: np.ndarray
    labels: np.ndarray
    boxes: list[np.ndarray]
    hard: np.ndarray


@dataclasses.dataclass(frozen=True)
class Hits:
    """How often a form of map points at the object.

    Attributes:
      form: its name.
      pairs: int [C], the pairs of each label that it has a map for.
      hits: int [C].
      share, hard_share: mean over the labels of hits / pairs; NaN without pairs. `hard_share` of the hard pairs alone.
      centre, hard_centre: the same of the centre on the same pairs.
    """

    form: str
    pairs: np.ndarray
    hits: np.ndarray
    share: float
    hard_share: float
    centre: float
    hard_centre: float


def pairs_of(boxes: Sequence[Mapping[str, np.ndarray]], labels: np.ndarray) -> Pairs:
    """All pairs of an image and a label that it has (1) and a box for; UserError where there is none.

    Args:
      boxes: of N images: `bbox` [K, 4] (ymin, xmin, ymax, xmax in 0..1) and `label` [K].
      labels: int8 [N, C] in {1, 0, -1}.
    """
    rows, columns, own, hard = [], [], [], []
    for row, found in enumerate(boxes):
        for label in np.unique(found["label"]):
            if labels[row, label] != 1:
                continue
            is_own = found["label"] == label
            rows.append(row)
            columns.append(int(label))
            own.append(found["bbox"][is_own])
            hard.append(_covered(own[-1]) < _HARD_AREA and not is_own.all())
    if not rows:
        raise UserError("the images have no box of a label of theirs: there is nothing to point at")
    return Pairs(np.array(rows), np.array(columns), own, np.array(hard))


def _covered(boxes: np.ndarray) -> float:
    """The share of the image that lies in at least one box."""
    centres = (np.arange(_GRID) + 0.5) / _GRID
    inside = np.zeros((_GRID, _GRID), bool)
    for ymin, xmin, ymax, xmax in boxes:
        inside |= np.outer((centres >= ymin) & (centres <= ymax), (centres >= xmin) & (centres <= xmax))
    return float(inside.mean())


def peak(values: np.ndarray, blur: float = 0.0) -> np.ndarray:
    """The highest point (y, x) in 0..1 of a map [h, w]; of several equal ones their mean; NaN where all are equal.

    Of a map of few positions it is the middle of the highest one.

    blur: standard deviation of a Gaussian over the map, as a share of its side.
    """
    values = np.asarray(values, np.float64)
    if blur:
        from scipy.ndimage import gaussian_filter  # slow to import

        values = gaussian_filter(values, blur * len(values))
    if not np.ptp(values) > 0:
        return np.full(2, np.nan)
    tops = np.argwhere(values == values.max())  # [n, 2]
    return (tops.mean(axis=0) + 0.5) / values.shape


def is_hit(point: np.ndarray, boxes: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    """Whether a point (y, x) lies in one of boxes [K, 4], or at most `tolerance` away; NaN never does."""
    low, high = boxes[:, :2] - tolerance, boxes[:, 2:] + tolerance
    return bool(((point >= low) & (point <= high)).all(axis=1).any())


def score(form: str, points: np.ndarray, there: np.ndarray, pairs: Pairs, num_labels: int, tolerance: float) -> Hits:
    """The hits of a form's points.

    Args:
      form: name of the form.
      points: float [P, 2] (y, x), of the pairs; a pair that it has a map without a highest point of is NaN, a miss.
      there: bool [P], the pairs that the form has a map for.
      pairs: see `pairs_of`.
      num_labels: C.
      tolerance: see `is_hit`; at least 0.
    """
    check_least("tolerance", tolerance, 0)

    def hits_of(points: np.ndarray) -> np.ndarray:
        own = [is_hit(point, boxes, tolerance) for point, boxes in zip(points, pairs.boxes, strict=True)]
        return np.array(own) & there

    def per_label(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(pairs.labels[chosen], minlength=num_labels)

    def mean(hits: np.ndarray, among: np.ndarray) -> float:
        counts = per_label(among)
        some = counts > 0
        return float((per_label(hits & among)[some] / counts[some]).mean()) if some.any() else float("nan")

    hits, centre = hits_of(points), hits_of(np.full_like(points, 0.5))
    shares = [mean(found, among) for found in (hits, centre) for among in (there, there & pairs.hard)]
    return Hits(form, per_label(there), per_label(hits), shares[0], shares[1], shares[2], shares[3])
