"""`jaxmlic predict`: labels for photographs. A run folder is all it needs; the data set may be gone."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmlic import run as run_lib
from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.reports import trace as trace_report
from jaxmlic.run import ImagePrediction, Run

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def main(argv: list[str]) -> int:
    parser = Parser(hosts=True, prog="jaxmlic predict", description="Labels photographs with a run's best checkpoint.")
    parser.add_argument("--workdir", required=True, help="folder of a `jaxmlic train`")
    parser.add_argument(
        "--threshold", default="0.5", help='probability, or "fitted" (on the validation part); default 0.5'
    )
    parser.add_argument("--out", help="path without suffix for the CSV and JSON; default: WORKDIR/predictions")
    parser.add_argument(
        "--trace", action="store_true", help="also show the steps of a recurrent head: its best labels, its paths"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    options = parser.parse_args(argv)
    return predict(options.workdir, options.images, threshold=options.threshold, out=options.out, trace=options.trace)


def predict(
    workdir: str, images: Sequence[str], *, threshold: str = "0.5", out: str | None = None, trace: bool = False
) -> int:
    """Labels the images, prints a table and writes `out`.csv and `out`.json.

    Args:
      workdir: the run folder.
      images: files, and folders of them.
      threshold: a probability, or "fitted".
      out: path without suffix; None for WORKDIR/predictions.
      trace: also show the steps of each prediction.

    Raises:
      UserError: for a mistake before anything is predicted, and at the end for images that could not be read.
    """
    paths = find_images(images)
    storage.check_writable(storage.to_path(out).parent if out else workdir)
    run = run_lib.load(workdir)
    bound, source = choose_threshold(run, threshold)
    found, unreadable = run.predict(paths, threshold=bound, trace=trace)
    decoded = bool(found) and run.chooses_labels
    if decoded:
        source = "none: the decoder chose the labels"
    traces = [trace_report.describe(one.trace, one.chosen, run.class_names) for one in found] if trace else []
    if found:
        print(table(found, run.class_names))
    for one, steps in zip(found, traces, strict=False):
        print(f"{one.file}\n{trace_report.text(steps)}")
    print(f"threshold: {source}")
    stem = storage.to_path(out) if out else run.workdir / "predictions"
    if found:
        write_csv(stem.with_suffix(".csv"), found, run.class_names, source)
        limit = {"logit": None if decoded else bound, "source": source}
        storage.write_json(stem.with_suffix(".json"), as_json(run, found, limit, unreadable, traces))
        print(f"written: {stem.with_suffix('.csv')} and {stem.with_suffix('.json')}")
    if unreadable:
        listed = ", ".join(f"{path} ({why})" for path, why in unreadable.items())
        raise UserError(f"{len(unreadable)} of {len(paths)} images could not be read and have no labels: {listed}")
    return 0


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The files named, and the images directly in the folders named, in order. UserError for a missing path."""
    found = []
    for path in map(storage.to_path, arguments):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)})")
            found.extend(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"image {path} does not exist")
    return found


def choose_threshold(run: Run, wanted: str) -> tuple[float, str]:
    """Threshold as a logit, and where it comes from. `wanted` is a probability or "fitted"."""
    if wanted == "fitted":
        rows = [r for r in run.history() if r["step"] == run.step and r.get("val/best_threshold") is not None]
        if not rows:
            raise UserError(f"{run.workdir} has no fitted threshold (no validation part); give --threshold=0.5")
        return rows[-1]["val/best_threshold"], f"fitted on the validation part at step {run.step} for the highest OF1"
    try:
        probability = float(wanted)
    except ValueError:
        probability = -1.0
    if not 0 < probability < 1:
        raise UserError(f"--threshold={wanted}: a probability between 0 and 1, or 'fitted'")
    return float(np.log(probability / (1 - probability))), f"given: probability {probability:g}"


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Logits -> probabilities without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * scores.astype(np.float64)))


def labels_of(one: ImagePrediction) -> list[int]:
    """The predicted labels, the most probable first."""
    return [i for i in np.argsort(-one.scores, kind="stable").tolist() if one.chosen[i]]


def table(found: Sequence[ImagePrediction], names: Sequence[str]) -> str:
    """A line an image: its labels with probabilities, most likely first; or the best one below the threshold."""
    width = max((len(str(one.file)) for one in found), default=0)
    lines = []
    for one in found:
        probability, best = sigmoid(one.scores), int(np.argmax(one.scores))
        text = ", ".join(f"{names[i]} {probability[i]:.2f}" for i in labels_of(one))
        text = text or f"- (best: {names[best]} {probability[best]:.2f}, below the threshold)"
        lines.append(f"{one.file!s:{width}}  {text}")
    return "\n".join(lines)


def write_csv(path: Path, found: Sequence[ImagePrediction], names: Sequence[str], source: str) -> None:
    """file, labels, threshold_source, then the probability of every class."""
    with storage.replacing(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "labels", "threshold_source", *names])
        for one in found:
            labels = ";".join(names[i] for i in labels_of(one))
            writer.writerow([one.file, labels, source, *(f"{p:.6g}" for p in sigmoid(one.scores))])


def as_json(
    run: Run, found: Sequence[ImagePrediction], threshold: dict, unreadable: dict[Path, str], traces: Sequence[dict]
) -> dict:
    """The same with logits, the checkpoint's step, the files that could not be read, and traces where there are any."""
    images: list[dict] = [
        {
            "file": str(one.file),
            "labels": [run.class_names[i] for i in labels_of(one)],
            "logits": dict(zip(run.class_names, map(float, one.scores), strict=True)),
        }
        for one in found
    ]
    for image, one in zip(images, found, strict=True):
        if one.path is not None:
            image["path"] = [run.class_names[i] for i in one.path.tolist() if i < len(run.class_names)]
    for image, steps in zip(images, traces, strict=False):
        image["trace"] = steps
    return {
        "workdir": str(run.workdir),
        "step": run.step,
        "threshold": threshold,
        "images": images,
        "unreadable": {str(path): why for path, why in unreadable.items()},
    }
