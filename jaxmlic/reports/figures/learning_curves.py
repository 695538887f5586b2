"""The learning curves of a run, drawn into its folder from metrics.jsonl."""

from pathlib import Path

from jaxmlic import storage
from jaxmlic.reports.figures import canvas
from jaxmlic.training import run_folder
from jaxmlic.training.logs import metrics_log

NAME = "learning_curves.png"
_WIDTH, _HEIGHT, _MARGIN = 7.0, 1.9, 0.9  # inches: of the picture, of each panel, of both ends together
_DPI = 110  # the more, the longer it takes
_MARKED = 60  # points of a line that are marked, at most


def write(workdir: str | Path) -> Path | None:
    """Draws loss, learning rate and, where there is one, the validation score over steps; the best one is marked.

    Returns the path of the picture; None, and nothing drawn, before the first row of the log.
    """
    run, rows = run_folder.load(workdir), metrics_log.read(workdir)
    if not any("train/loss" in row for row in rows):
        return None
    metric = run.config.eval.metric
    best = metrics_log.best(rows, metric)
    panels = {"loss": ("train/loss", 1.0), "learning rate": ("train/lr", 1.0)}
    if best:
        panels[f"{metric}, % (validation)"] = (f"val/{metric}", 100.0)
    from matplotlib.figure import Figure  # slow to import; and a constrained layout takes longer than the drawing

    inches = _HEIGHT * len(panels) + _MARGIN
    figure = Figure(figsize=(_WIDTH, inches), dpi=_DPI)
    figure.subplots_adjust(left=0.13, right=0.97, top=1 - 0.4 / inches, bottom=0.5 / inches, hspace=0.14)
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, (title, (name, scale))) in enumerate(zip(all_axes, panels.items(), strict=True)):
        points = {row["step"]: scale * row[name] for row in rows if row.get(name) is not None}
        steps, values = zip(*sorted(points.items()), strict=True) if points else ((), ())
        marker = "o" if len(points) <= _MARKED else ""
        axes.plot(steps, values, color=canvas.COLOURS[number], linewidth=1.4, marker=marker, markersize=3)
        axes.set_ylabel(title, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="y", nbins=4)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        if best:
            axes.axvline(best["step"], color="0.55", linewidth=0.8, linestyle="--", zorder=0)
    title = f"{run.config.head} on {run.config.data.name}"
    if best:
        value = 100 * best[f"val/{metric}"]
        all_axes[-1].plot([best["step"]], [value], "*", color="black", markersize=11)
        title += f"; star: best checkpoint, {metric} {value:.2f} ({best['val/protocol']}) at step {best['step']:,}"
    all_axes[-1].set_xlabel("steps", fontsize=9)
    all_axes[0].set_title(title, fontsize=9, parse_math=False)
    path = storage.to_path(workdir) / NAME
    canvas.save(figure, path)
    return path
