"""A review of labels as text, and as the CSV file that its reader fills in."""

import csv
import os
from collections.abc import Iterator

import numpy as np

from jaxmlic import storage
from jaxmlic.evaluation.review import ANNOTATE, LIKELY, Review
from jaxmlic.reports.tables import shorten, table

HEADER = ("rank", "kind", "image", "class", "given", "probability", "corrected")
GIVEN = {1: "present", 0: "absent", -1: "unknown"}
BY = {"confident": "confident learning", "loss": "loss"}
_SHOWN, _SHOWN_IMAGES, _CLASSES = 10, 5, 3


def text(found: Review) -> str:
    """What was reviewed, how much is held for wrong, and the first of both lists."""
    labels = found.scores.labels
    counts = ", ".join(f"{np.count_nonzero(labels == value):,} {name}" for value, name in GIVEN.items())
    total = sum(found.confident.values())
    share = total / max(1, np.count_nonzero(labels >= 0))
    lines = [
        f"{found.scores.split or 'the score file'}: {len(labels):,} images, {labels.size:,} labels ({counts})",
        f"confident learning flags {total:,} labels ({share:.2%} of the known ones): "
        f"{found.confident[1]:,} given as present, {found.confident[0]:,} as absent",
    ]
    if found.errors:
        rows = [
            [str(rank), shorten(image, 40), shorten(name), GIVEN[given], f"{p:.3f}", kind]
            for rank, kind, image, name, given, p in _errors(found)
        ]
        lines += ["", f"likely errors by {BY[found.ranking]}, the first {len(rows[:_SHOWN])} of {len(rows)} listed:"]
        lines.append(table(rows[:_SHOWN], "><<<><", header=["rank", "image", "class", "given", "probability", ""]))
    if found.images:
        lines += ["", f"images to annotate next, the first {len(found.images[:_SHOWN_IMAGES])} of {len(found.images)}:"]
        rows = []
        for rank, row in enumerate(found.images[:_SHOWN_IMAGES], 1):
            columns = found.unknown(row)
            named = ", ".join(
                f"{shorten(found.scores.class_names[c])} {found.probabilities[row, c]:.2f}" for c in columns[:_CLASSES]
            )
            rows.append([str(rank), shorten(str(found.scores.ids[row]), 40), f"{len(columns):,}", named])
        lines.append(table(rows, "><><", header=["rank", "image", "unknown labels", "the least certain"]))
    return "\n".join(lines)


def write_csv(path: str | os.PathLike, found: Review) -> None:
    """A row for each likely error, then one for each unknown label of the images to annotate."""
    with storage.replacing(path, "w", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for *cells, p in _errors(found):
            writer.writerow([*cells, f"{p:.4f}", ""])
        for rank, row in enumerate(found.images, 1):
            for column in found.unknown(row):
                name, p = found.scores.class_names[column], found.probabilities[row, column]
                writer.writerow([rank, ANNOTATE, found.scores.ids[row], name, -1, f"{p:.4f}", ""])


def _errors(found: Review) -> Iterator[tuple[int, str, str, str, int, float]]:
    """(rank, kind, image, class, label given, probability) of each likely error."""
    for rank, (row, column) in enumerate(found.errors, 1):
        given = int(found.scores.labels[row, column])
        name, image = found.scores.class_names[column], str(found.scores.ids[row])
        yield rank, LIKELY[given], image, name, given, float(found.probabilities[row, column])
