"""Average precision, precision and recall of each class as text, CSV and a bar chart.

They are made from a report of `jaxmlic.metrics.evaluate`, and every form names the protocol: papers mean different
numbers by the same word.
"""

import csv
import os
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from jaxmlic import metrics, storage
from jaxmlic.reports.tables import percent, shorten, table

MAX_BARS = 60  # more would be unreadable: the best and the worst half of this are drawn
_MAX_NAME = 26  # characters of a class name beside a bar
_GROUPS = (
    ("per class", ("CP", "CR", "CF1", "CF1_mean")),
    ("overall", ("OP", "OR", "OF1")),
    ("per image", ("IP", "IR", "IF1", "MAP@10", "top1")),
)
_PATHS = ("paths", ("top1_step", "repeats"))  # of heads that emit labels in an order


def text(report: dict, class_names: Sequence[str], labels: np.ndarray) -> str:
    """A table of class, positives, AP, precision and recall in percent, the best class first, with the summary below.

    Args:
      report: what `jaxmlic.metrics.evaluate` returned.
      class_names: C names in column order.
      labels: int8 [N, C] in {1, 0, -1}, those that the report was made with.

    Raises:
      ValueError: the three do not fit together.
    """
    rows = [
        (name, f"{positives:,}", *map(percent, numbers))
        for name, positives, *numbers in _by_ap(report, class_names, labels)
    ]
    lines = [table(rows, "<>", header=("class", "positives", "AP (%)", "P (%)", "R (%)"))]
    lines += ["", f"{_headline(report)}, {report['num_examples']:,} images"]
    groups = (*_GROUPS, _PATHS) if "repeats" in report else _GROUPS
    lines += [f"{group}: " + ", ".join(f"{key} {percent(report[key])}" for key in keys) for group, keys in groups]
    if not np.isnan(report["accuracy"]):
        lines.append(f"single-label accuracy: {percent(report['accuracy'])}")
    lines.append(f"classes with recall > 0: {report['N+']}")
    threshold = "" if report["threshold"] is None else f" (threshold {_thresholds(report['threshold'])})"
    lines.append(f"protocol {report['protocol']}: {metrics.get_protocol(report['protocol']).description}{threshold}")
    return "\n".join(lines) + "\n"


def write_csv(path: str | os.PathLike, report: dict, class_names: Sequence[str], labels: np.ndarray) -> None:
    """Writes class, positives, AP, protocol, precision and recall (fractions, empty where undefined); see `text`."""
    rows = _rows(report, class_names, labels)
    with storage.replacing(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "positives", "AP", "protocol", "P", "R"])
        for name, positives, *numbers in rows:
            ap, precision, recall = ("" if np.isnan(number) else repr(number) for number in numbers)
            writer.writerow([name, positives, ap, report["protocol"], precision, recall])


