"""The pointing game of a run: which of its maps point at the objects, beside the centre of the image."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from jaxmlic import progress, storage
from jaxmlic.errors import check_least
from jaxmlic.evaluation import attribution, pointing
from jaxmlic.reports.page import members
from jaxmlic.reports.tables import table
from jaxmlic.run import Pictures, Run
from jaxmlic.training import run_folder

_BLOCK = 256  # images in memory at once


def play(run: Run, split: str | None = None, count: int = 500, tolerance: float = pointing.TOLERANCE) -> dict:
    """The game on the first `count` images of a split that have a box of a label of theirs.

    Returns:
      {"split", "images", "pairs", "hard", "tolerance", "classes": names, "forms": [{"form", "share", "hard_share",
      "centre", "hard_centre", "pairs", "hits"}]}, the shares None where there is no pair, `pairs` and `hits` of each
      class.

    Raises:
      UserError: no boxes, and as `Run.pictures`.
    """
    check_least("--count", count, 1)
    split = split or run.config.data.test_split
    boxes, labels = run.boxes(split), members.view_of(run, split).labels
    pairs = pointing.pairs_of(boxes, labels)
    images = np.unique(pairs.rows)[:count]
    chosen = np.isin(pairs.rows, images)
    pairs = pointing.Pairs(
        pairs.rows[chosen],
        pairs.labels[chosen],
        [own for own, use in zip(pairs.boxes, chosen, strict=True) if use],
        pairs.hard[chosen],
    )
    points: dict[str, list[np.ndarray]] = {}
    own_forms = sum(form in run.attention_forms for form in ("weights", "steps"))
    total = 3 * len(pairs.rows) + own_forms * len(images)  # Grad-CAM and two gradients of each pair
    with progress.Progress(f"pointing {run.config.data.name}/{split}", total, unit="maps") as bar:
        for block in np.split(images, range(_BLOCK, len(images), _BLOCK)):
            pictures = run.pictures(split=split, rows=block)
            own = np.flatnonzero(np.isin(pairs.rows, block))
            places = np.searchsorted(block, pairs.rows[own])
            for form, found in _points(run, pictures, places, pairs.labels[own], bar):
                points.setdefault(form, []).append(found)
    num_labels = labels.shape[1]
    hits = []
    for form, parts in points.items():
        found = np.concatenate(parts)
        there = ~np.isinf(found).any(axis=1)
        hits.append(pointing.score(form, found, there, pairs, num_labels, tolerance))
    return {
        "split": split,
        "images": len(images),
        "pairs": len(pairs.rows),
        "hard": int(pairs.hard.sum()),
        "tolerance": tolerance,
        "classes": run.class_names,
        "forms": [_as_json(one) for one in hits],
    }


def _points(
    run: Run, pictures: Pictures, places: np.ndarray, labels: np.ndarray, bar: progress.Progress
) -> Iterator[tuple[str, np.ndarray]]:
    """(form, points float [P, 2]) of pairs of an image and a label; infinite where the form has no map of a pair."""
    pixels = pictures.pixels[places]
    sharp = partial(pointing.peak, blur=pointing.BLUR)

    def of_map(values: np.ndarray) -> np.ndarray:
        bar.advance()
        return pointing.peak(values)

    def of_gradient(slopes: np.ndarray) -> np.ndarray:
        bar.advance()
        return sharp(attribution.strength(slopes))

    yield "Grad-CAM", run.grad_cam(pixels, labels, reduce=of_map)
    yield "gradient", run.saliency(pixels, labels, "gradient", of_gradient)
    yield "guided", run.saliency(pixels, labels, "guided", of_gradient)
    if "weights" in run.attention_forms:
        weights = run.attention_maps(pictures.pixels)
        bar.advance(len(pictures.pixels))
        for stage, maps in weights.items():
            yield f"attention {stage}", np.stack([pointing.peak(one) for one in maps])[places]
    if "steps" in run.attention_forms:
        steps = run.step_attention(pictures.pixels, "gradient", sharp)
        bar.advance(len(pictures.pixels))
        found = np.full((len(labels), 2), np.inf)
        for number, (place, label) in enumerate(zip(places, labels, strict=True)):
            at = np.flatnonzero(steps.taken[place] == label)
            if len(at):
                found[number] = steps.maps[place, at[0]]
        yield "the label's step", found


def _as_json(hits: pointing.Hits) -> dict:
    def plain(value: float) -> float | None:
        return None if np.isnan(value) else round(value, 4)

    shares = {name: plain(getattr(hits, name)) for name in ("share", "hard_share", "centre", "hard_centre")}
    return {"form": hits.form, **shares, "pairs": hits.pairs.tolist(), "hits": hits.hits.tolist()}


def text(found: dict) -> str:
    """The mean of each form beside the centre's, then the hits of each class in percent."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    rows = [
        (f["form"], f"{sum(f['pairs']):,}", *(percent(f[k]) for k in ("share", "centre", "hard_share", "hard_centre")))
        for f in found["forms"]
    ]
    header = ("map", "pairs", "hits (%)", "centre (%)", "hard: hits (%)", "hard: centre (%)")
    classes = [
        (
            name,
            f"{max(f['pairs'][c] for f in found['forms']):,}",
            *(percent(f["hits"][c] / f["pairs"][c] if f["pairs"][c] else None) for f in found["forms"]),
        )
        for c, name in enumerate(found["classes"])
        if any(f["pairs"][c] for f in found["forms"])
    ]
    names = tuple(f["form"] for f in found["forms"])
    return "\n".join(
        [
            table(rows, "<", header=header),
            "",
            f"{found['images']:,} images of {found['split']}, {found['pairs']:,} pairs of an image and a label, "
            f"{found['hard']:,} of them hard; means over classes; tolerance {found['tolerance']:g} of the side",
            "",
            table(classes, "<", header=("class", "pairs", *(f"{name} (%)" for name in names))),
        ]
    )


def path_of(workdir: Path, split: str) -> Path:
    """Where a run keeps its game's numbers."""
    return workdir / run_folder.SCORES / f"{split}.pointing.json"


def write(path: Path, found: dict) -> str:
    """Writes the numbers as JSON, and those of each class as CSV beside it; returns a line that names both."""
    storage.write_json(path, found)
    with storage.replacing(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "map", "pairs", "hits"])
        for form in found["forms"]:
            counts = zip(found["classes"], form["pairs"], form["hits"], strict=True)
            writer.writerows([name, form["form"], pairs, hits] for name, pairs, hits in counts)
    return f"written: {path} and {path.with_suffix('.csv')}"
