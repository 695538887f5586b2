"""Every entry of an experiment's `sweep()`, one after another, with seeds."""

import csv
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import storage
from jaxmlic.config import Entry
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.experiments.runs import result_of, run_one
from jaxmlic.models.trunks import pretrained
from jaxmlic.reports import tables
from jaxmlic.training import run_folder

SHOWN = ("mAP", "CF1", "OF1", "IF1", "MAP@10", "top1", "accuracy")
FIELDS = ("entry", "series", "noise_rate", "part", "seed", "split", "protocol")  # of runs.csv, then the metrics


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a sweep.

    Attributes:
      rows: the metrics of the chosen entries' runs, as `row` makes them.
      planned: how many runs there should be.
      failures: "ENTRY, seed N: mistake" of each run that failed on a user's mistake.
      datasets: the data set of each entry.
      stopped_in: "ENTRY, seed N" where a signal stopped the sweep, else "".
      stopped_by: that signal.
    """

    rows: list[dict]
    planned: int
    failures: list[str]
    datasets: dict[str, str]
    stopped_in: str = ""
    stopped_by: int | None = None


def entries(spec: str, only: Sequence[str] = ()) -> list[Entry]:
    """The entries of the experiment's `sweep()`, or `sweep(ARG)` if it takes one, or of those named in `only`.

    A name in `only` is an entry's or a series', which stands for all of its entries: its folds, its noise rates. A pair
    (name, overrides) is an entry, too; overrides may be text, more of the config's argument.
    """
    module = config_lib.load_module(spec)
    if not hasattr(module, "sweep"):
        raise UserError(f"{spec} has no sweep(); it returns a list of (name, overrides)")
    argument = [config_lib.find(spec)[1]] if inspect.signature(module.sweep).parameters else []
    found = [_entry(item) for item in module.sweep(*argument)]
    names = [entry.name for entry in found]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{spec}: sweep() names {sorted(repeated)[0]!r} twice")
    known = {*names, *(entry.series for entry in found)}
    for name in only:
        if name not in known:
            raise UserError(
                f"--only={name}: sweep() has no such entry{did_you_mean(name, names)}; it has: {', '.join(names)}"
            )
    return [entry for entry in found if not only or entry.name in only or entry.series in only]


def _entry(item: Entry | tuple[str, Mapping | str]) -> Entry:
    if not isinstance(item, tuple):
        return item
    name, overrides = item
    return Entry(name, argument=overrides) if isinstance(overrides, str) else Entry(name, overrides)


def config_of(
    spec: str, base: ConfigDict, entry: Entry, overrides: Sequence[str], weights: str | Path | None = None
) -> ConfigDict:
    """The config of one entry; `base` is that of `spec` with `overrides`.

    weights: a folder with a weight file for each trunk, see `pretrained.find`.
    """
    if entry.argument:
        base = config_lib.load(f"{spec}{',' if config_lib.find(spec)[1] else ':'}{entry.argument}", overrides)
    config = config_lib.override(base, entry.overrides)
    if entry.from_scratch:
        return config_lib.override(config, {"pretrained": ""})
    if weights is None:
        return config
    if config.pretrained:
        raise UserError(f"--weights names the weight files, and config.pretrained = {config.pretrained!r} another one")
    return config_lib.override(config, {"pretrained": str(pretrained.find(weights, config.model.trunk) or "")})


def in_order(chosen: Sequence[Entry], known: Sequence[Entry]) -> list[Entry]:
    """The chosen entries, each after the one that it starts from.

    known: all entries of the sweep. Raises UserError for an entry that starts from none of them, or from itself.
    """
    names = {entry.name for entry in known}
    for entry in chosen:
        if entry.start_from and (entry.start_from not in names or entry.start_from == entry.name):
            raise UserError(f"entry {entry.name!r} starts from {entry.start_from!r}, which is no other entry")
    waiting, done = list(chosen), []
    while waiting:
        ready = [entry for entry in waiting if entry.start_from not in {other.name for other in waiting}]
        if not ready:
            raise UserError(f"entries start from one another in a circle: {', '.join(e.name for e in waiting)}")
        done += ready
        waiting = [entry for entry in waiting if entry not in ready]
    return done


def config_of_run(config: ConfigDict, entry: Entry, workdir: Path, seed: int) -> ConfigDict:
    """An entry's config with its seed and, for a second stage, the folder of the first one's run."""
    values = {"seed": seed}
    if entry.start_from and not config.start_from:
        values["start_from"] = str(folder_of(workdir, entry.start_from, seed))
    return config_lib.override(config, values)


def folder_of(workdir: Path, name: str, seed: int) -> Path:
    """Where the run of an entry with a seed lies."""
    return workdir / name / f"seed{seed}"


def run(
    spec: str,
    workdir: str | Path,
    *,
    seeds: int = 1,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    weights: str | Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Runs the sweep and, unless a signal stops it, writes WORKDIR/sweep.csv and runs.csv.

    An entry that starts from another one runs after it.

    Args:
      spec: `FILE[:ARG]` of the experiment.
      workdir: gets a folder per entry and seed.
      seeds: runs of each entry, from config.seed on.
      only: names of entries; () for all.
      overrides: "--config.x.y=value", for all entries.
      weights: a folder with a weight file for each trunk.
      report: called with a line before each run, and with each failure.
    """
    base, workdir = config_lib.load(spec, overrides), storage.to_path(workdir)
    everything = entries(spec)
    chosen = {entry.name for entry in entries(spec, only)}
    plan: list[tuple[Entry, ConfigDict]] = []
    for entry in in_order(everything, everything):
        try:
            plan.append((entry, config_of(spec, base, entry, overrides, weights)))
        except UserError:
            if entry.name in chosen:  # else the overrides are for others
                raise
    runs = [
        (entry, seed, config_of_run(config, entry, workdir, seed))
        for entry, config in plan
        if entry.name in chosen
        for seed in range(base.seed, base.seed + seeds)
    ]
    outcome = Outcome([], len(runs), [], {entry.name: config.data.name for entry, config in plan})
    for number, (entry, seed, config) in enumerate(runs, 1):
        title = f"{entry.name}, seed {seed}"
        report(f"[{number}/{len(runs)}] {title}")
        try:
            _check_first_stage(entry, config)
            found, stopped_by = run_one(config, folder_of(workdir, entry.name, seed), report)
        except UserError as error:
            outcome.failures.append(f"{title}: {error}")
            report(f"jaxmlic: {error}")
            continue
        if found is None:
            return dataclasses.replace(outcome, stopped_in=title, stopped_by=stopped_by)
        outcome.rows.append(row(entry, seed, found))
    write(workdir, complete(plan, workdir))
    return outcome


