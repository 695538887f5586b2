"""`jaxmlic data prepare NAME [--source=...]`: turn images and their labels into a prepared data set.

Three doors: the benchmarks from their owners' files (`BENCHMARKS`), a user's own table or class folders, and what is
drawn here. The first two lead to a `table.Table`, whose images are then read, checked and stored in one way.
"""

import argparse
import dataclasses
import os
import shlex
from pathlib import Path

import numpy as np

from jaxmlic.cli.parser import add_command
from jaxmlic.data import datasets
from jaxmlic.data.prepare import benchmarks, folders
from jaxmlic.data.prepare.beam.store import check_installed
from jaxmlic.data.prepare.benchmarks import BENCHMARKS
from jaxmlic.data.prepare.sources.archives import ARCHIVE_SUFFIXES
from jaxmlic.data.prepare.sources.files import Files
from jaxmlic.data.prepare.store import Destination, Stored, store_scenes, store_table
from jaxmlic.data.prepare.tables import table
from jaxmlic.data.prepare.tables.sheets import Options, find_tables
from jaxmlic.errors import UserError, did_you_mean
from jaxmlic.labels import stratify
from jaxmlic.storage import is_bucket, to_path

SCENES = "scenes"
TABLE_OPTIONS = tuple(field.name for field in dataclasses.fields(Options))
SCENE_OPTIONS = ("seed", "side")
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
    known = ", ".join([SCENES, *BENCHMARKS])
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
    parser.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="files for the records of each split, each of as many rows (by size: 256 MiB a file)",
    )
    parser.add_argument(
        "--beam",
        action="store_true",
        help="read and check the images on Apache Beam; they and --data-dir must be where every worker can open them",
    )
    parser.add_argument(
        "--beam-options", metavar="TEXT", help='options of its runner, such as "--runner=FlinkRunner ..."'
    )
    _add_table_options(parser)
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


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("tables")
    own.add_argument(
        "--images", help="folder of the images, also in a bucket, if it is not the table's, its images/ or JPEGImages/"
    )
    own.add_argument("--classes", help="class names, one a line, their order kept (classes.txt, words.txt, labels.txt)")
    own.add_argument("--file-column", help="column of the image's name (file, image, filename, name, path, id)")
    own.add_argument("--labels-column", help="column of the labels (labels, label, categories, tags, classes, words)")
    own.add_argument("--split-column", help="column that divides one table into splits (split)")
    own.add_argument("--separator", help="what stands between two labels (auto: ; or | or , or a proven space)")
    own.add_argument("--label-values", metavar="P,A,U", help="one-hot values present,absent,unknown; VOC: 1,-1,0")
    own.add_argument("--boxes", help="table of boxes: file,label,xmin,ymin,xmax,ymax[,difficult] in pixels")


