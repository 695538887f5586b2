"""Probabilities against frequencies, before and after calibration."""

import numpy as np

from jaxmlic.metrics.calibration import Reliability
from jaxmlic.reports.figures import canvas


def draw(parts: list[tuple[str, Reliability]], title: str = ""):
    """For each (name, reliability) the frequency of a label against its probability, over the number of cells."""
    figure = canvas.new(3.9 * len(parts), 4.6)
    axes = figure.subplots(2, len(parts), squeeze=False, height_ratios=(3, 1), sharex=True)
    most = max(int(one.counts.max()) for _, one in parts)
    for (upper, lower), (name, one) in zip(axes.T, parts, strict=True):
        bins = len(one.counts)
        places = (np.arange(bins) + 0.5) / bins
        filled = one.counts > 0
        upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", zorder=1)
        upper.bar(places[filled], one.frequency[filled], width=0.9 / bins, color=canvas.COLOURS[0], zorder=2)
        # The gap to the mean probability of the bin is what ECE averages.
        upper.vlines(
            one.confidence[filled],
            one.confidence[filled],
            one.frequency[filled],
            color=canvas.COLOURS[3],
            linewidth=1.6,
            zorder=3,
        )
        upper.plot(one.confidence[filled], one.confidence[filled], "o", color=canvas.COLOURS[3], markersize=3, zorder=4)
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1)
        upper.set_title(
            f"{name}\nECE {100 * one.ece:.2f} %, mean of classes {100 * one.class_ece:.2f} %",
            fontsize=9,
            parse_math=False,
        )
        lower.bar(places, one.counts, width=0.9 / bins, color="0.7")
        lower.set_yscale("log")
        lower.set_ylim(0.7, 2 * most)
        lower.set_xlabel("probability", fontsize=9)
        for one_axes in (upper, lower):
            one_axes.tick_params(labelsize=8)
            one_axes.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("share of cells with the label\n(red: gap to the bin's mean probability)", fontsize=9)
    axes[1, 0].set_ylabel("cells", fontsize=9)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure
