"""`jaxmlic data check NAME`: what is wrong with, or worth knowing about, a prepared data set before it is trained on.

The exit status is 2 when a result on this data set would be wrong or could not be had, otherwise 0.
"""

import argparse
import json
import os

from jaxmlic.cli.parser import add_command
from jaxmlic.data import datasets
from jaxmlic.data.check.duplicates import MAX_NEAR, NEAR
from jaxmlic.data.check.report import check
from jaxmlic.errors import UserError, writing
from jaxmlic.reports import check_report
from jaxmlic.storage import to_path, write_text


def add_parser(commands) -> None:
    """Adds `check` to the commands (argparse subparsers) of `jaxmlic data`."""
    what = "look for what would make a result wrong: overlap of train and test, broken images, missing labels"
    parser = add_command(
        commands, "check", run, what, f"{what.capitalize()}. Exit status 2 if something would, else 0."
    )
    parser.add_argument("name", metavar="NAME", help="a prepared data set")
    parser.add_argument("--out", help="folder for check.json and check.png (check/ in the data set's own folder)")
    parser.add_argument(
        "--near", type=int, default=NEAR, help=f"differing bits of near-duplicates, 0..{MAX_NEAR} ({NEAR})"
    )
    parser.add_argument("--workers", type=int, help="threads that decode at once (one per CPU)")


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes check.json and check.png; returns 0, or raises UserError for errors found."""
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers={args.workers}: at least 1")
    if not 0 <= args.near <= MAX_NEAR:
        raise UserError(f"--near={args.near}: from 0 to {MAX_NEAR} of the 64 bits")
    dataset = datasets.load(args.name, args.data_dir)
    out = to_path(args.out) if args.out else dataset.home / "check"
    with writing(out):  # a mistake in the folder shows before the work, not after it
        out.mkdir(parents=True, exist_ok=True)
    report = check(dataset, args.near, args.workers or len(os.sched_getaffinity(0)))
    print(check_report.text(report))
    with writing(out):
        write_text(out / "check.json", _json(report), remedy="give another folder with --out=DIR")
        check_report.plot(out / "check.png", report)
    print(f"all of it in {out / 'check.json'}, drawn in {out / 'check.png'}")
    if errors := [finding["text"] for finding in report["findings"] if finding["level"] == "error"]:
        raise UserError(f"results on {dataset.name} would be wrong: {'; '.join(errors)} (see {out / 'check.json'})")
    return 0


def _json(report: dict) -> str:
    """Indented, but for the matrix: it would be one number a line."""
    fields = {
        key: json.dumps(v, indent=None if key == "cooccurrence" else 1, ensure_ascii=False) for key, v in report.items()
    }
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {value}" for key, value in fields.items()) + "\n}\n"
