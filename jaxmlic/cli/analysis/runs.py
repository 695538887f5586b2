"""`jaxmlic runs`."""

import csv
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxmlic.cli.parser import Parser
from jaxmlic.progress import clock
from jaxmlic.reports import tables
from jaxmlic.training import run_states
from jaxmlic.training.run_states import RunState

HEADER = ("run", "head", "data set", "state", "steps", "best", "metric (protocol, images)", "started", "time", "img/s")
_MOST_REASON = 60  # characters of a reason in the table
# What each order goes by; runs without it come last. Then whether the largest comes first.
ORDERS: dict[str, tuple[Callable[[RunState], Any], bool]] = {
    "name": (lambda one: run_states.natural(one.name), False),
    "state": (lambda one: run_states.STATES.index(one.state), False),
    "head": (lambda one: one.head or None, False),
    "data": (lambda one: one.dataset or None, False),
    "steps": (lambda one: one.step, True),
    "best": (lambda one: one.value, True),
    "started": (lambda one: one.date or None, True),
    "time": (lambda one: one.seconds, True),
    "speed": (lambda one: one.img_per_s, True),
}


def main(argv: Sequence[str]) -> int:
    """Prints a line for each run; nothing is written."""
    parser = Parser(
        prog="jaxmlic runs",
        description="Lists the runs in a folder and below it, those of sweeps too: state, steps, best score, start, "
        f"time. States: {', '.join(run_states.STATES)}.",
        epilog="The best score is that of the validation part, which selects the checkpoint; of a run without one that "
        "of its test split, where `jaxmlic evaluate` wrote it.",
    )
    parser.add_argument("folder", metavar="DIR", help="a folder of run folders, here or in a bucket")
    parser.add_argument(
        "--sort",
        choices=ORDERS,
        default="name",
        help="best, started, steps, time and speed: the largest first (name)",
    )
    parser.add_argument("--csv", action="store_true", help="CSV on stdout: fractions, seconds and the reasons whole")
    options = parser.parse_args(argv)
    found = in_order(run_states.find(options.folder), options.sort)
    if options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(RunState))
        writer.writerows(dataclasses.astuple(one) for one in found)
    elif found:
        print(table(found))
    else:
        print(f"{options.folder}: no runs in it or below")
    return 0


def in_order(states: Sequence[RunState], order: str) -> list[RunState]:
    """The runs in one of ORDERS, equal ones as they are."""
    key, largest_first = ORDERS[order]
    known = sorted((one for one in states if key(one) is not None), key=key, reverse=largest_first)
    return known + [one for one in states if key(one) is None]


def table(states: Sequence[RunState]) -> str:
    """A line a run; reasons of failures stand at the end of it."""
    rows = [
        [
            one.name,
            one.head or "-",
            one.dataset or "-",
            one.state,
            f"{'-' if one.step is None else one.step}/{'-' if one.steps is None else one.steps}",
            "-" if one.value is None else tables.percent(one.value),
            "-" if one.value is None else f"{one.metric} ({one.protocol}, {one.split})",
            one.date[:16].replace("T", " ") or "-",
            "-" if one.seconds is None else clock(one.seconds),
            "-" if one.img_per_s is None else f"{one.img_per_s:,.0f}",
            tables.shorten(one.reason, _MOST_REASON),
        ]
        for one in states
    ]
    return tables.table(rows, "<<<<>><<>><", header=[*HEADER, ""])
