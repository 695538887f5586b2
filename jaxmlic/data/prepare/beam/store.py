"""From a table to a prepared data set through Beam: what `store.store_table` does, on many machines."""

import importlib.util
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxmlic import storage
from jaxmlic.data.datasets import VERSION
from jaxmlic.data.prepare import writer
from jaxmlic.data.prepare.staging import clear, staged
from jaxmlic.data.prepare.tables.sheets import Problem
from jaxmlic.data.prepare.tables.table import Table
from jaxmlic.errors import UserError


class BadRows(Exception):
    """Nothing was kept: rows have mistakes, and the user did not ask to leave such rows out."""

    def __init__(self, problems: list[Problem]):
        super().__init__(len(problems))
        self.problems = problems


def check_installed() -> None:
    """UserError where Apache Beam is not installed."""
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError("--beam needs the package apache-beam: pip install apache-beam")


def write(
    name: str,
    data_dir: Path,
    table: Table,
    info: dict,
    *,
    num_shards: int,
    options: Sequence[str],
    skip_bad: bool,
    overwrite: bool,
) -> Path:
    """Writes a table's data set as `writer.write` does with as many shards; returns its folder.

    Raises:
      BadRows: images with mistakes, unless they are left out.
      UserError: as `writer.write` and `pipeline.write_shards`.
    """
    logging.disable(logging.WARNING)  # about Google's clients, which are not needed
    try:
        from jaxmlic.data.prepare.beam import pipeline  # slow to import
    finally:
        logging.disable(logging.NOTSET)
    with _destination(name, data_dir, overwrite) as (folder, described):
        made = writer.builder(name, described.parent.parent, len(table.class_names), table.has_boxes)
        counts, problems = pipeline.write_shards(made, folder, table.splits, num_shards, options)
        listed = [problems[split][number] for split in table.splits for number in sorted(problems[split])]
        if listed and not skip_bad:
            raise BadRows(listed)
        split_infos = []
        for split, rows in table.splits.items():
            if split not in counts:
                raise UserError(f"the split {split!r} of {name!r} has no examples")
            good = [row for number, row in enumerate(rows) if number not in problems[split]]
            arrays = {"ids": np.array([row.id for row in good], str), "labels": np.stack([row.labels for row in good])}
            split_infos.append(made.split_info(split, described, *counts[split]))
            storage.save_npz(described / f"labels-{split}.npz", arrays)
        skipped = table.left_out + table.problems + listed
        writer.describe(described, made, table.class_names, split_infos, info, skipped, table.named_splits)
    return data_dir / name / VERSION


@contextmanager
def _destination(name: str, data_dir: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """The folder for the shards, and that for what describes them, which is the same but for a bucket.

    In a bucket the data set is there with its jaxmlic.json, which is written last.
    """
    if not storage.is_bucket(data_dir):
        with staged(name, data_dir, overwrite) as (folder, _):
            yield folder, folder
        return
    folder = data_dir / name / VERSION
    clear(folder)
    scratch = Path(tempfile.mkdtemp(prefix="jaxmlic-"))
    described = scratch / name / VERSION
    described.mkdir(parents=True)
    try:
        yield folder, described
        storage.send_folder(described, folder, last="jaxmlic.json")
    except BaseException:
        clear(folder)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
