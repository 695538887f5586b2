"""`jaxmlic data prepare NAME [--source=...]`: turn images and their labels into a prepared data set.

Three doors: the benchmarks from their owners' files (`OFFICIAL`), a user's own table or class folders, and what is
drawn here. The first two lead to a `table.Table`, whose images are then read, checked and stored in one way.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import numpy as np

from jaxmlic import progress
from jaxmlic.cli.parser import add_command
from jaxmlic.data import datasets
from jaxmlic.data.image import inspect_image
from jaxmlic.data.prepare import cifar, coco, folders, nus_wide, voc, writer
from jaxmlic.data.prepare.sources.archives import ARCHIVE_SUFFIXES
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.data.prepare.staging import refuse_existing
from jaxmlic.data.prepare.tables import table
from jaxmlic.data.prepare.tables.annotations import Mistake
from jaxmlic.data.prepare.tables.sheets import Options, Problem, find_tables
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.labels import stratify

MAX_ID = 4096
"""Characters of an image's name: the longest path that Linux has. The ids of a split are stored at equal lengths."""

_EPILOG = """\
A table is a .csv, .tsv or .jsonl file with one image a row:
  image,labels                          image,cat,dog          {"file": "a.jpg", "labels": ["cat", "dog"]}
  a.jpg,cat;dog                         a.jpg,1,1              {"file": "b.jpg", "labels": []}
  b.jpg,                                b.jpg,0,-1
Values are 1 present, 0 absent, -1 unknown. In a folder, train.csv, val.csv and test.csv are the splits, and
classes.txt (one name a line) gives the classes and their order. Images lie beside the table or in images/.

Or no table: class folders, train/cat/1.jpg, test/dog/2.jpg, as a folder or an archive; one label an image.

The benchmarks are read from what their owners publish, archives or folders, several with several --source:
  voc2007    VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar (or VOCdevkit)
  voc2012    VOCtrainval_11-May-2012.tar (or VOCdevkit)
  coco2014   annotations_trainval2014.zip, train2014.zip, val2014.zip      coco2017: the same of 2017
  nus_wide   Groundtruth.zip, ImageList.zip, ConceptsList.zip, the folder of images; nus_wide_tags: NUS_WID_Tags.zip too
  cifar10    cifar-10-binary.tar.gz       stl10: stl10_binary.tar.gz
A run that was interrupted goes on where it stopped when the same command is given again.

examples:
  jaxmlic data prepare scenes                             the data set that is drawn here: nothing to download
  jaxmlic data prepare mine --source=~/photos             a folder with train.csv, test.csv, images/
  jaxmlic data prepare mine --source=all.csv --images=/disk/jpg --split-column=fold
  jaxmlic data prepare voc --source=VOC --label-values=1,-1,0
  jaxmlic data prepare voc2007 --source=~/downloads/VOC
  jaxmlic data prepare coco2014 --source=annotations_trainval2014.zip --source=train2014.zip --source=val2014.zip
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The options of `jaxmlic data prepare`."""
    parser = add_command(
        commands, "prepare", run, "turn images and their labels into a prepared data set", epilog=_EPILOG
    )
    known = ", ".join([*DRAWN, *OFFICIAL])
    parser.add_argument("name", metavar="NAME", help=f"{known}, or a name of your own with --source")
    parser.add_argument(
        "--source",
        action="append",
        metavar="PATH",
        help="a table (.csv, .tsv, .jsonl), a folder or an archive; several for a benchmark of several archives",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of this name")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad rows and images, and list them")
    parser.add_argument("--workers", type=int, help="threads (scenes: processes) that work at once (one per CPU)")
    own = parser.add_argument_group("tables")
    own.add_argument("--images", help="folder of the images, if it is not the table's or its images/, JPEGImages/")
    own.add_argument(
        "--classes", help="class names, one a line, their order kept (classes.txt, words.txt, stratify.txt)"
    )
    own.add_argument("--file-column", help="column of the image's name (file, image, filename, name, path, id)")
    own.add_argument("--labels-column", help="column of the labels (labels, label, categories, tags, classes, words)")
    own.add_argument("--split-column", help="column that divides one table into splits (split)")
    own.add_argument("--separator", help="what stands between two labels (auto: ; or | or , or a proven space)")
    own.add_argument("--label-values", metavar="P,A,U", help="one-hot values present,absent,unknown; VOC: 1,-1,0")
    own.add_argument("--boxes", help="table of boxes: file,label,xmin,ymin,xmax,ymax[,difficult] in pixels")
    official = parser.add_argument_group("benchmarks")
    official.add_argument(
        "--class-order", choices=("category_id", "alphabetical"), help="coco: category_id, or alphabetical as ML-GCN"
    )
    official.add_argument(
        "--no-checksums", action="store_true", help="take archives that differ from their owner's published checksum"
    )
    drawn = parser.add_argument_group("scenes")
    drawn.add_argument("--seed", type=int, help="seed of the scenes drawn (0)")
    drawn.add_argument("--side", type=int, help="height and width of a scene in pixels")


