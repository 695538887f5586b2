"""Every entry of an experiment's `sweep()` with its seeds, by one worker or by several that share the folder."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import distributed, metrics, storage
from jaxmlic.config import Entry
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.experiments.runs import result_of
from jaxmlic.experiments.stacked.lanes import reads_arrays
from jaxmlic.experiments.sweeps import results
from jaxmlic.experiments.sweeps.claims import Claims, Part
from jaxmlic.experiments.sweeps.worker import Job, Worker
from jaxmlic.models.trunks import pretrained
from jaxmlic.training import run_folder
from jaxmlic.training.logs import trackers


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a sweep.

    Attributes:
      rows: the metrics of the chosen entries' runs, as `results.row` makes them.
      planned: how many runs there should be.
      failures: "ENTRY, seed N: reason" of each run that failed.
      datasets: the data set of each entry.
      failed: these runs' rows, as `results.failed_row` makes them.
      stopped_in: "ENTRY, seed N" where a signal stopped the sweep, else "".
      stopped_by: that signal.
    """

    rows: list[dict]
    planned: int
    failures: list[str]
    datasets: dict[str, str]
    failed: list[dict] = dataclasses.field(default_factory=list)
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


def spec_of(spec: str, entry: Entry) -> str:
    """The config's argument with the entry's own."""
    return f"{spec}{',' if config_lib.find(spec)[1] else ':'}{entry.argument}" if entry.argument else spec


def config_of(
    spec: str, base: ConfigDict, entry: Entry, overrides: Sequence[str], weights: str | Path | None = None
) -> ConfigDict:
    """The config of one entry; `base` is that of `spec` with `overrides`.

    weights: a folder with a weight file for each trunk, see `pretrained.find`.
    """
    if entry.argument:
        base = config_lib.load(spec_of(spec, entry), overrides)
    config = config_lib.override(base, entry.overrides)
    if entry.from_scratch:
        return config_lib.override(config, {"pretrained": ""})
    if weights is None:
        return config
    if config.features.sets:
        return config_lib.override(config, {"features.weights": str(weights)})
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
    part: Part | None = None,
    most_at_once: int = 1,
    report: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Runs the sweep and, unless a signal stops it, writes WORKDIR/sweep.csv, runs.csv and sweep.html.

    An entry that starts from another one runs after it. Several workers may run the same sweep in one folder: each run
    is made by one of them, and all of them wait for the last. A bucket has no claims: there `part` divides the runs.

    Args:
      spec: `FILE[:ARG]` of the experiment.
      workdir: gets a folder per entry and seed.
      seeds: runs of each entry, from config.seed on.
      only: names of entries; () for all.
      overrides: "--config.x.y=value", for all entries.
      weights: a folder with a weight file for each trunk.
      part: this worker's part of the runs; second stages go with their first.
      most_at_once: how many runs on stored features may train in one program.
      report: called with a line before each run, and with each failure.

    Raises:
      UserError: a mistake in the sweep; a folder that runs of another config lie in, or that another sweep works in.
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
    jobs = [
        Job(entry, seed, config_of_run(config, entry, workdir, seed), folder_of(workdir, entry.name, seed))
        for entry, config in plan
        if entry.name in chosen
        for seed in range(base.seed, base.seed + seeds)
    ]
    jobs = [job for job in jobs if part is None or part.has(_chain(job, jobs))]
    for job in jobs:
        trackers.check(job.config.train.trackers)
    _refuse_other_runs(jobs)
    if most_at_once > 1:
        _check_stackable(jobs)
    shared = distributed.count() == 1 and not storage.is_bucket(workdir)
    with Claims(workdir, _digest(plan), spec, shared) as claims:
        worker = Worker(jobs, claims, most_at_once, report)
        worker.work()
    datasets = {entry.name: config.data.name for entry, config in plan}
    order = {job.title: number for number, job in enumerate(jobs)}
    rows, failed = ([found[title] for title in sorted(found, key=order.get)] for found in (worker.rows, worker.failed))
    failures = [f"{one['entry']}, seed {one['seed']}: {one[results.FAILED]}" for one in failed]
    outcome = Outcome(rows, len(jobs), failures, datasets, failed)
    if worker.stopped_in:
        return dataclasses.replace(outcome, stopped_in=worker.stopped_in, stopped_by=worker.stopped_by)
    results.write(workdir, complete(plan, workdir), failed_runs(plan, workdir), title=f"{spec} in {workdir}")
    return outcome


