"""The label graph that `jaxmlic data graph` made, as a table and as a picture."""

import os

import numpy as np

from jaxmlic import storage
from jaxmlic.reports.tables import shorten, table

_PAIRS = 20  # lines of the table
_MAX_ALL, _MAX_NAMED = 100, 60  # classes drawn: all up to the first number, else the second
_EDGE = "#F58518"


def text(graph: dict) -> str:
    """The numbers of the graph and its strongest pairs; `graph` as `jaxmlic data graph` builds it."""
    names, counts, matrix = graph["names"], graph["counts"], graph["matrix"]
    edges, positives = graph["edges"], graph["num_positive"]
    connected = edges.any(0) | edges.any(1)
    settings = ", ".join(f"{key} {graph[key]:g}" for key in ("threshold", "reweight") if graph[key] is not None)
    lines = [
        f"{graph['dataset']}/{graph['split']}: {graph['num_images']:,} images, {len(names)} classes; "
        + f"style {graph['style']}{', ' * bool(settings)}{settings}",
        f"edges: {edges.sum():,}; classes without an edge: {np.sum(~connected):,}, "
        + f"without a positive: {np.sum(positives == 0):,}",
    ]
    strongest = _strongest(graph["association"], counts)
    if not strongest:
        return "\n".join([*lines, "no two classes occur together"])
    symbol = "NPMI" if graph["style"] == "pmi" else "P(to|from)"
    rows = []
    for i, j in strongest:
        # ML-GCN's matrix is transposed: its second label receives from the first.
        weight = matrix[j, i] if graph["style"] == "ml_gcn" else matrix[i, j]
        numbers = (f"{graph['association'][i, j]:.3f}", f"{counts[i, j]:,}", f"{positives[i]:,}")
        rows.append((shorten(names[i]), shorten(names[j]), *numbers, f"{weight:.4f}" if edges[i, j] else "-"))
    lines += ["", f"the {len(strongest)} strongest pairs (weight: in the matrix; - for no edge)"]
    header = ("from", "to", symbol, "together", "from alone", "weight")
    lines.append(table(rows, "<<>", header=header, indent=2))
    if not edges.any() and graph["threshold"] is not None:
        lines += ["", "no pair reaches the threshold: a lower --threshold makes edges"]
    return "\n".join(lines)


def _strongest(association: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
    """(from, to) of the strongest pairs, of equal ones the most frequent."""
    order = np.lexsort((-counts.ravel(), -association.ravel()))[:_PAIRS]
    return [divmod(int(k), len(association)) for k in order if association.flat[k] > 0]


def plot(path: str | os.PathLike, graph: dict) -> None:
    """Draws two heat maps into a PNG: what the threshold is compared with, its edges marked, and the matrix.

    The most frequent class comes first. Of more than 100 classes the 60 with most edges, then positives, are drawn.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here; no pyplot, hence no global state

    edges, total = graph["edges"], len(graph["names"])
    frequency = np.argsort(-graph["num_positive"], kind="stable")
    if total > _MAX_ALL:
        degree = edges.sum(0) + edges.sum(1)
        drawn = frequency[np.sort(np.argsort(-degree[frequency], kind="stable")[:_MAX_NAMED])]
    else:
        drawn = frequency
    square = np.ix_(drawn, drawn)
    names = [shorten(graph["names"][c]) for c in drawn]
    side = max(3.2, 0.165 * len(drawn))
    figure = Figure(figsize=(2 * side + 4.4, side + 2.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)

    what = "normalised mutual information" if graph["style"] == "pmi" else "P(column | row)"
    marked = "" if graph["threshold"] is None else f", edges from {graph['threshold']:g} on framed"
    association = _without_diagonal(graph["association"][square])
    _heat_map(figure, left, association, names, 1.0, f"{what}{marked}")
    _frame(left, edges[square])

    matrix = graph["matrix"][square]
    diagonal = matrix.diagonal()
    off = _without_diagonal(matrix)
    highest = float(np.nanmax(off, initial=0)) or 1.0  # no edges: an empty map
    span = f"{diagonal.min():.2f}" + f" to {diagonal.max():.2f}" * bool(np.ptp(diagonal) > 0.005)
    _heat_map(figure, right, off, names, highest, f"matrix: row receives from column (diagonal {span})")

    which = f" (drawn: the {len(drawn)} with most edges)" if len(drawn) < total else ""
    title = (
        f"{graph['dataset']}/{graph['split']}, style {graph['style']}: {edges.sum():,} edges, {total} classes{which}"
    )
    figure.suptitle(title, fontsize=12, parse_math=False)
    with storage.replacing(path) as file:
        figure.savefig(file, format="png")


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
    values = matrix.astype(np.float64)
    np.fill_diagonal(values, np.nan)
    return values


def _heat_map(figure, axes, values: np.ndarray, names: list[str], highest: float, title: str) -> None:
    """The diagonal, nan, is grey."""
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=highest, interpolation="nearest")
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axes.set_facecolor("0.85")
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10, parse_math=False)
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01).ax.tick_params(labelsize=8)


def _frame(axes, edges: np.ndarray) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    frames = [Rectangle((j - 0.45, i - 0.45), 0.9, 0.9) for i, j in zip(*np.nonzero(edges), strict=True)]
    axes.add_collection(PatchCollection(frames, facecolor="none", edgecolor=_EDGE, linewidth=1.1))
