"""`jaxmlic data split NAME ...`: divide a prepared data set anew: folds, parts, labelled subsets, or by lists.

No image moves: the result is a named split (see `named_splits`), whose parts are used as "NAME/PART".
"""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxmlic.cli.parser import add_command
from jaxmlic.data import datasets, named_splits
from jaxmlic.data.division import Divider, Parts, read_lists
from jaxmlic.data.prepare import writer
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.errors import UserError

ENOUGH = 10
"""Positives that a part should hold of a class before its share is compared: of fewer, one row is more than 10 %."""

_EPILOG = """\
Rows are divided by iterative stratification (Sechidis et al., 2011), so that every class is divided in the same
proportions; with --random, regardless of labels. The same seed gives the same split.

examples:
  jaxmlic data split voc2007 --folds=10 --from=train,test    parts train0, test0, ... train9, test9
  jaxmlic data split mine --parts=train=80%,test=20%         of all stored splits; or counts: train=6000,test=3963
  jaxmlic data split voc2007 --subset=10% --from=train       parts labelled and unlabelled, the rest
  jaxmlic data split cifar10 --draws=10 --size=4000          parts draw0, ... draw9, each drawn from all of train
  jaxmlic data split voc2007 --parts=images=100% --from=train,test --as=all      one part, every image
  jaxmlic data split nus --lists=train=TrainImagelist.txt,test=TestImagelist.txt --allow-missing --drop-empty
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The options of `jaxmlic data split`."""
    parser = add_command(
        commands,
        "split",
        run,
        "divide a prepared data set anew: folds, parts, a labelled subset",
        "Divide a prepared data set anew; its images stay as they are stored.",
        _EPILOG,
    )
    parser.add_argument("name", metavar="NAME", help="a prepared data set")
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--folds", type=int, metavar="K", help="cross-validation: trainI is all but testI, I < K")
    modes.add_argument("--parts", metavar="PART=N,...", help="parts of given sizes: counts, 80%% or 0.8")
    modes.add_argument("--subset", metavar="N", help="parts labelled (a count, 10%% or 0.1) and unlabelled, the rest")
    modes.add_argument("--draws", type=int, metavar="K", help="independent subsets drawI of --size images, I < K")
    modes.add_argument("--lists", metavar="PART=FILE,...", help="parts from files with the name of an image a line")
    modes.add_argument("--list", action="store_true", help="list the named splits there are, and change nothing")
    parser.add_argument("--size", metavar="N", help="images of each of --draws: a count, 10%% or 0.1")
    parser.add_argument(
        "--from",
        dest="sources",
        metavar="SPLIT,...",
        help="splits to divide (folds, subset, draws: train; else all stored)",
    )
    parser.add_argument("--drop-empty", action="store_true", help="leave out images without any positive label")
    parser.add_argument("--random", action="store_true", help="divide regardless of labels")
    parser.add_argument("--allow-missing", action="store_true", help="leave out listed images that are not there")
    parser.add_argument("--seed", type=int, help="of all choices (0)")
    parser.add_argument("--as", dest="split_name", metavar="SPLITNAME", help="name of the result (folds10_seed0, ...)")
    parser.add_argument("--overwrite", action="store_true", help="replace a named split of this name")


def run(args: argparse.Namespace) -> int:
    """Writes the named split and prints a summary; raises UserError on a user's mistake."""
    dataset = datasets.load(args.name, args.data_dir, records=False)
    _refuse_options(args)
    print("\n".join(existing(dataset) if args.list else divide(dataset, args)))
    return 0


def _refuse_options(args: argparse.Namespace) -> None:
    """UserError for an option that would change nothing, and for a seed that numpy does not take."""
    given = [option for option, value in vars(args).items() if value is not None and value is not False]
    mode = next(mode for mode in ("folds", "parts", "subset", "draws", "lists", "list") if mode in given)
    if mode == "draws" and args.size is None:
        raise UserError("--draws needs --size=N, the images of each draw")
    drawn = ("seed", "random")
    useless = {"lists": drawn, "list": (*drawn, "sources", "drop_empty", "allow_missing", "split_name", "overwrite")}
    for option in (*useless.get(mode, ("allow_missing",)), *(("size",) if mode != "draws" else ())):
        if option in given:
            flag = {"sources": "from", "split_name": "as"}.get(option, option).replace("_", "-")
            raise UserError(f"--{flag} means nothing with --{mode}: leave it out")
    if args.seed is not None and args.seed < 0:
        raise UserError(f"--seed={args.seed}: 0 or more")


