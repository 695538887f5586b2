"""Pictures of label vectors: maps, cosines beside the data, heads side by side, drift. matplotlib figures."""

from collections.abc import Sequence

import numpy as np

from jaxmlic.reports.embeddings.measures import Agreement, BesideData, Drift
from jaxmlic.reports.figures import canvas

# Okabe and Ito's colours, told apart with any colour vision; then other marks.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKS = "osD^vP"
_NAMES = 60  # labels more than these are not written


def draw_map(points: np.ndarray, names: Sequence[str], own: np.ndarray, title: str = ""):
    """Labels at points [C, 2], coloured by their communities int [C]; those of one label are grey."""
    figure = canvas.new(6.4, 5.2)
    axes = figure.add_subplot()
    sizes = np.bincount(own)
    groups = [group for group in range(len(sizes)) if sizes[group] > 1]
    for number, group in enumerate(groups):
        chosen = points[own == group]
        colour, mark = PALETTE[number % len(PALETTE)], MARKS[number // len(PALETTE) % len(MARKS)]
        members = [name for name, its in zip(names, own, strict=True) if its == group]
        called = f"{len(members)}: {', '.join(members[:3])}{', ...' if len(members) > 3 else ''}"
        axes.scatter(*chosen.T, s=34, color=colour, marker=mark, label=called)
    alone = np.isin(own, groups, invert=True)
    if alone.any():
        axes.scatter(*points[alone].T, s=34, color="0.6", label="alone")
    if len(names) <= _NAMES:
        place_names(axes, points, names)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.12)
    legend = axes.legend(title="co-occurrence communities", fontsize=7, title_fontsize=7, loc="best", framealpha=0.7)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may have dollars
    axes.set_title(title, fontsize=9, parse_math=False)
    return figure


def place_names(axes, points: np.ndarray, names: Sequence[str]) -> None:
    """Each name beside its point, on the side where fewest other points are near."""
    span = np.maximum(np.ptp(points, axis=0), np.finfo(np.float64).tiny)
    scaled = points / span
    sides = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    places: list[np.ndarray] = []
    for number, name in enumerate(names):
        others = np.concatenate([np.delete(scaled, number, axis=0), *[place[None] for place in places]])
        spots = scaled[number] + sides * (0.07, 0.035)
        room = (((spots[:, None] - others[None]) / (2, 1)) ** 2).sum(axis=-1).min(axis=1)  # names are wider than high
        best = int(np.argmax(room))
        places.append(spots[best])
        x, y = sides[best]
        axes.annotate(
            name,
            points[number],
            xytext=(5 * x, 6 * y),
            textcoords="offset points",
            fontsize=7,
            ha=("center", "left", "right")[x],
            va=("center", "bottom", "top")[y],
            parse_math=False,
        )


def draw_beside_data(found: BesideData, names: Sequence[str], own: np.ndarray, title: str = ""):
    """Cosines of the vectors and association in the data as two matrices, labels in the order of their communities."""
    order = np.lexsort((-found.association.sum(axis=1), own))
    figure = canvas.new(9.2, 4.8)
    panels = zip(figure.subplots(1, 2), ("cosine of the vectors", "association in the data"), strict=True)
    off = ~np.eye(len(order), dtype=bool)
    for (axes, what), values in zip(panels, (found.cosines, found.association), strict=True):
        shown = np.where(off, values, np.nan)[np.ix_(order, order)]
        limit = max(np.nanmax(np.abs(shown)), np.finfo(np.float64).tiny)
        image = axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
        if len(names) <= _NAMES:
            ticks = [names[i] for i in order]
            axes.set_xticks(range(len(order)), ticks, rotation=90, fontsize=6, parse_math=False)
            axes.set_yticks(range(len(order)), ticks, fontsize=6, parse_math=False)
        axes.set_title(what, fontsize=9)
        figure.colorbar(image, ax=axes, shrink=0.75).ax.tick_params(labelsize=6)
    figure.suptitle(f"{title}  rank correlation {found.correlation:.2f}".strip(), fontsize=9, parse_math=False)
    return figure


def draw_agreement(found: Agreement, title: str = ""):
    """Neighbour overlap and rank correlation of the heads' tables, each pair's number in its cell."""
    count = len(found.names)
    figure = canvas.new(2.4 + 1.5 * count, 1.6 + 0.55 * count)
    parts = (
        (f"share of {found.k} nearest labels in common (chance {found.chance:.2f})", found.overlap, 0.0),
        ("rank correlation of cosines", found.correlation, -1.0),
    )
    for axes, (what, values, low) in zip(figure.subplots(1, 2), parts, strict=True):
        axes.imshow(values, cmap="Blues", vmin=low, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if value > 0.6 else "0.1")
        axes.set_xticks(range(count), found.names, rotation=30, ha="right", fontsize=7, parse_math=False)
        axes.set_yticks(range(count), found.names, fontsize=7, parse_math=False)
        axes.set_title(what, fontsize=8)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def draw_drift(found: Drift, names: Sequence[str], title: str = ""):
    """Over the checkpoints: each label's cosine with its vector at the last one, and what the neighbours do."""
    figure = canvas.new(7.2, 3.2)
    left, right = figure.subplots(1, 2)
    left.plot(found.steps, found.cosines, color="0.8", lw=0.8)
    moved = np.argsort(found.cosines[0], kind="stable")[:3]
    for label, colour in zip(moved, PALETTE, strict=False):
        left.plot(found.steps, found.cosines[:, label], color=colour, marker="o", ms=3, label=names[label])
    left.plot(found.steps, found.cosines.mean(axis=1), color="0.1", lw=2, label="mean")
    left.set_title("cosine with the label's last vector", fontsize=8)
    right.plot(found.steps, found.overlap, marker="o", ms=3, color=PALETTE[0], label="neighbours in common")
    right.plot(found.steps, found.correlation, marker="s", ms=3, color=PALETTE[1], label="rank correlation")
    right.set_title("with the last checkpoint", fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure
