"""Fusion of score files of one split, `jaxmlic ensemble`: Eq. 3 of Wang, Jia and Breckon (2019).

The paper's ScaleEn fuses models of several image sizes, its DistrEn models of several augmentations; both are a mean of
score matrices. Its scores are what the sigmoid of Eq. 1 is applied to: logits, the default here.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from jaxmlic import metrics
from jaxmlic.errors import UserError
from jaxmlic.evaluation import score_file
from jaxmlic.evaluation.score_file import ScoreFile
from jaxmlic.labels.names import check_same_classes

SPACES = ("logit", "probability")


def fuse(scores: Sequence[np.ndarray], weights: Sequence[float], space: str = "logit") -> np.ndarray:
    """Weighted mean of logits, or the logit of the weighted mean of probabilities.

    Args:
      scores: m arrays of finite logits, float [N, C].
      weights: m positive numbers that sum to 1; Eq. 3 has 1 / m.
      space: "logit" or "probability".

    Returns:
      Logits, float32 [N, C]; sums are made in float64.
    """
    if space == "logit":
        return sum(weight * x.astype(np.float64) for x, weight in zip(scores, weights, strict=True)).astype(np.float32)
    # In logarithms, log sigmoid(x) = -log(1 + exp(-x)): a sigmoid of 40 is 1 in float64, and ranks would be lost.
    present = absent = -np.inf
    for x, weight in zip(scores, weights, strict=True):
        x = x.astype(np.float64)
        present = np.logaddexp(present, np.log(weight) - np.logaddexp(0.0, -x))
        absent = np.logaddexp(absent, np.log(weight) - np.logaddexp(0.0, x))
    return (present - absent).astype(np.float32)


def load(paths: Sequence[str]) -> tuple[list[ScoreFile], list[str]]:
    """The score files with rows and columns in the order of the first, and notes on those that were in another.

    Raises:
      UserError: fewer than two files; scores that cannot be fused; other classes, images or labels than the first's;
        the same scores twice.
    """
    if len(paths) < 2:
        raise UserError(
            f"ensemble: {len(paths)} score file{'s'[: len(paths) != 1]} given; give two or more of one split, "
            "each written by `jaxmlic evaluate`"
        )
    found, notes = [], []
    for path in paths:
        scores = score_file.load(path)
        check_scores(path, scores)
        if found:
            scores, moved = align(paths[0], found[0], path, scores)
            notes += [f"{path}: {moved} put into the order of {paths[0]}"] if moved else []
        for earlier, other in zip(paths, found, strict=False):
            if np.array_equal(scores.scores, other.scores):
                raise UserError(
                    f"{path}: holds the same scores as {earlier}; give each once (--weights can favour one)"
                )
        found.append(scores)
    return found, notes


def check_scores(path: str, scores: ScoreFile) -> None:
    """UserError for scores without a meaningful mean: infinite ones, probabilities, an image that occurs twice."""
    infinite = np.argwhere(np.isinf(scores.scores))
    if len(infinite):
        row, column = infinite[0]
        raise UserError(
            f"{path}: the score of image {str(scores.ids[row])!r}, class {scores.class_names[column]!r} is infinite; "
            "leave the file out, or evaluate its run with config.model.dtype='float32'"
        )
    if scores.scores.size and scores.scores.min() >= 0 and scores.scores.max() <= 1:
        raise UserError(f"{path}: all scores lie in 0..1, as probabilities do; store logits, log(p / (1 - p))")
    ids, counts = np.unique(scores.ids, return_counts=True)
    if (counts > 1).any():
        raise UserError(f"{path}: image {str(ids[counts > 1][0])!r} occurs twice; evaluate a split of distinct images")


def align(first_path: str, first: ScoreFile, path: str, other: ScoreFile) -> tuple[ScoreFile, str]:
    """`other` with the rows and columns of `first`, and what had to move: "", "images", "classes" or both.

    Raises:
      UserError: the classes, the images or the labels differ.
    """
    if sorted(first.class_names) != sorted(other.class_names):
        check_same_classes(first.class_names, other.class_names, first_path, path)
    for a, b, only in ((first, other, first_path), (other, first, path)):
        extra = np.setdiff1d(a.ids, b.ids)
        if len(extra):
            raise UserError(
                f"{path}: not the images of {first_path}: {len(extra)} are only in {only} (first: {str(extra[0])!r}); "
                "evaluate both runs on the same split of the same data set"
            )
    moved = []
    if first.class_names != other.class_names:
        moved.append("classes")
    if not np.array_equal(first.ids, other.ids):
        moved.append("images")
    columns = [other.class_names.index(name) for name in first.class_names]
    rows = np.argsort(other.ids)[np.searchsorted(np.sort(other.ids), first.ids)]
    cells = np.ix_(rows, columns)
    labels = other.labels[cells]
    different = np.argwhere(labels != first.labels)
    if len(different):
        row, column = different[0]
        raise UserError(
            f"{path}: {len(different)} labels differ from those of {first_path}, the first at image "
            f"{str(first.ids[row])!r}, class {first.class_names[column]!r} ({labels[row, column]}, not "
            f"{first.labels[row, column]}); evaluate both runs on the same data set"
        )
    names = list(first.class_names)
    aligned = dataclasses.replace(
        other, scores=other.scores[cells], labels=labels, ids=first.ids, class_names=names, chosen=None
    )
    return aligned, " and ".join(moved)


def common_protocol(paths: Sequence[str], members: Sequence[ScoreFile], wanted: str | None) -> str:
    """The one protocol of all numbers: the wanted one, else that of the files. UserError if there is none."""
    for path, member in zip(paths, members, strict=True):
        if wanted is None and member.protocol != members[0].protocol:
            raise UserError(
                f"{path}: reports by {member.protocol}, but {paths[0]} by {members[0].protocol}; choose with --protocol"
            )
    protocol = metrics.get_protocol(wanted or members[0].protocol)
    if protocol.needs_chosen:
        missing = "rule's choice" if protocol.by_rule else "decoder's path"
        raise UserError(f"protocol {protocol.name}: fused scores have no {missing}; choose another with --protocol")
    return protocol.name


def counted_classes(path: str, scores: ScoreFile) -> tuple[int, frozenset[str]]:
    """The run's rules on which classes enter: the fewest positives, and the names of those left out as untrained."""
    rules = scores.config.get("eval", {})
    if rules.get("trained_classes_only") and "untrained_classes" not in scores.extra:
        if scores.extra.get("held_out"):  # of training images: their labels are what was trained
            trained = (scores.labels == 1).any(axis=0)
            return rules.get("min_positives", 1), frozenset(np.array(scores.class_names)[~trained].tolist())
        raise UserError(f"{path}: does not say which classes were trained; write it again with `jaxmlic evaluate`")
    return rules.get("min_positives", 1), frozenset(scores.extra.get("untrained_classes", ()))


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Members and their fusion under one protocol.

    Attributes:
      paths: the members' files.
      weights: of the members, they sum to 1.
      space: one of SPACES.
      members: what `jaxmlic.metrics.evaluate` returns for each.
      report: the same for the fusion.
      scores: the fusion.
      notes: lines on what was put into order, and on rules of members that do not count.
    """

    paths: list[str]
    weights: list[float]
    space: str
    members: list[dict]
    report: dict
    scores: ScoreFile
    notes: list[str]


def combine(
    paths: Sequence[str | os.PathLike],
    *,
    protocol: str | None = None,
    space: str = "logit",
    weights: Sequence[float] | None = None,
) -> Ensemble:
    """Fuses score files and evaluates members and fusion under one protocol.

    Args:
      paths: two or more score files of one split.
      protocol: a protocol's name; that of the files by default.
      space: see `fuse`.
      weights: a positive number for each file, scaled to sum to 1; equal ones by default.

    Raises:
      UserError: see `load` and `common_protocol`.
    """
    paths = [str(path) for path in paths]
    members, notes = load(paths)
    weights = [1.0] * len(paths) if weights is None else weights
    shares = [weight / sum(weights) for weight in weights]
    protocol = common_protocol(paths, members, protocol)
    rules = [counted_classes(path, member) for path, member in zip(paths, members, strict=True)]
    for other, rule in zip(paths, rules, strict=True):
        if rule != rules[0]:
            notes.append(f"{other}: its run counts other classes; all numbers below follow {paths[0]}")
    first, (min_positives, untrained) = members[0], rules[0]
    classes = np.array([name not in untrained for name in first.class_names], bool)

    def evaluate(scores: np.ndarray) -> dict:
        return metrics.evaluate(
            scores, first.labels, protocol, threshold=0.0, classes=classes, min_positives=min_positives
        )

    fused = fuse([member.scores for member in members], shares, space)
    report = evaluate(fused)
    origins = [
        {"file": path, "weight": share, "config": member.config, "extra": member.extra}
        for path, share, member in zip(paths, shares, members, strict=True)
    ]
    scores = dataclasses.replace(
        first,
        scores=fused,
        config={"eval": first.config.get("eval", {}), "ensemble": {"space": space, "members": origins}},
        protocol=protocol,
        threshold=report["threshold"],
        chosen=None,
        extra={"untrained_classes": sorted(untrained)},
    )
    return Ensemble(paths, shares, space, [evaluate(member.scores) for member in members], report, scores, notes)