def existing(dataset: datasets.Dataset) -> list[str]:
    """Lines that list the named splits of a data set, their sizes and how they were made."""
    found: dict[str, list[str]] = {}
    for split in dataset.split_names()[len(dataset.splits) :]:
        name, part = split.split("/")
        found.setdefault(name, []).append(f"{part} {dataset.count(split):,}")
    stored = ", ".join(f"{split} {count:,}" for split, count in dataset.splits.items())
    lines = [f"{dataset.name}: stored {stored}; {len(found) or 'no'} named splits"]
    for name, parts in found.items():
        made = ", ".join(f"{key}={value}" for key, value in named_splits.info(dataset.path, name).items())
        lines += [f"  {name}: {', '.join(parts)}", f"    ({made})"]
    return lines


def divide(dataset: datasets.Dataset, args: argparse.Namespace) -> list[str]:
    """Write the named split that the options ask for; returns the lines of the summary."""
    of_train = any(value is not None for value in (args.folds, args.subset, args.draws))
    sources = args.sources.split(",") if args.sources else ["train"] if of_train else list(dataset.splits)
    rows = np.concatenate([dataset.rows(split) for split in sources])
    if len(np.unique(rows)) < len(rows):
        raise UserError(f"--from={','.join(sources)}: these splits share images")
    values = np.concatenate([dataset.labels(split) for split in sources])
    used = np.flatnonzero((values == 1).any(1)) if args.drop_empty else np.arange(len(rows))
    if not len(used):
        raise UserError(f"--drop-empty: no image of {','.join(sources)} has a positive label")
    info = {"from": ",".join(sources), "drop_empty": args.drop_empty}
    missing, notes = [], []
    if args.lists is None:
        name, parts, more = _drawn(args, values[used])
        parts = {part: used[at] for part, at in parts.items()}
    else:
        ids = np.concatenate([dataset.ids(split) for split in sources])
        name, parts, more, missing, notes = _listed(args, ids)
        parts = {part: at[np.isin(at, used)] for part, at in parts.items()}
    name, chosen = args.split_name or name, {part: rows[at] for part, at in parts.items()}
    path = datasets.write_named_split(dataset, name, chosen, info | more, args.overwrite, folds=args.folds is not None)
    notes += _list_missing(path.with_name(f"{name}.missing.csv"), missing)
    if dropped := len(rows) - len(used):
        notes.append(f"{dropped:,} images without a positive label were left out")
    lines = [f"{name}: {len(used):,} images of {', '.join(sources)} in {len(parts)} parts, in {path}"]
    lines += _table(dataset.class_names, values[used], {part: values[at] for part, at in parts.items()})
    return [*lines, *(f"  {note}" for note in notes), f"use: {_usage(name, list(parts))}"]


def _drawn(args: argparse.Namespace, labels: np.ndarray) -> tuple[str, Parts, dict]:
    """Name, parts and info of --folds, --parts, --subset or --draws, of labels int8 [N, C]."""
    count, seed = len(labels), args.seed or 0
    divider = Divider(labels, seed, stratified=not args.random)
    if args.folds is not None:
        mode, name, parts = "folds", f"folds{args.folds}", divider.folds(args.folds)
    elif args.draws is not None:
        share = _share(args.size, count, "--size")
        mode, name, parts = "draws", f"draws{args.draws}", divider.draws(args.draws, share)
    elif args.parts is not None:
        sizes = _named_values(args.parts, "--parts")
        shares = {part: _share(size, count, f"--parts={part}") for part, size in sizes.items()}
        if sum(shares.values()) > 1 + 1e-9:
            raise UserError(f"--parts={args.parts}: more than all {count:,} images")
        mode, name, parts = "parts", "parts", divider.sized(shares)
    else:
        share = _share(args.subset, count, "--subset")
        size = f"{args.subset}images" if args.subset.isdigit() else f"{100 * share:g}".replace(".", "_")
        mode, name, parts = "subset", f"subset{size}", divider.subset(share)
    info = {"seed": seed, "stratified": not args.random, mode: getattr(args, mode)}
    info |= {"size": args.size} if mode == "draws" else {}
    return f"{name}{'_random' if args.random else ''}_seed{seed}", parts, info


