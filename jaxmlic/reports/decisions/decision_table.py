"""What a learned decision rule is worth, as text."""

from jaxmlic.evaluation.decision import METRICS, POWER, Decision
from jaxmlic.reports.tables import table

_COLUMNS = ("CP", "CR", "CF1", "N+", "OF1")


def text(found: Decision) -> str:
    """What the rule is for, then each way of deciding on held-out images."""
    name = found.objective.partition("=")[0]
    lines = [
        f"rule for {found.objective} ({METRICS[name].description})",
        f"learned on {len(found.ids):,} held-out images of {found.split!r}, for batches of {found.images:,}",
    ]
    if not found.numbers:
        return "\n".join([*lines, "not judged: too few positives for folds, or --folds=0"])
    extra = ["utility"] if name == "utility" else []
    rows = []
    for key, numbers in found.numbers.items():
        shown = key.replace("^a", f"^{found.power:g}") if key == POWER else key
        cells = [f"{numbers[n]:.1f}" if n == "N+" else f"{100 * numbers[n]:.2f}" for n in _COLUMNS]
        rows.append([shown, *cells, *(f"{numbers[n]:.3f}" for n in extra), f"{numbers['labels an image']:.2f}"])
    header = ["on images not learned on, percent", *_COLUMNS, *extra, "labels an image"]
    lines += [
        "",
        table(rows, "<>", header=header),
        "each part of the images decided by a fit on the others; mean of parts",
    ]
    if METRICS[name].batch:
        lines.append("transductive: knows all images of the batch, reported under a protocol of its own")
    return "\n".join(lines)
