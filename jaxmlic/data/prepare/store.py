"""From a table, or from the drawn scenes, to a prepared data set."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxmlic import progress
from jaxmlic.data import datasets
from jaxmlic.data.prepare import writer
from jaxmlic.data.prepare.checks import ImageChecker, is_utf8
from jaxmlic.data.prepare.staging import refuse_existing
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.prepare.tables.table import Table
from jaxmlic.errors import UserError


@dataclass(frozen=True)
class Destination:
    """Where a data set goes and how: `skip_bad` leaves bad rows out and lists them, `workers` work at once."""

    name: str
    data_dir: Path
    workers: int = 1
    overwrite: bool = False
    skip_bad: bool = False


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
    fingerprint = _table_fingerprint(table)
    if (not table.problems or skip_bad) and (path := _find_prepared(destination, fingerprint)):
        return Stored(path, already=True)
    refuse_existing(destination.name, destination.data_dir, destination.overwrite)
    info |= {
        "label_values": table.label_values,
        "notes": table.notes,
        "fingerprint": fingerprint,
        "left_out": len(table.left_out),
    }
    with ImageChecker(table, destination.workers, destination.name) as checker:
        if table.problems and not skip_bad:
            raise _refuse(table.problems + checker.remaining_problems(), destination)
        streams = {split: checker.stream(split) for split in table.splits}
        try:
            path = writer.write(
                destination.name,
                destination.data_dir,
                table.class_names,
                streams if skip_bad else {split: _stop_at_problems(stream) for split, stream in streams.items()},
                info,
                table.has_boxes,
                left_out=table.left_out + table.problems,
                named_splits=table.named_splits,
                overwrite=destination.overwrite,
                resume=f"{fingerprint} {skip_bad}",
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

        path = writer.write(
            destination.name,
            destination.data_dir,
            CLASS_NAMES,
            {split: stream(split, count) for split, count in layout.SPLITS.items()},
            {"source": "jaxmlic.data.prepare.scenes", "options": options, "fingerprint": fingerprint},
            has_boxes=True,
            overwrite=destination.overwrite,
        )
    return Stored(path)


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