def _chain(job: Job, jobs: Sequence[Job]) -> int:
    """A number that second stages share with their first: its place among the entries and seeds."""
    by_name = {(other.entry.name, other.seed): (number, other) for number, other in enumerate(jobs)}
    number, first = by_name[job.entry.name, job.seed]
    while (first.entry.start_from, job.seed) in by_name:
        number, first = by_name[first.entry.start_from, job.seed]
    return number


def _digest(plan: Sequence[tuple[Entry, ConfigDict]]) -> str:
    """Changes when an entry's config does, but for fields that a continued run may change."""
    fields = [
        [entry.name, {k: v for k, v in config_lib.flatten(config).items() if k not in config_lib.FREE_FIELDS}]
        for entry, config in plan
    ]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _refuse_other_runs(jobs: Sequence[Job]) -> None:
    """UserError where a run folder is another config's: before hours go into the others."""
    for job in jobs:
        changed = run_folder.changed(job.folder, job.config)
        if changed:
            raise UserError(
                f"{job.folder} is the run of another config ({'; '.join(changed[:5])}): use another --workdir"
            )


def _check_stackable(jobs: Sequence[Job]) -> None:
    if distributed.count() > 1:
        raise UserError("--vmap trains in one process: leave it out, or start workers with --part in place of one job")
    if jobs and not any(reads_arrays(job.config) for job in jobs):
        raise UserError(
            "--vmap trains heads on stored features, and no entry reads any: set config.data.source='features' "
            "(`jaxmlic features` stores them) or leave out --vmap"
        )


def complete(plan: Sequence[tuple[Entry, ConfigDict]], workdir: Path) -> list[dict]:
    """The metrics of all complete runs in WORKDIR, those that an earlier --only made among them.

    Runs of another config than the entry's are left out: they belong to another table.
    """
    rows = []
    for entry, seed, own, folder in _folders(plan, workdir):
        found = result_of(folder, own)
        if found is not None and not config_lib.differences(run_folder.load(folder).config.to_dict(), own):
            rows.append(results.row(entry, seed, found))
    return rows


def failed_runs(plan: Sequence[tuple[Entry, ConfigDict]], workdir: Path) -> list[dict]:
    """The rows of all runs in WORKDIR that failed, in whichever worker."""
    return [
        results.failed_row(entry, seed, found["reason"])
        for entry, seed, own, folder in _folders(plan, workdir)
        if (found := run_folder.failure(folder)) is not None and result_of(folder, own) is None
    ]


def _folders(plan: Sequence[tuple[Entry, ConfigDict]], workdir: Path) -> list[tuple[Entry, int, ConfigDict, Path]]:
    """The run folders that are there: (entry, seed, config, folder)."""
    found = []
    for entry, config in plan:
        folders = (workdir / entry.name).glob("seed*")
        for seed in sorted(int(path.name[4:]) for path in folders if path.name[4:].isdigit()):
            own = config_of_run(config, entry, workdir, seed)
            found.append((entry, seed, own, folder_of(workdir, entry.name, seed)))
    return found


def fusion_commands(spec: str, workdir: str | Path, rows: Sequence[dict]) -> list[str]:
    """`jaxmlic ensemble` for each seed and fusion of the experiment's `ensembles(ARG)` whose members are in `rows`."""
    module = config_lib.load_module(spec)
    fused = module.ensembles(config_lib.find(spec)[1]) if hasattr(module, "ensembles") else {}
    files, plain = {}, {}
    for one in rows:
        folder = folder_of(storage.to_path(workdir), one["entry"], one["seed"])
        protocol = metrics.get_protocol(one["protocol"])
        kind = protocol.name if protocol.by_rule else ""
        files[one["seed"], one["entry"]] = str(run_folder.scores_file(folder, one["split"], kind))
        if protocol.by_rule:  # a fusion has no rule
            plain[one["entry"]] = f" --protocol={protocol.plain}"
    return [
        f"jaxmlic ensemble {' '.join(files[seed, name] for name in members)} --out={workdir}/{fusion}_seed{seed}.npz"
        + (f" --weights={','.join(f'{x:g}' for x in members.values())}" if len(set(members.values())) > 1 else "")
        + next((plain[name] for name in members if name in plain), "")
        for fusion, members in fused.items()
        for seed in sorted({seed for seed, _ in files})
        if all((seed, name) in files for name in members)
    ]
