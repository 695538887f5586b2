"""From a table, or from the drawn scenes, to a prepared data set."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxmlic import progress, storage
from jaxmlic.data import datasets
from jaxmlic.data.prepare import writer
from jaxmlic.data.prepare.beam import store as beam_store
from jaxmlic.data.prepare.checks import ImageChecker, is_utf8
from jaxmlic.data.prepare.staging import clear, refuse_existing
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.prepare.tables.table import Table
from jaxmlic.errors import UserError


@dataclass(frozen=True)
class Destination:
    """Where a data set goes and how.

    Attributes:
      name: of the data set.
      data_dir: the folder of all data sets.
      workers: threads or processes that work at once.
      overwrite: replace one of that name.
      skip_bad: leave bad rows out and list them.
      shards: files for the records of each split, bounded by rows; None for files of about writer.SHARD_BYTES.
      beam: options of Apache Beam, whose workers read the images then; None for this process.
    """

    name: str
    data_dir: Path
    workers: int = 1
    overwrite: bool = False
    skip_bad: bool = False
    shards: int | None = None
    beam: Sequence[str] | None = None


@dataclass(frozen=True)
class Stored:
    """A prepared data set: its folder, whether it was there `already`, and notes for the summary."""

    path: Path
    already: bool = False
    notes: list[str] = field(default_factory=list)


def store_table(destination: Destination, table: Table, info: dict) -> Stored:
    """Check every image of a table and write the data set, or find that just this is prepared already.

    Args:
      destination: where, and how.
      table: the rows.
      info: more fields for jaxmlic.json.

    Raises:
      UserError: mistakes in rows or images (all of them are listed in a file) unless they are to be left out; another
        data set stands in its place; what `writer.write` refuses.
    """
    no_text = next((name for name in table.class_names if not is_utf8(name)), None)
    if no_text is not None:
        raise UserError(f"the class {no_text!r} is not UTF-8: rename it")
    skip_bad = destination.skip_bad
    num_shards = destination.shards or (_shards_by_size(table) if destination.beam is not None else None)
    fingerprint = _table_fingerprint(table)
    if num_shards:
        fingerprint = _fingerprint(fingerprint, num_shards)
    if (not table.problems or skip_bad) and (path := _find_prepared(destination, fingerprint)):
        return Stored(path, already=True)
    refuse_existing(destination.name, destination.data_dir, destination.overwrite)
    info |= {
        "label_values": table.label_values,
        "notes": table.notes,
        "fingerprint": fingerprint,
        "left_out": len(table.left_out),
    }
    if destination.beam is not None:
        return _store_by_beam(destination, table, info, num_shards)
    with ImageChecker(table, destination.workers, destination.name) as checker:
        if table.problems and not skip_bad:
            raise _refuse(table.problems + checker.remaining_problems(), destination)
        streams = {split: checker.stream(split) for split in table.splits}
        try:
            path = _write(
                destination,
                table.class_names,
                streams if skip_bad else {split: _stop_at_problems(stream) for split, stream in streams.items()},
                info,
                table.has_boxes,
                left_out=table.left_out + table.problems,
                named_splits=table.named_splits,
                resume=f"{fingerprint} {skip_bad}",
                shard_ends=num_shards and {split: _ends(len(rows), num_shards) for split, rows in table.splits.items()},
            )
        except _BadRow as bad:
            raise _refuse([bad.problem, *checker.remaining_problems()], destination) from None
    _problems_path(destination).unlink(missing_ok=True)
    return Stored(path, notes=table.notes)


def store_scenes(destination: Destination, options: dict[str, int]) -> Stored:
    """Draw and write the embedded data set: pictures from a seed, with exact labels and boxes.

    Args:
      destination: where, and how; `workers` are processes.
      options: `seed` and `side`, where they are not the usual ones.
    """
    from jaxmlic.data.prepare.scenes import layout, pictures  # its glyphs are needed here only
    from jaxmlic.data.prepare.voc import CLASS_NAMES

    fingerprint = _fingerprint("scenes", options, list(CLASS_NAMES), dict(layout.SPLITS))
    if path := _find_prepared(destination, fingerprint):
        return Stored(path, already=True)
    total = sum(layout.SPLITS.values())
    with progress.Progress(f"drawing {destination.name}", total) as bar:

        def stream(split: str, count: int) -> Iterator[dict]:
            for example in pictures.examples(split, count, **{"seed": 0, "workers": destination.workers} | options):
                yield example
                bar.advance()

        path = _write(
            destination,
            CLASS_NAMES,
            {split: stream(split, count) for split, count in layout.SPLITS.items()},
            {"source": "jaxmlic.data.prepare.scenes", "options": options, "fingerprint": fingerprint},
            has_boxes=True,
        )
    return Stored(path)


def _write(destination: Destination, *args, **options) -> Path:
    """`writer.write`; a data set for a bucket is made where its copy will be kept, and sent whole."""
    name, data_dir = destination.name, destination.data_dir
    if not storage.is_bucket(data_dir):
        return writer.write(name, data_dir, *args, **options, overwrite=destination.overwrite)
    storage.check_writable(data_dir)
    home = data_dir / name / datasets.VERSION
    shutil.rmtree(storage.copy_place(data_dir / name), ignore_errors=True)
    made = writer.write(name, storage.copy_place(data_dir), *args, **options)
    clear(home)
    storage.send_folder(made, home, last="jaxmlic.json")
    return home


def _store_by_beam(destination: Destination, table: Table, info: dict, num_shards: int) -> Stored:
    if table.problems and not destination.skip_bad:
        raise _refuse(table.problems, destination)
    storage.check_writable(destination.data_dir)
    try:
        path = beam_store.write(
            destination.name,
            destination.data_dir,
            table,
            info,
            num_shards=num_shards,
            options=destination.beam,
            skip_bad=destination.skip_bad,
            overwrite=destination.overwrite,
        )
    except beam_store.BadRows as bad:
        raise _refuse(bad.problems, destination) from None
    _problems_path(destination).unlink(missing_ok=True)
    return Stored(path, notes=table.notes)


def _shards_by_size(table: Table) -> int:
    """How many shards of about writer.SHARD_BYTES the largest split has."""
    sizes = [sum(getattr(row.image, "size", 0) for row in rows) for rows in table.splits.values()]
    return max(1, math.ceil(max(sizes) / writer.SHARD_BYTES))


def _ends(num_rows: int, num_shards: int) -> list[int]:
    """Row n is in shard n * num_shards // num_rows, as with Beam: the number of the row behind each shard."""
    return [-(-number * num_rows // num_shards) for number in range(1, num_shards + 1)]


class _BadRow(Exception):
    """Nothing will be written: a row has a mistake, and the user did not ask to leave such rows out."""

    def __init__(self, problem: Problem):
        super().__init__(str(problem))
        self.problem = problem


def _stop_at_problems(stream: writer.Stream) -> writer.Stream:
    """The same stream, which raises _BadRow for the first problem."""

    def items(last: str | None) -> Iterator[writer.Example]:
        for item in stream(last):
            if isinstance(item, Problem):
                raise _BadRow(item)
            yield item

    return items


def _find_prepared(destination: Destination, fingerprint: str) -> Path | None:
    """The folder where just this is prepared already; UserError when something else stands in its place."""
    name, data_dir = destination.name, destination.data_dir
    if destination.overwrite:
        refuse_existing(name, data_dir, overwrite=True)
        return None
    path = data_dir / name / datasets.VERSION / "jaxmlic.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        info = {}
    whole = info.get("skipped", 0) <= info.get("left_out", 0)
    if info.get("fingerprint") == fingerprint and (whole or destination.skip_bad):
        return path.parent
    refuse_existing(name, data_dir, overwrite=False)
    return None


def _table_fingerprint(table: Table) -> str:
    """Of all that makes the data set: names, labels, boxes, and size and time of every image."""
    parts = [datasets.VERSION, table.class_names, table.label_values, list(table.splits)]
    for split, rows in table.splits.items():
        for row in rows:
            boxes = [[box.label, *box.corners, box.difficult] for box in row.boxes]
            parts += [[split, row.id, row.image.state(), boxes], row.labels.tobytes()]
    return _fingerprint(*parts)


def _fingerprint(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else json.dumps(part).encode())
    return digest.hexdigest()


def _problems_path(destination: Destination) -> Path:
    return destination.data_dir / f"{destination.name}.problems.csv"


def _refuse(problems: list[Problem], destination: Destination) -> UserError:
    """One line for all mistakes; the list goes to a file when there is more than one."""
    text = str(problems[0])
    if len(problems) > 1:
        path = _problems_path(destination)
        try:
            writer.write_problems(path, problems)
            text += f"; and {len(problems) - 1:,} more (all listed in {path})"
        except UserError as error:
            text += f"; and {len(problems) - 1:,} more (they could not be listed: {error})"
    return UserError(f"{text}; --skip-bad leaves bad rows out")
