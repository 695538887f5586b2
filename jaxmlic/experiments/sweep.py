"""Every entry of an experiment's `sweep()`, one after another, with seeds: `jaxmlic sweep`."""

import csv
import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.experiments.runs import result_of, run_one
from jaxmlic.reports import tables
from jaxmlic.reports.tables import spread, spread_cell
from jaxmlic.training import run_folder

SHOWN = ("mAP", "CF1", "OF1", "IF1", "MAP@10", "top1", "accuracy")
# Entries that stand for parts of one experiment, as configs/cnn_lstm_rmlc.py names them.
NAME = re.compile(r"(?P<whole>(?P<series>.+?)(?:_noise(?P<rate>\d+(?:\.\d+)?))?)(?:_(?P<part>fold|batch)\d+)?")


def entries(spec: str, only: Sequence[str] = ()) -> list[tuple[str, dict | str | tuple[str, dict]]]:
    """(name, overrides) of the experiment's `sweep()`, or `sweep(ARG)` if it takes one, or of those named in `only`.

    Overrides are {dotted field: value}, or text: more of the config's argument, where heads have other fields, or both.
    """
    module = config_lib.load_module(spec)
    if not hasattr(module, "sweep"):
        raise UserError(f"{spec} has no sweep(); it returns a list of (name, overrides)")
    argument = [config_lib.find(spec)[1]] if inspect.signature(module.sweep).parameters else []
    found = module.sweep(*argument)
    names = [name for name, _ in found]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{spec}: sweep() names {sorted(repeated)[0]!r} twice")
    for name in only:
        if name not in names:
            raise UserError(
                f"--only={name}: sweep() has no such entry{did_you_mean(name, names)}; it has: {', '.join(names)}"
            )
    return [(name, values) for name, values in found if not only or name in only]


def config_of(
    spec: str, base: ConfigDict, values: dict | str | tuple[str, dict], overrides: Sequence[str]
) -> ConfigDict:
    """The config of one entry; `base` is that of `spec` with `overrides`."""
    argument, fields = (
        values if isinstance(values, tuple) else (values, {}) if isinstance(values, str) else ("", values)
    )
    if argument:
        base = config_lib.load(f"{spec}{',' if config_lib.find(spec)[1] else ':'}{argument}", overrides)
    return config_lib.override(base, fields)


def run(spec: str, workdir: str, *, seeds: int = 1, only: Sequence[str] = (), overrides: Sequence[str] = ()) -> int:
    """Runs the sweep and writes WORKDIR/sweep.csv and runs.csv; returns 0, or 130 when stopped by Ctrl-C.

    Raises UserError at the end if runs failed on a mistake; the others are complete by then.
    """
    base = config_lib.load(spec, overrides)
    chosen = {name for name, _ in entries(spec, only)}
    configs = {}
    for name, values in entries(spec):
        try:
            configs[name] = config_of(spec, base, values, overrides)
        except UserError:
            if name in chosen:  # else the overrides are for others
                raise
    plan = [
        (name, seed, config_lib.override(config, {"seed": seed}))
        for name, config in configs.items()
        if name in chosen
        for seed in range(base.seed, base.seed + seeds)
    ]
    results: dict[str, list[dict]] = {name: [] for name, _, _ in plan}
    failed = []
    for number, (name, seed, config) in enumerate(plan, 1):
        print(f"[{number}/{len(plan)}] {name}, seed {seed}", flush=True)
        try:
            found, stopped = run_one(config, Path(workdir) / name / f"seed{seed}", print)
        except UserError as error:
            failed.append(f"{name}, seed {seed}: {error}")
            print(f"jaxmlic: {error}", flush=True)
            continue
        if found is None:
            print(f"sweep stopped in {name}, seed {seed}; the same command continues there")
            return 130 if stopped == 2 else 0
        results[name].append({"seed": seed, **found})
    write(Path(workdir), complete(configs, Path(workdir)))
    print(table(results))
    print(f"\nwritten: {Path(workdir) / 'sweep.csv'} and {Path(workdir) / 'runs.csv'}")
    if failed:
        raise UserError(f"{len(failed)} of {len(plan)} runs failed: " + "; ".join(failed))
    return 0


def complete(configs: dict[str, ConfigDict], workdir: Path) -> dict[str, list[dict]]:
    """The metrics of all complete runs in WORKDIR by entry and seed, those that an earlier --only made among them.

    Runs of another config than the entry's are left out: they belong to another table.
    """
    results = {}
    for name, config in configs.items():
        seeds = sorted(int(path.name[4:]) for path in (workdir / name).glob("seed*") if path.name[4:].isdigit())
        for seed in seeds:
            own, folder = config_lib.override(config, {"seed": seed}), workdir / name / f"seed{seed}"
            found = result_of(folder, own)
            if found is not None and not config_lib.differences(run_folder.load(folder).config.to_dict(), own):
                results.setdefault(name, []).append({"seed": seed, **found})
    return results


def pooled(results: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The results, and after them the runs of all folds or batches of an experiment together, as NAME_fold*."""
    together: dict[str, list[str]] = {}
    for name in results:
        match = NAME.fullmatch(name)
        if match["part"]:
            together.setdefault(f"{match['whole']}_{match['part']}*", []).append(name)
    several = {name: parts for name, parts in together.items() if len(parts) > 1}
    return results | {name: [row for part in parts for row in results[part]] for name, parts in several.items()}


def table(results: dict[str, list[dict]]) -> str:
    """Mean (and spread over runs) of the main metrics in percent: an entry a line, and one for all of its folds."""
    results = pooled(results)

    def has(row: dict, key: str) -> bool:
        return row.get(key) is not None and not np.isnan(row[key])

    protocols = sorted({row["protocol"] for rows in results.values() for row in rows})
    shown = [key for key in SHOWN if any(has(row, key) for rows in results.values() for row in rows)] or SHOWN
    body = [
        [name, str(len(rows)), *(spread_cell([row.get(key) for row in rows]) for key in shown)]
        for name, rows in results.items()
    ]
    title = f"protocol: {', '.join(protocols)}; mean +- standard deviation over runs, percent"
    return f"{title}\n\n{tables.table(body, '<>', header=['entry', 'runs', *shown])}"


def write(workdir: Path, results: dict[str, list[dict]]) -> None:
    """runs.csv: a row a run; sweep.csv: mean and standard deviation of each entry, and of all folds of one."""
    rows = [(name, row) for name, found in results.items() for row in found]
    keys = [k for k, v in rows[0][1].items() if isinstance(v, float) and k != "threshold"] if rows else []
    keys = [k for k in keys if all(k in row for _, row in rows)]  # rows of another protocol may lack one
    _write_csv(
        workdir / "runs.csv",
        ["entry", "series", "noise_rate", "part", "seed", "split", "protocol", *keys],
        [
            [name, *_fields(name), row["seed"], row["split"], row["protocol"], *(row[key] for key in keys)]
            for name, row in rows
        ],
    )
    header = ["entry", "runs", "protocol", *(f"{key} {what}" for key in keys for what in ("mean", "std"))]
    body = [
        [name, len(found), found[0]["protocol"], *(v for key in keys for v in spread([row[key] for row in found]))]
        for name, found in pooled(results).items()
        if found
    ]
    _write_csv(workdir / "sweep.csv", header, body)


def _fields(name: str) -> tuple[str, float, str]:
    """Series, noise rate (a fraction) and part of an entry."""
    match = NAME.fullmatch(name)
    return match["series"], float(match["rate"] or 0) / 100, name[match.end("whole") + 1 :]


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    os.replace(temporary, path)
