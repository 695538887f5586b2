"""Nearest labels of labels (Table 5 of CNN-RNN) and of images (Fig. 9) by the cosine of their vectors."""

from collections.abc import Sequence

import numpy as np

from jaxmlic.reports.figures import canvas


def draw_table(labels: Sequence[str], neighbours: Sequence[Sequence[str]], title: str = ""):
    """A line for each label: its nearest ones, the nearest first."""
    figure = canvas.new(6.4, 0.7 + 0.26 * len(labels))
    axes = figure.add_subplot()
    axes.set_axis_off()
    cells = [[label, ", ".join(names)] for label, names in zip(labels, neighbours, strict=True)]
    table = axes.table(
        cells, colLabels=["label", "nearest labels"], colWidths=[0.22, 0.78], cellLoc="left", bbox=(0, 0, 1, 1)
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8.5)
    for (row, _), cell in table.get_celld().items():
        cell.visible_edges = "B" if row else "TB"
        cell.set_edgecolor("0.6")
        cell.get_text().set_parse_math(False)
        cell.get_text().set_fontweight("bold" if row == 0 else "normal")
    axes.set_title(title, fontsize=9, parse_math=False)
    return figure


def draw_images(
    pixels: np.ndarray, neighbours: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], title: str = ""
):
    """Each image uint8 [S, S, 3] with its nearest labels below, in blue, and its highest-scored ones in black."""
    captions = [
        [(line, colour) for names, colour in ((near, canvas.MATCH), (best, "0.1")) for line in canvas.lines(names)]
        for near, best in zip(neighbours, predicted, strict=True)
    ]
    return canvas.captioned(pixels, captions, title)
