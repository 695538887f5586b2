"""What a score file says about itself: why two numbers differ, and why one should not be trusted."""

import dataclasses
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from jaxmlic.data.loader import SELECTION
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.metrics import Decisions
from jaxmlic.metrics.ap import ap_of_columns

_MOST_NAMES = 8  # of classes in a line
_TIES_MATTER = 5e-5  # of mAP: what two decimals of a percent show
_SAMPLE = 200_000  # scores looked at for their precision
_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Facts:
    """What can make numbers of two files differ, as text."""

    head: str
    data_set: str
    split: str
    step: str
    protocol: str
    threshold: str
    precision: str
    classes: str


_WHAT = {
    "data_set": "the data set",
    "split": "the split",
    "protocol": "the protocol that the file reports by",
    "threshold": "the threshold",
    "precision": "the scores' precision",
    "classes": "the classes that count",
}


def facts(scores: ScoreFile) -> Facts:
    config = scores.config if isinstance(scores.config, dict) else {}
    rules = config.get("eval", {})
    left_out = len(scores.extra.get("untrained_classes", ()))
    counted = f"at least {rules.get('min_positives', 1)} positives" + (
        f", {left_out} untrained out" if left_out else ""
    )
    return Facts(
        head="ensemble" if "ensemble" in config else str(config.get("head", "?")),
        data_set=str(config.get("data", {}).get("name", "?")),
        split=scores.split or "?",
        step=str(scores.extra.get("step", "?")),
        protocol=scores.protocol,
        threshold=threshold_text(scores),
        precision=precision_of(scores.scores),
        classes=counted,
    )


def differences(names: Sequence[str], found: Sequence[Facts]) -> list[str]:
    """A line for each fact in which the files differ."""
    lines = []
    for field, what in _WHAT.items():
        values = [getattr(one, field) for one in found]
        if len(set(values)) > 1:
            listed = "; ".join(
                f"{value}: {', '.join(name for name, own in zip(names, values, strict=True) if own == value)}"
                for value in dict.fromkeys(values)
            )
            lines.append(f"{what} differs: {listed}" + (_REMARKS.get(field, "")))
    return lines


_REMARKS = {
    "protocol": " (all are put under the same protocols below)",
    "threshold": " (each file keeps its own below; --threshold=PROBABILITY sets one for all)",
    "classes": " (the first file's rule counts below)",
}


def are_probabilities(scores: np.ndarray) -> bool:
    """As `metrics.evaluate` decides it."""
    return bool(scores.size and scores.min() >= 0 and scores.max() <= 1)


def unit_of(scores: np.ndarray) -> str:
    """ "logit" or "probability": what a score is."""
    return "probability" if are_probabilities(scores) else "logit"


def threshold_text(scores: ScoreFile) -> str:
    """The file's threshold, with its unit."""
    unit = unit_of(scores.scores)
    value = scores.threshold
    if value is None:
        return {"probability": "probability 0.5", "logit": "logit 0"}[unit]
    if np.ndim(value):
        return f"{unit}s {value.min():.3g} to {value.max():.3g}, one a class"
    return f"{unit} {value:g}"


