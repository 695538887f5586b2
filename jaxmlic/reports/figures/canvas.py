"""What the figures share: a canvas, pictures on axes, heat over pictures, files."""

import os
from collections.abc import Sequence

import numpy as np

from jaxmlic import storage

COLOURS = ("#4C78A8", "#F58518", "#54A24B", "#E45756")
MATCH, OTHER = "#1F5FBF", "#C8372D"  # labels that the truth has, and others
_HEAT = "inferno"
_SIDE, _LINE = 2.1, 0.15  # inches: of an image with a caption, and of a line of that
_SHARE = 99.5  # percentile of a heat map that has its brightest colour: single pixels are far above the others


def new(width: float, height: float):
    """A matplotlib figure of so many inches; no pyplot, hence no global state."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save(figure, path: str | os.PathLike) -> None:
    """Writes a PNG, whole or not at all."""
    with storage.replacing(path) as file:
        figure.savefig(file, format="png")


def grid(rows: int, columns: int, side: float = 1.9, text: float = 0.3):
    """A figure and its axes [rows, columns], square ones of `side` inches with `text` inches above each."""
    figure = new(side * columns, (side + text) * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    return figure, axes


def picture(axes, pixels: np.ndarray, title: str = "", colour: str = "0.1") -> None:
    """An image uint8 [S, S, 3] with a line above it."""
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=8, color=colour, parse_math=False)


def heat(axes, values: np.ndarray, pixels: np.ndarray | None = None, title: str = "", blur: float = 0.0) -> None:
    """A map [h, w] of numbers >= 0, alone or over the image in grey, each map from its own least to its own most.

    blur: standard deviation, as a share of the map's side, of a Gaussian that gathers single pixels to regions.
    """
    from scipy.ndimage import gaussian_filter

    values = np.asarray(values, np.float64)
    if blur:
        values = gaussian_filter(values, blur * len(values))
    low, high = values.min(), np.percentile(values, _SHARE)
    shown = np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)
    if pixels is None:
        axes.imshow(shown, cmap=_HEAT, interpolation="nearest", vmin=0, vmax=1)
    else:
        side = len(pixels)
        axes.imshow(pixels.mean(axis=-1), cmap="gray", vmin=0, vmax=255, extent=(0, side, side, 0))
        smooth = "bilinear" if len(shown) < side else "nearest"
        axes.imshow(
            shown, cmap=_HEAT, alpha=0.25 + 0.6 * shown, interpolation=smooth, extent=(0, side, side, 0), vmin=0, vmax=1
        )
    axes.set_title(title, fontsize=8, parse_math=False)


def captioned(pixels: Sequence[np.ndarray], captions: Sequence[Sequence[tuple[str, str]]], title: str = ""):
    """Images [S, S, 3], five in a row, each with lines of (text, colour) below."""
    columns = min(5, len(pixels))
    rows = -(-len(pixels) // columns)
    deepest = [max(map(len, captions[row * columns : (row + 1) * columns])) for row in range(rows)]
    heights = [inches for lines in deepest for inches in (_SIDE, _LINE * lines + 0.1)]
    figure = new(_SIDE * columns, sum(heights) + 0.35)
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=heights)
    for one in axes.flat:
        one.set_axis_off()
    for number, (image, own) in enumerate(zip(pixels, captions, strict=True)):
        row, column = divmod(number, columns)
        picture(axes[2 * row, column], image)
        below = axes[2 * row + 1, column]
        below.set_ylim(heights[2 * row + 1], 0)  # in inches from the top
        for line, (text, colour) in enumerate(own):
            below.text(0, _LINE * line, text, color=colour, fontsize=8, va="top", parse_math=False)
    figure.suptitle(title, fontsize=8.5, parse_math=False)
    return figure


def lines(names: Sequence[str], width: int = 30) -> list[str]:
    """Names side by side in lines of at most `width` characters, or of one name."""
    rows: list[str] = []
    for name in names:
        if rows and len(rows[-1]) + len(name) + 2 <= width:
            rows[-1] += f", {name}"
        else:
            rows.append(name)
    return rows
