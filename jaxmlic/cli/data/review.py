"""`jaxmlic data review`: likely label errors, the next images to annotate, and what a reader corrects."""

import argparse
from pathlib import Path

from jaxmlic import config as config_lib
from jaxmlic import sharding, storage
from jaxmlic.cli.parser import add_command
from jaxmlic.data import datasets
from jaxmlic.data.prepare.tables import corrections
from jaxmlic.errors import UserError
from jaxmlic.evaluation import review
from jaxmlic.experiments.review import fold_scores
from jaxmlic.metrics.label_errors import RANKINGS
from jaxmlic.reports.decisions import review_table
from jaxmlic.reports.figures import canvas, contact_sheet

CSV, SHEET = "review.csv", "review.png"
FOLDS, MOST = 5, 100
_GIVEN = {1: "present", 0: "absent", -1: "unknown"}
_EPILOG = """\
Scores must come from a model that did not see the image: --config trains one for each fold of the training split;
--scores takes score files of images that a run was not trained on (jaxmlic evaluate writes them).

WORKDIR/review.csv has a row for each label to look at. Write 1, 0 or -1 into its column `corrected`, and give it back
with --apply; rows left empty change nothing.

examples:
  jaxmlic data review --config=linear:dataset=mine,mode=frozen --workdir=reviews/mine --config.pretrained=lite0.npz
  jaxmlic data review --scores=runs/a/scores/test.npz --workdir=reviews/mine_test
  jaxmlic data review mine --apply=reviews/mine/review.csv --as=mine_corrected
  jaxmlic data review mine --apply=reviews/mine/review.csv --out=corrected.csv
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The options of `jaxmlic data review`."""
    parser = add_command(
        commands,
        "review",
        run,
        "rank labels that are likely wrong and images to annotate next; apply corrections",
        "Ranks labels that are likely wrong and images to annotate next, and applies what a reader corrects.",
        _EPILOG,
    )
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the data set; --config and --scores name one too")
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--config", metavar="FILE[:ARG]", help="train --folds models by this recipe")
    modes.add_argument(
        "--scores", action="append", metavar="FILE", help="a score file; several for folds of one data set"
    )
    modes.add_argument("--apply", metavar="CSV", help="a review.csv with corrections")
    parser.add_argument("--workdir", help=f"gets {CSV}, {SHEET} and the runs of the folds")
    parser.add_argument("--folds", type=int, help=f"of the training split ({FOLDS})")
    parser.add_argument("--ranking", choices=RANKINGS, help="confident learning (default), or the labels' loss")
    parser.add_argument("--most", type=int, metavar="N", help=f"labels, and images to annotate, in the list ({MOST})")
    parser.add_argument("--as", dest="new_name", metavar="NAME", help="prepare the corrected data set under this name")
    parser.add_argument("--out", metavar="FILE.csv", help="or write all labels as a table for `jaxmlic data prepare`")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set of --as")


def run(args: argparse.Namespace) -> int:
    """Writes the review, or what its corrections make; raises UserError on a user's mistake."""
    making, applying = ("workdir", "folds", "ranking", "most"), ("new_name", "out", "overwrite")
    mode = "apply" if args.apply else "scores" if args.scores else "config"
    for option in making if args.apply else applying if args.config else (*applying, "folds"):
        if getattr(args, option) not in (None, False):
            flag = {"new_name": "as"}.get(option, option)
            raise UserError(f"--{flag} means nothing with --{mode}: leave it out")
    if args.overrides and not args.config:
        raise UserError(f"{args.overrides[0]} goes with --config=FILE alone: leave it out")
    return _apply(args) if args.apply else _review(args)


def _review(args: argparse.Namespace) -> int:
    if not args.workdir:
        raise UserError(f"--workdir is missing: the folder that gets {CSV}")
    most, workdir = MOST if args.most is None else args.most, storage.to_path(args.workdir)
    if most < 1:
        raise UserError(f"--most={most}: at least 1")
    if done := corrections.count(workdir / CSV):
        raise UserError(
            f"{workdir / CSV} has {done:,} corrections: apply it, and move it away, or use another --workdir"
        )
    storage.check_writable(workdir)
    truth = None
    if args.config:
        config = config_lib.load(args.config, args.overrides)
        values = {"data.name": args.name} if args.name else {}
        config = config_lib.override(config, values | ({"data.dir": args.data_dir} if args.data_dir else {}))
        sharding.use_cpu_devices(config.train.cpu_devices, config.train.batch_size)
        dataset = datasets.load(config.data.name, config.data.dir or None)
        reviewed = fold_scores(config, workdir, FOLDS if args.folds is None else args.folds, print)
        if reviewed is None:
            return 130
        scores, truth = reviewed.scores, reviewed.truth
    else:
        dataset = datasets.load(args.name or review.data_set_of(args.scores[0]), args.data_dir)
        scores = review.load(args.scores, dataset)
    found = review.find(scores, args.ranking or "confident", most)
    print(review_table.text(found))
    if truth is not None:
        precision, chance = review.hits(found.errors, scores.labels, truth)
        print(f"\nof the {len(found.errors)} listed the noise changed {precision:.1%}; of all labels {chance:.1%}")
    review_table.write_csv(workdir / CSV, found)
    canvas.save(contact_sheet.draw(found, dataset), workdir / SHEET)
    print(f"\nwritten: {workdir / CSV} and {workdir / SHEET}")
    if truth is None:
        print(f"fill in the column corrected (1, 0 or -1), then: {_next(dataset.name, workdir)}")
    return 0


def _next(name: str, workdir: Path) -> str:
    return f"jaxmlic data review {name} --apply={workdir / CSV} --as={name}_corrected"


def _apply(args: argparse.Namespace) -> int:
    if not args.name:
        raise UserError("--apply: which data set is corrected? Write jaxmlic data review NAME --apply=CSV")
    if (args.new_name is None) == (args.out is None):
        raise UserError("--apply: give either --as=NAME (a data set) or --out=FILE.csv (a table)")
    dataset = datasets.load(args.name, args.data_dir, records=args.new_name is not None)
    found = corrections.read(args.apply, dataset)
    changes = ", ".join(f"{_GIVEN[old]} -> {_GIVEN[new]} {n:,}" for (old, new), n in found.changed.items())
    print(
        f"{sum(found.changed.values()):,} labels of {found.images:,} images change ({changes or 'none'}), "
        f"{found.confirmed:,} are confirmed"
    )
    if args.out is not None:
        options = corrections.write_table(args.out, dataset, found.labels)
        print(f"written: {args.out}; jaxmlic data prepare NEW {options}")
        return 0
    folder: Path = corrections.write_dataset(args.new_name, dataset, found, args.apply, args.overwrite)
    print(f"{args.new_name}: prepared in {folder}; train with --config.data.name={args.new_name}")
    return 0
