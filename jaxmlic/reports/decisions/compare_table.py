"""A comparison of score files as text, CSV and JSON."""

import csv
import os
from collections.abc import Sequence

import numpy as np

from jaxmlic import metrics, storage
from jaxmlic.evaluation import score_facts, scoring
from jaxmlic.evaluation.compare import LEVEL, SIGNIFICANT, Comparison
from jaxmlic.metrics.weighted import NUMBERS
from jaxmlic.reports.tables import percent, table


def text(found: Comparison, numbers: Sequence[str]) -> str:
    """Files, why they differ, warnings, a block for each protocol, tests; numbers in percent.

    numbers: those with intervals and tests.
    """
    blocks = [_files(found)]
    if found.notes:
        blocks.append("why numbers differ:\n" + "\n".join(f"  {note}" for note in found.notes))
    if found.warnings:
        blocks.append("warnings:\n" + "\n".join(f"  {warning}" for warning in found.warnings))
    blocks += [_protocol(found, name, numbers) for name in found.reports]
    if found.tests:
        blocks.append(_tests(found))
    return "\n\n".join(blocks)


def _files(found: Comparison) -> str:
    rows = []
    for member in found.members:
        facts = score_facts.facts(member.own)
        where = (facts.head, facts.data_set, facts.split, facts.step, f"{len(member.own.ids):,}")
        rows.append(
            [member.name, *where, facts.protocol, facts.threshold, facts.precision, percent(member.own_numbers["mAP"])]
        )
    header = ["file", "head", "data set", "split", "step", "images", "protocol", "threshold", "scores", "own mAP"]
    images = f"{found.num_images:,} images are in all {len(rows)} files" if len(rows) > 1 else ""
    return table(rows, "<", header=header) + (f"\n{images}" if images else "")


def _protocol(found: Comparison, name: str, numbers: Sequence[str]) -> str:
    reports, intervals = found.reports[name], found.intervals.get(name, {})
    some = next(iter(reports.values()))
    lines = [f"protocol {name}: {metrics.get_protocol(name).description}"]
    left_out = f" ({some['num_left_out']} left out)" if some["num_left_out"] else ""
    lines.append(f"{some['num_examples']:,} images, {some['num_classes']} classes{left_out}; percent")
    rows = [[file, *(percent(report[number]) for number in NUMBERS)] for file, report in reports.items()]
    lines.append(table(rows, "<>", header=["", *NUMBERS]))
    if intervals:
        lines.append(f"{LEVEL:.0%} intervals over images ({found.draws:,} resamples)")
        rows = [[file, *(_range(*own[number]) for number in numbers)] for file, own in intervals.items()]
        lines.append(table(rows, "<>", header=["", *numbers]))
    return "\n".join(lines)


def _tests(found: Comparison) -> str:
    rows = [
        [
            f"{one.a} - {one.b}",
            one.protocol,
            one.number,
            "-" if np.isnan(one.difference) else f"{100 * one.difference:+.2f}",
            _range(one.low, one.high, "+"),
            _p(one.p),
            _p(one.p_holm) + ("*" if one.p_holm < SIGNIFICANT else ""),
        ]
        for one in found.tests
    ]
    how = {
        "bootstrap": f"{found.draws:,} resamples of the images, the same for both",
        "permutation": f"{found.draws:,} exchanges of the two models' scores, image by image",
    }[found.test]
    header = ["pair", "protocol", "number", "difference", f"{LEVEL:.0%} interval", "p", "p (Holm)"]
    return (
        f"paired tests: {how}; p (Holm): for all {len(rows)} together, * below {SIGNIFICANT}.\n"
        "They tell chance of the images alone: another seed of the training is not in them.\n"
        + table(rows, "<<<>", header=header)
    )


def _range(low: float, high: float, sign: str = "") -> str:
    return "-" if np.isnan(low) else f"{100 * low:{sign}.2f} .. {100 * high:{sign}.2f}"


def _p(p: float) -> str:
    return "-" if np.isnan(p) else f"{p:.4f}"


def as_json(found: Comparison) -> dict:
    """Everything, as fractions; undefined numbers are null."""
    return {
        "files": [
            {
                "name": member.name,
                "path": member.path,
                "images": len(member.own.ids),
                **vars(score_facts.facts(member.own)),
                "own_mAP": _number(member.own_numbers["mAP"]),
                "own_protocol": member.own_numbers["protocol"],
            }
            for member in found.members
        ],
        "images": found.num_images,
        "class_names": found.members[0].common.class_names,
        "notes": found.notes,
        "warnings": found.warnings,
        "reports": {
            protocol: {name: scoring.as_json(report) for name, report in own.items()}
            for protocol, own in found.reports.items()
        },
        "level": LEVEL,
        "draws": found.draws,
        "intervals": {
            protocol: {
                name: {number: [_number(value) for value in pair] for number, pair in numbers.items()}
                for name, numbers in own.items()
            }
            for protocol, own in found.intervals.items()
        },
        "test": found.test,
        "tests": [{key: _number(value) for key, value in vars(one).items()} for one in found.tests],
    }


def write_csv(path: str | os.PathLike, found: Comparison) -> None:
    """A row for each number of a file and for each test, as fractions; undefined ones are empty."""
    with storage.replacing(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", "protocol", "number", "file", "against", "value", "low", "high", "p", "p_holm"])
        for protocol, own in found.reports.items():
            for name, report in own.items():
                intervals = found.intervals.get(protocol, {}).get(name, {})
                for number in NUMBERS:
                    low, high = intervals.get(number, (float("nan"), float("nan")))
                    values = map(_cell, (report[number], low, high))
                    writer.writerow(["value", protocol, number, name, "", *values, "", ""])
        for one in found.tests:
            values = map(_cell, (one.difference, one.low, one.high, one.p, one.p_holm))
            writer.writerow(["difference", one.protocol, one.number, one.a, one.b, *values])


def _number(value: object) -> object:
    return None if isinstance(value, float) and np.isnan(value) else value


def _cell(value: float) -> str:
    return "" if np.isnan(value) else repr(float(value))
