"""A metric by the share of wrong training labels, a curve a loss: Fig. 6 of CNN-LSTM-RMLC, from a sweep's runs.csv.

    jaxmlic noise-curves RUNS [--metric=mAP] [--out=FILE.png] [--title=TEXT]

Entries of a sweep are named SERIES[_noiseRATE][_foldN | _batchN]; RATE is in percent. Runs of one series and rate, over
seeds, folds and batches, are averaged. So it also tabulates ten-fold runs without noise.
"""

import csv
import textwrap
from pathlib import Path

import numpy as np

from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.experiments.sweep import NAME, spread

Curves = dict[str, dict[float, list[float]]]


def read(folder: str | Path, metric: str) -> Curves:
    """{series: {noise in percent: the metric (a fraction) of every run}}, both in the order of the sweep.

    Raises UserError for a folder without runs.csv, and for a metric that it does not have.
    """
    path = Path(folder) / "runs.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the --workdir of a `jaxmlic sweep`") from None
    if not rows:
        raise UserError(f"{path} holds no runs")
    if metric not in rows[0]:
        known = [key for key in rows[0] if key not in ("entry", "seed", "split", "protocol")]
        raise UserError(f"--metric={metric}: {path} has none{did_you_mean(metric, known)}; it has {', '.join(known)}")
    curves: Curves = {}
    for row in rows:
        match = NAME.fullmatch(row["entry"])
        curve = curves.setdefault(match["series"], {})
        curve.setdefault(float(match["rate"] or 0), []).append(float(row[metric] or "nan"))
    return curves


def table(curves: Curves, metric: str) -> str:
    """Mean +- standard deviation over runs in percent, a series a line; last, what the highest rate costs."""
    rates = sorted({rate for curve in curves.values() for rate in curve})
    width = max(map(len, [*curves, "series"]))
    lines = [f"{metric} in percent, mean +- standard deviation over runs, by percent of wrong training labels", ""]
    heads = [*(f"{rate:g}" for rate in rates), "runs", *["lost"] * (len(rates) > 1)]
    lines.append(f"{'series':{width}}  " + "  ".join(f"{head:>14}" for head in heads))
    for name, curve in curves.items():
        means = {rate: spread(values) for rate, values in curve.items()}
        cells = [
            f"{100 * means[rate][0]:.2f}" + (f" +- {100 * means[rate][1]:.2f}" if means[rate][1] >= 0 else "")
            if rate in means
            else "-"
            for rate in rates
        ]
        counts = sorted({len(values) for values in curve.values()})
        cells.append("-".join(map(str, {counts[0]: 0, counts[-1]: 0})))
        if len(rates) > 1:
            ends = rates[0] in means and rates[-1] in means
            cells.append(f"{100 * (means[rates[0]][0] - means[rates[-1]][0]):.2f}" if ends else "-")
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def plot(path: str | Path, curves: Curves, metric: str, title: str = "") -> None:
    """A PNG: the mean as a line, the standard deviation over runs as bars; the legend in the order of the line ends."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # slow to import, and only needed here; no pyplot, hence no global state

    figure = Figure(figsize=(8.0, 4.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    widest = max(rate for curve in curves.values() for rate in curve)
    lines = []
    for number, (name, curve) in enumerate(curves.items()):
        rates = sorted(curve)
        means, deviations = 100 * np.array([spread(curve[rate]) for rate in rates]).T
        aside = 0.004 * widest * (number - (len(curves) - 1) / 2)  # so that bars do not hide one another
        style = {"color": colormaps["tab10"](number % 10), "marker": "osD^vPX<>*"[number % 10], "markersize": 5}
        bars = np.nan_to_num(deviations)
        line = axes.errorbar(np.array(rates) + aside, means, bars, label=name, capsize=2.5, elinewidth=0.9, **style)
        lines.append((means[-1], line))
    axes.set_xlabel("wrong training labels (%)")
    axes.set_xticks(sorted({rate for curve in curves.values() for rate in curve}))
    axes.set_ylabel(f"{metric} (%)")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    lines = [line for _, line in sorted(lines, key=lambda pair: -pair[0])]
    axes.legend(handles=lines, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(textwrap.fill(title, 70), fontsize=11, parse_math=False)
    figure.savefig(Path(path), format="png")


def run(folder: str, metric: str = "mAP", out: str | None = None, title: str | None = None) -> Curves:
    """Prints the table; where there is more than one rate, draws the curves into `out` (FOLDER/noise_curves.png)."""
    curves = read(folder, metric)
    print(table(curves, metric))
    if len({rate for curve in curves.values() for rate in curve}) > 1:
        out = out or str(Path(folder) / "noise_curves.png")
        try:
            plot(out, curves, metric, title or f"{metric} under label noise: {Path(folder).resolve().name}")
        except OSError as error:
            raise UserError(f"--out={out}: cannot be written ({error.strerror})") from None
        print(f"\nwritten: {out}")
    return curves
