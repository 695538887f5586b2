"""What `jaxmlic data check` found, as a table and as a picture."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmlic import storage
from jaxmlic.reports.tables import shorten, table

_MAX_ROWS, _WIDTH = 10, 116  # lines and characters of the table of classes
_MAX_ALL, _MAX_NAMED = 100, 60  # classes drawn with their names: all up to the first number, else the second
_COLOURS = ("#4C78A8", "#F58518", "#54A24B", "#B279A2", "#9D755D")


def some(things: Sequence[str], shown: int = 3) -> str:
    """The first few of a list, with "..." where there are more."""
    return ", ".join(things[:shown]) + (", ..." if len(things) > shown else "")


def text(report: dict) -> str:
    """The table: numbers of each split, sizes of the label sets, classes by frequency, findings."""
    splits = list(report["splits"])
    total, order = report["splits"]["all"], "alphabetical" if report["alphabetical"] else "own"
    head = f"{report['name']}: {total['images']:,} images, {len(report['classes'])} classes in {order} order"
    findings = [(found["level"], shorten(found["text"], 150)) for found in report["findings"]]
    blocks = [table(_split_rows(report, splits), "<>"), table(_size_rows(report, splits), "<>"), _class_lines(report)]
    return "\n\n".join([head, *blocks, table(findings) or "nothing found"])


def _split_rows(report: dict, splits: list[str]) -> list[list[str]]:
    def sides(lengths: dict) -> str:
        return " / ".join(f"{lengths[key]:g}" for key in ("min", "median", "max")) if lengths else "-"

    shown = {
        "images": lambda split: f"{split['images']:,}",
        "unreadable": lambda split: f"{split['unreadable']:,}",
        "labels an image": lambda split: f"{split['cardinality']:.2f}",
        "label density": lambda split: f"{100 * split['density']:.2f} %",
        "distinct label sets": lambda split: f"{split['distinct_label_sets']:,}",
        "unknown values": lambda split: f"{split['unknown']:,}",
        "boxes (difficult)": lambda split: f"{split['boxes']:,} ({split['difficult_boxes']:,})",
        "height min/median/max": lambda split: sides(split["height"]),
        "width min/median/max": lambda split: sides(split["width"]),
        "formats": lambda split: some([f"{name} {n:,}" for name, n in split["formats"].items()]) or "-",
    }
    if not report["splits"]["all"]["boxes"]:
        del shown["boxes (difficult)"]
    rows = [[name, *(show(report["splits"][split]) for split in splits)] for name, show in shown.items()]
    return [["", *splits], ["used as", *(report["roles"].get(split, "") for split in splits)], *rows]


def _size_rows(report: dict, splits: list[str]) -> list[list[str]]:
    """How many images have 0, 1, 2, ... labels; the last column holds the rest."""
    sizes = {split: {int(k): n for k, n in report["splits"][split]["label_set_sizes"].items()} for split in splits}
    last = min(max(sizes["all"]), 8)
    rows = [["images with", *map(str, range(last)), f"{last}{'+' * (max(sizes['all']) > last)} labels"]]
    for split in splits:
        counts = [sizes[split].get(size, 0) for size in range(last)]
        rows.append([split, *(f"{n:,}" for n in [*counts, sum(sizes[split].values()) - sum(counts)])])
    return rows


def _class_lines(report: dict) -> str:
    """Classes by frequency with their positives in each split, in columns read downwards."""
    splits = list(report["roles"])
    classes = sorted(report["classes"], key=lambda entry: -sum(entry["present"].values()))
    cells = [
        (shorten(entry["name"]), "/".join(f"{entry['present'][split]:,}" for split in splits)) for entry in classes
    ]
    names, numbers = (max(map(len, column)) for column in zip(*cells, strict=True))
    columns = max(1, _WIDTH // (names + numbers + 4))
    title = f"positives in {'/'.join(splits)}"
    if len(cells) > (room := _MAX_ROWS * columns):
        frequent = _MAX_ROWS * -(-columns // 2)
        rare = room - frequent
        title += f", the {frequent} most frequent"
        title += f" and the {rare} rarest classes" if rare else " classes"
        title += f" (all {len(cells)} in check.json)"
        cells = cells[:frequent] + cells[len(cells) - rare :]
    height = -(-len(cells) // columns)
    cells += [("", "")] * (-len(cells) % height)
    rows = [[text for cell in cells[row::height] for text in cell] for row in range(height)]
    return f"{title}\n{table(rows, '<>' * columns)}"


def plot(path: str | os.PathLike, report: dict) -> None:
    """Draws the report of `check` into a PNG: positives of each class, and how classes occur together.

    Of more than 100 classes the 60 most frequent are drawn with their names, and the frequencies of all below.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here; no pyplot, hence no global state

    matrix = np.array(report["cooccurrence"])
    order = np.argsort(-np.diag(matrix), kind="stable")
    drawn = order[:_MAX_NAMED] if len(order) > _MAX_ALL else order
    height = max(3.5, 0.165 * len(drawn))
    tail = 2.6 if len(drawn) < len(order) else 0.0
    figure = Figure(figsize=(6.2 + height, height + tail + 2.2), dpi=110, layout="constrained")
    grid = figure.add_gridspec(
        2 if tail else 1, 2, width_ratios=(5, height), height_ratios=(height, tail)[: 1 + bool(tail)]
    )
    bars = figure.add_subplot(grid[0, 0])
    positives = {split: np.array([entry["present"][split] for entry in report["classes"]]) for split in report["roles"]}
    positives = {split: counts for split, counts in positives.items() if counts.any()}
    names = [shorten(report["classes"][c]["name"]) for c in drawn]
    _draw_bars(bars, names, {split: counts[drawn] for split, counts in positives.items()})
    _draw_heat_map(figure, figure.add_subplot(grid[0, 1]), names, matrix[np.ix_(drawn, drawn)])
    if tail:
        _draw_ranks(figure.add_subplot(grid[1, :]), positives)
    which = f" (drawn: the {len(drawn)} most frequent)" if tail else ""
    title = f"{report['name']}: {report['splits']['all']['images']:,} images, {len(order)} classes{which}"
    figure.suptitle(title, fontsize=12, parse_math=False)
    with storage.replacing(path) as file:
        figure.savefig(file, format="png")


