"""Validation scores of several runs against their epochs, as a picture and a table: `jaxmlic convergence`."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmlic import storage
from jaxmlic.errors import UserError
from jaxmlic.training import run_folder
from jaxmlic.training.logs import metrics_log

_COLOURS = ("#4C78A8", "#F58518", "#54A24B", "#E45756", "#72B7B2", "#B279A2", "#9D755D", "#BAB0AC")
_STYLES = ("-", "--", ":", "-.")


def curve(workdir: str | Path, metric: str = "mAP") -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values float64 [n] of a metric on a run's validation part.

    Raises UserError for a folder without a run, and for a run that was never validated or has no such metric.
    """
    run = run_folder.load(workdir)
    rows = [row for row in metrics_log.read(workdir) if "val/protocol" in row]
    found = [row for row in rows if row.get(f"val/{metric}") is not None]
    if not found:
        why = f"no val/{metric}" if rows else "no validation scores; it needs config.data.val_fraction or val_split"
        raise UserError(f"{workdir}: {why}")
    # A run resumed by an older version has written a step twice; the later row is what happened.
    by_step = {row["step"]: float(row[f"val/{metric}"]) for row in found}
    steps = np.array(sorted(by_step), float)
    epochs = steps * run.config.train.batch_size / run.num_train
    return epochs, np.array([by_step[step] for step in steps.astype(int)])


def names_of(workdirs: Sequence[str | Path]) -> list[str]:
    """Short names that tell the runs apart: their paths without the folders and the ending that all share."""
    parts = [storage.resolve(workdir).parts for workdir in workdirs]
    if len(parts) < 2:
        return [parts[0][-1]]
    shared = next((i for i, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), 0)
    names = [list(part[shared:]) or [part[-1]] for part in parts]
    while all(len(name) > 1 for name in names) and len({name[-1] for name in names}) == 1:
        names = [name[:-1] for name in names]
    return ["/".join(name) for name in names]


def plot(path: str | Path, curves: dict[str, tuple[np.ndarray, np.ndarray]], metric: str) -> None:
    """A line for each run, its best value in the legend."""
    from matplotlib.figure import Figure  # slow to import, and only needed here; no pyplot, hence no global state

    figure = Figure(figsize=(7.5, 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (epochs, values)) in enumerate(curves.items()):
        colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number // len(_COLOURS) % len(_STYLES)]
        label = f"{name} (best {100 * np.nanmax(values):.1f})" if np.isfinite(values).any() else name
        axes.plot(epochs, 100 * values, style, color=colour, marker="o", markersize=3, linewidth=1.6, label=label)
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"{metric} on the validation part (%)")
    axes.set_xlim(left=0)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    with storage.replacing(path) as file:
        figure.savefig(file, format="png")


def write_csv(path: str | Path, curves: dict[str, tuple[np.ndarray, np.ndarray]], metric: str) -> None:
    """A row for each point: run, epoch, value."""
    with storage.replacing(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "epoch", metric])
        for name, (epochs, values) in curves.items():
            writer.writerows([name, f"{e:.6g}", f"{v:.6g}"] for e, v in zip(epochs, values, strict=True))