def _check_first_stage(entry: Entry, config: ConfigDict) -> None:
    if entry.start_from and run_folder.result(config.start_from) is None:
        raise UserError(
            f"it starts from the run in {config.start_from}, which is not complete: let {entry.start_from!r} run first"
        )


def row(entry: Entry, seed: int, found: Mapping[str, object]) -> dict:
    """The metrics of one run with what it is a run of: FIELDS first."""
    own = {"entry": entry.name, "series": entry.series or entry.name, "noise_rate": entry.noise_rate}
    return own | {"part": entry.part, "seed": seed} | dict(found)


def complete(plan: Sequence[tuple[Entry, ConfigDict]], workdir: Path) -> list[dict]:
    """The metrics of all complete runs in WORKDIR, those that an earlier --only made among them.

    Runs of another config than the entry's are left out: they belong to another table.
    """
    rows = []
    for entry, config in plan:
        folders = (workdir / entry.name).glob("seed*")
        for seed in sorted(int(path.name[4:]) for path in folders if path.name[4:].isdigit()):
            own, folder = config_of_run(config, entry, workdir, seed), folder_of(workdir, entry.name, seed)
            found = result_of(folder, own)
            if found is not None and not config_lib.differences(run_folder.load(folder).config.to_dict(), own):
                rows.append(row(entry, seed, found))
    return rows


def pooled(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """The runs of each entry, and after them the runs of all parts of a series together, as "SERIES_fold*"."""
    own: dict[str, list[dict]] = {}
    together: dict[str, list[dict]] = {}
    for one in rows:
        own.setdefault(one["entry"], []).append(one)
        if one["part"]:
            noise = "" if one["noise_rate"] is None else f"_noise{100 * one['noise_rate']:g}"
            name = f"{one['series']}{noise}_{one['part'].rstrip('0123456789')}*"
            together.setdefault(name, []).append(one)
    return own | {name: runs for name, runs in together.items() if len({one["part"] for one in runs}) > 1}


def _defined(one: dict, key: str) -> bool:
    return one.get(key) is not None and not np.isnan(one[key])


def table(rows: Sequence[dict]) -> str:
    """Mean (and spread over runs) of the main metrics in percent: an entry a line, and one for all of its folds."""
    protocols = sorted({one["protocol"] for one in rows})
    shown = [key for key in SHOWN if any(_defined(one, key) for one in rows)] or SHOWN
    cells = [
        [name, str(len(runs)), *(tables.spread_cell([one.get(key) for one in runs]) for key in shown)]
        for name, runs in pooled(rows).items()
    ]
    head = f"protocol: {', '.join(protocols)}; mean +- standard deviation over runs, percent"
    return f"{head}\n\n{tables.table(cells, header=['entry', 'runs', *shown])}"


def write(workdir: str | Path, rows: Sequence[dict]) -> None:
    """runs.csv: a row a run; sweep.csv: mean and standard deviation of each entry, and of all folds of one."""
    keys = [k for k, v in rows[0].items() if isinstance(v, float) and k not in (*FIELDS, "threshold")] if rows else []
    keys = [k for k in keys if all(k in one for one in rows)]  # rows of another protocol may lack one
    body = [["" if one[key] is None and key in FIELDS else one[key] for key in (*FIELDS, *keys)] for one in rows]
    _write_csv(storage.to_path(workdir) / "runs.csv", [*FIELDS, *keys], body)
    header = ["entry", "runs", "protocol", *(f"{key} {what}" for key in keys for what in ("mean", "std"))]
    body = [
        [name, len(runs), runs[0]["protocol"], *(v for key in keys for v in tables.spread([one[key] for one in runs]))]
        for name, runs in pooled(rows).items()
    ]
    _write_csv(storage.to_path(workdir) / "sweep.csv", header, body)


def fusion_commands(spec: str, workdir: str | Path, rows: Sequence[dict]) -> list[str]:
    """`jaxmlic ensemble` for each seed and fusion of the experiment's `ensembles(ARG)` whose members are in `rows`."""
    module = config_lib.load_module(spec)
    fused = module.ensembles(config_lib.find(spec)[1]) if hasattr(module, "ensembles") else {}
    files = {}
    for one in rows:
        folder = folder_of(storage.to_path(workdir), one["entry"], one["seed"])
        files[one["seed"], one["entry"]] = str(folder / run_folder.SCORES / f"{one['split']}.npz")
    return [
        f"jaxmlic ensemble {' '.join(files[seed, name] for name in members)} --out={workdir}/{fusion}_seed{seed}.npz"
        for fusion, members in fused.items()
        for seed in sorted({seed for seed, _ in files})
        if all((seed, name) in files for name in members)
    ]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    with storage.replacing(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