TABLE_OPTIONS = tuple(field.name for field in dataclasses.fields(Options))
DRAWN_OPTIONS = ("seed", "side")


def run(args: argparse.Namespace) -> int:
    """Prepares what the arguments ask for and prints a summary; raises UserError on a user's mistake."""
    # A name on disk need not be UTF-8, and a terminal is.
    print("\n".join(prepare(args)).encode("utf-8", "backslashreplace").decode())
    return 0


def prepare(args: argparse.Namespace) -> list[str]:
    """Prepare what the arguments ask for and return the lines of the summary; raises UserError."""
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers={args.workers}: at least 1")
    args.workers = args.workers or len(os.sched_getaffinity(0))
    args.data_dir = Path(args.data_dir).expanduser() if args.data_dir else datasets.default_data_dir()
    if args.name in OFFICIAL:
        if not args.source:
            raise UserError(
                f"{args.name}: give the owner's files with --source=DIR_OR_ARCHIVE (jaxmlic data prepare --help lists "
                "them)"
            )
        _refuse_options(args, (*TABLE_OPTIONS, *DRAWN_OPTIONS), args.name)
        if not args.name.startswith("coco"):
            _refuse_options(args, ("class_order",), args.name)
        return prepare_official(args)
    if args.source:
        if len(args.source) > 1:
            raise UserError(f"--source is given {len(args.source)} times: {args.name!r} is no benchmark, give one")
        args.source = args.source[0]
        _refuse_options(args, (*DRAWN_OPTIONS, "class_order", "no_checksums"), "a table")
        return prepare_own(args)
    if args.name not in DRAWN:
        known = [*DRAWN, *OFFICIAL]
        raise UserError(
            f"{args.name!r} is not built in{did_you_mean(args.name, known)} ({', '.join(known)}): "
            "give your own images with --source=DIR_OR_FILE"
        )
    _refuse_options(args, (*TABLE_OPTIONS, "skip_bad", "class_order", "no_checksums"), args.name)
    return DRAWN[args.name](args)


def _refuse_options(args: argparse.Namespace, useless: tuple[str, ...], what: str) -> None:
    given = next((option for option in useless if getattr(args, option) not in (None, False)), None)
    if given:
        raise UserError(f"--{given.replace('_', '-')} means nothing for {what}: leave it out")


def _already(args, fingerprint: str) -> list[str] | None:
    """The summary when just this is prepared already; UserError when something else stands in its place."""
    if args.overwrite:
        refuse_existing(args.name, args.data_dir, overwrite=True)
        return None
    path = args.data_dir / args.name / datasets.VERSION / "jaxmlic.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        info = {}
    if info.get("fingerprint") == fingerprint and (info.get("skipped", 0) <= info.get("left_out", 0) or args.skip_bad):
        return [f"{args.name}: already prepared in {path.parent} ({info['splits']})"]
    refuse_existing(args.name, args.data_dir, overwrite=False)
    return None


def _fingerprint(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part).encode())
    return digest.hexdigest()


