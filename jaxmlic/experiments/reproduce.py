"""The papers' tables, row by row: the command of each, what it needs, the printed number and ours.

Runs of the data set D lie in WORKDIR/D/ENTRY/seedN, as `jaxmlic sweep --workdir=WORKDIR/D` makes them.
"""

import csv
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmlic import config as config_lib
from jaxmlic import metrics, papers, storage
from jaxmlic.config import Entry
from jaxmlic.data import benchmark_facts
from jaxmlic.errors import UserError, unknown
from jaxmlic.evaluation import ensemble, score_file
from jaxmlic.experiments import decisions, step_costs, sweep
from jaxmlic.experiments.runs import evaluate, store_features
from jaxmlic.inputs import cache, open_source
from jaxmlic.papers import Paper, Row, Table
from jaxmlic.training import run_folder

CSV = ("table", "data", "row", "entry", "measured by", "metric", "printed", "ours", "ours std", "runs", "protocol")


@dataclasses.dataclass(frozen=True)
class Line:
    """A printed row with the runs that stand for it here.

    Attributes:
      table, row: as printed.
      spec: `FILE[:ARG]` of the experiment for the data set that is used, "" where the method does not exist here.
      entries: of its sweep, several where parts of the data are one experiment, or the members of a fusion.
      configs: theirs.
      overrides: "--config.x.y=value" of all of them.
      weights: of the entries whose scores are fused into one, () where they are not.
      protocol: by which ours are made.
      ours: metrics of each complete run, or fusion.
      notes: runs that do not count, and why.
    """

    table: Table
    row: Row
    spec: str = ""
    entries: tuple[Entry, ...] = ()
    configs: tuple[ConfigDict, ...] = ()
    overrides: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    protocol: str = ""
    ours: tuple[dict, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> ConfigDict | None:
        """Of the first entry; None without one."""
        return self.configs[0] if self.configs else None

    @property
    def dataset(self) -> str:
        """The data set of our runs, "" without one."""
        return self.config.data.name if self.config is not None else ""

    def command(self, workdir: str | Path) -> str:
        """The sweep that makes the row's runs, "" where there is none."""
        if not self.entries:
            return ""
        # The folds of a row are a series; the first stage of a second one has to run, too.
        own = dict.fromkeys(e.series if e.part else e.name for e in self.entries)
        names = [*dict.fromkeys(e.start_from for e in self.entries if e.start_from), *own]
        only = f" --only={','.join(names)}"
        weights = ["--weights=DIR"] if self.trunks else []
        more = "".join(f" {shlex.quote(text)}" for text in (*weights, *self.overrides))
        return f"jaxmlic sweep --config={self.spec} --workdir={workdir}/{self.dataset}{only}{more}"

    @property
    def trunks(self) -> tuple[str, ...]:
        """Those of the first entry whose weights start from a file."""
        if self.config is None or self.entries[0].from_scratch:
            return ()
        return open_source(self.config).pretrained_trunks

    def our_number(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation over the runs of a column of the table, in its unit; NaN without runs."""
        base, scale = name.removesuffix(" std"), self.row.scales.get(name, 100.0)
        values = scale * np.array([_metric(one, base) for one in self.ours], float)
        if not len(values):
            return float("nan"), float("nan")
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        return (spread, float("nan")) if name.endswith(" std") else (float(values.mean()), spread)


def tables_of(target: str) -> tuple[Paper, tuple[Table, ...]]:
    """The paper of "NAME", or "NAME/TABLE" with the tables of that number; UserError for an unknown one."""
    name, _, number = target.partition("/")
    paper = papers.load(name)
    found = tuple(table for table in paper.tables if not number or table.number.lower() == number.lower())
    if not found:
        raise unknown(f"table of {name}", number, list(dict.fromkeys(table.number for table in paper.tables)))
    return paper, found


def lines_of(
    tables: Sequence[Table],
    workdir: str | Path,
    *,
    dataset: str = "",
    argument: str = "",
    overrides: Sequence[str] = (),
    weights: str | Path | None = None,
) -> list[Line]:
    """A line for each row of the tables, with what complete runs in WORKDIR gave.

    Args:
      tables: of one paper.
      workdir: of the runs.
      dataset: stands in for the tables' own data sets; ours are then decided by its own protocol.
      argument: more of the experiments' argument, such as "trunk=small_cnn".
      overrides: "--config.x.y=value" that the runs were made with.
      weights: the folder of weights that they were made with.
    """
    lines = [_line(table, row, dataset, argument, overrides, weights) for table in tables for row in table.rows]
    return [_with_runs(line, storage.to_path(workdir)) if line.entries else line for line in lines]


def train(
    lines: Sequence[Line],
    workdir: str | Path,
    *,
    seeds: int,
    overrides: Sequence[str],
    weights: str | Path | None,
    report: Callable[[str], None],
) -> list[str]:
    """Runs the sweeps of the lines, those that are complete left as they are; returns the failures."""
    failures = []
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for line in lines:
        if line.config is not None and open_source(line.config).is_stored:
            store_features(line.config, report)
        names = [entry.name for entry in line.entries] + [e.start_from for e in line.entries if e.start_from]
        groups.setdefault((line.spec, line.dataset), {}).update(dict.fromkeys(names))
    for (spec, dataset), names in groups.items():
        if names:
            folder = storage.to_path(workdir) / dataset
            outcome = sweep.run(
                spec, folder, seeds=seeds, only=list(names), overrides=overrides, weights=weights, report=report
            )
            failures += outcome.failures
            if outcome.stopped_in:
                raise UserError(f"stopped in {outcome.stopped_in}; the same command continues there")
    for line in lines:
        for entry, config in zip(line.entries, line.configs, strict=True):
            for folder in sorted((storage.to_path(workdir) / line.dataset / entry.name).glob("seed*")):
                if run_folder.result(folder) is not None and _scores_of(folder, config, line) is None:
                    evaluate(folder, protocol=line.protocol, report=report)
    return failures


def needs(lines: Sequence[Line]) -> list[str]:
    """What the lines' runs read: data sets with the owner's files and their command, named splits, weights."""
    found: dict[str, None] = {}
    features: list[tuple] = []  # those of a command that is there
    for line in lines:
        if line.config is None:
            continue
        name = line.dataset
        facts = benchmark_facts.FACTS.get(name)
        source = f" --source=DIR (in DIR: {', '.join(facts.source)})" if facts and facts.source else ""
        found[f"data: jaxmlic data prepare {name}{source}"] = None
        for split in (line.config.data.train_split, line.config.data.val_split, line.config.data.test_split):
            made = benchmark_facts.made_split(name, split) if split else None
            if made:
                found[f"split: {made[1]}"] = None
        for trunk in line.trunks:
            name = trunk.removesuffix("_fc")
            found[f"weights: those of {name} on ImageNet in the folder of --weights=DIR"] = None
        if open_source(line.config).is_stored:
            field = "features.weights=DIR" if line.config.features.sets else "pretrained=FILE"
            for entry, config in zip(line.entries, line.configs, strict=True):
                key = line.dataset, field, _stored(config)
                if key not in features:
                    features.append(key)
                    spec = line.spec
                    if _stored(config_lib.load(spec, line.overrides)) != key[-1]:
                        spec = sweep.spec_of(spec, entry)
                    found[f"features: jaxmlic features --config={spec} --config.{field} (with --train made here)"] = (
                        None
                    )
    return list(found)


def _stored(config: ConfigDict) -> dict:
    """What decides which features a run reads."""
    return config.features.to_dict() if config.features.sets else cache.config_fields(config)


def write_csv(path: str | Path, lines: Sequence[Line]) -> None:
    """A row for each number: CSV's columns; percent, or what the column counts."""
    with storage.replacing(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV)
        for line in lines:
            for name, printed in line.row.shown.items():
                mean, spread = line.our_number(name)
                ours = ["" if np.isnan(v) else f"{v:.2f}" for v in (mean, spread)]
                writer.writerow(
                    [
                        line.table.number,
                        line.dataset or line.table.dataset,
                        line.row.label,
                        " ".join(entry.name for entry in line.entries),
                        line.row.measured_by,
                        name,
                        "" if printed is None else f"{printed:g}",
                        *ours,
                        len(line.ours),
                        line.protocol or line.row.protocol,
                    ]
                )


def _line(
    table: Table, row: Row, dataset: str, argument: str, overrides: Sequence[str], weights: str | Path | None
) -> Line:
    if not row.entry:
        return Line(table, row)
    spec = _spec_on(row.sweep, dataset or table.dataset) + (f",{argument}" if argument else "")
    known = sweep.entries(spec)
    names = _candidates(row.entry, table.dataset, dataset or table.dataset)
    module = config_lib.load_module(spec)
    fusions = module.ensembles(config_lib.find(spec)[1]) if hasattr(module, "ensembles") else {}
    for name in names:
        members = fusions.get(name, {})
        found = [e for e in known if e.name in members or e.name == name or (e.series == name and e.noise_rate is None)]
        if found:
            base = config_lib.load(spec, overrides)
            configs = tuple(sweep.config_of(spec, base, entry, overrides, weights) for entry in found)
            protocol = configs[0].eval.protocol if dataset else row.protocol
            shares = tuple(members[entry.name] / sum(members.values()) for entry in found) if members else ()
            return Line(table, row, spec, tuple(found), configs, tuple(overrides), shares, protocol)
    return Line(table, row, notes=(f"no entry of {spec} does the same",))


def _spec_on(spec: str, dataset: str) -> str:
    """`FILE[:ARG]` with the argument dataset=NAME."""
    name, _, arg = spec.partition(":")
    rest = [item for item in arg.split(",") if item and not item.startswith("dataset=")]
    return f"{name}:{','.join([f'dataset={dataset}', *rest])}"


def _candidates(entry: str, own: str, dataset: str) -> list[str]:
    """What the entry may be called in the sweep of one data set: with its name, without, without the start."""
    bare = entry.removeprefix(f"{own}_")
    return [f"{dataset}_{bare}", bare, bare.removesuffix("_ilsvrc").removesuffix("_random")]


def _with_runs(line: Line, workdir: Path) -> Line:
    """The line with the metrics of its complete runs."""
    workdir, notes = workdir / line.dataset, []
    runs: dict[int, list[Path]] = {}
    costs = any(column.name in papers.COSTS for column in line.row.columns)
    for entry, config in zip(line.entries, line.configs, strict=True):
        for folder in sorted((workdir / entry.name).glob("seed*")):
            path = _scores_of(folder, config, line)
            if run_folder.result(folder) is None or path is None:
                continue
            changed = _other_config(config, entry, folder, workdir)
            if changed:
                notes.append(f"{folder}: a run of another config ({changed}); not counted")
            else:
                runs.setdefault(int(folder.name[4:]), []).append(path)
    ours: list[dict] = []
    for paths in runs.values():
        if not line.weights:
            for path in paths:
                numbers = _numbers(score_file.load(path), str(path), line.protocol)
                ours.append(numbers | (step_costs.of_run(path.parent.parent) if costs else {}))
        elif len(paths) == len(line.entries):
            scores = decisions.fused_scores(paths, line.weights, line.config.data.train_split, line.protocol)
            ours.append(_numbers(scores, str(paths[0]), line.protocol))
    return dataclasses.replace(line, ours=tuple(ours), notes=(*line.notes, *notes))


def _scores_of(folder: Path, config: ConfigDict, line: Line) -> Path | None:
    """A run's scores of its test split; under a protocol with a learned rule, with the labels that this one chose."""
    decided = metrics.get_protocol(line.protocol).by_rule and not line.weights
    kinds = [line.protocol] if decided else ["", config.eval.protocol]
    paths = [run_folder.scores_file(folder, config.data.test_split, kind) for kind in kinds]
    return next((path for path in paths if path.exists()), None)


def _other_config(config: ConfigDict, entry: Entry, folder: Path, workdir: Path) -> str:
    """What differs between a run's config and the entry's, "" if nothing does. Weights may lie elsewhere."""
    own = sweep.config_of_run(config, entry, workdir, int(folder.name[4:]))
    found = config_lib.differences(run_folder.load(folder).config.to_dict(), own)
    return "; ".join(text for text in found if not text.startswith(("pretrained:", "start_from:")))[:200]


def _numbers(scores: score_file.ScoreFile, path: str, protocol: str) -> dict:
    least, untrained = ensemble.counted_classes(path, scores)
    classes = np.array([name not in untrained for name in scores.class_names])
    numbers = metrics.evaluate(
        scores.scores, scores.labels, protocol, chosen=scores.chosen, classes=classes, min_positives=least
    )
    return numbers | scores.extra.get("paths", {}) | {"class_names": scores.class_names}


def _metric(numbers: dict, name: str) -> float:
    """A column's value among the metrics of a run: one of `metrics.evaluate` or `metrics.path_metrics`, "AP <class>" or
    "error"; NaN where the run has none."""
    if name.startswith("AP "):
        wanted = name.removeprefix("AP ")
        return float(dict(zip(numbers["class_names"], numbers["AP"], strict=True)).get(wanted, np.nan))
    return 1.0 - numbers["top1"] if name == "error" else float(numbers.get(name, np.nan))