def precision_of(scores: np.ndarray) -> str:
    """ "float32 logits", or the coarser numbers that these are: "bfloat16", "float16", "2 decimals"."""
    kind = "probabilities" if are_probabilities(scores) else "logits"
    sample = np.ravel(scores)[:: max(1, scores.size // _SAMPLE)]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return f"float32 {kind}"
    for digits in range(_DIGITS + 1):
        # float32 of a rounded number; the product of both would need more digits than float32 has.
        if np.array_equal(np.round(sample.astype(np.float64), digits).astype(np.float32), sample):
            return f"{kind} of {digits} decimals"
    with np.errstate(over="ignore"):
        for name, dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
            if np.array_equal(sample.astype(dtype).astype(np.float32), sample):
                return f"{name} {kind}"
    return f"float32 {kind}"


def warnings(members: Sequence[tuple[str, ScoreFile, ScoreFile]], shared: Decisions) -> list[str]:
    """Why a number should not be trusted, a line each.

    Args:
      members: (name, the file, its common images).
      shared: decisions of one of the files on the common images: positives and classes are those of all.
    """
    lines = [f"{name}: {line}" for name, own, _ in members for line in selected_on(own)]
    for name, _, common in members:
        low, high, share = tie_range(dataclasses.replace(shared, scores=common.scores))
        if high - low > _TIES_MATTER:
            lines.append(
                f"{name}: {share:.1%} of the positives share their score with a negative of the class; by the order of "
                f"such ties mAP is anything from {100 * low:.2f} to {100 * high:.2f} (here they enter together)"
            )
    names = np.array(members[0][2].class_names)
    present = shared.positive.any(axis=0)
    for left_out, why in (
        (~present, "no positive"),
        (present & ~shared.included, "fewer positives than the run's config.eval.min_positives"),
    ):
        if left_out.any():
            listed = names[left_out].tolist()
            more = f" and {len(listed) - _MOST_NAMES} more" if len(listed) > _MOST_NAMES else ""
            lines.append(
                f"{len(listed)} of {len(names)} classes have {why} in these images and are in no mean: "
                f"{', '.join(listed[:_MOST_NAMES])}{more}"
            )
    return lines


def sources(scores: ScoreFile) -> list[tuple[dict, dict]]:
    """(config, extra) of a score file and of the members that it was fused of."""
    config = scores.config if isinstance(scores.config, dict) else {}
    members = config.get("ensemble", {}).get("members", ())
    return [(config, scores.extra), *((one.get("config", {}), one.get("extra", {})) for one in members)]


def selected_on(scores: ScoreFile) -> list[str]:
    """What was chosen on the very images that are scored: checkpoint, parameters, thresholds."""
    lines = []
    for config, _ in sources(scores):
        data = config.get("data", {})
        carved = not data.get("val_split") and data.get("val_fraction", 0)
        if scores.split and scores.split == data.get("val_split"):
            lines.append(
                f"its checkpoint was selected on the split that is scored ({scores.split!r}): the numbers are too high"
            )
        elif scores.split == SELECTION or (carved and scores.split == "val" != data.get("test_split")):
            lines.append("these images selected its checkpoint: the numbers are too high")
        if scores.split and scores.split == data.get("train_split"):
            lines.append(f"it was trained on the split that is scored ({scores.split!r})")
    for _, extra in sources(scores):
        for what, kept in (("thresholds were fitted", "thresholds"), ("rule was learned", "rule")):
            if scores.split and extra.get(kept, {}).get("split") == scores.split:
                lines.append(f"its {what} on the split that is scored")
    return list(dict.fromkeys(lines))


def tie_range(found: Decisions) -> tuple[float, float, float]:
    """mAP (all points) if ties fell as badly and as well as they can, and the share of positives that are tied."""
    ranks = np.zeros(found.scores.shape, np.float32)
    tied = 0
    for c in np.flatnonzero(found.included):
        _, inverse = np.unique(found.scores[:, c], return_inverse=True)
        ranks[:, c] = inverse.ravel()
        known = np.ones(len(ranks), bool) if found.known is None else found.known[:, c]
        with_negative = np.unique(inverse[known & ~found.positive[:, c]])
        tied += np.count_nonzero(np.isin(inverse[found.positive[:, c]], with_negative))
    included = found.included
    shift = np.where(found.positive, np.float32(0.25), np.float32(0))
    low, high = (
        ap_of_columns(ranks + sign * shift, found.positive, found.known, "all_point")[included] for sign in (-1, 1)
    )
    positives = np.count_nonzero(found.positive[:, included])
    if not included.any():
        return float("nan"), float("nan"), 0.0
    return float(low.mean()), float(high.mean()), tied / positives