def plot(path: str | os.PathLike, report: dict, class_names: Sequence[str], labels: np.ndarray) -> None:
    """Draws the classes by AP as horizontal bars into a PNG, with marks for precision and recall.

    Of more than 60 classes the best 30 and the worst 30.

    Args:
      path: where the PNG goes.
      report: what `jaxmlic.metrics.evaluate` returned; classes without an AP are only counted, in the title.
      class_names: C names in column order.
      labels: int8 [N, C], those that the report was made with.

    Raises:
      ValueError: report, names and labels do not fit together.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here; no pyplot, hence no global state

    drawn = [row for row in _by_ap(report, class_names, labels) if not np.isnan(row[2])]
    halves = [("", drawn)]
    if len(drawn) > MAX_BARS:
        half = MAX_BARS // 2
        halves = [(f"best {half} of {len(drawn)} classes", drawn[:half])]
        halves.append((f"worst {half} of {len(drawn)} classes", drawn[-half:]))
    most_bars = max(1, *(len(rows) for _, rows in halves))
    figure = Figure(figsize=(7.0 * len(halves), 1.5 + 0.235 * most_bars), dpi=130, layout="constrained")
    for axes, (subtitle, rows) in zip(figure.subplots(1, len(halves), squeeze=False)[0], halves, strict=True):
        _draw_bars(axes, rows, report["mAP"])
        axes.set_title(subtitle, fontsize=10, color="0.35")
    figure.suptitle(f"{_headline(report)}, protocol {report['protocol']}", fontsize=12, parse_math=False)
    with storage.replacing(path) as file:
        figure.savefig(file, format="png")


def _draw_bars(axes, rows: list[tuple[str, int, float, float, float]], mean_ap: float) -> None:
    """Best at the top; AP in percent at the right, the number of positives beside the name."""
    places = np.arange(len(rows))
    percents = [100 * row[2] for row in rows]
    axes.barh(places, percents, height=0.72, color="#4C78A8", zorder=2)
    for place, value in zip(places, percents, strict=True):  # beyond 100, where no mark is
        axes.text(110, place, f"{value:.1f}", fontsize=8, color="0.2", ha="right", va="center")
    names = [f"{shorten(name, _MAX_NAME)}  ({positives:,})" for name, positives, *_ in rows]
    for column, marker, colour, label in ((3, "|", "0.1", "precision"), (4, "o", "#F58518", "recall")):
        marks = [100 * row[column] for row in rows]
        edge = {} if marker == "|" else {"edgecolor": "white", "linewidth": 0.6}
        axes.scatter(marks, places, s=28, marker=marker, color=colour, label=label, zorder=3, clip_on=False, **edge)
    axes.set_yticks(places, names, fontsize=8.5, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top, without empty margins
    axes.set_xlim(0, 111)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="x", labelsize=9)
    axes.set_xlabel(
        "bar and number: AP, |: precision, \u25cf: recall (%); dashed: mAP; in brackets: positives", fontsize=9
    )
    axes.grid(axis="x", color="0.9", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if not np.isnan(mean_ap):
        axes.axvline(100 * mean_ap, color="#E45756", linewidth=1.2, linestyle="--", zorder=2.5)


def _rows(report: dict, class_names: Sequence[str], labels: np.ndarray) -> list[tuple[str, int, float, float, float]]:
    """(name, number of positives, AP, precision, recall; NaN where undefined) of each class, in column order."""
    labels, ap = np.asarray(labels), np.asarray(report["AP"])
    if labels.ndim != 2 or not len(class_names) == labels.shape[1] == len(ap):
        raise ValueError(f"{len(class_names)} class names, labels {list(labels.shape)} and {len(ap)} APs do not fit")
    positives = np.count_nonzero(labels == 1, axis=0)
    columns = (np.asarray(report[key]).astype(float).tolist() for key in ("AP", "P", "R"))
    return list(zip(map(str, class_names), positives.tolist(), *columns, strict=True))


def _by_ap(report: dict, class_names: Sequence[str], labels: np.ndarray) -> list[tuple[str, int, float, float, float]]:
    """`_rows`, the best class first and those without an AP last."""
    return sorted(_rows(report, class_names, labels), key=lambda row: -np.nan_to_num(row[2], nan=-1.0))


def _thresholds(value: float | np.ndarray) -> str:
    """Scores are logits here, as every head gives them."""
    if np.ndim(value):
        return f"logits {np.min(value):.3g} to {np.max(value):.3g}, one a class"
    return f"logit {value:g}, probability {expit(value):.3g}"


def _headline(report: dict) -> str:
    left_out = f" ({report['num_left_out']} left out)" if report["num_left_out"] else ""
    classes = "class" if report["num_classes"] == 1 else "classes"
    mean_ap = "undefined" if np.isnan(report["mAP"]) else f"{percent(report['mAP'])} %"
    return f"mAP {mean_ap} over {report['num_classes']} {classes}{left_out}"
