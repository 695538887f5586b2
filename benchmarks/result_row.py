"""A row of a table of results from finished runs: prints a line for a file in docs/results/tables.

    python benchmarks/result_row.py TABLE RUN/scores/test.PROTOCOL.json [...]

Each column has the metric of its name (P, R, F1: CP, CR, CF1) in percent; files of several seeds give mean and
standard deviation. Date and command are those of the first run's start, with WEIGHTS and DIR for what only holds here.
"""

import argparse
import json
import re
from pathlib import Path

from results import load

from jaxmlic import storage
from jaxmlic.reports import tables

METRICS = {"P": "CP", "R": "CR", "F1": "CF1", "mean F1": "CF1_mean", "L-F1": "CF1_mean", "top-1": "top1"}


def row(table, files):
    """The line for the files of one row's runs."""
    metrics = [storage.read_json(file, what="file of metrics, which `jaxmlic evaluate` writes") for file in files]
    start = storage.read_json(Path(files[0]).parent.parent / "config.json")["starts"][0]
    command = re.sub(r"--workdir=\S+", "--workdir=DIR", start["command"])
    command = re.sub(r"--config\.pretrained=\S+", "--config.pretrained=WEIGHTS", command)
    cells = [cell([own.get(METRICS.get(column, column)) for own in metrics]) for column in load(table)["columns"][1:]]
    fields = {"date": start["time"][:10], "command": command}
    name, *fields = (json.dumps(text, ensure_ascii=False) for text in (Path(files[0]).parts[-3], *fields.values()))
    return f"  [{', '.join([name, *cells])}, {{ date = {fields[0]}, command = {fields[1]} }}],"


def cell(values):
    if any(value is None for value in values):
        return '""'
    scale, digits = (1, 0) if all(isinstance(value, int) for value in values) else (100, 1)
    mean, deviation = (scale * number for number in tables.spread(values))
    return f"{mean:.{digits}f}" if len(values) == 1 else f'"{mean:.1f} ± {deviation:.1f}"'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="a data file in docs/results/tables, without .toml")
    parser.add_argument("files", nargs="+", help="RUN/scores/SPLIT.PROTOCOL.json, of one seed or several")
    args = parser.parse_args()
    print(row(args.table, args.files))


if __name__ == "__main__":
    main()
