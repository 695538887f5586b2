"""What fitted thresholds are, and what they are worth, as text."""

import numpy as np
from scipy.special import expit

from jaxmlic.evaluation.thresholds import Fit
from jaxmlic.metrics.thresholds import OBJECTIVES
from jaxmlic.reports.tables import table

_COLUMNS = ("CP", "CR", "CF1", "CF1_mean", "OP", "OR", "OF1")
_ROWS = ("at logit 0", "fitted", "held out")
_MOST = 40  # classes in a table: the file has all


def text(fit: Fit) -> str:
    """Thresholds of the classes as logits and as the model's and the calibrated probabilities, then their numbers."""
    found = fit.thresholds
    objective = OBJECTIVES[found.objective.partition("=")[0]].description
    kind = f"one for each class, shrunk with k = {found.shrink:g}" if found.per_class else "one for all classes"
    lines = [
        f"thresholds for {found.objective} ({objective}), {kind}",
        f"fitted on {found.numbers['images']:,} images of {found.split!r} with the checkpoint of step {found.step}",
        f"overall: logit {found.overall:.4g}, probability {expit(found.overall):.4g}",
        "",
    ]
    if found.per_class:
        lines += [_classes(fit), ""]
    lines += [_numbers(fit), "", *_notes(fit)]
    return "\n".join(lines).rstrip()


def _classes(fit: Fit) -> str:
    found = fit.thresholds
    order = np.argsort(-fit.num_positive, kind="stable")
    calibrated = found.calibrated(found.values)
    rows = [
        [
            found.class_names[c],
            f"{fit.num_positive[c]:,}",
            "-" if np.isnan(fit.own[c]) else f"{fit.own[c]:.3f}",
            f"{found.values[c]:.3f}",
            f"{expit(found.values[c]):.3f}",
            *([] if found.calibration == "none" else [f"{expit(calibrated[c]):.3f}"]),
        ]
        for c in order[:_MOST]
    ]
    header = ["class", "positives", "own logit", "logit", "probability"]
    header += [] if found.calibration == "none" else ["calibrated"]
    more = f"\n... and {len(order) - _MOST} rarer classes, in the file" if len(order) > _MOST else ""
    return table(rows, "<>", header=header) + more


def _numbers(fit: Fit) -> str:
    numbers = fit.thresholds.numbers
    rows = [
        [name, *(_percent(numbers[name][key]) for key in _COLUMNS), f"{numbers[name]['labels an image']:.2f}"]
        for name in _ROWS
        if name in numbers
    ]
    lines = [table(rows, "<>", header=["on these images, percent", *_COLUMNS, "labels an image"])]
    if "held out" in numbers:
        lines.append("held out: each fifth of the images by a fit on the others; fitted: the very images, too good")
    error = f"calibration error (ECE, {len(fit.before.counts)} bins): {_percent(numbers['ECE'])} %"
    if fit.thresholds.calibration != "none":
        error += f" -> {_percent(numbers['ECE calibrated'])} % with {fit.thresholds.calibration}"
        if "ECE held out" in numbers:
            error += f" ({_percent(numbers['ECE held out'])} % held out)"
    before, after = (_percent(numbers[name]) for name in ("class_ECE", "class_ECE calibrated"))
    return "\n".join([*lines, f"{error}; mean of classes: {before} % -> {after} %"])


def _notes(fit: Fit) -> list[str]:
    found, lines = fit.thresholds, []
    if found.fallback and found.per_class:
        lines.append(f"without positives, hence with the overall threshold: {', '.join(found.fallback)}")
    if fit.unreached:
        where = ", ".join(fit.unreached) if found.per_class else "all classes together"
        lines.append(f"precision not reached by any threshold, the highest one taken: {where}")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{100 * value:.2f}"
