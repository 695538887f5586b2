"""A metric by the share of wrong training labels, a curve a loss: Fig. 6 of CNN-LSTM-RMLC, from a sweep's runs.csv.

Its columns `series` (the entry's name where empty), `noise_rate` (a fraction; none where empty) and `part` say what a
run belongs to. Runs of one series and rate, over seeds and parts, are averaged; so ten-fold runs without noise are
tabulated, too.
"""

import csv
import io
import textwrap
from pathlib import Path

import numpy as np

from jaxmlic import storage
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.reports import tables

# The others are metrics.
RUN_COLUMNS = ("entry", "series", "noise_rate", "part", "seed", "split", "protocol", "failed")

Curves = dict[str, dict[float, list[float]]]


def read(folder: str | Path, metric: str) -> Curves:
    """{series: {noise in percent: the metric (a fraction) of every run}}, both in the order of the sweep.

    Raises UserError for a folder without runs.csv, for a file of an older version, and for a metric it does not have.
    """
    path = storage.to_path(folder) / "runs.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))
    except (OSError, UnicodeDecodeError) as error:
        why = storage.reason(error)
        raise UserError(f"{path} cannot be read ({why}): give the --workdir of a `jaxmlic sweep`") from None
    lines = {line: row for line, row in enumerate(rows, 2) if not row.get("failed")}
    if not lines:
        raise UserError(f"{path} holds no complete runs")
    lacking = [column for column in ("entry", "series", "noise_rate") if column not in rows[0]]
    if lacking:
        raise UserError(
            f"{path}: no column {', '.join(lacking)}: run `jaxmlic sweep` again (complete runs are kept, the table is "
            "written anew)"
        )
    if metric not in rows[0]:
        known = [key for key in rows[0] if key not in RUN_COLUMNS]
        raise UserError(f"--metric={metric}: {path} has none{did_you_mean(metric, known)}; it has {', '.join(known)}")
    curves: Curves = {}
    for line, row in lines.items():
        try:
            percent = round(100 * float(row["noise_rate"] or 0), 6)  # 0.07 is 7, not 7.000000000000001
            value = float(row[metric] or "nan")
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {line}: {storage.reason(error)}; run `jaxmlic sweep` again") from None
        curves.setdefault(row["series"] or row["entry"], {}).setdefault(percent, []).append(value)
    return curves


def num_rates(curves: Curves) -> int:
    """How many rates of noise there are."""
    return len({rate for curve in curves.values() for rate in curve})


def text(curves: Curves, metric: str) -> str:
    """Mean +- standard deviation over runs in percent, a series a line; last, what the highest rate costs."""
    rates = sorted({rate for curve in curves.values() for rate in curve})
    header = ["series", *(f"{rate:g}" for rate in rates), "runs", *["lost"] * (len(rates) > 1)]
    rows = []
    for name, curve in curves.items():
        cells = [tables.spread_cell(curve[rate]) if rate in curve else "-" for rate in rates]
        counts = sorted({len(values) for values in curve.values()})
        cells.append("-".join(map(str, {counts[0]: 0, counts[-1]: 0})))
        if len(rates) > 1:
            ends = [tables.spread(curve.get(rate, ()))[0] for rate in (rates[0], rates[-1])]
            cells.append(tables.percent(ends[0] - ends[1]))
        rows.append([name, *cells])
    title = f"{metric} in percent, mean +- standard deviation over runs, by percent of wrong training labels"
    return f"{title}\n\n{tables.table(rows, '<>', header=header)}"


def plot(path: str | Path, curves: Curves, metric: str, title: str) -> None:
    """A PNG: the mean as a line, the standard deviation over runs as bars; the legend in the order of the line ends."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # slow to import, and only needed here; no pyplot, hence no global state

    figure = Figure(figsize=(8.0, 4.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    widest = max(rate for curve in curves.values() for rate in curve)
    lines = []
    for number, (name, curve) in enumerate(curves.items()):
        rates = sorted(curve)
        means, deviations = 100 * np.array([tables.spread(curve[rate]) for rate in rates]).T
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
    with storage.replacing(path) as file:
        figure.savefig(file, format="png")
