"""`jaxmlic thresholds`."""

from collections.abc import Sequence

from jaxmlic import storage
from jaxmlic.cli.parser import Parser
from jaxmlic.errors import UserError
from jaxmlic.evaluation import thresholds
from jaxmlic.experiments.runs import fit_thresholds
from jaxmlic.metrics.thresholds import OBJECTIVES
from jaxmlic.reports.decisions import thresholds_table
from jaxmlic.reports.figures import canvas, reliability


def main(argv: Sequence[str]) -> int:
    """Fits, keeps thresholds.json in the run folder, draws the reliability diagram, prints what they are worth."""
    objectives = "; ".join(f"{name}: {one.description}" for name, one in OBJECTIVES.items())
    parser = Parser(
        hosts=True,
        prog="jaxmlic thresholds",
        description="Fits decision thresholds and calibrates probabilities on a run's validation part, never on its "
        "test split, and keeps them with the run: `jaxmlic predict` uses them, and `jaxmlic evaluate --thresholds`.",
        epilog="jaxmlic thresholds --workdir=runs/voc --for=precision=0.9 --calibrate=platt",
    )
    parser.add_argument("--workdir", required=True, help="folder of a `jaxmlic train`")
    parser.add_argument(
        "--for", dest="objective", default="f1", metavar="NAME[=GOAL]", help=f"{objectives} (default: %(default)s)"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--per-class", dest="per_class", action="store_true", default=True, help="the default")
    kinds.add_argument("--global", dest="per_class", action="store_false", help="one threshold for all classes")
    parser.add_argument(
        "--shrink",
        type=float,
        default=thresholds.SHRINK,
        metavar="K",
        help="a class with n positives gets n / (n + K) of its own threshold and the rest of the one of all classes; "
        "0 = its own alone (default: %(default)s)",
    )
    parser.add_argument(
        "--calibrate",
        choices=thresholds.CALIBRATIONS,
        default="temperature",
        help="probabilities: one scale for all logits; Platt's scale and offset of each class; as the model gives them "
        "(default: %(default)s)",
    )
    parser.add_argument("--split", help="images to fit on, instead of the part that selected the checkpoint")
    parser.add_argument("--data-dir", help="where the data sets are now, if not where the run found them")
    options = parser.parse_args(argv)
    thresholds.parse_objective(options.objective)  # before anything is scored
    if not 0 <= options.shrink < float("inf"):
        raise UserError(f"--shrink={options.shrink:g}: a number of positives, 0 or more")
    fit, path = fit_thresholds(
        options.workdir,
        split=options.split,
        data_dir=options.data_dir,
        objective=options.objective,
        per_class=options.per_class,
        shrink=options.shrink,
        calibrate=options.calibrate,
    )
    print(thresholds_table.text(fit))
    picture = storage.to_path(options.workdir) / "figures" / "reliability.png"
    parts = [("as the model gives them", fit.before)]
    if options.calibrate != "none":
        parts.append((f"calibrated ({options.calibrate})", fit.after))
    found = fit.thresholds
    canvas.save(
        reliability.draw(parts, f"{found.numbers['images']:,} images of {found.split!r}, step {found.step}"), picture
    )
    print(f"\nwritten: {path} and {picture}")
    return 0