def _scale(counts: np.ndarray) -> str:
    """Logarithmic when the most frequent class has 50 times the positives of the rarest that has any."""
    seen = counts[counts > 0]
    return "log" if len(seen) and seen.max() >= 50 * seen.min() else "linear"


def _draw_bars(axes, names: list[str], positives: Mapping[str, np.ndarray]) -> None:
    """The most frequent class on top, the bars of the splits side by side."""
    places, thickness = np.arange(len(names)), 0.84 / max(len(positives), 1)
    for number, (split, counts) in enumerate(positives.items()):
        shift = (number - (len(positives) - 1) / 2) * thickness
        axes.barh(places + shift, counts, thickness, color=_COLOURS[number % len(_COLOURS)], label=split, zorder=2)
    axes.set_yticks(places, names, fontsize=7.5, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale(_scale(np.concatenate([*positives.values(), [0]])))
    axes.set_xlim(left=0.5 if axes.get_xscale() == "log" else 0)  # a class with one image keeps a bar
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title("images with the label", fontsize=10)
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if positives:
        axes.legend(fontsize=8, loc="lower right", framealpha=0.9)


def _draw_heat_map(figure, axes, names: list[str], matrix: np.ndarray) -> None:
    """P(column's label | row's label), in rows beside the bars; grey on the diagonal and where a row never occurs."""
    counts = np.diag(matrix).astype(float)
    with np.errstate(invalid="ignore"):
        conditional = matrix / counts[:, None]
    np.fill_diagonal(conditional, np.nan)
    image = axes.imshow(conditional, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(names)), names, fontsize=7, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)  # as the bars
    axes.set_facecolor("0.85")
    axes.tick_params(length=0)
    axes.set_title("co-occurrence: P(column | row)", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01).ax.tick_params(labelsize=8)


def _draw_ranks(axes, positives: Mapping[str, np.ndarray]) -> None:
    """All classes of each split, from the most frequent to the rarest."""
    for number, (split, counts) in enumerate(positives.items()):
        ranked = -np.sort(-counts)
        label = f"{split} ({np.count_nonzero(counts)} of {len(counts)} classes have a positive)"
        axes.step(
            np.arange(1, len(ranked) + 1),
            np.where(ranked > 0, ranked, np.nan),
            color=_COLOURS[number % len(_COLOURS)],
            label=label,
            where="mid",
        )
    axes.set_yscale(_scale(np.concatenate([*positives.values(), [0]])))
    axes.set_xlabel("rank of the class in the split", fontsize=9)
    axes.set_ylabel("images with the label", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    if positives:
        axes.legend(fontsize=8)