def prepare_scenes(args: argparse.Namespace) -> list[str]:
    """The embedded data set: pictures drawn from a seed, with exact labels and boxes."""
    from jaxmlic.data.prepare import scenes

    chosen = {key: getattr(args, key) for key in ("seed", "side") if getattr(args, key) is not None}
    fingerprint = _fingerprint("scenes", chosen, list(scenes.CLASS_NAMES), dict(scenes.SPLITS))
    if done := _already(args, fingerprint):
        return done
    options = {"seed": 0} | chosen | {"workers": args.workers}
    with progress.Progress(f"drawing {args.name}", sum(scenes.SPLITS.values())) as bar:

        def stream(split: str, count: int) -> Iterator[dict]:
            for example in scenes.examples(split, count, **options):
                yield example
                bar.advance()

        path = writer.write(
            args.name,
            args.data_dir,
            scenes.CLASS_NAMES,
            {split: stream(split, count) for split, count in scenes.SPLITS.items()},
            {"source": "jaxmlic.data.scenes", "options": chosen, "fingerprint": fingerprint},
            has_boxes=True,
            overwrite=args.overwrite,
        )
    return _summary(datasets.load(args.name, args.data_dir), path, [])


DRAWN: dict[str, Callable[[argparse.Namespace], list[str]]] = {"scenes": prepare_scenes}
"""Data sets that need no source: name -> function(args) -> lines of the summary."""

OFFICIAL: dict[str, Callable[[Files, argparse.Namespace], table.Table]] = {
    "voc2007": lambda files, _: voc.read(files, "2007"),
    "voc2012": lambda files, _: voc.read(files, "2012"),
    "coco2014": lambda files, args: coco.read(files, "2014", args.class_order or "category_id"),
    "coco2017": lambda files, args: coco.read(files, "2017", args.class_order or "category_id"),
    "nus_wide": lambda files, _: nus_wide.read(files),
    "nus_wide_tags": lambda files, _: nus_wide.read(files, nus_wide.Options(labels="tags1k")),
    "cifar10": lambda files, _: cifar.read_cifar10(files),
    "stl10": lambda files, _: cifar.read_stl10(files),
}
"""Benchmarks in their owners' formats: name -> function(files, arguments) -> Table."""


def prepare_official(args: argparse.Namespace) -> list[str]:
    """A benchmark from its owner's folders and archives."""
    with Files(args.source, scratch=args.data_dir, checksums=not args.no_checksums) as files:
        found = OFFICIAL[args.name](files, args)
        info = {
            "source": [os.path.abspath(source) for source in files.sources],
            "options": {"class_order": args.class_order} if args.class_order else {},
        }
        return _store(args, found, info)


def prepare_own(args: argparse.Namespace) -> list[str]:
    """A user's own table and images, or class folders."""
    source = Path(args.source).expanduser()
    archive = source.is_file() and source.name.lower().endswith(ARCHIVE_SUFFIXES)
    if archive or (source.is_dir() and not find_tables(source, required=False)[0]):
        with Files([source], scratch=args.data_dir, checksums=False) as files:
            if folders.is_class_folders(files):
                _refuse_options(args, TABLE_OPTIONS, "class folders")
                return _store(args, folders.read(files), {"source": os.path.abspath(source)})
        if archive:
            raise UserError(f"{source}: no class folders in it: extract it, and give the folder or its table")
    asked = {name: getattr(args, name) for name in TABLE_OPTIONS}
    for option in ("images", "classes", "boxes"):
        asked[option] = asked[option] and os.path.expanduser(asked[option])
    options = Options(**{key: value for key, value in asked.items() if value is not None})
    info = {"source": os.path.abspath(source), "options": dataclasses.asdict(options)}
    return _store(args, table.read(source, options), info)


