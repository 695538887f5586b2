"""Precision and recall of each class: Fig. 7 of CNN-RNN."""

from collections.abc import Sequence

import numpy as np

from jaxmlic.reports.figures import canvas
from jaxmlic.reports.tables import shorten

MAX_CLASSES = 100  # of more, the best and the worst half of this by F1


def draw(precision: np.ndarray, recall: np.ndarray, names: Sequence[str], title: str = ""):
    """A pair of bars for each class by falling F1, above each other; classes with NaN (no positives) are left out.

    precision, recall: fractions [C].
    """
    sums = precision + recall
    f1 = np.divide(2 * precision * recall, sums, out=np.zeros(len(sums)), where=np.nan_to_num(sums) > 0)
    order = np.argsort(-f1, kind="stable")
    order = order[~np.isnan(sums[order])]
    if len(order) > MAX_CLASSES:
        title += f" ({MAX_CLASSES // 2} best and worst of {len(order)} classes)"
        order = np.concatenate([order[: MAX_CLASSES // 2], order[-MAX_CLASSES // 2 :]])
    figure = canvas.new(max(5.0, 1.2 + 0.2 * len(order)), 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(order))
    for axes, values, what, colour in ((upper, precision, "precision", 0), (lower, recall, "recall", 1)):
        axes.bar(places, 100 * values[order], width=0.75, color=canvas.COLOURS[colour], zorder=2)
        if len(order):
            axes.axhline(100 * values[order].mean(), color="0.3", linewidth=0.9, linestyle="--", zorder=3)
        axes.set_ylabel(f"{what} (%)", fontsize=9)
        axes.set_ylim(0, 100)
        axes.grid(axis="y", color="0.9", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    lower.set_xticks(places, [shorten(names[i], 20) for i in order], rotation=90, fontsize=7.5, parse_math=False)
    lower.set_xlim(-0.7, len(order) - 0.3)
    upper.set_title(title, fontsize=9, parse_math=False)
    return figure
