"""Recall against the area of the objects' bounding boxes: Fig. 8 of CNN-RNN."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxmlic.reports.figures import canvas

# Shares of the image's area: twice as much from bin to bin, and the upper half in two.
EDGES = (0.0, *(2.0**-k for k in range(10, 0, -1)), 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class RecallByArea:
    """Bins of the boxes' area: edges float [K + 1], the boxes in each and those whose label is predicted, int [K]."""

    edges: np.ndarray
    boxes: np.ndarray
    found: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """float64 [K], NaN where there is no box."""
        return np.where(self.boxes > 0, self.found / np.maximum(self.boxes, 1), np.nan)

    def interval(self, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
        """Wilson's interval of the recall, 95 % by default; boxes of one image are counted as if independent."""
        n = np.maximum(self.boxes, 1)
        p = self.found / n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return centre - half, centre + half


def recall_by_area(
    boxes: Sequence[dict[str, np.ndarray]], labels: np.ndarray, predicted: np.ndarray, edges: Sequence[float] = EDGES
) -> RecallByArea:
    """An object counts as found where its label is predicted for the image.

    Args:
      boxes: of each image, `bbox` [K, 4] (ymin, xmin, ymax, xmax in 0..1) and `label` [K].
      labels: int8 [N, C]; boxes whose label is not 1 there (difficult ones) are left out.
      predicted: bool [N, C].
      edges: of the bins, shares of the image; a bin has its upper edge.
    """
    areas, hits = [np.zeros(0)], [np.zeros(0, bool)]
    for one, truth, guess in zip(boxes, labels, predicted, strict=True):
        counted = truth[one["label"]] == 1
        corners = np.asarray(one["bbox"], np.float64)[counted]
        areas.append((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
        hits.append(guess[one["label"]][counted])
    edges = np.asarray(edges, np.float64)
    bins = np.clip(np.searchsorted(edges, np.concatenate(areas)) - 1, 0, len(edges) - 2)
    total = np.bincount(bins, minlength=len(edges) - 1)
    return RecallByArea(edges, total, np.bincount(bins[np.concatenate(hits)], minlength=len(edges) - 1))


def draw(table: RecallByArea, title: str = ""):
    """Recall of each bin with its 95 % interval, and how many boxes there are."""
    figure = canvas.new(6.4, 4.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    there = np.flatnonzero(table.boxes)
    places = np.arange(len(table.boxes))
    low, high = table.interval()
    recall = table.recall
    reach = np.maximum(0, [recall - low, high - recall])[:, there]
    upper.errorbar(
        there, 100 * recall[there], 100 * reach, color=canvas.COLOURS[0], marker="o", markersize=4, capsize=2.5
    )
    upper.set_ylabel("recall (%)", fontsize=9)
    upper.set_ylim(0, 100)
    lower.bar(places, table.boxes, width=0.8, color="0.6", zorder=2)
    lower.set_ylabel("boxes", fontsize=9)
    for axes in (upper, lower):
        axes.grid(axis="y", color="0.9", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    lower.set_xticks(places, [_percent(edge) for edge in table.edges[1:]], fontsize=8)
    if len(there):
        lower.set_xlim(there[0] - 0.6, there[-1] + 0.6)
    lower.set_xlabel("area of the bounding box, up to this share of the image (%)", fontsize=9)
    upper.set_title(title, fontsize=9, parse_math=False)
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.3g}"