def _store(args: argparse.Namespace, found: table.Table, info: dict) -> list[str]:
    """Check every image of a table, write the data set, and return the lines of the summary."""
    strange = next((name for name in found.class_names if not _is_text(name)), None)
    if strange is not None:
        raise UserError(f"the class {strange!r} is not UTF-8: rename it")
    fingerprint = _table_fingerprint(found)
    if (not found.problems or args.skip_bad) and (done := _already(args, fingerprint)):
        return done
    refuse_existing(args.name, args.data_dir, args.overwrite)
    skipped = []
    info |= {
        "label_values": found.label_values,
        "notes": found.notes,
        "fingerprint": fingerprint,
        "left_out": len(found.left_out),
        "skipped_rows": skipped,
    }
    with _Checker(found, args.workers, args.name) as checker:
        try:
            if found.problems and not args.skip_bad:
                raise _Stop
            skipped += [dataclasses.astuple(problem) for problem in found.left_out + found.problems]
            path = writer.write(
                args.name,
                args.data_dir,
                found.class_names,
                {split: checker.stream(split, skipped, args.skip_bad) for split in found.splits},
                info,
                found.has_boxes,
                skipped=skipped,
                named_splits=found.named_splits,
                overwrite=args.overwrite,
                resume=f"{fingerprint} {args.skip_bad}",
            )
        except _Stop:
            checker.check_the_rest()
            raise _all_problems(found.problems + checker.problems, args) from None
    _problems_path(args).unlink(missing_ok=True)
    return _summary(datasets.load(args.name, args.data_dir), path, found.notes)


@contextlib.contextmanager
def quiet_decoders() -> Iterator[TextIO | None]:
    """libjpeg and libpng report on file descriptor 2 by themselves; what is wrong with an image is one line of ours.

    Yields where stderr goes really, None when that is nowhere.
    """
    try:
        terminal = os.fdopen(os.dup(2), "w")
    except OSError:  # closed
        yield None
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with terminal, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield terminal
        finally:
            os.dup2(terminal.fileno(), 2)


class _Stop(Exception):
    """Nothing will be written: there are mistakes, and the user did not ask to leave them out."""


class _Checker:
    """Reads and decodes every image once, in threads, a little ahead of the writer."""

    def __init__(self, found: table.Table, workers: int, name: str):
        self.problems: list[Problem] = []
        self._has_boxes = found.has_boxes
        self._rows = {split: iter(rows) for split, rows in found.splits.items()}
        self._waiting = {split: deque() for split in found.splits}  # outlives a stop: what is in it is still checked
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers)
        self._quiet = contextlib.ExitStack()
        terminal = self._quiet.enter_context(quiet_decoders())
        total = sum(len(rows) for rows in found.splits.values())
        self._bar = progress.Progress(f"checking {name}", total, file=terminal)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        self._pool.shutdown(cancel_futures=True)
        self._quiet.close()

    def stream(self, split: str, skipped: list, skip_bad: bool) -> Callable[[str | None], Iterator[dict]]:
        """A function of the last id already stored that gives the good images after it.

        Bad ones go to `skipped`, or end it all with _Stop.
        """

        def examples(last: str | None) -> Iterator[dict]:
            if last is not None:
                earlier = 0
                for row in self._rows[split]:
                    earlier += 1
                    if row.id == last:
                        break
                self._bar.skip(earlier)
            for example, problem in self._checked(split):
                if problem is None:
                    yield example
                elif skip_bad:
                    skipped.append(dataclasses.astuple(problem))
                else:
                    raise _Stop

        return examples

    def check_the_rest(self) -> None:
        """Look at all images that were not looked at yet, for the list of problems."""
        for split in self._rows:
            deque(self._checked(split), maxlen=0)

    def _checked(self, split: str) -> Iterator[tuple[dict | None, Problem | None]]:
        waiting, rows = self._waiting[split], self._rows[split]
        # Few at a time: whole images are in here.
        for row in rows:
            waiting.append(self._pool.submit(_check, row, self._has_boxes))
            if len(waiting) >= 4 * self._workers:
                yield self._take(waiting.popleft())
        while waiting:
            yield self._take(waiting.popleft())

    def _take(self, future) -> tuple[dict | None, Problem | None]:
        example, problem = future.result()
        self._bar.advance()
        if problem is not None:
            self.problems.append(problem)
        return example, problem


