"""What models look at: maps over images (Fig. 10 of CNN-RNN, Figs. 2 and 7 of CNN-LSTM-RMLC, MSCNN's masks)."""

from collections.abc import Sequence

import numpy as np

from jaxmlic.reports.figures import canvas

BLUR = 0.02  # of a map's side: single pixels' gradients are noise to the eye
MAX_LABELS = 8  # beside an image


def draw_heat(
    pixels: np.ndarray,
    maps: Sequence[Sequence[np.ndarray]],
    titles: Sequence[Sequence[str]],
    title: str = "",
    blur=BLUR,
):
    """A row for each image: uint8 [S, S, 3], then its maps [h, w] over it, each under its own title."""
    columns = 1 + max(map(len, maps), default=0)
    figure, axes = canvas.grid(len(pixels), columns)
    for row, image, own, names in zip(axes, pixels, maps, titles, strict=True):
        canvas.picture(row[0], image)
        for one, values, name in zip(row[1:], own, names, strict=False):
            canvas.heat(one, values, image, name, blur)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def draw_feature_maps(pixels: np.ndarray, maps: np.ndarray, title: str = "", count: int = 12):
    """A row for each image: itself, then those of its maps [N, h, w, D] that vary most over its positions."""
    count = min(count, maps.shape[-1])
    figure, axes = canvas.grid(len(pixels), 1 + count, side=1.1, text=0.22)
    for row, image, own in zip(axes, pixels, maps, strict=True):
        canvas.picture(row[0], image)
        best = np.argsort(-own.reshape(-1, own.shape[-1]).std(axis=0), kind="stable")[:count]
        for one, channel in zip(row[1:], best, strict=True):
            canvas.heat(one, own[..., channel], title=str(channel))
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def draw_annotations(
    pixels: np.ndarray, predicted: Sequence[Sequence[str]], truth: Sequence[Sequence[str]] | None, title: str = ""
):
    """Images with their true and their predicted labels, which are blue where they are true and red where not.

    Red ones may be in the image all the same: that is for the reader to see (Fig. 4 of Multi-order RNN). Without a
    truth all are black.
    """
    captions = []
    for number, names in enumerate(predicted):
        known = None if truth is None else set(truth[number])
        lines = [(name, "0.1" if known is None else canvas.MATCH if name in known else canvas.OTHER) for name in names]
        above = [] if known is None else [(line, "0.4") for line in canvas.lines(truth[number]) or ["(none)"]]
        captions.append([*above, *lines[:MAX_LABELS]] if lines else [*above, ("(none)", "0.1")])
    return canvas.captioned(pixels, captions, title)