def _listed(args: argparse.Namespace, ids: np.ndarray) -> tuple[str, Parts, dict, list[Problem], list[str]]:
    """Name, parts, info, what is missing, and notes of --lists, of images str [N]."""
    files = _named_values(args.lists, "--lists")
    found = read_lists(files, ids)
    if found.missing and not args.allow_missing:
        more = f"; and {len(found.missing) - 1:,} more" if len(found.missing) > 1 else ""
        raise UserError(f"{found.missing[0]}{more}; --allow-missing leaves them out and lists them")
    info = {"lists": {part: os.path.basename(file) for part, file in files.items()}, "missing": len(found.missing)}
    notes = [f"{found.num_by_base:,} listed images were found by their base name alone"] * (found.num_by_base > 0)
    return "lists", found.parts, info, found.missing, notes


def _list_missing(path: Path, missing: list[Problem]) -> list[str]:
    """Writes the listed images that are not there, or removes an older list; returns a note if there are any."""
    path.unlink(missing_ok=True)
    if not missing:
        return []
    writer.write_problems(path, missing)
    return [f"{len(missing):,} listed images are not there: left out, listed in {path}"]


def _share(text: str, total: int, option: str) -> float:
    """A count, percentage or fraction as a fraction of `total`."""
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else int(text) / total if text.isdigit() else float(text)
    except ValueError:
        share = 0
    if not 0 < share <= 1:
        raise UserError(f"{option}={text}: give a count up to {total:,}, a percentage (80%) or a fraction (0.8)")
    return share


def _named_values(text: str, option: str) -> dict[str, str]:
    """ "train=80%,test=20%" as a dict; a comma inside a value (a file's name) is one that no PART= follows."""
    values = {}
    for item in re.split(r",(?=[^,=/]*=)", text):
        part, _, value = item.partition("=")
        if not part or not value:
            raise UserError(f"{option}={text}: {item!r} is not PART=VALUE")
        if part in values:
            raise UserError(f"{option}={text}: the part {part!r} is named twice")
        values[part] = value
    return values


def _table(class_names: tuple[str, ...], labels: np.ndarray, parts: Mapping[str, np.ndarray]) -> list[str]:
    """One line for all images and one a part, of labels int8 [N, C] each."""
    share = (labels == 1).mean(0)
    rows = [("part", "images", "labels/image", "classes without", "largest deviation*")]
    for part, own in {"all": labels, **parts}.items():
        present = np.count_nonzero(own == 1, axis=0)
        expected = share * len(own)
        deviation = np.where(expected >= ENOUGH, np.abs(present - expected) / np.maximum(expected, 1), -1)
        worst = int(deviation.argmax())
        largest = f"{deviation[worst]:.1%} ({class_names[worst]})" if part != "all" and deviation[worst] >= 0 else "-"
        per_image = f"{present.sum() / max(len(own), 1):.3f}"
        rows.append((part, f"{len(own):,}", per_image, str(np.count_nonzero(present == 0)), largest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *middle, last in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))]
        lines.append("  " + "  ".join([*cells, last]))
    note = (
        f"  * of a class's share of the images from its share of all; classes that should come {ENOUGH} times or more"
    )
    return [*lines, note]


def _usage(name: str, parts: list[str]) -> str:
    """The options of `jaxmlic train` that use the first training part and what belongs to it."""
    options = []
    for field, roles in (("train_split", ("train", "labelled")), ("val_split", ("val",)), ("test_split", ("test",))):
        if part := next((part for part in parts if part.startswith(roles)), None):
            options.append(f"--config.data.{field}={name}/{part}")
    return " ".join(options or [f"--config.data.train_split={name}/{parts[0]}"])
