"""Labels for photographs: `jaxmlic predict`. A run folder is all it needs; the data set may be gone."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxmlic import sharding
from jaxmlic.cli.parser import Parser
from jaxmlic.data.image import ImageError, decode_image
from jaxmlic.errors import UserError
from jaxmlic.evaluation import scoring
from jaxmlic.models.heads import contract
from jaxmlic.reports import trace as trace_report
from jaxmlic.training import metrics_log, run_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The files named, and the images directly in the folders named, in order. UserError for a missing path."""
    found = []
    for path in map(Path, arguments):
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


def read_images(
    paths: Sequence[Path], side: int, batch_size: int, bad: dict[Path, str]
) -> Iterator[tuple[list, np.ndarray]]:
    """Batches (paths, uint8 [batch_size, side, side, 3], zero-padded); unreadable files go into `bad`, with why."""
    batch: list[tuple[Path, np.ndarray]] = []
    for path in paths:
        try:
            batch.append((path, decode_image(path.read_bytes(), side)))
        except (ImageError, OSError) as error:
            bad[path] = str(error)
        if len(batch) == batch_size or (batch and path is paths[-1]):
            images = np.zeros((batch_size, side, side, 3), np.uint8)
            images[: len(batch)] = [image for _, image in batch]
            yield [path for path, _ in batch], images
            batch = []


def choose_threshold(found: run_folder.Run, step: int, wanted: str) -> tuple[float, str]:
    """Threshold as a logit, and where it comes from. `wanted` is a probability or "fitted"."""
    if wanted == "fitted":
        rows = [
            r for r in metrics_log.read(found.workdir) if r["step"] == step and r.get("val/best_threshold") is not None
        ]
        if not rows:
            raise UserError(f"{found.workdir} has no fitted threshold (no validation part); give --threshold=0.5")
        return rows[-1]["val/best_threshold"], f"fitted on the validation part at step {step} for the highest OF1"
    try:
        probability = float(wanted)
    except ValueError:
        probability = -1.0
    if not 0 < probability < 1:
        raise UserError(f"--threshold={wanted}: a probability between 0 and 1, or 'fitted'")
    return float(np.log(probability / (1 - probability))), f"given: probability {probability:g}"


def run(
    workdir: str, images: Sequence[str], *, threshold: str = "0.5", out: str | None = None, trace: bool = False
) -> int:
    """Labels the images, prints a table and writes `out`.csv and `out`.json. Returns the number of unreadable files.

    trace: also show the steps of each prediction; UserError for a head that has none.
    """
    found = run_folder.load(workdir)
    if found.config.data.source == "file":
        raise UserError(f"{workdir} was trained on {found.config.data.features_file}, so it cannot read photographs")
    paths = find_images(images)
    head = contract.find(found.config.head)
    if trace and not hasattr(head, "trace_fn"):
        raise UserError(f"--trace: the head {found.config.head!r} of {workdir} labels images in one step")
    model = head.Model(len(found.class_names), **found.config.model)
    mesh = sharding.make_mesh()
    variables, step = scoring.restore_variables(found, model, mesh)
    bound, source = choose_threshold(found, step, threshold)
    predict_step = scoring.make_predict_step(head, model, mesh)
    trace_step = jax.jit(lambda variables, images: head.trace_fn(model, variables, images))
    batch_size = min(scoring.batch_size_for(found.config, mesh), -(-len(paths) // mesh.size) * mesh.size)

    rows, traces, bad = [], [], {}
    for names, batch in read_images(paths, found.config.data.image_size, batch_size, bad):
        pixels = sharding.put({"image": batch}, mesh)["image"]
        prediction = predict_step(variables, pixels)
        scores = sharding.gather(prediction.scores)
        chosen = scores >= bound if prediction.chosen is None else sharding.gather(prediction.chosen)
        rows.extend((str(name), score, picked) for name, score, picked in zip(names, scores, chosen, strict=False))
        if trace:
            steps = jax.tree.map(sharding.gather, trace_step(variables, pixels))
            traces.extend(
                trace_report.describe(jax.tree.map(lambda x, i=i: x[i], steps), chosen[i], found.class_names)
                for i in range(len(names))
            )
    if prediction_is_decoded := bool(rows) and prediction.chosen is not None:
        source = "none: the decoder chose the labels"
    print_table(rows, found.class_names)
    for (name, _, _), steps in zip(rows, traces, strict=False):
        print(f"{name}\n{trace_report.text(steps)}")
    print(f"threshold: {source}")
    stem = Path(out) if out else found.workdir / "predictions"
    if rows:
        write_csv(stem.with_suffix(".csv"), rows, found.class_names, source)
        bound = None if prediction_is_decoded else bound
        write_json(stem.with_suffix(".json"), rows, found, step, bound, source, bad, traces)
        print(f"written: {stem.with_suffix('.csv')} and {stem.with_suffix('.json')}")
    if bad:
        listed = ", ".join(f"{path} ({why})" for path, why in bad.items())
        raise UserError(f"{len(bad)} of {len(paths)} images could not be read and have no labels: {listed}")
    return 0


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Logits -> probabilities without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * scores.astype(np.float64)))


def print_table(rows: list[tuple[str, np.ndarray, np.ndarray]], names: Sequence[str]) -> None:
    """One line an image: its labels with probabilities, most likely first; or the best one below the threshold."""
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, scores, chosen in rows:
        order = np.argsort(-scores, kind="stable")
        probability = sigmoid(scores)
        picked = [f"{names[i]} {probability[i]:.2f}" for i in order if chosen[i]]
        best = order[0]
        text = ", ".join(picked) or f"- (best: {names[best]} {probability[best]:.2f}, below the threshold)"
        print(f"{name:{width}}  {text}")


def write_csv(path: Path, rows: list, names: Sequence[str], source: str) -> None:
    """file, labels, threshold_source, then the probability of every class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "labels", "threshold_source", *names])
        for name, scores, chosen in rows:
            labels = ";".join(names[i] for i in np.argsort(-scores, kind="stable") if chosen[i])
            writer.writerow([name, labels, source, *(f"{p:.6g}" for p in sigmoid(scores))])


def write_json(
    path: Path,
    rows: list,
    found: run_folder.Run,
    step: int,
    bound: float | None,
    source: str,
    bad: dict[Path, str],
    traces: Sequence[dict] = (),
) -> None:
    """The same with logits, the checkpoint's step, the files that could not be read, and traces where there are any."""
    images = [
        {
            "file": name,
            "labels": [found.class_names[i] for i in np.argsort(-scores, kind="stable") if chosen[i]],
            "logits": dict(zip(found.class_names, map(float, scores), strict=True)),
        }
        for name, scores, chosen in rows
    ]
    for image, steps in zip(images, traces, strict=False):
        image["trace"] = steps
    value = {
        "workdir": str(found.workdir),
        "step": step,
        "threshold": {"logit": bound, "source": source},
        "images": images,
        "unreadable": {str(path): why for path, why in bad.items()},
    }
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = Parser(prog="jaxmlic predict", description="Labels photographs with a run's best checkpoint.")
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
    return run(options.workdir, options.images, threshold=options.threshold, out=options.out, trace=options.trace)
