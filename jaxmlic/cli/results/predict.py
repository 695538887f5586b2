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
from jaxmlic.run import Predictions, Run, find_images
from jaxmlic.run.predicted import sigmoid
from jaxmlic.run.steps import describe

CALIBRATED = {
    "temperature": "calibrated (temperature)",
    "platt": "calibrated (Platt)",
    "none": "as the model gives them",
}


def main(argv: list[str]) -> int:
    parser = Parser(hosts=True, prog="jaxmlic predict", description="Labels photographs with a run's best checkpoint.")
    parser.add_argument("--workdir", required=True, help="folder of a `jaxmlic train`")
    parser.add_argument(
        "--threshold",
        help='probability from which on a label is predicted (0.5 is the logit 0), or "fitted" (on the validation '
        "part); default: what `jaxmlic thresholds` fitted, where it did, else 0.5",
    )
    parser.add_argument(
        "--no-thresholds",
        action="store_true",
        help="leave what `jaxmlic thresholds` fitted, thresholds and calibration, out of use",
    )
    parser.add_argument("--out", help="path without suffix for the CSV and JSON; default: WORKDIR/predictions")
    parser.add_argument(
        "--trace", action="store_true", help="also show the steps of a recurrent head: its best labels, its paths"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    options = parser.parse_args(argv)
    wanted = options.threshold
    if options.no_thresholds:
        if wanted == "fitted":
            raise UserError("--threshold=fitted and --no-thresholds: give one of them")
        wanted = wanted or "0.5"
    return predict(options.workdir, options.images, threshold=wanted, out=options.out, trace=options.trace)


def predict(
    workdir: str, images: Sequence[str], *, threshold: str | None = None, out: str | None = None, trace: bool = False
) -> int:
    """Labels the images, prints a table and writes `out`.csv and `out`.json.

    Args:
      workdir: the run folder.
      images: files, and folders of them.
      threshold: a probability, or "fitted"; None for the run's fitted thresholds where it has some, else 0.5.
      out: path without suffix; None for WORKDIR/predictions.
      trace: also show the steps of each prediction.

    Raises:
      UserError: for a mistake before anything is predicted, and at the end for images that could not be read.
    """
    paths = find_images(images)
    storage.check_writable(storage.to_path(out).parent if out else workdir)
    run = run_lib.load(workdir)
    bound, source = choose_threshold(run, threshold)
    found = run.predict(paths, logit=bound, trace=trace, skip_unreadable=True, progress=True)
    decoded = len(found) > 0 and run.chooses_labels
    if decoded:
        source = "none: the decoder chose the labels"
    traces = [describe(one.trace, one.chosen, run.class_names) for one in found if one.trace is not None]
    if len(found):
        print(table(found))
    for one, steps in zip(found, traces, strict=False):
        print(f"{one.file}\n{trace_report.text(steps)}")
    told = "" if bound is None and not decoded else "; probabilities: as the model gives them"
    print(f"threshold: {source}{told}")
    stem = storage.to_path(out) if out else run.workdir / "predictions"
    if len(found):
        write_csv(stem.with_suffix(".csv"), found, source)
        limit = {"logit": None if decoded else as_logits(found), "source": source}
        storage.write_json(stem.with_suffix(".json"), as_json(run, found, limit, traces))
        print(f"written: {stem.with_suffix('.csv')} and {stem.with_suffix('.json')}")
    if found.unreadable:
        listed = ", ".join(f"{path} ({why})" for path, why in found.unreadable.items())
        raise UserError(
            f"{len(found.unreadable)} of {len(paths)} images could not be read and have no labels: {listed}"
        )
    return 0


def choose_threshold(run: Run, wanted: str | None) -> tuple[float | None, str]:
    """Threshold as a logit, and where it comes from; None for what `jaxmlic thresholds` fitted. See `predict`."""
    stale = ""
    if wanted in (None, "fitted"):
        rule, old = run.learned_decision()
        if rule is not None:
            return None, f"none: {rule.describe()}; probabilities: calibrated with it"
        own, stale = run.fitted_thresholds()
        stale = stale or old
        if own is not None:
            return None, f"{own.describe()}; probabilities: {CALIBRATED[own.calibration]}"
    if wanted == "fitted":
        if stale:
            raise UserError(stale)
        rows = [r for r in run.history() if r["step"] == run.step and r.get("val/best_threshold") is not None]
        if not rows:
            raise UserError(
                f"{run.workdir} has no fitted threshold (no validation part); give a probability, --threshold=0.5"
            )
        bound = rows[-1]["val/best_threshold"]
        what = f"probability {sigmoid(np.float64(bound)):.3g} (logit {bound:.3g})"
        return bound, f"{what}, fitted on the validation part at step {run.step} for the highest OF1"
    if stale:
        return 0.0, f"probability 0.5 (logit 0), because {stale}"
    wanted = wanted or "0.5"
    try:
        probability = float(wanted)
    except ValueError:
        probability = -1.0
    if not 0 < probability < 1:
        raise UserError(f"--threshold={wanted}: a probability between 0 and 1, or 'fitted'")
    bound = float(np.log(probability / (1 - probability)))
    return bound, f"given: probability {probability:g} (logit {bound:.3g})"


def as_logits(found: Predictions) -> float | dict[str, float] | None:
    """The threshold, or that of each class by name."""
    if not np.ndim(found.threshold):
        return found.threshold
    return dict(zip(found.class_names, np.asarray(found.threshold).tolist(), strict=True))


def table(found: Predictions) -> str:
    """A line an image: its labels with probabilities, most likely first; or the best one below the threshold."""
    names = found.class_names
    width = max(map(len, found.files), default=0)
    lines = []
    for file, labels, probability in zip(found.files, found.labels, found.probabilities, strict=True):
        best = int(np.argmax(probability))
        text = ", ".join(f"{name} {probability[names.index(name)]:.2f}" for name in labels)
        text = text or f"- (best: {names[best]} {probability[best]:.2f}, below the threshold)"
        lines.append(f"{file:{width}}  {text}")
    return "\n".join(lines)


def write_csv(path: Path, found: Predictions, source: str) -> None:
    """file, labels, threshold_source, then the probability of every class."""
    with storage.replacing(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "labels", "threshold_source", *found.class_names])
        for name, labels, logits in zip(found.files, found.labels, found.logits, strict=True):
            writer.writerow([name, ";".join(labels), source, *(f"{p:.6g}" for p in sigmoid(logits))])


def as_json(run: Run, found: Predictions, threshold: dict, traces: Sequence[dict]) -> dict:
    """The same with logits, the checkpoint's step, the files that could not be read, and traces where there are any."""
    images: list[dict] = [
        {"file": file, "labels": labels, "logits": dict(zip(found.class_names, map(float, scores), strict=True))}
        for file, labels, scores in zip(found.files, found.labels, found.scores, strict=True)
    ]
    if found.calibrated is not None:
        for image, row in zip(images, found.probabilities, strict=True):
            image["probabilities"] = dict(zip(found.class_names, map(float, row), strict=True))
    for image, path in zip(images, found.label_paths or (), strict=False):
        image["path"] = path
    for image, steps in zip(images, traces, strict=False):
        image["trace"] = steps
    return {
        "workdir": str(run.workdir),
        "step": run.step,
        "threshold": threshold,
        "images": images,
        "unreadable": found.unreadable,
    }