def run(args: argparse.Namespace) -> int:
    """Prepares what the arguments ask for and prints a summary; raises UserError on a user's mistake."""
    for option in ("workers", "shards"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise UserError(f"--{option}={getattr(args, option)}: at least 1")
    destination = Destination(
        args.name,
        to_path(args.data_dir) if args.data_dir else datasets.default_data_dir(),
        args.workers or len(os.sched_getaffinity(0)),
        args.overwrite,
        args.skip_bad,
        args.shards,
        _beam_options(args),
    )
    stored = _prepare(args, destination)
    # A name on disk need not be UTF-8, and a terminal is.
    print("\n".join(_summary(destination, stored)).encode("utf-8", "backslashreplace").decode())
    return 0


def _beam_options(args: argparse.Namespace) -> list[str] | None:
    """Options for Beam, None without --beam; UserError where it is not installed."""
    if not args.beam:
        if args.beam_options:
            raise UserError("--beam-options goes with --beam")
        return None
    check_installed()
    return shlex.split(args.beam_options or "")


def _prepare(args: argparse.Namespace, destination: Destination) -> Stored:
    name = args.name
    for source in args.source or ():
        if is_bucket(source):
            raise UserError(f"--source={source}: tables and archives are read here: copy it (--images may stay)")
    if name in BENCHMARKS:
        if not args.source:
            raise UserError(
                f"{name}: give the owner's files with --source=DIR_OR_ARCHIVE (jaxmlic data prepare --help lists them)"
            )
        _refuse_options(args, (*TABLE_OPTIONS, *SCENE_OPTIONS), name)
        if not BENCHMARKS[name].has_class_order:
            _refuse_options(args, ("class_order",), name)
        return _prepare_benchmark(args, destination)
    if args.source:
        if len(args.source) > 1:
            raise UserError(f"--source is given {len(args.source)} times: {name!r} is no benchmark, give one")
        _refuse_options(args, (*SCENE_OPTIONS, "class_order", "no_checksums"), "a table")
        return _prepare_own(args, destination)
    if name != SCENES:
        known = [SCENES, *BENCHMARKS]
        raise UserError(
            f"{name!r} is not built in{did_you_mean(name, known)} ({', '.join(known)}): "
            "give your own images with --source=DIR_OR_FILE"
        )
    _refuse_options(args, (*TABLE_OPTIONS, "skip_bad", "class_order", "no_checksums", "shards", "beam"), name)
    chosen = {option: getattr(args, option) for option in SCENE_OPTIONS if getattr(args, option) is not None}
    return store_scenes(destination, chosen)


def _refuse_options(args: argparse.Namespace, useless: tuple[str, ...], what: str) -> None:
    given = next((option for option in useless if getattr(args, option) not in (None, False)), None)
    if given:
        raise UserError(f"--{given.replace('_', '-')} means nothing for {what}: leave it out")


def _scratch(destination: Destination) -> Path | None:
    """Where large temporary files go: beside the data set, which has room for more than /tmp."""
    return None if is_bucket(destination.data_dir) else destination.data_dir


def _prepare_benchmark(args: argparse.Namespace, destination: Destination) -> Stored:
    """A benchmark from its owner's folders and archives."""
    options = {"class_order": args.class_order} if args.class_order else {}
    with Files(args.source, scratch=_scratch(destination), checksums=not args.no_checksums) as files:
        found = benchmarks.read(args.name, files, **options)
        info = {"source": [os.path.abspath(source) for source in files.sources], "options": options}
        return store_table(destination, found, info)


def _prepare_own(args: argparse.Namespace, destination: Destination) -> Stored:
    """A user's own table and images, or class folders."""
    source = Path(args.source[0]).expanduser()
    archive = source.is_file() and source.name.lower().endswith(ARCHIVE_SUFFIXES)
    if archive or (source.is_dir() and not find_tables(source, required=False)[0]):
        with Files([source], scratch=_scratch(destination), checksums=False) as files:
            if folders.is_class_folders(files):
                _refuse_options(args, TABLE_OPTIONS, "class folders")
                return store_table(destination, folders.read(files), {"source": os.path.abspath(source)})
        if archive:
            raise UserError(f"{source}: no class folders in it: extract it, and give the folder or its table")
    asked = {name: getattr(args, name) for name in TABLE_OPTIONS}
    for option in ("images", "classes", "boxes"):
        asked[option] = asked[option] and os.path.expanduser(asked[option])
    options = Options(**{key: value for key, value in asked.items() if value is not None})
    info = {"source": os.path.abspath(source), "options": dataclasses.asdict(options)}
    return store_table(destination, table.read(source, options), info)


def _summary(destination: Destination, stored: Stored) -> list[str]:
    """Lines that describe the data set now prepared."""
    dataset = datasets.load(destination.name, destination.data_dir, records=False)
    if stored.already:
        return [f"{dataset.name}: already prepared in {stored.path} ({dataset.splits})"]
    total = sum(dataset.splits.values())
    lines = [f"{dataset.name}: {total:,} images, {len(dataset.class_names)} classes, in {stored.path}"]
    lines += [_split_line(dataset, split) for split in dataset.splits]
    lines += [f"  {note}" for note in stored.notes]
    named = [name for name in dataset.split_names() if name not in dataset.splits]
    if named:
        lines.append(f"  further splits: {', '.join(f'{name} ({dataset.count(name):,})' for name in named)}")
    left_out = dataset.info.get("left_out", 0)
    if left_out:
        lines.append(f"  {left_out:,} images are not there, listed in {stored.path / 'skipped.csv'}")
    if dataset.info["skipped"] > left_out:
        count = dataset.info["skipped"] - left_out
        what = "row" if count == 1 else "rows"
        lines.append(f"  {count:,} {what} left out (--skip-bad), listed in {stored.path / 'skipped.csv'}")
    return lines


def _split_line(dataset: datasets.Dataset, split: str) -> str:
    count, values = dataset.count(split), dataset.labels(split)
    present, _, unknown = stratify.counts(values)
    line = f"  {split}: {count:,} images, {present.sum() / count:.2f} labels an image"
    empty = int(np.sum(~(values == 1).any(1)))
    missing = [name for name, n in zip(dataset.class_names, present, strict=True) if n == 0]
    line += f", {empty:,} without a label" if empty else ""
    line += f", {unknown.sum():,} unknown values" if unknown.any() else ""
    if missing:
        named = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        line += f", {len(missing)} {'class' if len(missing) == 1 else 'classes'} without an image ({named})"
    return line
