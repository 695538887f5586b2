"""The runs of a sweep as rows: the table on a terminal, runs.csv, sweep.csv and sweep.html."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmlic import storage
from jaxmlic.config import Entry
from jaxmlic.experiments.sweeps import page
from jaxmlic.reports import tables

SHOWN = ("mAP", "CF1", "OF1", "IF1", "MAP@10", "top1", "accuracy")
FIELDS = ("entry", "series", "noise_rate", "part", "seed", "split", "protocol")  # of runs.csv, then the metrics
FAILED = "failed"  # the last column: why there are no metrics


def row(entry: Entry, seed: int, found: Mapping[str, object]) -> dict:
    """The metrics of one run with what it is a run of: FIELDS first."""
    own = {"entry": entry.name, "series": entry.series or entry.name, "noise_rate": entry.noise_rate}
    return own | {"part": entry.part, "seed": seed} | dict(found)


def failed_row(entry: Entry, seed: int, reason: str) -> dict:
    """The row of a run without metrics."""
    return row(entry, seed, {"split": "", "protocol": "", FAILED: reason})


def pooled(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """The runs of each entry, and after them the runs of all parts of a series together, as "SERIES_fold*"."""
    own: dict[str, list[dict]] = {}
    together: dict[str, list[dict]] = {}
    for one in rows:
        own.setdefault(one["entry"], []).append(one)
        if one["part"]:
            noise = "" if one["noise_rate"] is None else f"_noise{100 * one['noise_rate']:g}"
            name = f"{one['series']}{noise}_{one['part'].rstrip('0123456789')}*"
            together.setdefault(name, []).append(one)
    return own | {name: runs for name, runs in together.items() if len({one["part"] for one in runs}) > 1}


def _defined(one: dict, key: str) -> bool:
    return one.get(key) is not None and not np.isnan(one[key])


def _shown(rows: Sequence[dict]) -> list[str]:
    return [key for key in SHOWN if any(_defined(one, key) for one in rows)] or list(SHOWN)


def table(rows: Sequence[dict], failed: Sequence[dict] = ()) -> str:
    """Mean (and spread over runs) of the main metrics in percent: an entry a line, and one for all of its folds.

    failed: `failed_row`s, named after the table.
    """
    protocols = sorted({one["protocol"] for one in rows})
    shown = _shown(rows)
    cells = [
        [name, str(len(runs)), *(tables.spread_cell([one.get(key) for one in runs]) for key in shown)]
        for name, runs in pooled(rows).items()
    ]
    head = f"protocol: {', '.join(protocols)}; mean +- standard deviation over runs, percent"
    body = f"{head}\n\n{tables.table(cells, header=['entry', 'runs', *shown])}"
    lines = [f"  {one['entry']}, seed {one['seed']}: {one[FAILED]}" for one in failed]
    return "\n".join([body, "", "failed:", *lines]) if lines else body


def write(workdir: str | Path, rows: Sequence[dict], failed: Sequence[dict] = (), title: str = "sweep") -> None:
    """runs.csv: a row a run; sweep.csv: mean and standard deviation of each entry, and of all folds of one; sweep.html:
    both for a browser.

    rows: complete runs. failed: `failed_row`s; they stand in runs.csv and sweep.html. title: of sweep.html.
    """
    keys = [k for k, v in rows[0].items() if isinstance(v, float) and k not in (*FIELDS, "threshold")] if rows else []
    keys = [k for k in keys if all(k in one for one in rows)]  # rows of another protocol may lack one
    header = [*FIELDS, *keys, FAILED]
    body = [["" if one.get(key) is None else one[key] for key in header] for one in (*rows, *failed)]
    _write_csv(storage.to_path(workdir) / "runs.csv", header, body)
    names = ["entry", "runs", "protocol", *(f"{key} {what}" for key in keys for what in ("mean", "std"))]
    means = [
        [name, len(runs), runs[0]["protocol"], *(v for key in keys for v in tables.spread([one[key] for one in runs]))]
        for name, runs in pooled(rows).items()
    ]
    _write_csv(storage.to_path(workdir) / "sweep.csv", names, means)
    shown = [key for key in _shown(rows) if key in keys]
    by_entry = [
        [name, len(runs), *(tables.spread_cell([one[key] for one in runs]) for key in shown)]
        for name, runs in pooled(rows).items()
    ]
    by_run = [
        [f"{one['entry']}/seed{one['seed']}", *(_percent(one, key) for key in shown), one.get(FAILED, "")]
        for one in (*rows, *failed)
    ]
    content = {
        "mean +- standard deviation over runs, percent": (["entry", "runs", *shown], by_entry),
        "runs, percent": (["run", *shown, FAILED], by_run),
    }
    storage.write_text(storage.to_path(workdir) / "sweep.html", page.html(title, content))


def _percent(one: dict, key: str) -> str:
    return tables.percent(one[key]) if _defined(one, key) else ""


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    with storage.replacing(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
