"""`jaxmlic thresholds`."""

import argparse
from collections.abc import Sequence

from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError, unknown
from jaxmlic.evaluation import decision, thresholds
from jaxmlic.experiments import decisions
from jaxmlic.experiments.runs import fit_thresholds
from jaxmlic.metrics.thresholds import OBJECTIVES
from jaxmlic.reports.decisions import decision_table, thresholds_table
from jaxmlic.reports.figures import canvas, reliability


def main(argv: Sequence[str]) -> int:
    """Fits, keeps thresholds.json or decision.json in the run folder, prints what they are worth."""
    known = [f"{name}: {one.description}" for name, one in (OBJECTIVES | decision.METRICS).items()]
    parser = Parser(
        hosts=True,
        prog="jaxmlic thresholds",
        description="Fits how labels are decided and calibrates probabilities, on out-of-fold scores or a validation "
        "part, never on the test split, and keeps that with the run: `jaxmlic predict` uses it, and `jaxmlic evaluate "
        "--thresholds`. f1, precision and count give thresholds; the others a rule for the number that is reported.",
        epilog="jaxmlic thresholds runs/ridge --for=cf1_at=5; jaxmlic thresholds runs/voc --for=precision=0.9",
    )
    parser.add_argument("place", nargs="?", metavar="RUN|SCORES.npz", help="run folder; for a rule also a score file")
    parser.add_argument("--workdir", help="folder of a `jaxmlic train`, the same as RUN")
    parser.add_argument(
        "--for",
        dest="objective",
        default="f1",
        metavar="NAME[=GOAL]",
        help=f"{'; '.join(known)} (default: %(default)s)",
    )
    parser.add_argument("--split", help="images to fit on, instead of out-of-fold scores or the part that selected")
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    _add_thresholds(parser.add_argument_group("thresholds (f1, precision, count)"))
    _add_rules(parser.add_argument_group(f"rules ({', '.join(decision.METRICS)})"))
    options = parser.parse_args(argv)
    if (options.place is None) == (options.workdir is None):
        raise UserError("thresholds: name one run folder or score file, jaxmlic thresholds RUN")
    place = options.place or options.workdir
    if decision.parse_metric(options.objective) is not None:
        _refuse(options, "thresholds", ("per_class", "shrink", "calibrate"), "--global, --shrink and --calibrate")
        return _learn(place, options)
    name, known = options.objective.partition("=")[0], {**OBJECTIVES, **decision.METRICS}
    if name not in known:
        raise unknown("--for =", name, known)
    thresholds.parse_objective(options.objective)  # before anything is scored
    _refuse(options, "rules", ("images", "folds", "out", "apply", "protocol"), "--images, --folds, --out, --apply")
    return _fit(place, options)


def _add_thresholds(group: argparse._ArgumentGroup) -> None:
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument("--per-class", dest="per_class", action="store_true", default=None, help="the default")
    kinds.add_argument("--global", dest="per_class", action="store_false", help="one threshold for all classes")
    group.add_argument(
        "--shrink",
        type=float,
        metavar="K",
        help="a class with n positives gets n / (n + K) of its own threshold and the rest of the one of all classes; "
        f"0 = its own alone (default: {thresholds.SHRINK:g})",
    )
    group.add_argument(
        "--calibrate",
        choices=thresholds.CALIBRATIONS,
        help="probabilities: one scale for all logits; Platt's scale and offset of each class; as the model gives them "
        "(default: temperature)",
    )


def _add_rules(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images", type=int, metavar="M", help="of a batch that is scored together (default: as the test split has)"
    )
    group.add_argument(
        "--folds", type=int, metavar="F", help="parts to judge on, each by a fit on the others; 0 = no judging"
    )
    group.add_argument("--out", metavar="RULE.json", help="of a score file's rule (default: beside it)")
    group.add_argument("--apply", action="append", metavar="SCORES.npz", help="score file to decide on with the rule")
    group.add_argument("--protocol", help="of --apply: the rule's own, such as top5_learned, or top5_transductive")


def _refuse(options: argparse.Namespace, kind: str, names: Sequence[str], shown: str) -> None:
    if any(getattr(options, name) is not None for name in names):
        raise UserError(f"--for={options.objective}: {shown} belong to {kind}: leave them out")


def _learn(place: str, options: argparse.Namespace) -> int:
    images = options.images or (decisions.num_images(options.apply[0]) if options.apply else None)
    how = {"images": images, "folds": options.folds}
    if storage.to_path(place).suffix == ".npz":
        if options.split or options.data_dir:
            raise UserError("--split and --data-dir belong to a run folder: a score file is learned on whole")
        rule, path = decisions.learn_on_scores(place, options.objective, out=options.out, **how)
    else:
        if options.out:
            raise UserError(f"--out={options.out}: a run's rule is kept in its folder; leave it out")
        rule, path = decisions.learn(place, options.objective, split=options.split, data_dir=options.data_dir, **how)
    print(f"{decision_table.text(rule)}\n\nwritten: {path}")
    if options.protocol and not options.apply:
        raise UserError("--protocol belongs to --apply; a run is evaluated with jaxmlic evaluate --protocol")
    for target in options.apply or ():
        print(f"\n{decisions.apply(rule, target, options.protocol)[1]}")
    return 0


def _fit(place: str, options: argparse.Namespace) -> int:
    shrink = thresholds.SHRINK if options.shrink is None else options.shrink
    if not 0 <= shrink < float("inf"):
        raise UserError(f"--shrink={shrink:g}: a number of positives, 0 or more")
    calibrate = options.calibrate or "temperature"
    fit, path = fit_thresholds(
        place,
        split=options.split,
        data_dir=options.data_dir,
        objective=options.objective,
        per_class=options.per_class is not False,
        shrink=shrink,
        calibrate=calibrate,
    )
    print(thresholds_table.text(fit))
    picture = storage.to_path(place) / "figures" / "reliability.png"
    parts = [("as the model gives them", fit.before)]
    if calibrate != "none":
        parts.append((f"calibrated ({calibrate})", fit.after))
    found = fit.thresholds
    canvas.save(
        reliability.draw(parts, f"{found.numbers['images']:,} images of {found.split!r}, step {found.step}"), picture
    )
    print(f"\nwritten: {path} and {picture}")
    return 0