def _check(row: table.Row, has_boxes: bool) -> tuple[dict | None, Problem | None]:
    """The example of one row, or what is wrong with its name, image or boxes."""
    if not _is_text(row.id):
        return None, Problem(*row.where, f"the name {row.id!r} is not UTF-8: rename the file")
    if len(row.id) > MAX_ID:
        return None, Problem(
            *row.where, f"{row.id[:60]}...: a name of {len(row.id):,} characters, {MAX_ID:,} are allowed"
        )
    try:
        data = row.image.read()
    except OSError as error:
        return None, Problem(*row.where, f"{row.id}: cannot be read ({error.strerror})")
    height, width, why = inspect_image(data)
    if why:
        return None, Problem(*row.where, f"{row.id}: {why}")
    example = {"id": row.id, "image": data, "labels": row.labels}
    if has_boxes:
        example["boxes"] = []
        for box in row.boxes:
            try:
                example["boxes"].append(box.normalised(height, width))
            except Mistake as mistake:
                return None, Problem(*box.where, f"{row.id}: {mistake}")
    return example, None


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8; those on disks and in archives need not be, and JSON may hold half surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problems_path(args) -> Path:
    return args.data_dir / f"{args.name}.problems.csv"


def _all_problems(problems: list[Problem], args) -> UserError:
    """One line for all mistakes; the list goes to a file when there is more than one."""
    text = str(problems[0])
    if len(problems) > 1:
        path = _problems_path(args)
        try:
            args.data_dir.mkdir(parents=True, exist_ok=True)
            writer.write_problems(path, [dataclasses.astuple(problem) for problem in problems])
            text += f"; and {len(problems) - 1:,} more (all listed in {path})"
        except OSError as error:
            text += f"; and {len(problems) - 1:,} more (they could not be listed in {path}: {error.strerror})"
    return UserError(f"{text}; --skip-bad leaves bad rows out")


def _table_fingerprint(found: table.Table) -> str:
    """Of all that makes the data set: names, labels, boxes, and size and time of every image."""
    parts = [datasets.VERSION, found.class_names, found.label_values, list(found.splits)]
    for split, rows in found.splits.items():
        for row in rows:
            boxes = [[box.label, *box.corners, box.difficult] for box in row.boxes]
            parts += [[split, row.id, row.image.state(), boxes], row.labels.tobytes()]
    return _fingerprint(*parts)


def _summary(dataset: datasets.Dataset, path: Path, notes: list[str]) -> list[str]:
    total = sum(dataset.splits.values())
    lines = [f"{dataset.name}: {total:,} images, {len(dataset.class_names)} classes, in {path}"]
    for split, count in dataset.splits.items():
        values = dataset.labels(split)
        present, _, unknown = stratify.counts(values)
        line = f"  {split}: {count:,} images, {present.sum() / count:.2f} labels an image"
        empty = int(np.sum(~(values == 1).any(1)))
        missing = [name for name, n in zip(dataset.class_names, present, strict=True) if n == 0]
        line += f", {empty:,} without a label" if empty else ""
        line += f", {unknown.sum():,} unknown values" if unknown.any() else ""
        if missing:
            named = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            line += f", {len(missing)} {'class' if len(missing) == 1 else 'classes'} without an image ({named})"
        lines.append(line)
    lines += [f"  {note}" for note in notes]
    named = [name for name in dataset.split_names() if name not in dataset.splits]
    if named:
        lines.append(f"  further splits: {', '.join(f'{name} ({dataset.count(name):,})' for name in named)}")
    left_out = dataset.info.get("left_out", 0)
    if left_out:
        lines.append(f"  {left_out:,} images are not there, listed in {path / 'skipped.csv'}")
    if dataset.info["skipped"] > left_out:
        count = dataset.info["skipped"] - left_out
        what = "row" if count == 1 else "rows"
        lines.append(f"  {count:,} {what} left out (--skip-bad), listed in {path / 'skipped.csv'}")
    return lines
